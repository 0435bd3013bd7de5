"""The modules of a quantized model: layers that hold their weights as codes, and activations that
are rounded to codes. Both compute in floats, with the numbers that the codes stand for."""

import copy

import torch
from torch import nn

from qhelpers.observers import HistogramObserver
from qhelpers.ptq.bias_correction import bias_correction
from qhelpers.ptq.export import exported_activation, exported_weight
from qhelpers.ptq.float_target import ROUNDINGS, rounded_codes, warn_of_few
from qhelpers.ptq.rules import CONVOLUTIONS, TRANSPOSED
from qhelpers.ptq.weight_codes import quantized_weight
from qhelpers.ranges.output_error import InputMoments

WATCHED = (nn.Linear, *CONVOLUTIONS)  # whose inputs InputMoments can take


def swapped_if_transposed(layer, weight):
    """Return a layer's weight with its output channels first, or undo that, which is the same.

    Only a transposed convolution has another order: (in, out / groups, ...), and then
    (out, in / groups, ...).
    """
    if not isinstance(layer, TRANSPOSED):
        return weight
    groups = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return groups.transpose(1, 2).flatten(0, 1)


class QuantizedLayer(nn.Module):
    """A layer whose weight is held as codes: Linear, a convolution, or an embedding.

    Until `freeze` it computes with the layer's own weight, then with what the codes stand for:
    those of min-max and nearest, unless `settle` found others. For "output-mse", for another
    rounding and for `bias_correction` it must see inputs before `settle`, while it is `observing`.
    Bias correction subtracts from the bias the mean change of the output since the first pass, in
    which the network computed in floats. `float_inputs` holds what the layer would take in floats
    for the batch that it is about to observe, an item for each call, if it takes other numbers.
    """

    def __init__(
        self, name, layer, bits, strategy, granularity, bias_correction=False, rounding="nearest"
    ):
        super().__init__()
        self.name, self.bits, self.granularity, self.strategy = name, bits, granularity, strategy
        self.bias_correction, self.round = bias_correction, ROUNDINGS[rounding]
        if self.watches and not isinstance(layer, WATCHED):
            raise ValueError(
                f"{name} is a {type(layer).__name__}; 'output-mse', 'gptq', 'adaround' and "
                "bias_correction need Linear or a convolution: give it other options in per_layer"
            )
        if not layer.weight.isfinite().all():
            raise ValueError(f"{name} has a weight that holds nan or inf")
        self.exact = swapped_if_transposed(layer, layer.weight.detach())
        self.trains = layer.weight.requires_grad
        self.shape = self.exact.shape
        codes, scale = quantized_weight(self.exact, bits, "min-max", granularity)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.layer = copy.deepcopy(layer)
        if bias_correction and layer.bias is None:
            self.layer.bias = nn.Parameter(torch.zeros(len(layer.weight), dtype=torch.float32))
        self.observing, self.passes = False, []  # InputMoments of each pass through the data
        self.float_inputs = []
        del self.layer.weight  # no longer a parameter: `set_weight` sets the one in use
        self.set_weight()

    @property
    def watches(self):
        return self.strategy == "output-mse" or self.bias_correction or self.rounds

    @property
    def rounds(self):
        """Whether it chooses how each weight is rounded."""
        return self.round is not None

    def observe(self):
        self.observing = True
        self.passes.append(InputMoments(self.layer))

    @torch.no_grad()
    def settle(self):
        """Find the codes with the strategy, freeze, and correct the bias."""
        exact = self.exact
        before, now = (self.passes[0], self.passes[-1]) if self.passes else (None, None)
        if self.strategy != "min-max":
            options = self.bits, self.strategy, self.granularity
            self.codes, self.scale = quantized_weight(exact, *options, now)
        if self.rounds:
            warn_of_few(self.name, now)
            problem = exact, self.scale, self.bits, before, now, self.bias_correction
            self.codes = rounded_codes(self.round, *problem).reshape(self.codes.shape)
        self.freeze()
        if self.bias_correction:
            self.layer.bias += bias_correction(before, exact, now, self.rows())
        self.passes = []

    def freeze(self):
        self.exact = None
        self.set_weight()

    def rows(self):
        """Return the weight in use, in float32, output channels first."""
        if self.exact is not None:
            return self.exact
        scale = self.scale.unsqueeze(-1) if self.scale.ndim else self.scale
        codes = self.codes.reshape(*self.scale.shape, -1)
        return (codes.float() * scale).reshape(self.shape)

    def weight(self):
        """Return the weight in use, in float32, of the layer's own shape."""
        return swapped_if_transposed(self.layer, self.rows())

    def set_weight(self):
        self.layer.weight = self.weight()

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self.set_weight()

    def forward(self, input, *args, **kwargs):  # torch's name; EmbeddingBag takes more
        if self.observing:
            self.passes[-1].update(input, self.float_inputs.pop(0) if self.float_inputs else None)
        if torch.compiler.is_exporting():
            weight = exported_weight(self.codes, self.name, self.scale, self.bits, self.shape)
            weight = swapped_if_transposed(self.layer, weight)
            return torch.func.functional_call(
                self.layer, {"weight": weight}, (input, *args), kwargs
            )
        weight = self.layer.weight
        result = self.layer(input, *args, **kwargs)
        if self.layer.weight is not weight:
            raise RuntimeError(f"a hook of {self.layer} sets its weight anew; remove it first")
        return result

    def extra_repr(self):
        return f"{self.bits} bits, {self.granularity}"


