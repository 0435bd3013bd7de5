"""The layers of an integer model that have weights: each turns uint8 codes into uint8 codes."""

from dataclasses import dataclass

import numpy as np

from qhelpers.integer.products import PRODUCTS, largest_sum
from qhelpers.integer.qparams import TINY, QParams, check_taken, check_top, clipping
from qhelpers.integer.requantize import ARITHMETICS
from qhelpers.integer.windows import check_numbers, check_pairs, windows


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer, and the ReLU after it if `relu`. Codes of shape (n, in) become (n, out).

    weight: int8, shape (out, in), codes of `weight_bits` bits with zero point 0.
    weight_scale: float32, shape () per tensor or (out,) per channel.
    bias: float32, shape (out,), in the unit of the outputs.
    before, after: QParams of the inputs and of the outputs.
    top: the last code that it may return, the code of 6 for ReLU6.

    Raises ValueError if these don't fit together, or if 32 bits can't hold the sums.
    """

    name: str
    weight: np.ndarray
    weight_bits: int
    weight_scale: np.ndarray
    bias: np.ndarray
    before: QParams
    after: QParams
    relu: bool
    top: int = 255
    takes = 1

    def __post_init__(self):
        check_weighted(self, axes=2)

    def returns(self, qparams):
        check_taken(self, self.before, qparams)
        return self.after

    @property
    def matrix(self):
        """The weight with a row for each output, int8 of shape (out, k)."""
        return self.weight

    def prepared(self, arithmetic, products):
        """Return the function from codes to codes, one of ARITHMETICS by one of PRODUCTS."""
        sums = PRODUCTS[products](self.matrix, self.before.zero_point, self.before.quant_max)
        codes_of = requantizer(self, arithmetic)

        def layer(codes):
            check_inputs(self, codes, self.weight.shape[1])
            return codes_of(sums(codes))

        return layer


@dataclass(frozen=True, eq=False)
class Conv2d:
    """A convolution, as a product of unfolded patches. Codes have the shape (n, channels, h, w).

    weight: int8, shape (out, in / groups, height, width). stride, padding, dilation: pairs.
    Padding stands for the real number 0. All else is as in Linear.
    """

    name: str
    weight: np.ndarray
    weight_bits: int
    weight_scale: np.ndarray
    bias: np.ndarray
    before: QParams
    after: QParams
    relu: bool
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int
    top: int = 255
    takes = 1

    def __post_init__(self):
        check_weighted(self, axes=4)
        check_pairs(self, "stride", "padding", "dilation")
        if type(self.groups) is not int or self.groups < 1 or len(self.weight) % self.groups:
            raise ValueError(f"layer {self.name!r}: groups is {self.groups!r}; it must divide the "
                             f"{len(self.weight)} outputs")  # fmt: skip

    def returns(self, qparams):
        check_taken(self, self.before, qparams)
        return self.after

    @property
    def matrix(self):
        """The weight with a row for each output, channels last, int8 of shape (out, k)."""
        return self.weight.transpose(0, 2, 3, 1).reshape(len(self.weight), -1)

    def prepared(self, arithmetic, products):
        """Return the function from codes to codes, one of ARITHMETICS by one of PRODUCTS."""
        zero_point, quant_max = self.before.zero_point, self.before.quant_max
        sums = [
            PRODUCTS[products](rows, zero_point, quant_max)
            for rows in np.split(self.matrix, self.groups)
        ]
        codes_of = requantizer(self, arithmetic)

        def layer(codes):
            check_inputs(self, codes, self.weight.shape[1] * self.groups)
            patches = windows(self, codes, self.weight.shape[2:], zero_point)
            n, _, height, width = patches.shape[:4]
            check_numbers(self, height * width * len(self.weight))
            rows = [
                group.transpose(0, 2, 3, 4, 5, 1).reshape(n * height * width, -1)
                for group in np.split(patches, self.groups, axis=1)
            ]
            acc = np.concatenate([sums_of(group) for sums_of, group in zip(sums, rows)], axis=1)
            return codes_of(acc).reshape(n, height, width, -1).transpose(0, 3, 1, 2)

        return layer


WEIGHTED = (Linear, Conv2d)


def check_weighted(layer, axes):
    """Raise ValueError if the fields of a Linear or Conv2d don't fit together."""

    def check(right, message):
        if not right:
            raise ValueError(f"layer {layer.name!r}: {message}")

    check_top(layer)
    weight, scale, bias = layer.weight, layer.weight_scale, layer.bias
    check(weight.dtype == np.int8 and weight.ndim == axes and weight.size,
          f"weight is {weight.dtype} of shape {weight.shape}; it must be int8 with "
          f"{axes} axes")  # fmt: skip
    bits = layer.weight_bits
    check(type(bits) is int and 2 <= bits <= 8,
          f"weight_bits is {bits!r}; it must be an integer from 2 to 8")  # fmt: skip
    half = 2 ** (bits - 1)
    check(-half <= weight.min() and weight.max() < half,
          f"weight has codes from {weight.min()} to {weight.max()}; {bits} bits are "
          f"{-half} to {half - 1}")  # fmt: skip
    check(scale.dtype == np.float32 and scale.shape in ((), (len(weight),)),
          f"weight_scale is {scale.dtype} of shape {scale.shape}; it must be float32, one "
          "number or one for each output")  # fmt: skip
    check(np.isfinite(scale).all() and (scale > 0).all(),
          "weight_scale must be positive and finite")  # fmt: skip
    check(bias.dtype == np.float32 and bias.shape == (len(weight),) and np.isfinite(bias).all(),
          f"bias is {bias.dtype} of shape {bias.shape}; it must be float32, finite, one for "
          "each output")  # fmt: skip
    with np.errstate(all="ignore"):  # such layers are refused below
        steps = layer.before.scale * scale
        multiplier, in_steps = steps / layer.after.scale, abs(bias / steps)
        fits = (steps >= TINY) & (multiplier >= TINY) & (multiplier < np.inf)
    check(fits.all() and (in_steps < np.inf).all(),
          f"float32 would overflow or underflow with its scales, {layer.before.scale} of inputs, "
          f"{scale.min()} to {scale.max()} of weights and {layer.after.scale} of outputs, and its "
          "bias")  # fmt: skip
    largest = largest_sum(layer.matrix, layer.before.quant_max)
    check(largest < 2**31, f"its sums reach {largest}; 32 bits hold up to {2**31 - 1}")


def check_inputs(layer, codes, channels):
    """Raise ValueError if the shape of the codes doesn't fit the weight's."""
    axes = layer.weight.ndim
    if codes.ndim != axes or codes.shape[1] != channels:
        raise ValueError(f"layer {layer.name!r} gets codes of shape {codes.shape}; they must "
                         f"have {axes} axes, the second {channels} long")  # fmt: skip


def requantizer(layer, arithmetic):
    """Return the function from accumulators (n, out), which it may overwrite, to codes (n, out)."""
    requantize, clipped = ARITHMETICS[arithmetic](layer), clipping(layer)
    return lambda acc: clipped(requantize(acc))
