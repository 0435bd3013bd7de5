"""integer/onnx: every code of ONNX Runtime's kernels, and models that don't fit."""

import dataclasses
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("onnx", reason="not installed: onnx, of the extra deploy")
pytest.importorskip("onnxruntime", reason="not installed: onnxruntime, of the extra deploy")
pytest.importorskip("onnxscript", reason="not installed: onnxscript, of the extra deploy")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnxruntime import quantization  # noqa: E402

from qhelpers import (  # noqa: E402
    ConvNet,
    VerySimpleNet,
    build_model,
    integer_model_from_onnx,
    train_or_load,  # noqa: E402
)
from qhelpers.integer.add import Add  # noqa: E402
from qhelpers.integer.layers import WEIGHTED, Conv2d, Linear  # noqa: E402
from qhelpers.integer.moves import Reshape  # noqa: E402
from qhelpers.integer.onnx import codes_of_onnx, layers_of  # noqa: E402
from qhelpers.integer.pools import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d  # noqa: E402
from qhelpers.integer.products import pairs_that_can_saturate  # noqa: E402
from tests.integer.test_graph import PAIRS, random_add, residual_net, resnet18  # noqa: E402
from tests.integer.test_products import random_layer  # noqa: E402


class Reader(quantization.CalibrationDataReader):
    def __init__(self, images):
        self.batches = iter([{"image": images}])

    def get_next(self):
        return next(self.batches, None)


def exported(model, example, path):
    """Write a model to path.onnx, and quantized to path.int8.onnx; return the second path."""
    floats = path.with_suffix(".onnx")
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            model, (example[:2],), floats, input_names=["image"], dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip
    return quantized(floats, example, path.with_suffix(".int8.onnx"))


def quantized(floats, example, path, reduce_range=True):
    """Write the model in `floats`, quantized, to a path, and return the path."""
    quantization.quantize_static(
        floats, path, Reader(example.numpy()), per_channel=True, reduce_range=reduce_range,
        activation_type=quantization.QuantType.QUInt8,
    )  # fmt: skip
    return path


def different(path, images, products="blas"):
    """How many codes of ours differ from ONNX Runtime's, at the input and after each layer."""
    model = integer_model_from_onnx(path, products=products)
    theirs = codes_of_onnx(path, images)
    ours = [model.quantize(images)]
    for layer, (_, codes) in zip(model.layers, model.each(ours[0])):
        if isinstance(layer, (*WEIGHTED, MaxPool2d)):
            ours.append(codes)
    seen, off, theirs = 0, 0, iter(theirs)
    for codes in ours:
        other = next(theirs)
        while other.size != codes.size:  # after a reshape the same codes stand there again
            other = next(theirs)
        off += int((codes.reshape(other.shape) != codes.dtype.type(0) + other).sum())
        seen += codes.size
    return off, seen


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """The two networks of notebook 6, another seed, in floats and quantized to 7 and 8 bits."""
    folder, images = tmp_path_factory.mktemp("onnx"), data.train_images[:1000]

    @functools.cache
    def file(name, bits):
        if bits == 8:
            floats = file(name, 7).with_name(f"{name}7.onnx")
            return quantized(floats, images, folder / f"{name}8.onnx", reduce_range=False)
        net = build_model({"net": VerySimpleNet, "conv": ConvNet}[name], seed=1)
        train_or_load(net, data, seed=1)
        return exported(net.eval(), images, folder / f"{name}7")

    return file


networks = pytest.mark.parametrize("name", ["net", pytest.param("conv", marks=pytest.mark.slow)])


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


@networks
def test_every_code_is_onnx_runtime_s(files, data, name):
    off, count = different(files(name, 7), data.test_images.numpy())
    assert off == 0
    assert count >= 994 * len(data.test_images)
    logits = run(files(name, 7), data.test_images.numpy())
    assert np.array_equal(integer_model_from_onnx(files(name, 7))(data.test_images), logits)


