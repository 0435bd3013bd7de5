"""Reshapes and pooling layers of a torch.fx graph as integer layers."""

import torch
from torch import fx, nn
from torch.nn import functional

from qhelpers.integer.moves import Reshape
from qhelpers.integer.pools import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from qhelpers.ptq.rules import is_one_of, module_of, named

FLATTENS = (nn.Flatten, torch.flatten, "flatten")
MEANS = (torch.mean, "mean")
ADAPTIVE = (nn.AdaptiveAvgPool2d, functional.adaptive_avg_pool2d)
AVERAGES = (nn.AvgPool2d, functional.avg_pool2d)


def reshape(graph, node, name):
    """Return the Reshape for a flatten, view or reshape that keeps the images apart."""
    if is_one_of(graph, node, FLATTENS):
        if node.op == "call_module":
            module = module_of(graph, node)
            ends = module.start_dim, module.end_dim
        else:
            given = dict(zip(("start_dim", "end_dim"), node.args[1:])) | node.kwargs
            ends = given.get("start_dim", 0), given.get("end_dim", -1)
        shape = (-1,) if ends == (1, -1) else None
    else:
        lengths = node.args[1:] or (node.kwargs["shape"],)
        lengths = lengths[0] if isinstance(lengths[0], (tuple, list)) else lengths
        first, *rest = lengths
        apart = first == -1 or isinstance(first, fx.Node)
        shape = tuple(rest) if apart and all(type(n) is int for n in rest) else None
    if shape is None:
        raise ValueError(f"{named(node)} must keep the first axis and give the others fixed "
                         "lengths, as flatten(1) and reshape(-1, 784) do")  # fmt: skip
    return Reshape(name, shape)


def pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def as_module(graph, node, module_class):
    """Return a pooling module, made of a function's arguments where it is none."""
    options = {name: value for name, value in node.kwargs.items() if name != "input"}
    return module_of(graph, node) or module_class(*node.args[1:], **options)


def max_pool(graph, node, name):
    module = as_module(graph, node, nn.MaxPool2d)
    sizes = module.kernel_size, module.stride, module.padding, module.dilation
    return MaxPool2d(name, *map(pair, sizes), bool(module.ceil_mode))


def average_pool(graph, node, name, before, builder):
    """Return the function from QParams to the layer of an average, and the layers behind it."""
    if is_one_of(graph, node, MEANS):
        return mean(node, name, before, builder)
    if is_one_of(graph, node, ADAPTIVE):
        size = pair(as_module(graph, node, nn.AdaptiveAvgPool2d).output_size)
        return lambda after, relu, top: AdaptiveAvgPool2d(name, before, after, size), ()
    if not is_one_of(graph, node, AVERAGES):
        raise ValueError(f"{named(node)} can't be computed in integers; averages may be those of "
                         "images: AvgPool2d, AdaptiveAvgPool2d, mean((2, 3))")  # fmt: skip
    module = as_module(graph, node, nn.AvgPool2d)
    if module.divisor_override is not None:
        raise ValueError(f"{named(node)} has divisor_override; it must divide by the count")
    sizes = [pair(n) for n in (module.kernel_size, module.stride, module.padding)]
    flags = bool(module.ceil_mode), bool(module.count_include_pad)
    return lambda after, relu, top: AvgPool2d(name, before, after, *sizes, *flags), ()


def mean(node, name, before, builder):
    given = dict(zip(("dim", "keepdim"), node.args[1:])) | node.kwargs
    axes = given.get("dim")
    if not isinstance(axes, (tuple, list)) or {axis % 4 for axis in axes} != {2, 3}:
        raise ValueError(f"{named(node)} is over the axes {axes}; it must be over (2, 3), those of "
                         "the pixels")  # fmt: skip
    moves = () if given.get("keepdim") else (Reshape(builder.new_name(name + ".flat"), (-1,)),)
    return lambda after, relu, top: AdaptiveAvgPool2d(name, before, after, (1, 1)), moves
