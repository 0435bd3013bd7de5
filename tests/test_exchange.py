"""Taking a quantized model elsewhere: torch.export and ONNX Runtime, copies and pickles, hooks."""

import copy
import io
import pickle  # noqa: S403 - only what the test has written
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from qhelpers import (
    DepthwiseNet,
    ResidualNet,
    build_model,
    integer_model,
    load_quantized,
    prepare_qat,
    quantize_model,
)
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.rules import TABLE, described
from qhelpers.qat.model import METHODS
from tests.models import ConvNet

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(16, 4, 9, 9, generator=torch.Generator().manual_seed(0))
BATCH = torch.export.Dim("batch")
NODES = ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel")


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def exported(model, *args):
    """The program of a model for batches of any size."""
    small = tuple(value[:2].clone() for value in args)
    return torch.export.export(model, small, dynamic_shapes=tuple({0: BATCH} for _ in args))


def counted(program):
    """How many quantize and dequantize nodes a program has, by name."""
    names = [str(n.target).split(".")[1] for n in program.graph.nodes if n.op == "call_function"]
    return [Counter(names)[name] for name in NODES]


def in_onnx_runtime(program, path, *args, optimised=False):
    """What ONNX Runtime computes, and the operations in the file, or those left when optimised."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"not installed: {package}, of the extra deploy")
    import onnx
    import onnxruntime

    torch.onnx.export(program, f=path, external_data=False, verbose=False)
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_DISABLE_ALL
    if optimised:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path.with_suffix(".fast.onnx"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    results = session.run(None, {n: value.numpy() for n, value in zip(names, args, strict=True)})
    nodes = onnx.load(path.with_suffix(".fast.onnx") if optimised else path).graph.node
    return results, Counter(node.op_type for node in nodes)


def network(model_class, data):
    model = build_model(model_class, 0)
    with torch.no_grad():  # so that BatchNorm has seen data
        for images in data.train_images[:2000].split(100):
            model(images)
    return model.eval()


NETWORKS = {  # which operations get an integer kernel
    ConvNet: {"QLinearConv": 1, "QGemm": 2},  # a convolution is behind a padding by reflection
    ResidualNet: {"QLinearConv": 3, "QGemm": 1, "QLinearAdd": 1},
    DepthwiseNet: {"QLinearConv": 7, "QGemm": 1},
}


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda each: each.__name__)
def case(request, few):
    """A network, quantized with weights of 7 bits, whose pairs of products never saturate."""
    model = network(request.param, few)
    quantized = quantize_model(model, [few.train_images[:500]], weight_bits=7)
    return quantized, few.test_images, NETWORKS[request.param]


def places_and_layers(quantized):
    modules = [*quantized.graph.modules()]
    return [
        sum(isinstance(m, kind) for m in modules) for kind in (QuantizedActivation, QuantizedLayer)
    ]


def test_a_program_has_the_codes_and_computes_the_same(case):
    quantized, images, _ = case
    places, layers = places_and_layers(quantized)
    program = exported(quantized, images)
    assert counted(program) == [places, places, layers]
    kept = {**program.state_dict, **program.constants}
    floats = [n for n, tensor in kept.items() if tensor.is_floating_point() and tensor.ndim > 2]
    assert floats == []  # all weights are codes
    with torch.no_grad():
        assert torch.equal(program.module()(images), quantized(images))


def test_onnx_runtime_computes_the_same_from_the_file(case, tmp_path):
    quantized, images, _ = case
    places, layers = places_and_layers(quantized)
    with torch.no_grad():
        ours = quantized(images).numpy()
    program = exported(quantized, images)
    (theirs,), found = in_onnx_runtime(program, tmp_path / "model.onnx", images)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (places, places + layers)
    # It divides by the scale, and sums in another order: a code next to a middle may be another.
    assert (np.abs(ours - theirs) > 1e-4).mean() < 1e-3


def test_onnx_runtime_has_integer_kernels_for_the_file(case, tmp_path):
    quantized, images, kernels = case
    with torch.no_grad():
        ours = quantized(images).numpy()
    program = exported(quantized, images)
    path = tmp_path / "model.onnx"
    (theirs,), found = in_onnx_runtime(program, path, images, optimised=True)
    assert {name: found[name] for name in kernels} == kernels
    # The kernels round the bias, too, which moves a code by one step, and rarely by more.
    step = quantized.graph.get_submodule(last_place(quantized)).scale.item()
    steps = np.rint(np.abs(ours - theirs) / step)
    assert steps.max() <= 3 and (steps > 0).mean() < 0.3 and (steps > 1).mean() < 0.02
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.97


def last_place(quantized):
    return [n.target for n in quantized.graph.graph.nodes if n.op == "call_module"][-1]


class WithEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 12), nn.Linear(12, 4)

    def forward(self, tokens):
        return self.head(self.table(tokens).mean(1))


TOKENS = torch.arange(60).reshape(12, 5) % 20


@pytest.mark.parametrize(
    "model, x, options",
    [
        (mlp(), X, {"weight_bits": 4, "activation_bits": 4}),
        (mlp(), X, {"weight_bits": 2, "activation_bits": 1}),
        (mlp(), X, {"activation_bits": None}),
        (mlp(), X, {"reduce_range": True}),
        (mlp(), X, {"granularity": 4, "weight_bits": 3}),
        (nn.Conv2d(4, 6, 3), IMAGES, {"granularity": "per tensor", "activation_bits": 7}),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), IMAGES, {"granularity": 9}),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), IMAGES, {}),
        (nn.Conv1d(12, 6, 1), X[:, :, None], {}),
        (WithEmbedding(), TOKENS, {}),
    ],
)
def test_fewer_bits_groups_and_other_layers_are_exported(model, x, options, tmp_path):
    calibration = x / 2 if x.is_floating_point() else x  # so that codes are clipped
    quantized = quantize_model(nn.Sequential(model).eval(), [calibration], **options)
    expected = quantized(x)
    program = exported(quantized, x)
    assert torch.equal(program.module()(x), expected)
    (theirs,), _ = in_onnx_runtime(program, tmp_path / "model.onnx", x)
    assert (np.abs(expected.detach().numpy() - theirs) > 1e-4).mean() < 0.005


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation_bits": 16}, "^input has 16 bits.*weight_bits or activation_bits"),
        ({"weight_bits": 9}, "^0 has 9 bits.*weight_bits or activation_bits"),
        ({"activation_strategy": "dynamic"}, "^input has dynamic.*activation_strategy"),
    ],
)
def test_what_can_not_be_exported_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        exported(quantize_model(mlp(), [X], **options), X)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_training_is_exported_once_it_is_converted(method):
    model = prepare_qat(mlp(), 8, 8, method, calibration_batches=[X])
    with pytest.raises(ValueError, match="^model is still in training"):
        exported(model, X)
    assert counted(exported(model.convert(), X)) == [3, 3, 2]


def test_a_loaded_model_is_exported_with_its_own_scales(tmp_path):
    quantized = quantize_model(mlp(), [X])
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    program = exported(load_quantized(mlp(), tmp_path / "model.pt"), X)
    assert torch.equal(program.module()(X), quantized(X))
    torch.export.save(program, tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(X), quantized(X))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 4), nn.Linear(12, 3)

    def forward(self, x, y, scale=2.0):
        return {"first": self.first(x) * scale, "others": (self.second(y),)}


@pytest.mark.filterwarnings("ignore:these are not quantized")
def test_arguments_and_outputs_are_those_of_the_model(tmp_path):
    quantized = quantize_model(Two().eval(), [{"x": X, "y": 2 * X}])
    small = {"x": X[:2].clone(), "y": X[:2].clone()}
    program = torch.export.export(
        quantized, (), small, dynamic_shapes={"x": {0: BATCH}, "y": {0: BATCH}}
    )
    ours = quantized(X, 2 * X)
    assert torch.equal(program.module()(x=X, y=2 * X)["first"], ours["first"])
    results, _ = in_onnx_runtime(program, tmp_path / "two.onnx", X, 2 * X)
    assert [result.shape for result in results] == [(64, 4), (64, 3)]
    for mine, theirs in zip((ours["first"], ours["others"][0]), results):
        assert np.allclose(mine.detach().numpy(), theirs, atol=1e-4)


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "torch.save": saved_whole,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_compute_the_same_and_are_exported(way):
    quantized = quantize_model(mlp(), [X], per_layer={"0": {"granularity": 4}})
    again = COPIES[way](quantized)
    assert torch.equal(again(X), quantized(X)) and str(again) == str(quantized)
    assert torch.equal(exported(again, X).module()(X), quantized(X))
    integers = integer_model(quantize_model(mlp(), [X]))
    assert np.array_equal(COPIES[way](integers)(X), integers(X))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("method", METHODS)
def test_copies_train_the_same(way, method):
    model = prepare_qat(mlp(), 8, 4, method, calibration_batches=[X])
    model(3 * X)
    again = COPIES[way](model)
    for each in (model, again):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        each(2 * X).square().mean().backward()
        optimizer.step()
    assert torch.equal(again.eval()(X), model.eval()(X))
    assert torch.equal(again.convert()(X), model.convert()(X))
    assert not torch.equal(again(X), prepare_qat(mlp(), 8, 4, method, calibration_batches=[X])(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_other_floats_are_trained_and_computed_in_float32(dtype, method):
    x = X.to(dtype)
    model = prepare_qat(mlp().to(dtype), 8, 8, method, calibration_batches=[x])
    model(x).sum().backward()
    assert torch.equal(model.eval()(x), model.convert()(x))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert integer_model(model.convert())(x).dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_passes_as_in_torch(method):
    model = prepare_qat(mlp(), 8, 8, method, calibration_batches=[X[:0], X])
    place = model.graph.get_submodule("quantize_0")
    before = place.step(X).item()
    assert model(X[:0]).shape == model.convert()(X[:0]).shape == (0, 4)
    assert place.step(X).item() == before
    with pytest.raises(ValueError, match="^calibration_batches shows no numbers to input"):
        prepare_qat(mlp(), 8, 8, method, calibration_batches=[X[:0]])


@pytest.mark.parametrize("method", METHODS)
def test_what_inference_mode_prepares_is_trained_after_it(method):
    with torch.inference_mode():
        model = prepare_qat(mlp(), 8, 8, method, calibration_batches=[X * 1])
    model(X * 1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class WithBody(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
        self.conv, self.norm = nn.Conv1d(12, 6, 1), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.conv(self.body(x)[:, :, None]))


@pytest.mark.filterwarnings("ignore:these are not quantized")
def test_hooks_that_tracing_drops_are_named_and_the_others_run():
    model, ran = WithBody().eval(), []
    model.register_forward_pre_hook(lambda *_: ran.append("root"))
    model.body.register_forward_pre_hook(lambda *_: ran.append("container"))
    model.body.register_forward_hook(lambda module, args, result: result + 1)
    model.norm.register_forward_hook(lambda *_: ran.append("norm"))
    model.body[0].register_forward_hook(lambda *_: ran.append("layer after"))
    model.body[1].register_forward_pre_hook(lambda *_: ran.append("relu"))
    model.body[2].register_forward_pre_hook(lambda *_: ran.append("layer before"))
    with pytest.warns(UserWarning, match="^hooks of the model itself, body don't run"):
        quantized = quantize_model(model, [X])
    with pytest.warns(UserWarning, match="^hooks of the model itself, body don't run"):
        trained = prepare_qat(model, 8, 8, "lsq", calibration_batches=[X])
    for each in (quantized, trained, trained.convert()):
        ran.clear()
        result = each(X)
        assert ran == ["layer after", "relu", "layer before", "norm"]
        assert (result - model(X)).abs().max() < 0.1  # what a container's hook adds was traced


class InPlace(nn.Module):
    """Changes its arguments, of floats, integers and bools, in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Embedding(9, 12), nn.Linear(12, 4)

    def forward(self, x, tokens, mask):
        x = x.add_(1).relu_() * mask.logical_not_()
        return self.second(x + self.first(tokens.add_(1)))