@networks
def test_with_8_bits_they_are_exact_or_saturate_as_in_the_emulation(files, data, name):
    path, images = files(name, 8), data.test_images.numpy()
    exact, _ = different(path, images)
    saturating, count = different(path, images, "saturating")
    assert 0 in (exact, saturating)
    assert exact + saturating > 0  # the two are told apart
    for layer in integer_model_from_onnx(files(name, 7)).layers:
        if isinstance(layer, WEIGHTED):
            assert not pairs_that_can_saturate(layer.matrix, 255).any()
    if exact:
        pytest.skip(f"not tested exactly: on this CPU ONNX Runtime saturates, which puts {exact:,} "
                    f"of {count:,} codes off; the emulation has all of them")  # fmt: skip


@networks
def test_integer_kernels_and_accuracy(files, data, tmp_path, name):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(files(name, 7), options, providers=["CPUExecutionProvider"])
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert sum(kernel in ("QGemm", "QLinearConv") for kernel in kernels) == 3
    assert not {"Gemm", "MatMul", "Conv"} & {*kernels}
    images, labels = data.test_images.numpy(), data.test_labels.numpy()
    floats = files(name, 7).with_name(f"{name}7.onnx")
    right = [(run(path, images).argmax(1) == labels).mean() for path in (floats, files(name, 7))]
    if data.name != "mnist":
        pytest.skip("accuracies are compared on MNIST only; the kernels were checked")
    assert abs(right[0] - right[1]) <= 0.002


@pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_layers_have_its_codes(tmp_path, seed, granularity):
    """A model built node by node, whose scales and biases no quantizer chose."""
    layer, codes = random_layer(seed, granularity, relu=False)
    path = tmp_path / "layer.onnx"
    onnx.save(one_layer(layer), path)
    images = (codes.astype(np.float32) - layer.before.zero_point) * layer.before.scale
    assert np.array_equal(codes_of_onnx(path, images)[0], codes)
    assert different(path, images) == (0, codes.size + 40 * len(codes))


def one_layer(layer, **changed):
    """A QDQ model of a Linear; `changed` replaces constants by name."""
    scale = layer.before.scale * layer.weight_scale
    constants = {
        "s_x": layer.before.scale, "z_x": np.uint8(layer.before.zero_point),
        "s_y": layer.after.scale, "z_y": np.uint8(layer.after.zero_point),
        "q_w": layer.weight, "s_w": layer.weight_scale, "z_w": np.zeros(scale.shape, np.int8),
        "q_b": np.rint(layer.bias / scale).astype(np.int32), "s_b": scale.astype(np.float32),
    } | changed  # fmt: skip
    axis = {"axis": 0} if scale.ndim else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["q_w", "s_w", "z_w"], ["w"], **axis),
        helper.make_node("DequantizeLinear", ["q_b", "s_b"], ["b"], **axis),
        helper.make_node("QuantizeLinear", ["image", "s_x", "z_x"], ["q_x"], "into"),
        helper.make_node("DequantizeLinear", ["q_x", "s_x", "z_x"], ["x"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", transB=1),
        helper.make_node("QuantizeLinear", ["y", "s_y", "z_y"], ["q_y"], "out_of"),
        helper.make_node("DequantizeLinear", ["q_y", "s_y", "z_y"], ["logits"]),
    ]
    floats = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)  # noqa: E731
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "layer", [floats("image")], [floats("logits")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def one_sum(layer):
    """A model of a QLinearAdd, to which ONNX Runtime's own kernel belongs."""
    constants = {}
    for letter, q in zip("aby", (layer.before, layer.other, layer.after)):
        constants |= {f"s_{letter}": q.scale, f"z_{letter}": np.uint8(q.zero_point)}
    names = ["a", "s_a", "z_a", "b", "s_b", "z_b", "s_y", "z_y"]
    node = helper.make_node("QLinearAdd", names, ["y"], "sum", domain="com.microsoft")
    codes = lambda name: helper.make_tensor_value_info(name, TensorProto.UINT8, None)  # noqa: E731
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph([node], "sum", [codes("a"), codes("b")], [codes("y")], tensors)
    versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=10)


