"""Quantization-aware training of your own model: prepare, train, convert."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional

from qhelpers.observers import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from qhelpers.ptq.calibration import calibrate, read
from qhelpers.ptq.hooks import has_hooks
from qhelpers.ptq.layers import (
    QuantizedActivation,
    QuantizedLayer,
    swapped_if_transposed,
)
from qhelpers.ptq.model import QuantizedModel, TracedModel, unfrozen
from qhelpers.ptq.options import check_per_layer
from qhelpers.ptq.refused import check_model
from qhelpers.ptq.trace import copied
from qhelpers.qat.fake_quant import FakeQuantize, LearnedStepSize

METHODS = ("ste", "frozen", "lsq")
PER_LAYER = ("weight_bits", "activation_bits", "granularity")


def prepare_qat(
    model,
    weight_bits,
    activation_bits,
    method,
    *,
    calibration_batches,
    granularity="per channel",
    per_layer=None,
    leaf_modules=(),
):
    """Return a copy of `model` that trains with fake quantization, a QATModel.

    Train it like any other model, then call its `convert()`. `model` is not changed.

    method: how the scales are found while the weights are trained.
        "ste": by min-max of the current weights, and a moving average of that of activations.
        "frozen": by least squared error before training; training does not change them.
        "lsq": they start as with "frozen", and are trained, too.
    calibration_batches: the inputs that the first scales are computed from, as in
        `quantize_model`.
    per_layer: weight_bits, activation_bits and granularity of single layers, by name.

    The other arguments, what is quantized, the warnings and errors are those of
    `quantize_model`; ValueError is also raised where `method` is none of these. A BatchNorm that
    follows a layer is folded into it before training, so its statistics don't change any more.
    Source: Jacob et al. 2018, section 3; Esser et al. 2020 for "lsq".
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {METHODS}")
    check_per_layer(per_layer or {}, PER_LAYER)
    strategy = "min-max" if method == "ste" else "mse"
    options = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "weight_strategy": strategy,
        "weight_rounding": "nearest",
        "activation_strategy": strategy,
        "granularity": granularity,
        "bias_correction": False,
        "reduce_range": False,
    }
    check_model(model)
    with torch.inference_mode(False):
        batches, first = read(model, calibration_batches)
        model = unfrozen(model, options, per_layer, first, leaf_modules, training=True)
        weights = trained_weights(model.graph)
        calibrate(model, batches, layer_after_layer=False)
        for name, module in list(model.graph.named_modules()):
            if isinstance(module, QuantizedLayer):
                model.graph.set_submodule(name, TrainedLayer(module, weights[name], method))
            elif isinstance(module, QuantizedActivation):
                model.graph.set_submodule(name, trained_activation(module, method))
    return QATModel(model.graph, model.kept_in_float, model.signature, model.recipe)


def trained_weights(graph):
    """Return the weights to train, as parameters, by the layer's name; tied ones are one."""
    weights, made = {}, {}
    for name, module in graph.named_modules():
        if isinstance(module, QuantizedLayer):
            key = module.exact.data_ptr(), module.shape
            if key not in made:
                weight = swapped_if_transposed(module.layer, module.exact)
                made[key] = nn.Parameter(weight.clone(), requires_grad=module.trains)
            weights[name] = made[key]
    for name, parameter in list(graph.named_parameters(recurse=False)):  # read beside the layer
        key = parameter.data_ptr(), parameter.shape
        if key in made:
            setattr(graph, name, made[key])
    return weights