@pytest.mark.parametrize("quantize", ["quantize_model", *METHODS])
def test_nothing_changes_the_caller_s_batch(quantize):
    mine = {"x": X.clone(), "tokens": torch.arange(64) % 8, "mask": X > 0}
    kept, batches = copy.deepcopy(mine), [mine]
    if quantize == "quantize_model":
        model = quantize_model(InPlace().eval(), batches, bias_correction=False)
    else:
        model = prepare_qat(InPlace().eval(), 8, 8, quantize, calibration_batches=batches)
    model(**mine)
    exported(model if quantize == "quantize_model" else model.convert(), *mine.values())
    assert {*mine} == {*kept} and all(torch.equal(mine[name], kept[name]) for name in kept)
    assert batches == [mine]


def test_numbers_from_numpy_are_saved_safely(tmp_path):
    model = Two().eval()
    batch = {"x": X, "y": X, "scale": np.float64(3)}
    options = {"per_layer": {"first": {"weight_bits": np.int64(6)}}}
    quantized = quantize_model(model, [batch], reduce_range=np.bool_(True), **options)
    assert type(options["per_layer"]["first"]["weight_bits"]) is np.int64
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    again = load_quantized(model, tmp_path / "model.pt")
    assert torch.equal(again(X, X, 3.0)["first"], quantized(X, X, 3.0)["first"])


def test_help_shows_what_becomes_codes():
    text = " ".join(quantize_model.__doc__.split())
    assert " ".join(described().split()) in text
    sections = re.split(r"\n(?=\w)", described())
    for (rule, operations), section in zip(TABLE.items(), sections, strict=True):
        words = section.replace(",", " ").split()
        assert words[0] == rule
        assert {getattr(each, "__name__", each) for each in operations} <= {*words}


def test_a_layer_with_several_arguments_is_exported_with_all_of_them():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bags, self.linear = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 3)

        def forward(self, words, starts):
            return self.linear(self.bags(words, starts))

    words, starts = torch.arange(10), torch.tensor([0, 4, 7])
    quantized = quantize_model(Bags().eval(), [(words, starts)])
    program = torch.export.export(quantized, (words, starts)).module()
    assert torch.equal(program(words, starts), quantized(words, starts))
