"""Nodes of a quantized ONNX graph as layers of an integer model, one function for each kind."""

from dataclasses import dataclass

import numpy as np

from qhelpers.integer.add import Add
from qhelpers.integer.builder import Builder, Codes, Floats
from qhelpers.integer.layers import Conv2d, Linear
from qhelpers.integer.moves import Reshape
from qhelpers.integer.pools import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

PARTS = (
    "Gemm, Conv, Relu, Clip, Add, MaxPool, AveragePool, GlobalAveragePool, ReduceMean, Reshape and "
    "Flatten, each between codes"
)


@dataclass(frozen=True)
class Read:
    """A node, its attributes, the values that it takes, and all that may be needed to read it."""

    node: object
    given: dict
    taken: list
    constants: dict
    makers: dict
    builder: Builder

    def name(self, *names):
        return self.builder.new_name(*names, self.node.name)

    def codes(self):
        """Return the Codes that the node takes, or raise ValueError."""
        if not all(isinstance(value, Codes) for value in self.taken):
            raise ValueError(f"{self.node.name} ({self.node.op_type}) takes floats; the nodes may "
                             f"be {PARTS}")  # fmt: skip
        return self.taken

    def floats(self, make, moves=()):
        """Return Floats; make: the function from QParams, relu and top to the layer."""
        return Floats(self.node.name, make, tuple(each.name for each in self.codes()), moves)


def constant(node, number, constants):
    """Return the constant that a node takes as its input of this number."""
    name = node.input[number] if len(node.input) > number else None
    if name not in constants:
        raise ValueError(f"{node.name} ({node.op_type}) takes {name!r} as input {number}; it must "
                         "be a constant")  # fmt: skip
    return constants[name]


def weighted(read):
    """Return what a Gemm or Conv computes."""
    node, given, (codes,) = read.node, read.given, read.codes()
    before = codes.qparams
    name, weight, scale = stored(node, 1, read.makers, read.constants)
    if len(node.input) > 2 and node.input[2]:
        _, bias_codes, bias_scale = stored(node, 2, read.makers, read.constants)
    else:
        transposed = node.op_type == "Gemm" and not given.get("transB", 0)
        bias_codes, bias_scale = np.zeros(weight.shape[transposed], np.int32), scale
    name = read.name(name.removesuffix("_quantized").removesuffix(".weight"))
    bias = (bias_codes * bias_scale.astype(np.float64)).astype(np.float32)
    if not np.array_equal(np.rint(bias / (before.scale * scale)), bias_codes):
        raise ValueError(f"{name} has biases that float32 doesn't hold, up to "
                         f"{np.abs(bias_codes).max():,}")  # fmt: skip
    scale = scale if scale.size > 1 else scale.reshape(())
    if node.op_type == "Conv":
        sizes = {**window(node, given), "groups": given.get("group", 1)}
        return read.floats(lambda after, relu, top: Conv2d(
            name, weight, 8, scale, bias, before, after, relu, **sizes, top=top))  # fmt: skip
    if (given.get("alpha", 1), given.get("beta", 1), given.get("transA", 0)) != (1, 1, 0):
        raise ValueError(f"{node.name} has the attributes {given}; alpha and beta must be 1")
    weight = weight if given.get("transB", 0) else np.ascontiguousarray(weight.T)
    return read.floats(lambda after, relu, top: Linear(
        name, weight, 8, scale, bias, before, after, relu, top))  # fmt: skip


def stored(node, number, makers, constants):
    """Return the name, the codes and the scale of a layer's weight or bias."""
    maker = makers.get(node.input[number]) if len(node.input) > number else None
    if maker is None or maker.op_type != "DequantizeLinear":
        raise ValueError(f"{node.name} must have a quantized {('weight', 'bias')[number - 1]}")
    codes, scale = (constant(maker, number, constants) for number in (0, 1))
    if len(maker.input) == 3 and constant(maker, 2, constants).any():
        raise ValueError(f"{maker.input[0]} has a zero point; it must be 0 (symmetric)")
    return maker.input[0], codes, scale