class TrainedLayer(nn.Module):
    """A Linear or Conv2d layer whose float weight is fake-quantized whenever it computes."""

    def __init__(self, quantized, weight, method):
        super().__init__()
        self.name, self.bits = quantized.name, quantized.bits
        self.granularity = quantized.granularity
        self.layer = copy.deepcopy(quantized.layer)
        self.layer.weight = weight
        half = 2 ** (self.bits - 1)
        scale = quantized.scale.flatten()
        zero_point = torch.zeros(scale.numel(), dtype=torch.int32)
        if method == "lsq":
            self.fake = LearnedStepSize(scale, zero_point, -half, half - 1)
        else:
            # With this constant the average is the weight's range as it is now.
            observer = MovingAveragePerChannelMinMaxObserver(
                self.bits, symmetric=True, averaging_constant=1
            )
            ends = {"quant_min": -half, "quant_max": half - 1}
            self.fake = FakeQuantize(
                observer if method == "ste" else None, scale=scale, zero_point=zero_point, **ends
            )
        self.shape, self.scale_shape = quantized.shape, quantized.scale.shape

    def rows(self):
        """Return the weight as a matrix, a row for each scale."""
        weight = swapped_if_transposed(self.layer, self.layer.weight)
        return weight.reshape(math.prod(self.scale_shape), -1)

    def forward(self, input, *args, **kwargs):  # torch's name; EmbeddingBag takes more
        weight = self.fake(self.rows()).reshape(self.shape)
        weight = swapped_if_transposed(self.layer, weight)
        if type(self.layer) is nn.Linear and not has_hooks(self.layer):  # faster
            return functional.linear(input, weight, self.layer.bias)
        return torch.func.functional_call(self.layer, {"weight": weight}, (input, *args), kwargs)

    @torch.no_grad()
    def convert(self):
        """Return the QuantizedLayer that computes the same."""
        scale = self.fake.step(self.rows())
        codes = torch.round(self.rows() * (1 / scale[:, None]))
        codes = codes.clamp(self.fake.quant_min, self.fake.quant_max)
        quantized = QuantizedLayer(self.name, self.layer, self.bits, "min-max", self.granularity)
        quantized.codes = codes.to(quantized.codes.dtype).reshape(quantized.codes.shape)
        quantized.scale = scale.reshape(self.scale_shape)
        quantized.freeze()
        return quantized


def trained_activation(quantized, method):
    """Return the module that takes the place of a QuantizedActivation during training."""
    if method == "lsq":
        fake = LearnedStepSize(quantized.scale, quantized.zero_point, 0, quantized.top)
        fake.name = quantized.name
        return fake
    observer = None
    if method == "ste":  # start from the calibrated range
        observer = MovingAverageMinMaxObserver(quantized.bits)
        observer((torch.tensor([0, quantized.top]) - quantized.zero_point) * quantized.scale)
    ends = {"quant_min": 0, "quant_max": quantized.top}
    fake = FakeQuantize(observer, scale=quantized.scale, zero_point=quantized.zero_point, **ends)
    fake.name = quantized.name
    return fake


@torch.no_grad()
def converted_activation(fake, strategy):
    """Return the QuantizedActivation that computes the same."""
    quantized = QuantizedActivation(fake.name, fake.quant_max.bit_length(), strategy)
    quantized.scale, quantized.zero_point = fake.step(torch.zeros(1, 1)), fake.zero_point.clone()
    quantized.freeze()
    return quantized


class QATModel(TracedModel):
    """A model that trains with fake quantization; `prepare_qat` makes it.

    Its `graph` computes with TrainedLayer, FakeQuantize and LearnedStepSize.
    """

    @property
    def forward(self):
        if torch.compiler.is_exporting():
            raise ValueError("model is still in training; export its convert()")
        return super().forward

    def observe(self, observing):
        """Switch the observers of "ste" on or off; without them the scales stay as they are."""
        for module in self.graph.modules():
            if isinstance(module, FakeQuantize) and module.observer is not None:
                module.observing = observing

    def convert(self):
        """Return the QuantizedModel with these weights and scales; this model stays as it is."""
        graph = copied(self.graph).eval()
        for name, module in list(graph.named_modules()):
            if isinstance(module, TrainedLayer):
                graph.set_submodule(name, module.convert())
            elif isinstance(module, FakeQuantize) and hasattr(module, "name"):
                strategy = self.recipe["options"]["activation_strategy"]
                graph.set_submodule(name, converted_activation(module, strategy))
        return QuantizedModel(graph, self.kept_in_float, self.signature, self.recipe)