def test_convolutions_with_groups_dilation_and_a_pool(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(4, 6, (3, 1), padding=(2, 0), dilation=(2, 1), groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 5),
    ).eval()  # fmt: skip
    images = torch.randn(500, 2, 16, 16)
    path = exported(model, images, tmp_path / "model")
    kinds = [type(layer) for layer in integer_model_from_onnx(path).layers]
    assert kinds == [Conv2d, MaxPool2d, Conv2d, Reshape, Linear]
    assert np.array_equal(integer_model_from_onnx(path)(images), run(path, images.numpy()))


def test_constant_nodes_and_attributes_left_out_are_read(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    images = torch.randn(100, 2, 8, 8)
    path = exported(model, images, tmp_path / "model")
    expected = integer_model_from_onnx(path)(images)
    changed = onnx.load(path)
    for tensor in changed.graph.initializer:
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        changed.graph.node.insert(0, node)
    changed.graph.ClearField("initializer")
    (conv,) = [node for node in changed.graph.node if node.op_type == "Conv"]
    kept = [each for each in conv.attribute if each.name == "kernel_shape"]
    conv.ClearField("attribute")
    conv.attribute.extend(kept)
    onnx.save(changed, path)
    assert np.array_equal(integer_model_from_onnx(path)(images), expected)


def test_what_does_not_fit_is_named(tmp_path):
    layer, _ = random_layer(0, "per channel", relu=False)
    path = tmp_path / "model.onnx"

    def refused(model, message):
        onnx.save(model, path)
        with pytest.raises(ValueError, match=message):
            integer_model_from_onnx(path)

    zeros = np.ones(40, np.int8)
    refused(one_layer(layer, z_w=zeros), "q_w has a zero point; it must be 0")
    refused(one_layer(layer, z_x=np.int8(0)), "into has codes of int8; they must be uint8")
    refused(one_layer(layer, q_b=np.full(40, 2**30 + 1, np.int32)), "biases that float32 doesn't")
    for change, message in [
        (lambda nodes: nodes[4].attribute[0].CopyFrom(helper.make_attribute("alpha", 2.0)),
         "alpha and beta must be 1"),
        (lambda nodes: [nodes[4].input.pop() for _ in range(2)], "fc must have a quantized weight"),
        (lambda nodes: nodes[4].input.__setitem__(0, "image"), r"fc \(Gemm\) takes floats"),
        (lambda nodes: nodes[4].output.__setitem__(0, "logits") or [nodes.pop(), nodes.pop()],
         "fc returns floats"),
        (lambda nodes: nodes.pop(), "the output logits is returned by no node"),
        (lambda nodes: nodes[4].__setattr__("op_type", "Softmax"), r"fc \(Softmax\) can't be"),
        (lambda nodes: nodes[5].input.__setitem__(0, "image"), "layers has no Linear"),
        (lambda nodes: nodes[5].input.__setitem__(1, "x"), r"out_of \(.*\) takes 'x' as input 1"),
        (lambda nodes: nodes[4].ClearField("input"), "fc takes .., which no node before it makes"),
    ]:  # fmt: skip
        model = one_layer(layer)
        change(model.graph.node)
        refused(model, message)
    pool = helper.make_node("AveragePool", ["x"], ["p"], "pool", kernel_shape=[2, 2], ceil_mode=1)
    mean = helper.make_node("ReduceMean", ["x", "shape"], ["p"], "mean")
    clip = helper.make_node("Clip", ["x", "s_x", "s_x"], ["p"], "clip")
    plus = helper.make_node("Add", ["x", "s_x"], ["p"], "plus")
    flatten = helper.make_node("Flatten", ["x"], ["p"], "flat", axis=2)
    reshape = helper.make_node("Reshape", ["x", "shape"], ["p"], "reshape")
    one_side = {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0]}
    padded = helper.make_node("MaxPool", ["x"], ["p"], "pool", **one_side)
    again = helper.make_node("QuantizeLinear", ["x", "s_y", "z_y"], ["p"], "again")
    for node, message in [
        (pool, "pool has dilations or ceil_mode"), (mean, r"mean is over the axes \[7, -1\]"),
        (clip, "clip clips to .*; it must clip from 0"), (plus, "plus must add two tensors"),
        (flatten, "flat gives the images another shape"),
        (reshape, "reshape gives the images another"), (padded, "pool has the padding"),
        (again, "again quantizes codes again"),
    ]:  # fmt: skip
        model = one_layer(layer, shape=np.array([7, -1]))
        model.graph.node.insert(4, node)
        model.graph.node[5].input[0] = "p"
        refused(model, message)
    second = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    for names, message in [
        ("output", r"the model has 2 outputs \(logits, x\); it must have one"),
        ("input", r"the model has 2 inputs \(image, x\); it must have one"),
    ]:
        model = one_layer(layer)
        getattr(model.graph, names).append(second)
        refused(model, message)


