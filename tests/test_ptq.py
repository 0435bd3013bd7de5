"""qhelpers.ptq: models that no notebook shows, torch's codes, and a user's mistakes."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qhelpers import build_model, choose_engine, load_quantized, quantize_model, test
from qhelpers.affine import asymmetric_quantization, symmetric_dequantize
from qhelpers.ptq.layers import QuantizedActivation
from tests.models import BATCH, Branched, ConvNet, Twice, Untraceable


def parts(quantized, kind):
    return {name: m for name, m in quantized.graph.named_modules() if isinstance(m, kind)}


def test_a_convolutional_net_keeps_its_accuracy(conv_net, few):
    """8/8 within 0.3 points; at most 2**bits different weights a channel."""
    before = {name: tensor.clone() for name, tensor in conv_net.state_dict().items()}
    for granularity in ("per tensor", "per channel"):
        quantized = quantize_model(
            conv_net, few.train_images[:500].split(100), granularity=granularity
        )
        assert quantized.kept_in_float == []
        assert not any("norm" in name for name, _ in quantized.graph.named_modules())
        assert abs(test(quantized, few) - test(conv_net, few)) <= 0.003
    assert all(torch.equal(before[name], t) for name, t in conv_net.state_dict().items())
    for bits in (2, 4):
        quantized = quantize_model(conv_net, [few.train_images[:100]], weight_bits=bits)
        for name in ("conv1", "conv2", "head.0", "head.3"):
            weight = quantized.graph.get_submodule(name).weight()
            assert all(len(channel.unique()) <= 2**bits for channel in weight)


def test_folding_and_fusing_change_nothing(conv_net, few):
    """With 16 bits the quantized model is the float one, up to rounding."""
    images = few.test_images[:200]
    quantized = quantize_model(conv_net, [images], 16, 16)
    assert torch.allclose(quantized(images), conv_net(images), atol=0.005)


@pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
def test_weights_and_scales_are_torch_s(conv_net, few, granularity):
    """Codes of every weight, and scale and zero point of every activation, with 8 bits."""
    import torch.ao.quantization as reference

    choose_engine()
    per = "per_channel_" if granularity == "per channel" else ""
    weight = getattr(reference, f"default_{per}weight_observer")
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 30), nn.Linear(30, 10)]
    plain = nn.Sequential(*layers).eval()
    theirs = nn.Sequential(reference.QuantStub(), *layers, reference.DeQuantStub()).eval()
    theirs = reference.fuse_modules(theirs, ["2", "3"])
    theirs.qconfig = reference.QConfig(
        activation=reference.MinMaxObserver.with_args(dtype=torch.quint8), weight=weight
    )
    theirs = reference.prepare(theirs)
    batches = few.train_images[:300].split(100)
    for batch in batches:
        theirs(batch)
    theirs = reference.convert(theirs)
    quantized = quantize_model(plain, batches, granularity=granularity)
    for place in (1, 3, 4):
        layer = theirs.get_submodule(str(place + 1))
        assert torch.equal(
            quantized.graph.get_submodule(str(place)).codes, layer.weight().int_repr()
        )
        activation = quantized.graph.get_submodule(f"quantize_{place}")
        assert activation.scale.item() == layer.scale
        assert activation.zero_point.item() == layer.zero_point


def test_what_is_not_supported_is_named_and_the_rest_quantized(few):
    model = build_model(Branched, 0).eval()
    images = few.train_images[:200]
    with pytest.warns(UserWarning, match="not quantized and compute in floats: gelu"):
        quantized = quantize_model(model, [images])
    assert quantized.kept_in_float == ["gelu (gelu)", "sub (sub)"]
    assert "in floats: gelu (gelu), sub (sub)" in str(quantized)
    for name in ("first", "second", "last"):
        assert quantized.graph.get_submodule(name).codes.dtype == torch.int8
    assert (quantized(images).argmax(1) == model(images).argmax(1)).double().mean() > 0.9


def test_bits_and_strategies_layer_by_layer(small):
    last = {"weight_bits": 2, "activation_bits": 8, "activation_strategy": "cross-entropy"}
    per_layer = {"2": last, "input": {"activation_bits": None}}
    strategies = {"weight_strategy": "mse", "activation_strategy": "mse"}
    quantized = quantize_model(small, [BATCH], 4, 3, **strategies, per_layer=per_layer)
    assert quantized.graph.get_submodule("0").codes.abs().max() <= 8
    assert {*quantized.graph.get_submodule("2").codes.unique().tolist()} <= {-2, -1, 0, 1}
    places = parts(quantized, QuantizedActivation)
    bits = {name: place.bits for name, place in places.items()}
    assert bits == {"quantize_0": 3, "quantize_2": 8}
    assert places["quantize_2"].strategy == "cross-entropy"


class Forked(nn.Module):
    """What the layer returns goes into BatchNorm, and past it."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(12, 3)

    def forward(self, x):
        x = self.layer(x)
        return self.last(torch.cat([self.norm(x), x], 1))


