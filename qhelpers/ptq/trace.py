"""From a model to a torch.fx graph whose weights are in layers, with BatchNorm folded into them."""

import copy
import inspect
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qhelpers.ptq.rules import TRANSPOSED, is_one_of, module_of

FUNCTIONS = {
    functional.linear: (nn.Linear, ()),
    functional.conv1d: (nn.Conv1d, ("stride", "padding", "dilation", "groups")),
    functional.conv2d: (nn.Conv2d, ("stride", "padding", "dilation", "groups")),
    functional.conv3d: (nn.Conv3d, ("stride", "padding", "dilation", "groups")),
    functional.conv_transpose1d: (
        nn.ConvTranspose1d, ("stride", "padding", "output_padding", "groups", "dilation")),
    functional.conv_transpose2d: (
        nn.ConvTranspose2d, ("stride", "padding", "output_padding", "groups", "dilation")),
    functional.conv_transpose3d: (
        nn.ConvTranspose3d, ("stride", "padding", "output_padding", "groups", "dilation")),
}  # fmt: skip
# The BatchNorm that may follow a layer, and how many axes its input has with a batch.
BATCH_NORMS = {
    nn.Linear: (nn.BatchNorm1d, 2),
    nn.Conv1d: (nn.BatchNorm1d, 3), nn.ConvTranspose1d: (nn.BatchNorm1d, 3),
    nn.Conv2d: (nn.BatchNorm2d, 4), nn.ConvTranspose2d: (nn.BatchNorm2d, 4),
    nn.Conv3d: (nn.BatchNorm3d, 5), nn.ConvTranspose3d: (nn.BatchNorm3d, 5),
}  # fmt: skip


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
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
    return model


class Tracer(fx.Tracer):
    def __init__(self, leaf_modules):
        super().__init__()
        self.leaf_modules = tuple(leaf_modules)

    def is_leaf_module(self, module, name):
        return isinstance(module, self.leaf_modules) or super().is_leaf_module(module, name)


def traced(model, leaf_modules=(), given=None):
    """Return the torch.fx.GraphModule of a model.

    leaf_modules: classes of modules that tracing doesn't enter.
    given: the names of the arguments that the model is called with; those left out keep their
        defaults. By default none is left out.
    Raises RuntimeError, with the line of the user's code, if tracing fails.
    """
    parameters = inspect.signature(model.forward).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and given is not None and name not in given
    }
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


def make_layers(graph):
    """Put a layer in the place of each function that computes with a weight of the model.

    This takes in subclasses of torch's layers, which are traced down to the function.
    """
    made = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in FUNCTIONS:
            continue
        layer_class, names = FUNCTIONS[node.target]
        given = dict(zip(("input", "weight", "bias", *names), node.args)) | node.kwargs
        weight, bias = (tensor_of(graph, given.get(name)) for name in ("weight", "bias"))
        options = {name: given[name] for name in names if name in given}
        computed = []
        fx.node.map_arg(options, computed.append)
        if weight is None or (bias is None and given.get("bias") is not None) or computed:
            continue
        key = str((given["weight"], given.get("bias"), options))
        if key not in made:  # else another call of the same layer
            made[key] = layer_name(graph, given["weight"].target, node)
            graph.add_submodule(made[key], layer_of(layer_class, weight, bias, options))
        with graph.graph.inserting_before(node):
            new = graph.graph.call_module(made[key], (given["input"],))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.graph.erase_node(node)


def layer_name(graph, weight, node):
    """Return the name of the layer that is made of a function: its weight's owner's, if free."""
    owner, _, _ = weight.rpartition(".")
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    if owner and owner not in called and not list(graph.get_submodule(owner).children()):
        return owner
    return unused_name(graph, node.name)


def tensor_of(graph, node):
    """Return the parameter or buffer that a get_attr node reads, else None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = graph
    for part in node.target.split("."):
        value = getattr(value, part)
    return value


def unused_name(graph, name):
    """Return a name for a submodule that nothing has: `name`, or `name` with a number."""
    new, count = name, 0
    while hasattr(graph, new):
        count += 1
        new = f"{name}_{count}"
    return new


def layer_of(layer_class, weight, bias, options):
    """Return a layer with this weight and bias, which are the model's own."""
    if layer_class is nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        groups = options.get("groups", 1)
        inputs, outputs = weight.shape[1] * groups, weight.shape[0]
        if layer_class in TRANSPOSED:
            inputs, outputs = outputs, inputs
        layer = layer_class(
            inputs, outputs, weight.shape[2:], bias=bias is not None, device="meta", **options
        )
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, False)
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, False)
    return layer.eval()


def fold_batch_norms(graph, kinds):
    """Fold each BatchNorm into the layer before it; return the names of its nodes.

    A pair is folded only if both are called once, nothing else takes the layer's output, and
    BatchNorm is over the layer's output channels, by its running statistics.
    kinds: what the nodes return, as Kinds finds it, or the names that were folded before.
    """
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    folded = []
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not node.args:
            continue
        before, norm = node.args[0], module_of(graph, node)
        if not is_one_of(graph, before, tuple(BATCH_NORMS)):
            continue
        layer = module_of(graph, before)
        norm_class, axes = BATCH_NORMS[type(layer)]
        channels = getattr(layer, "out_features", None) or layer.out_channels
        known = kinds.get(before.name, axes if type(layer) is not nn.Linear else None)
        if (
            type(norm) is norm_class
            and norm.running_mean is not None
            and norm.num_features == channels
            and known == axes
            and len(before.users) == 1
            and calls[before.target] == calls[node.target] == 1
        ):
            graph.set_submodule(before.target, fused(layer, norm))
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
            folded.append(node.name)
    return folded


def fused(layer, norm):
    """Return the layer with BatchNorm folded in; its bias is trained if BatchNorm was."""
    if isinstance(layer, nn.Linear):
        new = fuse_linear_bn_eval(layer, norm)
    else:
        new = fuse_conv_bn_eval(layer, norm, isinstance(layer, TRANSPOSED))
    trained = norm.bias if norm.bias is not None else layer.weight
    new.bias.requires_grad_(trained.requires_grad)
    return new