class Joined(nn.Module):
    """Sums and pools, among them averages that lie between two codes."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.mean, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = functional.relu6(self.one(x))
        x = torch.relu(x + self.other(x))
        x = functional.max_pool2d(x, 2, 2, ceil_mode=True) + functional.avg_pool2d(x, 2, 2, 1)
        return self.linear(torch.flatten(self.mean(x), 1))


def by_place(path, images):
    """Return two dicts of codes by the layer's name: ours, each from ONNX Runtime's, and theirs."""
    graph = onnx.load(path).graph
    layers, inputs, values = layers_of(graph)
    quantizing = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    theirs = {}
    for node, codes in zip(quantizing, codes_of_onnx(path, images)):
        theirs.setdefault(values[node.output[0]].name, codes)
    model = integer_model_from_onnx(path)
    known, ours = {"input": model.quantize(images)}, {}
    for layer, names in zip(layers, inputs):
        codes = layer.prepared("onnxruntime", "blas")(*(known[name] for name in names))
        if layer.name in theirs:
            ours[layer.name] = codes
            codes = theirs[layer.name]
        known[layer.name] = codes
    assert len(ours) >= 4
    return ours, theirs, {layer.name: layer for layer in layers}


@pytest.mark.parametrize("network", [residual_net, pytest.param(resnet18, marks=pytest.mark.slow)])
def test_residual_networks_have_its_codes(tmp_path, network):
    """Each code, and the logits."""
    model, images = network()
    path = exported(model, images, tmp_path / "model")
    ours, theirs, layers = by_place(path, images.numpy())
    assert {type(layer) for layer in layers.values()} >= {Reshape, Conv2d, Add, Linear}
    for name, codes in ours.items():
        assert np.array_equal(codes, theirs[name]), name
    logits = run(path, images.numpy())
    assert np.array_equal(integer_model_from_onnx(path)(images), logits)


def test_means_between_two_codes_have_its_codes(tmp_path):
    """ONNX Runtime adds up floats; the errors of their sums decide where a mean is a tie."""
    torch.manual_seed(0)
    images = torch.randn(100, 2, 19, 19)
    path = exported(Joined().eval(), images, tmp_path / "model")
    ours, theirs, layers = by_place(path, images.numpy())
    kinds = [type(layer) for layer in layers.values()]
    assert kinds.count(Add) == 2 and {MaxPool2d, AvgPool2d, AdaptiveAvgPool2d} <= {*kinds}
    for name, codes in ours.items():
        assert np.array_equal(codes, theirs[name]), name
    assert np.array_equal(integer_model_from_onnx(path)(images), run(path, images.numpy()))


@pytest.mark.parametrize("seed", range(4))
def test_sums_of_random_scales_have_its_codes(tmp_path, seed):
    """All pairs of codes, from scales and zero points on ties."""
    layer, path = random_add(2 * seed + 1), tmp_path / "sum.onnx"
    layer = dataclasses.replace(layer, relu=False)
    onnx.save(one_sum(layer), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, dict(zip("ab", PAIRS)))
    assert np.array_equal(layer.prepared("onnxruntime", "blas")(*PAIRS), theirs)