def test_a_batch_norm_that_takes_what_others_take_too_is_not_folded():
    torch.manual_seed(0)
    model = Forked()
    nn.init.uniform_(model.norm.weight, 2, 3)
    model.eval()
    with pytest.warns(UserWarning, match="not quantized and compute in floats: norm$"):
        quantized = quantize_model(model, [BATCH], 16, 16)
    assert torch.allclose(quantized(BATCH), model(BATCH), atol=0.01)


def test_a_batch_norm_that_follows_no_layer_takes_and_returns_codes():
    """As in DenseNet, with the ReLU behind it. One that a layer should have taken in does not."""
    torch.manual_seed(0)
    norm, layer = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
    model = nn.Sequential(norm, nn.ReLU(), layer, nn.Flatten()).eval()
    images = torch.randn(8, 3, 5, 5)
    quantized = quantize_model(model, [images])
    assert list(parts(quantized, QuantizedActivation)) == [
        "quantize_input", "quantize_0", "quantize_2",
    ]  # fmt: skip
    assert quantized.kept_in_float == []
    assert quantized.graph.get_submodule("quantize_0").zero_point == 0
    assert torch.allclose(quantized(images), model(images), atol=0.05)
    twice = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm, layer).eval()
    with pytest.warns(UserWarning, match="not quantized and compute in floats: 1, 1$"):
        quantize_model(twice, [images])


class Split(nn.Module):
    """Two layers whose results are put together; what the first takes goes past it, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 4), nn.Linear(6, 3), nn.Linear(13, 3)

    def forward(self, x):
        return self.last(torch.cat([torch.relu(self.first(x)), self.second(x), x], 1))


def test_what_is_put_together_is_rounded_once():
    torch.manual_seed(0)
    model = Split().eval()
    quantized = quantize_model(model, [BATCH])
    places = parts(quantized, QuantizedActivation)
    assert list(places) == ["quantize_input", "quantize_cat", "quantize_last"]
    assert torch.allclose(quantized(BATCH), model(BATCH), atol=0.05)
    with pytest.raises(ValueError, match="'activation_bits' for 'first', where it changes nothing"):
        quantize_model(model, [BATCH], per_layer={"first": {"activation_bits": 4}})


def test_a_layer_may_be_called_twice():
    torch.manual_seed(0)
    model = Twice().eval()
    with pytest.warns(UserWarning, match="not quantized and compute in floats: norm, norm$"):
        quantized = quantize_model(model, [BATCH])
    places = parts(quantized, QuantizedActivation)
    assert list(places) == ["quantize_input", "quantize_layer", "quantize_norm",
                            "quantize_layer_1"]  # fmt: skip
    assert torch.allclose(quantized(BATCH), model(BATCH), atol=0.05)


@pytest.mark.parametrize("granularity", ["per tensor", "per channel", 3])
def test_weights_are_what_their_codes_stand_for(granularity):
    layer = nn.Linear(6, 5)
    quantized = quantize_model(
        nn.Sequential(layer).eval(), [BATCH], 4, None, granularity=granularity
    )
    part = quantized.graph.get_submodule("0")
    assert part.codes.shape == (5, 6)
    assert part.scale.shape == {"per tensor": (), "per channel": (5, 1), 3: (5, 2)}[granularity]
    assert np.array_equal(part.weight().numpy(), symmetric_dequantize(part.codes, part.scale))
    expected = functional.linear(BATCH, part.weight(), layer.bias)
    assert torch.equal(quantized(BATCH), expected)


def test_activations_pass_through_codes():
    place = QuantizedActivation("x", 4, "min-max")
    place.observe()
    assert torch.equal(place(BATCH), BATCH)  # while it observes
    place.settle()
    codes, scale, zero = asymmetric_quantization(BATCH, 4)
    expected = (codes.astype(np.float32) - zero) * scale
    assert np.array_equal(place(BATCH).numpy(), expected)


def test_dynamic_ranges_are_those_of_the_batch(small):
    quantized = quantize_model(small, [], activation_strategy="dynamic")  # no calibration
    for factor in (1.0, 1e-3, 1e3):
        error = (quantized(BATCH * factor) - small(BATCH * factor)).abs().max()
        assert error <= 0.02 * max(factor, small(BATCH * factor).abs().max())


def test_layer_after_layer_calibrates_on_quantized_inputs(small):
    """With few bits the later layer sees other numbers, and gets another range."""
    at_once = quantize_model(small, [BATCH], 2, 2)
    in_turn = quantize_model(small, [BATCH], 2, 2, layer_after_layer=True)
    at_once, in_turn = (parts(q, QuantizedActivation) for q in (at_once, in_turn))
    assert torch.equal(at_once["quantize_input"].scale, in_turn["quantize_input"].scale)
    assert not torch.equal(at_once["quantize_2"].scale, in_turn["quantize_2"].scale)


def test_a_saved_model_comes_back(conv_net, few, tmp_path):
    images = few.test_images[:50]
    quantized = quantize_model(
        conv_net, [few.train_images[:100]], 4, 4, per_layer={"head.3": {"granularity": 8}}
    )
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=True)
    again = load_quantized(build_model(ConvNet, 7), tmp_path / "model.pt")
    assert torch.equal(again(images), quantized(images))
    assert str(again) == str(quantized)
    other = quantize_model(conv_net, [few.train_images[:100]], 8)
    with pytest.raises(ValueError, match="quantized with other options"):
        other.load_state_dict(quantized.state_dict())


def test_the_summary_has_a_line_for_each_part(small):
    lines = str(quantize_model(small, [BATCH])).splitlines()
    names = ["0 weight", "2 weight", "input activation", "0 activation", "2 activation"]
    assert [line[:24].strip() for line in lines[1:]] == names
    assert all(" to " in line for line in lines[1:])
    reduced = str(quantize_model(small, [BATCH], reduce_range=True)).splitlines()
    assert [line[24:29].strip() for line in reduced[1:]] == ["8", "8", "7", "7", "7"]


@pytest.mark.parametrize("granularity", ["per tensor", "per channel", 1])
def test_the_ranges_in_the_summary_are_those_that_the_codes_cover(small, granularity):
    """Of weights and activations, from the scale and the zero point in torch's own quantizer."""
    quantized = quantize_model(small, [BATCH], 4, 3, granularity=granularity)
    lines = {line[:24].strip(): line[65:] for line in str(quantized).splitlines()[1:]}
    far = torch.tensor([-1e9, 1e9])  # clamped to the first and the last code
    for name in ("0", "2"):
        layer, place = quantized.graph.get_submodule(name), f"quantize_{name}"
        activation = quantized.graph.get_submodule(place)
        ends = torch.fake_quantize_per_tensor_affine(far, layer.scale.max().item(), 0, -8, 7)
        text = f"{ends[0]:.4g} to {ends[1]:.4g}  {granularity}"
        assert lines[f"{name} weight"] == text + (
            "" if "tensor" in str(granularity) else ", the widest"
        )
        scale, zero = activation.scale.item(), activation.zero_point.item()
        ends = torch.fake_quantize_per_tensor_affine(far, scale, zero, 0, 7)
        assert lines[f"{name} activation"] == f"{ends[0]:.4g} to {ends[1]:.4g}"


