"""Post-training quantization of the reader's own model: trace, observe, calibrate, convert."""

import copy
import warnings
from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qhelpers.checks import checked_bits
from qhelpers.observers import STRATEGIES
from qhelpers.quantized import (
    GRANULARITIES,
    WEIGHT_STRATEGIES,
    QuantizedActivation,
    QuantizedLayer,
)

LAYERS = (nn.Linear, nn.Conv2d)
BATCH_NORMS = {nn.Linear: (nn.BatchNorm1d, fuse_linear_bn_eval),
               nn.Conv2d: (nn.BatchNorm2d, fuse_conv_bn_eval)}  # fmt: skip
RELUS = (nn.ReLU, functional.relu, torch.relu, torch.relu_, "relu", "relu_")
# These pass codes on as they are.
KEEP_CODES = RELUS + (
    (nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)
    + (functional.max_pool2d, torch.max_pool2d, torch.flatten, functional.dropout)
    + ("flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous")
)
# These make new numbers, which are quantized again.
AVERAGE = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, functional.avg_pool2d,
           functional.adaptive_avg_pool2d)  # fmt: skip
NO_NUMBERS = ("size", "dim", getattr)  # shapes, which reshape needs


def quantize_model(
    model,
    calibration_batches,
    weight_bits=8,
    activation_bits=8,
    *,
    weight_strategy="min-max",
    activation_strategy="min-max",
    granularity="per channel",
    bias_correction=False,
    reduce_range=False,
    per_layer=None,
    layer_after_layer=False,
):
    """Return a quantized copy of `model`, a QuantizedModel; `model` stays as it is.

    model: nn.Module on the CPU whose weights are in Linear and Conv2d layers. BatchNorm after
        one of them is folded into it, ReLU after it is fused with it. What else is in the model
        computes in floats, is listed in the result's `kept_in_float`, and in a UserWarning.
    calibration_batches: iterable of inputs, float tensors; of pairs, the first is taken. It may
        be empty where no option needs it: with activations in floats or "dynamic".
    weight_bits: from 2 to 16. activation_bits: from 1 to 16, or None to keep them in floats.
    weight_strategy: "min-max", "mse", or "output-mse": the ranges that change the variance of a
        layer's output least, on the calibration batches.
    activation_strategy: "min-max", "percentile", "mse", "kl", "cross-entropy" (for logits, so
        only in `per_layer`), or "dynamic": min-max of each batch that is computed, without
        calibration.
    granularity: of the weights: "per tensor", "per channel", or the size of a group.
    bias_correction: take the mean change of a layer's output, on the calibration batches, off
        its bias.
    reduce_range: use one bit less of the activations' codes. (torch's default_qconfig chooses
        scale and zero point so, but lets the codes run to 255.)
    per_layer: options of these for single layers by name, as {"fc2": {"weight_bits": 4}}. The
        name "input" stands for the model's input.
    layer_after_layer: calibrate each layer on the outputs of the quantized layers before it.

    Raises TypeError or ValueError for arguments other than these, RuntimeError where torch.fx
    can't trace the model.
    Source: Krishnamoorthi 2018, section 3.1; Nagel et al. 2021, section 3; for bias_correction
        also Nagel et al. 2019, section 4.2.
    """
    options = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "weight_strategy": weight_strategy,
        "activation_strategy": activation_strategy,
        "granularity": granularity,
        "bias_correction": bias_correction,
        "reduce_range": reduce_range,
    }
    quantized = unfrozen(model, options, per_layer)
    calibrate(quantized, [inputs_of(batch) for batch in calibration_batches], layer_after_layer)
    return quantized


def unfrozen(model, options, per_layer):
    """Return a QuantizedModel that computes in floats until its parts are frozen.

    Warns of a model in training mode, and of what isn't quantized.
    """
    if model.training:
        warnings.warn("model is in training mode; it is quantized as in evaluation mode",
                      stacklevel=3)  # fmt: skip
    graph, kept_in_float = quantized_graph(model, options, per_layer or {})
    if kept_in_float:
        names = ", ".join(kept_in_float)
        warnings.warn(f"these are not quantized and compute in floats: {names}", stacklevel=3)
    return QuantizedModel(graph, kept_in_float, options, per_layer or {})