class QuantizedActivation(nn.Module):
    """Quantizes and dequantizes activations, with one scale for all.

    The codes are 0..2**bits-1, or with `reduce_range` those of one bit less.

    Until `freeze` it returns its input unchanged, and shows it to an observer while `observing`.
    With the strategy "dynamic" the range is that of each batch.
    """

    rounds = False  # there is nothing to choose in how it rounds

    def __init__(self, name, bits, strategy, reduce_range=False):
        super().__init__()
        self.name, self.bits, self.strategy = name, bits, strategy
        self.reduce_range, self.top = reduce_range, 2 ** (bits - reduce_range) - 1
        self.observer, self.observing, self.active = None, False, False
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    @property
    def dynamic(self):
        return self.strategy == "dynamic"

    @property
    def watches(self):
        return not self.dynamic

    def new_observer(self):
        strategy = "min-max" if self.dynamic else self.strategy
        return HistogramObserver(self.bits, strategy=strategy, reduce_range=self.reduce_range)

    def observe(self):
        self.observing, self.observer = True, self.new_observer()

    def settle(self):
        """Find the scale and the zero point with the strategy, and freeze."""
        if not self.dynamic:
            if self.observer.low is None:
                raise ValueError(f"calibration_batches shows no numbers to {self.name}; it must "
                                 "hold a batch that isn't empty")  # fmt: skip
            self.scale, self.zero_point = self.observer.calculate_qparams()
        self.freeze()

    def freeze(self):
        self.observer, self.observing, self.active = None, False, True
        self.set_numbers()

    def set_numbers(self):
        """Keep scale and zero point as numbers, for torch.export, where tensors have no values."""
        self.numbers = self.scale.item(), self.zero_point.item()

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self.set_numbers()

    def forward(self, x):
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x  # a mask or indices
        if self.active and torch.compiler.is_exporting():
            if self.dynamic:
                raise ValueError(f"{self.name} has dynamic ranges, which torch.export can't take: "
                                 "give quantize_model another activation_strategy")  # fmt: skip
            return exported_activation(x, self.name, *self.numbers, self.top)
        if not x.numel():  # an empty batch
            return x
        if self.observing:
            try:
                self.observer(x)
            except ValueError as error:
                raise ValueError(f"{self.name} activation: {error}") from None
        if not self.active:
            return x
        scale, zero_point = self.scale, self.zero_point
        if self.dynamic:
            observer = self.new_observer()
            observer(x)
            scale, zero_point = observer.calculate_qparams()
        codes = (x * (1 / scale)).round_().add_(zero_point).clamp_(0, self.top)
        return codes.sub_(zero_point).mul_(scale)

    def extra_repr(self):
        return f"{self.bits} bits, {self.strategy}"
