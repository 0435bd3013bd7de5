"""From a model to its torch.fx graph, and what each of the graph's nodes returns."""

import copy
import inspect
import traceback
from pathlib import Path

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def plain_copy(model):
    """Return a copy in evaluation mode and float32, whose weights are plain parameters.

    Pruning, weight_norm, spectral_norm and parametrizations are applied once and removed: they
    would make the weights anew at each call.
    """
    computed = [
        tensor
        for module in model.modules()
        for tensor in vars(module).values()
        if isinstance(tensor, torch.Tensor) and not tensor.is_leaf
    ]  # which deepcopy refuses to copy
    memo = {id(tensor): tensor.detach().clone() for tensor in computed}
    model = copy.deepcopy(model, memo).eval().float()
    for module in model.modules():
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


class Tracer(fx.Tracer):
    def __init__(self, leaf_modules=()):
        super().__init__()
        self.leaf_modules = tuple(leaf_modules)

    def is_leaf_module(self, module, name):
        return isinstance(module, self.leaf_modules) or super().is_leaf_module(module, name)


def traced(model, leaf_modules=(), given=None, constants=None):
    """Return the torch.fx.GraphModule of a model.

    leaf_modules: classes of modules that tracing doesn't enter.
    given: the names of the arguments that the model is called with; those left out keep their
        defaults. By default none is left out.
    constants: the values of arguments that are no tensors, such as flags, by name.
    Raises RuntimeError, with the line of the user's code, if tracing fails.
    """
    parameters = inspect.signature(model.forward).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and given is not None and name not in given
    } | (constants or {})
    tracer = Tracer(leaf_modules)
    try:
        graph = tracer.trace(model, defaults or None)
    except Exception as error:  # whatever the model's own code raises when it is traced
        raise RuntimeError(
            f"torch.fx can't trace {type(model).__name__}: {error}{place_of(error)}. A function "
            "may be wrapped with torch.fx.wrap; a module's class may be given in leaf_modules, "
            "and computes in floats"
        ) from error
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


def place_of(error):
    """Return the last line of the user's own code before an error, as text."""
    torchs = Path(torch.__file__).parent
    ours = Path(__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(torchs)
        and not Path(frame.filename).is_relative_to(ours)
        and not frame.filename.startswith("<")
    ]
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


class Kinds(fx.Interpreter):
    """Runs a graph, and notes what each node returns, in `found`."""

    def __init__(self, graph):
        super().__init__(graph)
        self.found = {}

    def run_node(self, node):
        value = super().run_node(node)
        self.found[node.name] = kind_of(value)
        return value


def kinds_of(graph, arguments):
    """Return what each node of a graph returns for these arguments, by its name.

    The number of axes for a float tensor; "several" for several values with one among them;
    "no floats" for all else, such as masks and sizes.
    """
    kinds = Kinds(graph)
    with torch.no_grad():
        kinds.run(*arguments)
    return kinds.found


def kind_of(value):
    if isinstance(value, torch.Tensor):
        return value.ndim if value.is_floating_point() else "no floats"
    values = value.values() if isinstance(value, dict) else value
    if isinstance(values, (tuple, list)) and any(kind_of(v) != "no floats" for v in values):
        return "several"
    return "no floats"
