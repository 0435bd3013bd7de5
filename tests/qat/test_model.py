"""qhelpers.qat: three methods on models that no notebook shows, conversion, mistakes."""

import copy

import pytest
import torch
from torch import nn

from qhelpers import (
    FakeQuantize,
    LearnedStepSize,
    build_model,
    load_quantized,
    prepare_qat,
    quantize_model,
    test,
    train,
)
from qhelpers.qat.model import METHODS
from tests.models import BATCH, Branched, Twice, Untraceable


def train_a_little(model, batch=BATCH, steps=20, learning_rate=0.01):
    """Steps in float32, towards other outputs."""
    goal = torch.randn(model(batch).shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch), goal).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
def test_what_was_trained_is_what_is_converted(conv_net, few, method, granularity):
    """Equal logits, at most 2**bits different weights a channel; the original stays as it was."""
    before = copy.deepcopy(conv_net.state_dict())
    images = few.train_images[:100]
    model = prepare_qat(
        conv_net, 3, 4, method, calibration_batches=[images], granularity=granularity
    )
    assert model.kept_in_float == []
    assert all(torch.equal(before[name], t) for name, t in conv_net.state_dict().items())
    train(model, few, total_iterations_limit=10, learning_rate=1e-3)
    model.eval()
    trained = copy.deepcopy(model.state_dict())
    quantized = model.convert()
    assert all(torch.equal(trained[name], t) for name, t in model.state_dict().items())
    assert torch.equal(quantized(few.test_images), model(few.test_images))
    for name in ("conv1", "conv2", "head.0", "head.3"):
        part = quantized.graph.get_submodule(name)
        assert part.codes.dtype == torch.int8
        assert all(len(channel.unique()) <= 8 for channel in part.weight())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["per tensor", "per channel", 3])
def test_before_training_it_computes_what_quantize_model_returns(small, method, granularity):
    per_layer = {"2": {"activation_bits": 8, "granularity": 5}, "input": {"activation_bits": None}}
    strategy = "min-max" if method == "ste" else "mse"
    options = {"granularity": granularity, "per_layer": per_layer}
    model = prepare_qat(small, 4, 3, method, calibration_batches=[BATCH], **options)
    quantized = quantize_model(
        small, [BATCH], 4, 3, weight_strategy=strategy, activation_strategy=strategy, **options
    )
    tolerance = {"atol": 1e-5 if method == "lsq" else 0}  # exp(log(scale)) rounds
    assert torch.allclose(model.eval()(BATCH), quantized(BATCH), **tolerance)
    assert str(model.convert()).count("\n") == str(quantized).count("\n")


@pytest.mark.parametrize("method, moves", [("ste", True), ("frozen", False), ("lsq", True)])
def test_scales_move_or_stay(small, method, moves):
    model = prepare_qat(small, 4, 4, method, calibration_batches=[BATCH])
    before = model.convert()
    after = train_a_little(model).convert()
    for (name, old), (_, new) in zip(
        before.graph.named_buffers(), after.graph.named_buffers(), strict=True
    ):
        if name.endswith("scale") and "input" not in name:
            assert torch.equal(old, new) != moves, name
    assert not torch.equal(before.graph.get_submodule("0").codes,
                           after.graph.get_submodule("0").codes)  # fmt: skip


