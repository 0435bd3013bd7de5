"""From a quantized model, of qhelpers or of torch.ao, to an integer model."""

import math
import operator

import torch
from torch import fx, nn
from torch.nn import functional

from qhelpers.integer.add import Add
from qhelpers.integer.builder import Builder, Codes, Floats
from qhelpers.integer.geometry import average_pool, max_pool, reshape
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.qparams import QParams
from qhelpers.integer.weights import quantized_layer, torch_ao_layer
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.model import QuantizedModel, TracedModel
from qhelpers.ptq.rules import AVERAGES, CLIPS, RELUS, TABLE, is_one_of, module_of, named
from qhelpers.ptq.trace import traced

PARTS = ("Linear, Conv2d, ReLU, ReLU6, add, MaxPool2d, average pools and reshapes, each between "
         "codes of at most 8 bits")  # fmt: skip
AO_ADDS = (torch.ops.quantized.add, torch.ops.quantized.add_relu)
ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
NO_OPS = (nn.Dropout, nn.Dropout2d, nn.Identity, functional.dropout, "contiguous", "dequantize")
RESHAPES = (nn.Flatten, torch.flatten, "flatten", "reshape", "view", torch.reshape)
MAX_POOLS = (nn.MaxPool2d, functional.max_pool2d, torch.max_pool2d)
SHAPES = (*TABLE["shape"], operator.getitem)  # operations on shapes, not on numbers
TORCH_AO = ("torch.ao.nn.quantized.modules", "torch.ao.nn.intrinsic.quantized.modules")


def integer_model(model, arithmetic="fbgemm", products=None):
    """Return the IntegerModel that computes in integers what `model` computes.

    model: a QuantizedModel, from `quantize_model` or the `convert()` of `prepare_qat`'s, or a
        model that torch.ao's `convert` or `convert_fx` returned. Its parts may be Linear, Conv2d,
        ReLU, ReLU6 behind one of the others, sums of two tensors, MaxPool2d, AvgPool2d,
        AdaptiveAvgPool2d, means of the pixels, and reshapes, with codes of at most 8 bits at every
        place, and weights with zero point 0 and without groups. It takes one input and returns one
        output. It isn't changed.
    arithmetic, products: as for IntegerModel.

    Raises ValueError, which names the node that doesn't fit, for any other model, and
    RuntimeError if torch.fx can't trace it.
    """
    if isinstance(model, TracedModel) and not isinstance(model, QuantizedModel):
        raise ValueError("model is still in training; take its convert()")
    graph = model.graph if isinstance(model, QuantizedModel) else traced(model)
    layers, inputs = layers_of(graph)
    return IntegerModel(layers, arithmetic, products, inputs)


