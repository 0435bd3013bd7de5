"""From a quantized ONNX model to an integer model, and the codes that ONNX Runtime computes.

Needs the packages onnx and onnxruntime (`pip install qhelpers[deploy]`).
"""

import numpy as np

from qhelpers.integer.layers import Conv2d, Linear
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.moves import Reshape
from qhelpers.integer.pools import MaxPool2d
from qhelpers.integer.qparams import QParams


def integer_model_from_onnx(path, arithmetic="onnxruntime", products=None):
    """Return the IntegerModel that computes in integers what a quantized ONNX model computes.

    path: of a model that onnxruntime's `quantize_static` wrote in the QDQ format, with uint8
        activations and int8 weights whose zero point is 0. It must be a chain of Gemm, Conv,
        MaxPool, Reshape and Flatten, from images to logits.
    arithmetic, products: as for IntegerModel.

    Raises ValueError, which names the node that doesn't fit, for any other model.
    """
    import onnx

    graph = onnx.load(path).graph
    return IntegerModel(layers_of(graph), arithmetic, products)


def layers_of(graph):
    """Yield the integer layers of an ONNX graph."""
    from onnx import helper

    constants, makers = constants_of(graph), {node.output[0]: node for node in graph.node}
    before, codes, waiting = graph.input[0].name, None, None  # waiting: a layer without its codes
    for node in graph.node:
        taken = node.input[0] if node.input else None
        if node.op_type == "Constant" or taken in constants:  # a weight or bias
            continue
        if taken != before:
            raise ValueError(f"{node.name} takes {taken}, and not {before}; the model must be a "
                             "chain")  # fmt: skip
        before = node.output[0]
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "QuantizeLinear":
            new = qparams(node, constants)
            if waiting is not None:
                yield layer(*waiting, makers, constants, codes, new)
            elif codes not in (None, new):
                raise ValueError(f"{node.name} quantizes codes again, from {codes} to {new}")
            codes, waiting = new, None
        elif node.op_type in ("Gemm", "Conv") and codes is not None and waiting is None:
            waiting = node, given
        elif node.op_type in ("Reshape", "Flatten") and waiting is None:
            yield Reshape(node.name, reshape(node, given, constants))
        elif node.op_type == "MaxPool" and codes is not None and waiting is None:
            yield max_pool(node, given)
        elif node.op_type != "DequantizeLinear":
            raise ValueError(f"{node.name} ({node.op_type}) can't be computed in integers; the "
                             "nodes may be Gemm, Conv, MaxPool, Reshape and Flatten, each between "
                             "codes")  # fmt: skip
    if waiting is not None:
        raise ValueError(f"{waiting[0].name} returns floats; the last layer must have codes, too")


def constants_of(graph):
    """Return the arrays that a graph holds by name: its initializers and Constant nodes."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name != "sparse_value":
            value = helper.get_attribute_value(node.attribute[0])
            tensor = node.attribute[0].name == "value"
            constants[node.output[0]] = numpy_helper.to_array(value) if tensor else np.array(value)
    return constants


def constant(node, number, constants):
    """Return the constant that a node takes as its input of this number."""
    name = node.input[number] if len(node.input) > number else None
    if name not in constants:
        raise ValueError(f"{node.name} ({node.op_type}) takes {name!r} as input {number}; it must "
                         "be a constant")  # fmt: skip
    return constants[name]


def qparams(node, constants):
    """Return the QParams of a QuantizeLinear node."""
    zero_point = constant(node, 2, constants) if len(node.input) == 3 else np.uint8(0)
    if zero_point.dtype != np.uint8:
        raise ValueError(f"{node.name} has codes of {zero_point.dtype}; they must be uint8")
    scale = constant(node, 1, constants)
    if scale.size != 1:
        raise ValueError(f"{node.name} has {scale.size} scales; activations must have one")
    return QParams(scale.item(), zero_point.item(), 255)


def layer(node, given, makers, constants, before, after):
    """Return the Linear or Conv2d of a Gemm or Conv node."""
    name, weight, scale = stored(node, 1, makers, constants)
    if len(node.input) > 2 and node.input[2]:
        _, bias_codes, bias_scale = stored(node, 2, makers, constants)
    else:
        transposed = node.op_type == "Gemm" and not given.get("transB", 0)
        bias_codes, bias_scale = np.zeros(weight.shape[transposed], np.int32), scale
    name = name.removesuffix("_quantized").removesuffix(".weight")
    bias = (bias_codes * bias_scale.astype(np.float64)).astype(np.float32)
    if not np.array_equal(np.rint(bias / (before.scale * scale)), bias_codes):
        raise ValueError(f"{name} has biases that float32 doesn't hold, up to "
                         f"{np.abs(bias_codes).max():,}")  # fmt: skip
    scale = scale if scale.size > 1 else scale.reshape(())
    if node.op_type == "Conv":
        return Conv2d(name, weight, 8, scale, bias, before, after, False, **window(node, given),
                      groups=given.get("group", 1))  # fmt: skip
    if (given.get("alpha", 1), given.get("beta", 1), given.get("transA", 0)) != (1, 1, 0):
        raise ValueError(f"{node.name} has the attributes {given}; alpha and beta must be 1")
    weight = weight if given.get("transB", 0) else np.ascontiguousarray(weight.T)
    return Linear(name, weight, 8, scale, bias, before, after, False)


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


def max_pool(node, given):
    if given.get("ceil_mode", 0):
        raise ValueError(f"{node.name} has ceil_mode=1; only ceil_mode=0 is supported")
    return MaxPool2d(node.name, tuple(given["kernel_shape"]), **window(node, given))


def reshape(node, given, constants):
    """Return the new shape of one image."""
    first, *rest = (0, -1)
    if node.op_type == "Reshape":
        first, *rest = (int(length) for length in constant(node, 1, constants))
    elif given.get("axis", 1) != 1:
        first = None
    if first not in (0, -1) or (first == -1 and -1 in rest):
        raise ValueError(f"{node.name} gives the images another shape than (images, numbers...)")
    return tuple(rest)


def codes_of_onnx(path, images, providers=("CPUExecutionProvider",)):
    """Return the codes, uint8 arrays, at each QuantizeLinear node of a model, in order.

    images: float32 array. The nodes are made outputs of a copy of the model.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    kind = onnx.TensorProto.UINT8
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, kind, None) for n in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)
    return session.run(names, {model.graph.input[0].name: images})
