"""From a model to its torch.fx graph."""

import copy
import inspect
import operator
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def copied(model):
    """Return a deep copy of a model, also where it holds tensors that were computed."""
    computed = [
        tensor
        for module in model.modules()
        for tensor in (*vars(module).values(), *module._buffers.values())
        if isinstance(tensor, torch.Tensor) and not tensor.is_leaf
    ]  # which deepcopy refuses to copy
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def plain_copy(model):
    """Return a copy in evaluation mode and float32, whose weights are plain parameters.

    Pruning, weight_norm, spectral_norm and parametrizations are applied once and removed: they
    would make the weights anew at each call.
    """
    model = copied(model).eval().float()
    for module in model.modules():
        module._state_dict_hooks.clear()  # they rename weights that are plain from here on
        module._load_state_dict_pre_hooks.clear()
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            kind = type(module)  # shared with the original, and changed by what follows
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return model


class Proxy(fx.Proxy):
    """torch.fx takes `x += y` for `x = x + y`; this one notes that the old x changes, too."""


def in_place(operation):
    """Return the method of Proxy for an operation of Python's module operator, such as iadd."""

    def changed(self, other):
        result = getattr(operator, operation.removeprefix("i"))(self, other)
        result.node.meta["in place"] = getattr(operator, operation)
        return result

    return changed


for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(Proxy, f"__{name}__", in_place(name))


class Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from a buffer is part of the graph

    def __init__(self, leaf_modules=()):
        super().__init__()
        self.leaf_modules = tuple(leaf_modules)

    def is_leaf_module(self, module, name):
        return isinstance(module, self.leaf_modules) or super().is_leaf_module(module, name)

    def proxy(self, node):
        return Proxy(node, self)

    def create_arg(self, value):
        return super().create_arg(value.item() if isinstance(value, np.generic) else value)

    def to_bool(self, proxy):
        """Take what is asserted as true; other conditions can't be traced."""
        if own_frames(traceback.extract_stack())[-1].line.startswith("assert"):
            return True
        return super().to_bool(proxy)


def traced(model, leaf_modules=(), given=None, constants=None):
    """Return the torch.fx.GraphModule of a model.

    leaf_modules: classes of modules that tracing doesn't enter.
    given: the names of the arguments that the model is called with; those left out keep their
        defaults. By default none is left out.
    constants: the values of arguments that are no tensors, such as flags, by name.
    Raises RuntimeError, with the line of the user's code, if tracing fails, ValueError if forward
    draws random numbers that don't depend on its inputs.
    """
    parameters = inspect.signature(model.forward).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and given is not None and name not in given
    } | (constants or {})
    tracer = Tracer(leaf_modules)
    before, randomness = numbers_of(model), torch.random.get_rng_state()
    try:
        graph = tracer.trace(model, defaults or None)
    except Exception as error:  # whatever the model's own code raises when it is traced
        raise RuntimeError(
            f"torch.fx can't trace {type(model).__name__}: {error}{place_of(error)}. A function "
            "may be wrapped with torch.fx.wrap; a module's class may be given in leaf_modules, "
            "and computes in floats"
        ) from error
    if not torch.equal(torch.random.get_rng_state(), randomness):
        raise ValueError(f"{type(model).__name__}.forward draws random numbers that don't depend "
                         "on its inputs; the quantized model would repeat them. Draw them from an "
                         "input's shape, as torch.rand_like does")  # fmt: skip
    if numbers_of(model) != before:
        names = ", ".join(sorted({name for name, _ in numbers_of(model) ^ before}))
        warnings.warn(f"model changes {names} when it is called; the quantized one keeps what is "
                      "computed with them as it is now", stacklevel=5)  # fmt: skip
    drop_unnamed(graph, type(model).__name__)
    in_float32(graph)
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


def numbers_of(model):
    """Return the numbers and flags that a model's parts have as attributes, by name."""
    return {
        (f"{name}.{key}" if name else key, value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and key != "training"
    }


def drop_unnamed(graph, name):
    """Take *args and **kwargs out of a graph; ValueError if it computes with them."""
    for node in graph.find_nodes(op="placeholder"):
        if node.target.startswith("*"):
            if node.users:
                raise ValueError(f"{name}.forward computes with {node.target}, which torch.fx "
                                 "can't tell apart: give each argument a name")  # fmt: skip
            graph.erase_node(node)


def in_float32(graph):
    """Let casts to other floats cast to float32, in which the weights are."""

    def as_float32(value):
        wide = isinstance(value, torch.dtype) and value.is_floating_point
        return torch.float32 if wide else value

    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, as_float32)
        node.kwargs = fx.node.map_aggregate(node.kwargs, as_float32)
        if node.op == "call_method" and node.target in ("half", "bfloat16", "double"):
            node.target = "float"


def own_frames(frames):
    """Return those of a traceback's frames that are the user's own code."""
    torchs = Path(torch.__file__).parent
    ours = Path(__file__).parent
    return [
        frame
        for frame in frames
        if not Path(frame.filename).is_relative_to(torchs)
        and not Path(frame.filename).is_relative_to(ours)
        and not frame.filename.startswith("<")
    ]


def place_of(error):
    """Return the last line of the user's own code before an error, as text."""
    frames = own_frames(traceback.extract_tb(error.__traceback__))
    if not frames:
        return ""
    return f" (line {frames[-1].lineno} of {Path(frames[-1].filename).name}: {frames[-1].line})"


class TrainingMode(nn.Module):
    """Returns whether it is in training mode."""

    def forward(self):
        return self.training


def follow_training(graph, in_training):
    """Let a graph traced in evaluation mode ask for the mode, where one traced in training does.

    Raises ValueError if the model computes otherwise in training, not only with another flag.
    """
    nodes, others = graph.graph.nodes, in_training.graph.nodes
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in others]:
        raise ValueError(
            "model takes other steps in training mode than in evaluation mode; it may use "
            "self.training as an argument only, as dropout does"
        )
    for node, other in list(zip(nodes, others)):
        flags = [(node.args, other.args), (node.kwargs, other.kwargs)]
        if str(flags[0][0]) == str(flags[0][1]) and str(flags[1][0]) == str(flags[1][1]):
            continue
        if not hasattr(graph, "training_mode"):
            graph.add_submodule("training_mode", TrainingMode())
        with graph.graph.inserting_before(node):
            mode = graph.graph.call_module("training_mode")

        def asked(now, then, mode=mode):
            return mode if (now, then) == (False, True) else now

        node.args = tuple(asked(*pair) for pair in zip(node.args, other.args))
        node.kwargs = {
            name: asked(value, other.kwargs[name]) for name, value in node.kwargs.items()
        }
