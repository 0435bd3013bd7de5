"""From a quantized ONNX model to an integer model, and the codes that ONNX Runtime computes.

Needs the packages onnx and onnxruntime (`pip install qhelpers[deploy]`).
"""

import numpy as np

from qhelpers.integer.builder import Builder, Codes, Floats
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.onnx_nodes import PARTS, READERS, Read, constant
from qhelpers.integer.qparams import QParams


def integer_model_from_onnx(path, arithmetic="onnxruntime", products=None):
    """Return the IntegerModel that computes in integers what a quantized ONNX model computes.

    path: of a model that onnxruntime's `quantize_static` wrote in the QDQ format, with uint8
        activations and int8 weights whose zero point is 0. Its nodes may be Gemm, Conv, Relu and
        Clip, Add, MaxPool, AveragePool, GlobalAveragePool, ReduceMean over the pixels, Reshape and
        Flatten. It takes one input, images, and returns one output, logits.
    arithmetic, products: as for IntegerModel.

    Raises ValueError, which names the node that doesn't fit, for any other model.
    """
    import onnx

    layers, inputs, _ = layers_of(onnx.load(path).graph)
    return IntegerModel(layers, arithmetic, products, inputs)


def layers_of(graph):
    """Return the integer layers of an ONNX graph, what each takes, and the values by name."""
    from onnx import helper

    constants, makers = constants_of(graph), {node.output[0]: node for node in graph.node}
    images = only("input", [each.name for each in graph.input if each.name not in constants])
    logits = only("output", [each.name for each in graph.output])
    builder, values = Builder(), {images: Floats(images)}
    for node in graph.node:
        if node.op_type == "Constant" or (node.input and node.input[0] in constants):
            continue  # a weight or bias
        node.name = node.name or node.output[0]
        taken = [values[name] for name in node.input if name in values]
        if not taken:
            raise ValueError(f"{node.name} takes {[*node.input]}, which no node before it makes")
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "DequantizeLinear":
            values[node.output[0]] = taken[0]
        elif node.op_type == "QuantizeLinear":
            new = qparams(node, constants)
            values[node.output[0]] = builder.quantized(taken[0], new, node.name)
        else:
            reader = READERS.get(node.op_type)
            if reader is None:
                raise ValueError(f"{node.name} ({node.op_type}) can't be computed in integers; the "
                                 f"nodes may be {PARTS}")  # fmt: skip
            values[node.output[0]] = reader(Read(node, given, taken, constants, makers, builder))
    if logits not in values:
        raise ValueError(f"the output {logits} is returned by no node that takes the input")
    if not isinstance(values[logits], Codes):
        raise ValueError(f"{values[logits].source} returns floats; the last layer must have codes, "
                         "too")  # fmt: skip
    return *builder.needed_for(values[logits]), values


def only(kind, names):
    if len(names) != 1:
        raise ValueError(f"the model has {len(names)} {kind}s ({', '.join(names)}); it must have "
                         "one")  # fmt: skip
    return names[0]


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


def qparams(node, constants):
    """Return the QParams of a QuantizeLinear node."""
    zero_point = constant(node, 2, constants) if len(node.input) == 3 else np.uint8(0)
    if zero_point.dtype != np.uint8:
        raise ValueError(f"{node.name} has codes of {zero_point.dtype}; they must be uint8")
    scale = constant(node, 1, constants)
    if scale.size != 1:
        raise ValueError(f"{node.name} has {scale.size} scales; activations must have one")
    return QParams(scale.item(), zero_point.item(), 255)


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