def test_batches_may_be_pairs(small):
    labels = torch.zeros(4)
    assert torch.equal(
        quantize_model(small, [(BATCH, labels)])(BATCH), quantize_model(small, [BATCH])(BATCH)
    )


def test_training_mode_is_warned_of(small):
    small.train()
    with pytest.warns(UserWarning, match="^model is in training mode; it is quantized as in eval"):
        quantize_model(small, [BATCH])
    assert small.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_model(small.eval(), [BATCH])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight_bits": 1}, "bits is 1; it must be an integer from 2 to 16"),
        ({"activation_bits": 0}, "bits is 0; it must be an integer from 1"),
        ({"weight_strategy": "kl"}, "weight_strategy is 'kl'; it must be"),
        ({"activation_strategy": 1}, "activation_strategy is 1; it must be"),
        ({"activation_strategy": "cross-entropy"}, ".*is for logits: give it in per_layer"),
        ({"granularity": "per row"}, "granularity is 'per row'; it must be"),
        ({"granularity": 4}, "granularity is 4; it must divide"),
        ({"granularity": 9}, "granularity is 9; it must be an integer from"),
        ({"per_layer": {"9": {}}}, "per_layer names '9'; the layers are"),
        ({"per_layer": {"0": {"bits": 4}}}, "per_layer has the option 'bits'"),
        (
            {"per_layer": {"input": {"bias_correction": True}}},
            "per_layer has the option 'bias_correction' for 'input', where it changes nothing",
        ),
    ],
)
def test_bad_options_are_named(small, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        quantize_model(small, [BATCH], **options)


@pytest.mark.parametrize(
    "batches, error, message",
    [
        ([], ValueError, "calibration_batches is empty; it must hold at least one"),
        ([BATCH, BATCH * np.nan], ValueError, "input activation: batch holds nan; all"),
        ([BATCH.numpy()], TypeError, "calibration_batches holds ndarray; it must hold tensor"),
    ],
)
def test_bad_batches_are_named(small, batches, error, message):
    with pytest.raises(error, match=f"^{message}"):
        quantize_model(small, batches)


def test_models_that_can_not_be_quantized():
    with pytest.raises(RuntimeError, match="^torch.fx can't trace Untraceable: "):
        quantize_model(Untraceable().eval(), [BATCH])
    with pytest.raises(ValueError, match="^model has no Linear or Conv2d layer"):
        quantize_model(nn.Sequential(nn.ReLU()).eval(), [BATCH])
    elsewhere = nn.Sequential(nn.Linear(6, 3, device="meta")).eval()
    with pytest.raises(ValueError, match="^model has 0.weight on meta; move it to the CPU first"):
        quantize_model(elsewhere, [BATCH])