def layers_of(graph):
    """Return the integer layers of a torch.fx graph, and the names of what each takes."""
    builder, values = Builder(), {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" or is_one_of(graph, node, SHAPES):
            continue
        if node.op == "placeholder":
            if values:
                raise ValueError(f"{named(node)} is a second input; the model may have one")
            values[node] = Floats(named(node))
            continue
        taken = [n for n in node.all_input_nodes if n in values]
        if node.op == "output":
            return builder.needed_for(returned(node, values))
        if not taken:
            raise ValueError(f"{named(node)} takes no codes; the model's parts may be {PARTS}")
        values[node] = value_of(graph, node, values, builder)


def returned(node, values):
    """Return the Codes that a graph returns; raise ValueError for anything else."""
    value = node.args[0]
    if not isinstance(value, fx.Node):
        raise ValueError(f"the model returns {value}; it must return one tensor")
    return as_codes(values, value, value, "returns")


def as_codes(values, node, where, verb="gets"):
    """Return the Codes of a node, or raise ValueError for Floats."""
    value = values.get(node)
    if not isinstance(value, Codes):
        source = value.source if isinstance(value, Floats) and verb == "returns" else named(where)
        raise ValueError(f"{source} {verb} floats; all activations must be quantized, to at most "
                         "8 bits (activation_bits)")  # fmt: skip
    return value


def value_of(graph, node, values, builder):
    """Return the Codes or Floats that a node computes; put its layers into the builder."""
    module, first = module_of(graph, node), (node.args or node.all_input_nodes)[0]
    value = values.get(first)
    if isinstance(module, QuantizedActivation):
        return builder.quantized(value, activation_qparams(node, module), named(node))
    if torch_ao_kind(module) == "Quantize":
        qparams = QParams(module.scale.item(), int(module.zero_point), 255)
        return builder.quantized(value, qparams, named(node))
    if node.target is torch.quantize_per_tensor:
        return builder.quantized(value, qparams_of(graph, *node.args[1:3]), named(node))
    if is_one_of(graph, node, NO_OPS) or torch_ao_kind(module) in ("DeQuantize", "Dropout"):
        return value
    if is_one_of(graph, node, (*ADDS, *AO_ADDS)):
        return added(graph, node, values, builder)
    if is_one_of(graph, node, CLIPS):
        return clip(graph, node, value, builder)
    name = builder.new_name(*([node.target] if module is not None else []), node.name)
    if is_one_of(graph, node, RESHAPES):
        return builder.moved(value, reshape(graph, node, name))
    computed_by_torch = torch_ao_kind(module) in ("Linear", "LinearReLU", "Conv2d", "ConvReLU2d")
    known = isinstance(module, QuantizedLayer) or is_one_of(graph, node, (*MAX_POOLS, *AVERAGES))
    if not (known or computed_by_torch):
        raise ValueError(f"{named(node)} can't be computed in integers; the model's parts may be "
                         f"{PARTS}")  # fmt: skip
    codes = as_codes(values, first, node)
    if isinstance(module, QuantizedLayer):
        make = quantized_layer(name, module, codes.qparams)
        return Floats(named(node), make, (codes.name,))
    if computed_by_torch:
        layer = torch_ao_layer(name, module, codes.qparams)
        return Codes(builder.put(layer, codes.name), layer.after)
    if is_one_of(graph, node, MAX_POOLS):
        return builder.moved(codes, max_pool(graph, node, name))
    make, moves = average_pool(graph, node, name, codes.qparams, builder)
    means = Floats(named(node), make, (codes.name,), moves)
    # torch.ao's pools return codes at once, with the scale of those that they take.
    return builder.codes_of(means, codes.qparams) if torch_ao_graph(graph) else means


def activation_qparams(node, module):
    if module.dynamic or module.top > 255:
        has = "dynamic ranges" if module.dynamic else f"{module.bits} bits"
        raise ValueError(f"{node.target} has {has}; it must be calibrated, to at most 8 bits")
    return QParams(module.scale.item(), int(module.zero_point), int(module.top))


def qparams_of(graph, scale, zero_point):
    """Return the QParams of numbers, or of the buffers that hold them, in a graph of torch.ao."""
    numbers = [getattr(graph, n.target) if isinstance(n, fx.Node) else n
               for n in (scale, zero_point)]  # fmt: skip
    return QParams(float(numbers[0]), int(numbers[1]), 255)


def torch_ao_kind(module):
    """Return the class's name if a module is one of torch.ao's integer modules, else None."""
    return type(module).__name__ if type(module).__module__.startswith(TORCH_AO) else None


def torch_ao_graph(graph):
    return not any(isinstance(module, QuantizedActivation) for module in graph.modules())


def added(graph, node, values, builder):
    """Return what the sum of two tensors is, Floats, or Codes in a graph of torch.ao."""
    tensors = [n for n in node.args[:2] if isinstance(n, fx.Node)]
    by_torch = node.target in AO_ADDS
    if len(tensors) < 2 or node.kwargs.keys() - ({"scale", "zero_point"} if by_torch else set()):
        raise ValueError(f"{named(node)} must add two tensors of codes, and nothing else")
    if node.target in (operator.iadd, "add_") and is_viewed(graph, tensors[0]):
        raise ValueError(f"{named(node)} changes {named(tensors[0])} in place, and a view of it; "
                         "write x = x + y")  # fmt: skip
    one, other = (as_codes(values, tensor, node) for tensor in tensors)
    name = builder.new_name(node.name)

    def make(after, relu, top):
        return Add(name, one.qparams, other.qparams, after, relu, top)

    total = Floats(named(node), make, (one.name, other.name))
    if not by_torch:
        return total
    if node.target is torch.ops.quantized.add_relu:
        total = builder.clipped(total, math.inf, named(node))
    given = dict(zip(("scale", "zero_point"), node.args[2:])) | node.kwargs
    return builder.codes_of(total, qparams_of(graph, given["scale"], given["zero_point"]))


def is_viewed(graph, node):
    """Whether others read a tensor in another shape, or in the shape that it had before."""
    before = node.all_input_nodes[0].users if is_one_of(graph, node, RESHAPES) else ()
    return len(before) > 1 or any(is_one_of(graph, user, RESHAPES) for user in node.users)


def clip(graph, node, value, builder):
    """Return what a ReLU or ReLU6 makes of Floats, which it is fused with, or of Codes."""
    least, most = (0, math.inf) if is_one_of(graph, node, RELUS) else ends_of(graph, node)
    if least != 0 or most <= 0:
        raise ValueError(f"{named(node)} clips from {least} to {most}; it must clip from 0, as "
                         "ReLU and ReLU6 do")  # fmt: skip
    names = [node.target] if node.op == "call_module" else []
    return builder.clipped(value, most, named(node), *names, node.name)


def ends_of(graph, node):
    """Return where ReLU6, Hardtanh or clamp clip."""
    module = module_of(graph, node)
    if module is not None:
        return module.min_val, module.max_val
    if node.target is functional.relu6:
        return 0, 6
    names = ("min_val", "max_val") if node.target is functional.hardtanh else ("min", "max")
    given = dict(zip(names, node.args[1:])) | node.kwargs
    default = (-1, 1) if node.target is functional.hardtanh else (-math.inf, math.inf)
    ends = [given.get(name) for name in names]
    return [d if end is None else end for end, d in zip(ends, default)]
