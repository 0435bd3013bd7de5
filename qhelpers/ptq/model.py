"""Post-training quantization of your own model: trace, observe, calibrate, convert."""

import copy
import warnings

import torch
from torch import nn

from qhelpers.ptq.graph import (
    Inserter,
    fold_batch_norms,
    module_of,
    named,
    traced,
)
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.options import Choices


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
        one of them is folded into it, ReLU after it is fused with it. Everything else computes
        in floats, and is listed in the result's `kept_in_float` and in a UserWarning.
    calibration_batches: iterable of float tensors, or of pairs whose first is one. It may be
        empty where no option needs it: with activations in floats or "dynamic".
    weight_bits: from 2 to 16. activation_bits: from 1 to 16, or None to keep them in floats.
    weight_strategy: "min-max", "mse", or "output-mse": the ranges whose error in the layer's
        output has the least variance, on the calibration batches.
    activation_strategy: "min-max", "percentile", "mse", "kl", "cross-entropy" (for logits, so
        only in `per_layer`), or "dynamic": min-max of each batch that is computed, without
        calibration.
    granularity: of the weights: "per tensor", "per channel", or the size of a group.
    bias_correction: subtract the mean change of a layer's output, on the calibration batches,
        from its bias.
    reduce_range: use one bit less of the activations' codes. (torch's default_qconfig chooses
        scale and zero point this way, too, but lets the codes run to 255.)
    per_layer: other values of the options above for single layers, by name, such as
        {"fc2": {"weight_bits": 4}}. The name "input" stands for the model's input.
    layer_after_layer: calibrate each layer on the outputs of the quantized layers before it.

    Raises TypeError or ValueError for arguments other than these, RuntimeError if torch.fx
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
    """Return a QuantizedModel that computes in floats until its modules are frozen.

    Warns if the model is in training mode, and if something in it isn't quantized.
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
    """Let the modules observe the batches, then freeze them, so that they quantize.

    layer_after_layer: each module observes the batches again, once all before it are frozen.
    """
    modules = quantizing_modules(quantized.graph)
    watching = [module for module in modules if module.watches]
    if watching and not batches:
        raise ValueError("calibration_batches is empty; it must hold at least one batch")
    show(batches, watching, quantized)
    for module in modules:
        if layer_after_layer and module.watches:
            show(batches, [module], quantized)
        module.freeze()


def quantizing_modules(graph):
    """Return the quantized layers and activations, in the order in which they compute."""
    modules = [module_of(graph, node) for node in graph.graph.nodes]
    kinds = (QuantizedLayer, QuantizedActivation)
    return list(dict.fromkeys(module for module in modules if isinstance(module, kinds)))


def show(batches, modules, quantized):
    """Run the model on the batches while these modules observe their inputs."""
    for module in modules:
        module.observe()
    for batch in batches:
        quantized(batch)
    for module in modules:
        module.observing = False


class TracedModel(nn.Module):
    """A model whose modules were replaced in its torch.fx graph.

    `graph` is the GraphModule that computes. `kept_in_float` names what is not quantized.
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
            raise ValueError("the file holds a model that was quantized with other options: "
                             f"{state}, not {self.get_extra_state()}")  # fmt: skip


def load_quantized(model, path):
    """Return the QuantizedModel whose `state_dict` was saved at `path`.

    model: the float model that was quantized, or one with the same layers; its weights
        are not used.
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
    """Return a torch.fx.GraphModule that quantizes, and the names of what stays in floats."""
    if options["activation_strategy"] == "cross-entropy":
        raise ValueError("activation_strategy is 'cross-entropy', which is for logits: give it in "
                         "per_layer, to the layer that returns them")  # fmt: skip
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise ValueError(f"model has {name} on {tensor.device}; move it to the CPU first")
    graph = traced(copy.deepcopy(model).eval().float())
    fold_batch_norms(graph)
    inserter = Inserter(graph, Choices(graph, options, per_layer))
    inserter.insert()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph, [named(node) for node in inserter.kept_in_float]


def summary(quantized):
    """Return a table of the layers and activations: bits, scale, zero point, range.

    The ends of a range are what the first and the last code stand for. Of weights with several
    scales it is the widest.
    """
    lines = [f"{'':<24}{'bits':>5}{'scale':>22}{'zero point':>12}  range"]
    for name, module in quantized.graph.named_modules():
        if isinstance(module, QuantizedLayer):
            low, high = module.scale.min().item(), module.scale.max().item()
            scale = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            half = 2 ** (module.bits - 1)
            ends = f"{-half * high:.4g} to {(half - 1) * high:.4g}"
            sharing = f"{module.granularity}{', the widest' if module.scale.numel() > 1 else ''}"
            row = f"{module.bits:>5}{scale:>22}{0:>12}  {ends}  {sharing}"
            lines.append(f"{name + ' weight':<24}{row}")
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
