"""Post-training quantization of your own model: trace, observe, calibrate, convert."""

import inspect
import warnings

import torch
from torch import nn

from qhelpers.ptq.batch_norm import fold_batch_norms
from qhelpers.ptq.calibration import calibrate, check_constants, in_order, read
from qhelpers.ptq.functions import make_layers
from qhelpers.ptq.graph import Plan, insert
from qhelpers.ptq.hooks import lost_hooks
from qhelpers.ptq.in_place import follow_changes
from qhelpers.ptq.kinds import kinds_of
from qhelpers.ptq.options import Choices, plain
from qhelpers.ptq.refused import check_model
from qhelpers.ptq.rules import described, named
from qhelpers.ptq.summary import summary
from qhelpers.ptq.trace import copied, follow_training, plain_copy, traced

CONSTANTS = (bool, int, float, str, type(None))  # arguments that a traced model can't vary


def quantize_model(
    model,
    calibration_batches,
    weight_bits=8,
    activation_bits=8,
    *,
    weight_strategy="min-max",
    weight_rounding="nearest",
    activation_strategy="min-max",
    granularity="per channel",
    bias_correction=False,
    reduce_range=False,
    per_layer=None,
    layer_after_layer=False,
    leaf_modules=(),
):
    """Return a quantized copy of `model`, a QuantizedModel; `model` stays as it is.

    model: nn.Module on the CPU. The weights of its linear layers, convolutions and embeddings
        become codes; BatchNorm after a layer is folded into it, ReLU after it is fused with it.
        The activations around these layers, and those of other operations, become codes: the
        table below says which. Everything else computes in floats, and is listed in the
        result's `kept_in_float` and in a UserWarning.
    calibration_batches: iterable of batches, read once: tensors, dicts of keyword arguments, or
        tuples of arguments; what is in a tuple behind the arguments, such as labels, is left out.
        It may be empty if no option needs it: with activations in floats or "dynamic".
    weight_bits: from 2 to 16. activation_bits: from 1 to 16, or None to keep them in floats.
    weight_strategy: "min-max", "mse", or "output-mse": the ranges whose error in the layer's
        output has the least variance, on the calibration batches.
    weight_rounding: "nearest", or "gptq" or "adaround", which choose the codes that change the
        layer's output least, on the calibration batches. With layer_after_layer they also make
        up for what the quantized layers before it have changed, see qhelpers.ptq.float_target.
    activation_strategy: "min-max", "percentile", "mse", "kl", "cross-entropy" (for logits, so
        only in `per_layer`), or "dynamic": min-max of each batch that is computed, without
        calibration.
    granularity: of the weights: "per tensor", "per channel", or the size of a group.
    bias_correction: subtract the mean change of a layer's output, on the calibration batches,
        from its bias.
    reduce_range: use one bit less of the activations' codes. (torch's default_qconfig chooses
        scale and zero point this way, too, but lets the codes run to 255.)
    per_layer: other values of the options above for single layers, by name, such as
        {"fc2": {"weight_bits": 4}}, or places, as the result's table names them. A model's only
        input is the place "input".
    layer_after_layer: calibrate each layer on the outputs of the quantized layers before it.
    leaf_modules: classes of modules that torch.fx shall not trace; they compute in floats.

    Raises TypeError or ValueError for arguments other than these, RuntimeError if torch.fx
    can't trace the model.
    Source: Krishnamoorthi 2018, section 3.1; Nagel et al. 2021, section 3; for bias_correction
        also Nagel et al. 2019, section 4.2; for weight_rounding, see qhelpers.ptq.gptq and
        qhelpers.ptq.adaround.
    """
    options = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "weight_strategy": weight_strategy,
        "weight_rounding": weight_rounding,
        "activation_strategy": activation_strategy,
        "granularity": granularity,
        "bias_correction": bias_correction,
        "reduce_range": reduce_range,
    }
    check_model(model)
    with torch.inference_mode(False):
        batches, first = read(model, calibration_batches)
        quantized = unfrozen(model, options, per_layer, first, leaf_modules)
        calibrate(quantized, batches, layer_after_layer)
    return quantized


if quantize_model.__doc__:  # `python -OO` has none
    quantize_model.__doc__ = (
        f"{inspect.getdoc(quantize_model)}\n\n"
        f"What becomes codes, by module, function or method:\n\n{described()}\n"
    )