def inputs_of(batch):
    """Return the inputs of a batch that may be a pair of inputs and labels."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(inputs, torch.Tensor):
        raise TypeError(f"calibration_batches holds {type(inputs).__name__}; it must hold tensors")
    return inputs


@torch.no_grad()
def calibrate(quantized, batches, layer_after_layer):
    """Show the batches to the parts that watch them, and let all parts quantize.

    layer_after_layer: then show them to each part again, once all parts before it quantize.
    """
    parts = parts_in_order(quantized.graph)
    watching = [part for part in parts if part.watches]
    if watching and not batches:
        raise ValueError("calibration_batches is empty; it must hold at least one batch")
    show(batches, watching, quantized)
    for part in parts:
        if layer_after_layer and part.watches:
            show(batches, [part], quantized)
        part.freeze()


def parts_in_order(graph):
    """Return the quantized layers and activations, in the order in which they compute."""
    modules = [module_of(graph, node) for node in graph.graph.nodes]
    kinds = (QuantizedLayer, QuantizedActivation)
    return list(dict.fromkeys(module for module in modules if isinstance(module, kinds)))


def show(batches, parts, quantized):
    """Run the batches, and let these parts observe what they get."""
    for part in parts:
        part.observe()
    for batch in batches:
        quantized(batch)
    for part in parts:
        part.observing = False


class TracedModel(nn.Module):
    """A model whose parts were replaced in its torch.fx graph.

    `graph` computes. `kept_in_float` names what is not quantized.
    """

    def __init__(self, graph, kept_in_float, options, per_layer):
        super().__init__()
        self.graph, self.kept_in_float = graph, kept_in_float
        self.options, self.per_layer = options, per_layer

    def forward(self, x):
        return self.graph(x)


class QuantizedModel(TracedModel):
    """A model that computes with quantized weights and activations, in floats.

    `str` of it is a table of its layers. Save `state_dict()`; to load it, see `load_quantized`.
    """

    def extra_repr(self):
        return summary(self)

    __str__ = __repr__ = lambda self: summary(self)

    def get_extra_state(self):
        return {"options": self.options, "per_layer": self.per_layer}

    def set_extra_state(self, state):
        if state != self.get_extra_state():
            raise ValueError("the file is of a model that was quantized with other options: "
                             f"{state}, and this one is {self.get_extra_state()}")  # fmt: skip


def load_quantized(model, path):
    """Return the QuantizedModel whose `state_dict` was saved at `path`.

    model: the float model that was quantized, or one with the same layers; its weights and
        those of the file needn't be the same.
    """
    state = torch.load(path, weights_only=True)
    options = state["_extra_state"]
    quantized = QuantizedModel(*quantized_graph(model, **options), **options)
    for module in quantized.graph.modules():
        if hasattr(module, "freeze"):
            module.freeze()
    quantized.load_state_dict(state)
    return quantized


def quantized_graph(model, options, per_layer):
    """Return a torch.fx.GraphModule with quantized parts, and the names of what has none."""
    if options["activation_strategy"] == "cross-entropy":
        raise ValueError("activation_strategy is 'cross-entropy', which is for logits: give it in "
                         "per_layer, to the layer that returns them")  # fmt: skip
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise ValueError(f"model has {name} on {tensor.device}; move it to the CPU first")
    graph = traced(copy.deepcopy(model).eval().float())
    fold_batch_norms(graph)
    choices = Choices(graph, options, per_layer)
    kept = [named(node) for node in insert_quantized(graph, choices)]
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, kept


def traced(model):
    """Return the torch.fx.GraphModule of a model, or raise RuntimeError where it has none."""
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # whatever the model's own code raises when it is traced
        raise RuntimeError(f"torch.fx can't trace {type(model).__name__}: {error}") from error


def module_of(graph, node):
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def is_one_of(graph, node, kinds):
    """Whether a node is one of these modules (by class), functions, or methods (by name)."""
    if node.op == "call_module":
        return type(module_of(graph, node)) in kinds
    return node.op in ("call_function", "call_method") and node.target in kinds


def fold_batch_norms(graph):
    """Fold each BatchNorm into the layer whose output it alone takes, if that is used once."""
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node in list(graph.graph.nodes):
        for layer_class, (norm_class, fuse) in BATCH_NORMS.items():
            if not is_one_of(graph, node, (norm_class,)):
                continue
            before = node.args[0]
            alone = len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
            if is_one_of(graph, before, (layer_class,)) and alone:
                layer, norm = module_of(graph, before), module_of(graph, node)
                replace_module(graph, before, fuse(layer, norm))
                node.replace_all_uses_with(before)
                graph.graph.erase_node(node)


def replace_module(graph, node, module):
    parent, _, name = node.target.rpartition(".")
    setattr(graph.get_submodule(parent), name, module)


def insert_quantized(graph, choices):
    """Replace the layers, insert the activations; return the nodes that are neither."""
    in_codes, kept = set(), []

    def in_codes_after(node, name):
        """Let what `node` returns pass through codes."""
        place = choices.activation(name)
        if place is None:  # left in floats on purpose
            in_codes.add(node)
            return
        target = "quantize_" + name.replace(".", "_")
        graph.add_submodule(target, place)
        with graph.graph.inserting_after(node):
            new = graph.graph.call_module(target, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        in_codes.update((node, new))

    for node in list(graph.graph.nodes):
        if node.op == "placeholder":
            in_codes_after(node, "input")
        elif is_one_of(graph, node, (*LAYERS, QuantizedLayer)):
            again = is_one_of(graph, node, (QuantizedLayer,))  # a layer that is called twice
            name = node.name if again else node.target
            if node.args[0] not in in_codes:
                in_codes_after(node.args[0], "before_" + name)
            if not again:
                replace_module(graph, node, choices.layer(name, module_of(graph, node)))
            users = list(node.users)
            fused = len(users) == 1 and is_one_of(graph, users[0], RELUS)
            in_codes_after(users[0] if fused else node, name)
            in_codes.add(node)
        elif is_one_of(graph, node, AVERAGE):
            in_codes_after(node, str(node.target if node.op == "call_module" else node.name))
        elif is_one_of(graph, node, KEEP_CODES):
            if node.args[0] in in_codes:
                in_codes.add(node)
        elif node.op not in ("output", "get_attr") and node.target not in NO_NUMBERS:
            kept.append(node)
    return kept


def named(node):
    """Return a name for a node that a reader finds in the model."""
    if node.op == "call_module":
        return node.target
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"


class Choices:
    """The options for each layer, checked: those of all, changed by those of the single layer."""

    def __init__(self, graph, options, per_layer):
        self.options, self.per_layer = options, per_layer
        layers = [n.target for n in graph.graph.nodes if is_one_of(graph, n, LAYERS)]
        if not layers:
            raise ValueError("model has no Linear or Conv2d layer that could be quantized")
        for name, changed in per_layer.items():
            if name not in ("input", *layers):
                raise ValueError(f"per_layer names {name!r}; the layers are {['input', *layers]}")
            for option in set(changed) - set(options):
                raise ValueError(f"per_layer has the option {option!r}; there are {[*options]}")

    def of(self, name):
        chosen = self.options | self.per_layer.get(name.removeprefix("before_"), {})
        for option, allowed in [
            ("weight_strategy", WEIGHT_STRATEGIES),
            ("activation_strategy", (*STRATEGIES, "dynamic")),
        ]:
            if chosen[option] not in allowed:
                raise ValueError(f"{option} is {chosen[option]!r}; it must be one of {allowed}")
        if isinstance(chosen["granularity"], str) and chosen["granularity"] not in GRANULARITIES:
            raise ValueError(f"granularity is {chosen['granularity']!r}; it must be one of "
                             f"{GRANULARITIES}, or the size of a group")  # fmt: skip
        return chosen

    def layer(self, name, layer):
        chosen = self.of(name)
        bits = checked_bits(chosen["weight_bits"], fewest=2)
        options = [chosen[o] for o in ("weight_strategy", "granularity", "bias_correction")]
        return QuantizedLayer(layer, bits, *options)

    def activation(self, name):
        chosen = self.of(name)
        if chosen["activation_bits"] is None:
            return None
        bits = checked_bits(chosen["activation_bits"], fewest=1 + bool(chosen["reduce_range"]))
        return QuantizedActivation(
            bits, chosen["activation_strategy"], bool(chosen["reduce_range"])
        )


def summary(quantized):
    """Return a table of the layers and activations: bits, scale, zero point, range."""
    lines = [f"{'':<24}{'bits':>5}{'scale':>22}{'zero point':>12}  range"]
    for name, module in quantized.graph.named_modules():
        if isinstance(module, QuantizedLayer):
            low, high = module.scale.min().item(), module.scale.max().item()
            scale = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            weight = module.weight()
            row = f"{module.bits:>5}{scale:>22}{0:>12}  {weight.min():.4g} to {weight.max():.4g}"
            lines.append(f"{name + ' weight':<24}{row}  {module.granularity}")
        elif isinstance(module, QuantizedActivation):
            label, bits = name.removeprefix("quantize_") + " activation", module.top.bit_length()
            if module.dynamic:
                lines.append(f"{label:<24}{bits:>5}{'dynamic':>22}")
                continue
            scale, zero = module.scale.item(), module.zero_point.item()
            ends = f"{-zero * scale:.4g} to {(module.top - zero) * scale:.4g}"
            lines.append(f"{label:<24}{bits:>5}{scale:>22.4g}{zero:>12}  {ends}")
    if quantized.kept_in_float:
        lines.append("in floats: " + ", ".join(quantized.kept_in_float))
    return "\n".join(lines)