def window(node, given):
    """Return stride, padding and dilation of a Conv or MaxPool node."""
    pads = tuple(given.get("pads", (0, 0, 0, 0)))
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:2] != pads[2:]:
        raise ValueError(f"{node.name} has the padding {given.get('auto_pad')}, {pads}; it must be "
                         "the same on both sides")  # fmt: skip
    stride, dilation = (tuple(given.get(name, (1, 1))) for name in ("strides", "dilations"))
    return {"stride": stride, "padding": pads[:2], "dilation": dilation}


def max_pool(read):
    (codes,), sizes = read.codes(), window(read.node, read.given)
    kernel, ceil = tuple(read.given["kernel_shape"]), bool(read.given.get("ceil_mode", 0))
    layer = MaxPool2d(read.name(), kernel, **sizes, ceil_mode=ceil)
    return read.builder.moved(codes, layer)


def average_pool(read):
    (codes,), name, given = read.codes(), read.name(), read.given
    sizes = window(read.node, given)
    if sizes.pop("dilation") != (1, 1) or given.get("ceil_mode", 0):
        raise ValueError(f"{read.node.name} has dilations or ceil_mode; it must have neither")
    kernel, counted = tuple(given["kernel_shape"]), bool(given.get("count_include_pad", 0))
    return read.floats(lambda after, relu, top: AvgPool2d(
        name, codes.qparams, after, kernel, **sizes, ceil_mode=False,
        count_include_pad=counted))  # fmt: skip


def mean(read):
    """Return what a GlobalAveragePool, or a ReduceMean over the pixels, computes."""
    (codes,), name, given = read.codes(), read.name(), read.given
    axes = [2, 3]
    if read.node.op_type == "ReduceMean":
        axes = given["axes"] if "axes" in given else constant(read.node, 1, read.constants).tolist()
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        raise ValueError(f"{read.node.name} is over the axes {axes}; it must be over 2 and 3, "
                         "those of the pixels")  # fmt: skip
    flat = Reshape(read.name(name + ".flat"), (-1,)) if given.get("keepdims", 1) == 0 else None
    return read.floats(
        lambda after, relu, top: AdaptiveAvgPool2d(name, codes.qparams, after, (1, 1)),
        (flat,) if flat else (),
    )


def added(read):
    one, other = read.codes() if len(read.taken) == 2 else (None, None)
    if one is None:
        raise ValueError(f"{read.node.name} must add two tensors of codes, and nothing else")
    name = read.name()
    return read.floats(
        lambda after, relu, top: Add(name, one.qparams, other.qparams, after, relu, top)
    )


def clip(read):
    """Return what a Relu or a Clip makes of what it takes."""
    ends = [0, np.inf]
    if read.node.op_type == "Clip":
        ends = [constant(read.node, number, read.constants).item() for number in (1, 2)]
    if ends[0] != 0 or not ends[1] > 0:
        raise ValueError(f"{read.node.name} clips to {ends}; it must clip from 0, as ReLU6 does")
    return read.builder.clipped(read.taken[0], ends[1], read.node.name, read.node.name)


def reshape(read):
    """Return what a Reshape or Flatten makes of what it takes."""
    node, (first, *rest) = read.node, (0, -1)
    if node.op_type == "Reshape":
        first, *rest = (int(length) for length in constant(node, 1, read.constants))
    elif read.given.get("axis", 1) != 1:
        first = None
    if first not in (0, -1) or (first == -1 and -1 in rest):
        raise ValueError(f"{node.name} gives the images another shape than (images, numbers...)")
    return read.builder.moved(read.taken[0], Reshape(read.name(), tuple(rest)))


READERS = {
    "Gemm": weighted,
    "Conv": weighted,
    "Relu": clip,
    "Clip": clip,
    "Add": added,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": mean,
    "ReduceMean": mean,
    "Reshape": reshape,
    "Flatten": reshape,
}