def unfrozen(model, options, per_layer, first, leaf_modules=(), training=False):
    """Return a QuantizedModel that computes in floats until its modules are frozen.

    first: the arguments in the first batch, or None.
    Warns if the model is in training mode, and of what isn't quantized or gets lost.
    """
    if model.training:
        warnings.warn("model is in training mode; it is quantized as in evaluation mode",
                      stacklevel=3)  # fmt: skip
    given = {} if first is None else first.arguments
    constants = {n: value for n, value in given.items() if isinstance(value, CONSTANTS)}
    recipe = {"options": plain(options), "per_layer": plain(per_layer or {}),
              "given": [*given], "constants": plain(constants)}  # fmt: skip
    quantized = quantized_model(model, recipe, first, leaf_modules, training)
    if lost := lost_hooks(model, quantized.graph):
        warnings.warn(f"hooks of {', '.join(lost)} don't run in the quantized model; what the hook "
                      "of a part computes with tensors was traced, and stays",
                      stacklevel=3)  # fmt: skip
    if quantized.kept_in_float:
        names = ", ".join(quantized.kept_in_float)
        warnings.warn(f"these are not quantized and compute in floats: {names}", stacklevel=3)
    return quantized


class TracedModel(nn.Module):
    """A model whose modules were replaced in its torch.fx graph; call it as the model.

    `graph` is the GraphModule that computes. `kept_in_float` names what is not quantized.
    """

    def __init__(self, graph, kept_in_float, signature, recipe):
        super().__init__()
        self.model, self.kept_in_float = graph, kept_in_float
        self.signature, self.recipe = signature, recipe

    @property
    def graph(self):
        return self.model  # its name as a part: torch.export's modules have a graph of their own

    @property
    def forward(self):
        """A function with the model's own signature, in which torch.export finds the arguments."""

        def forward(*args, **kwargs):
            floats = (p for p in self.graph.parameters() if p.is_floating_point())
            floats = next(floats, torch.empty(0, dtype=torch.float32))
            arguments = self.signature.bind(*args, **kwargs)
            check_constants(arguments, self.recipe)
            return self.graph(*in_order(arguments, floats.dtype))

        forward.__signature__ = self.signature
        return forward


class QuantizedModel(TracedModel):
    """A model that computes with quantized weights and activations, in floats.

    `str` of it is a table of its layers. Save `state_dict()`; to load it, see `load_quantized`.
    `torch.export.export` of it has quantize and dequantize nodes, so `torch.onnx.export` writes
    QuantizeLinear and DequantizeLinear; ValueError for over 8 bits and for dynamic ranges.
    """

    def __init__(self, *parts):
        super().__init__(*parts)
        self.eval()

    def extra_repr(self):
        return summary(self)

    __str__ = __repr__ = lambda self: summary(self)

    def get_extra_state(self):
        return self.recipe

    def set_extra_state(self, state):
        mine, theirs = ({k: v[k] for k in ("options", "per_layer")} for v in (self.recipe, state))
        if mine != theirs:
            raise ValueError("the file holds a model that was quantized with other options: "
                             f"{theirs}, not {mine}")  # fmt: skip


def load_quantized(model, path, leaf_modules=()):
    """Return the QuantizedModel whose `state_dict` was saved at `path`.

    model: the float model that was quantized, or one with the same layers; its weights
        are not used.
    leaf_modules: as for `quantize_model`.
    """
    check_model(model)
    state = torch.load(path, weights_only=True)
    if "_extra_state" not in state:
        raise ValueError(f"{path} holds no state_dict of a QuantizedModel")
    recipe = state["_extra_state"]
    quantized = quantized_model(model, recipe, leaf_modules=leaf_modules)
    for module in quantized.graph.modules():
        if hasattr(module, "freeze"):
            module.freeze()
    quantized.load_state_dict(state)
    return quantized


def quantized_model(model, recipe, first=None, leaf_modules=(), training=False):
    """Return a QuantizedModel that isn't calibrated.

    recipe: a dict of "options", "per_layer", "given" and "constants", see `traced`, and "kinds",
        what the nodes return; kinds are found by running `first`, the arguments of a batch.
    training: let the graph ask whether it is in training mode, where the model does.
    """
    options = recipe["options"]
    if options["activation_strategy"] == "cross-entropy":
        raise ValueError("activation_strategy is 'cross-entropy', which is for logits: give it in "
                         "per_layer, to the layer that returns them")  # fmt: skip
    plain_model = plain_copy(model)
    tracing = leaf_modules, recipe["given"], recipe["constants"]
    in_training = traced(copied(plain_model).train(), *tracing) if training else None
    graph = traced(plain_model, *tracing)
    if training:
        follow_training(graph, in_training)
        graph.eval()
    make_layers(graph)
    if "kinds" not in recipe:
        recipe = recipe | {"kinds": {} if first is None else kinds_of(graph, in_order(first))}
    follow_changes(graph, recipe["kinds"])
    fold_batch_norms(graph, recipe["kinds"])
    plan = Plan(graph, recipe["kinds"])
    insert(graph, plan, Choices(plan, options, recipe["per_layer"]))
    graph.delete_all_unused_submodules()
    graph.recompile()
    kept_in_float = [named(node) for node in plan.kept_in_float]
    return QuantizedModel(graph, kept_in_float, inspect.signature(model.forward), recipe)