def test_ste_follows_the_weights_and_observes_in_training_only(small):
    model = prepare_qat(small, 4, 4, "ste", calibration_batches=[BATCH]).train()
    with torch.no_grad():
        model.graph.get_submodule("0").layer.weight.mul_(3)
    place = model.graph.get_submodule("quantize_0")
    scale = place.scale.clone()
    model.eval()(BATCH)
    assert torch.equal(place.scale, scale)
    model.train().observe(False)
    model(BATCH)
    assert torch.equal(place.scale, scale)
    model.observe(True)
    model(BATCH)
    assert place.scale > scale
    weight = model.graph.get_submodule("0").layer.weight
    codes = model.convert().graph.get_submodule("0")
    assert torch.allclose(codes.scale.flatten(), weight.abs().amax(dim=1) / 7.5)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded(small, method, tmp_path):
    model = train_a_little(prepare_qat(small, 4, 4, method, calibration_batches=[BATCH]))
    again = prepare_qat(small, 4, 4, method, calibration_batches=[BATCH])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(BATCH), model(BATCH))
    torch.save(model.convert().state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_quantized(small, tmp_path / "model.pt")(BATCH), model(BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["frozen", "lsq"])
def test_it_recovers_what_two_bits_lost(conv_net, few, method):
    """On a convolutional model: most of what post-training quantization loses."""
    images = few.train_images[:300]
    options = {"per_layer": {"head.3": {"activation_bits": 8}}}
    strategies = {"weight_strategy": "mse", "activation_strategy": "mse"}
    lost = test(quantize_model(conv_net, [images], 2, 2, **strategies, **options), few)
    model = prepare_qat(conv_net, 2, 2, method, calibration_batches=[images], **options)
    train(model, few, total_iterations_limit=300, learning_rate=1e-3)
    recovered = test(model.convert(), few)
    assert test(conv_net, few) - recovered < 0.4 * (test(conv_net, few) - lost)
    assert test(conv_net, few) - lost > 0.03


def test_what_is_not_supported_is_named(few):
    model = build_model(Branched, 0).eval()
    images = few.train_images[:50]
    with pytest.warns(UserWarning, match="not quantized and compute in floats: gelu"):
        trained = prepare_qat(model, 4, 4, "lsq", calibration_batches=[images])
    assert trained.kept_in_float == trained.convert().kept_in_float == ["gelu (gelu)", "sub (sub)"]


def test_a_layer_may_be_called_twice():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="not quantized and compute in floats: norm, norm$"):
        model = prepare_qat(Twice().eval(), 8, 8, "ste", calibration_batches=[BATCH])
    assert torch.equal(train_a_little(model).convert()(BATCH), model(BATCH))


def test_each_method_has_its_parts(small):
    for method, kind in [("ste", FakeQuantize), ("frozen", FakeQuantize), ("lsq", LearnedStepSize)]:
        model = prepare_qat(small, 4, 4, method, calibration_batches=[BATCH])
        fakes = [part for part in model.modules() if isinstance(part, FakeQuantize)]
        assert len(fakes) == 5 and {type(fake) for fake in fakes} == {kind}
        assert {fake.observer is not None for fake in fakes} == {method == "ste"}
        names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
        assert names == {"weight", "bias"} | ({"log_scale"} if method == "lsq" else set())


def test_mistakes_end_in_a_clear_error(small):
    """Its own; those about the options that it shares with quantize_model are in test_ptq."""
    dynamic = {"0": {"activation_strategy": "dynamic"}}
    for changed, message in [
        ({"method": "lqs"}, "^method is 'lqs'; it must be one of"),
        ({"weight_bits": 1}, "^bits is 1; it must be an integer from 2 to 16"),
        ({"activation_bits": 0}, "^bits is 0; it must be an integer from 1"),
        ({"calibration_batches": []}, "^calibration_batches is empty"),
        ({"granularity": "rows"}, "^granularity is 'rows'; it must be"),
        ({"per_layer": dynamic}, "^per_layer has the option 'activation_strategy' for '0'; it"),
    ]:
        arguments = {"weight_bits": 4, "activation_bits": 4, "method": "ste"}
        with pytest.raises(ValueError, match=message):
            prepare_qat(small, **({"calibration_batches": [BATCH]} | arguments | changed))
    with pytest.raises(RuntimeError, match="^torch.fx can't trace Untraceable: "):
        prepare_qat(Untraceable().eval(), 4, 4, "ste", calibration_batches=[BATCH])
    with pytest.warns(UserWarning, match="^model is in training mode"):
        prepare_qat(small.train(), 4, 4, "lsq", calibration_batches=[BATCH])
