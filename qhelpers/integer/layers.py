"""The layers of an integer model: each turns uint8 codes into uint8 codes."""

import math
from dataclasses import dataclass

import numpy as np

from qhelpers.integer.products import PRODUCTS, largest_sum
from qhelpers.integer.requantize import ARITHMETICS

TINY = np.finfo(np.float32).tiny  # the reciprocal of a smaller one may be infinite
MOST_NUMBERS = 2**23  # that a convolution or a pooling layer may compute for one image


@dataclass(frozen=True)
class QParams:
    """What codes stand for: (q - zero_point) * scale, with q from 0 to quant_max (at most 255)."""

    scale: np.float32
    zero_point: int
    quant_max: int

    def __post_init__(self):
        with np.errstate(over="ignore"):  # infinity is refused below
            scale = np.float32(self.scale)
        object.__setattr__(self, "scale", scale)
        if not TINY <= scale < np.inf:
            raise ValueError(f"scale is {scale}; it must be positive, at least {TINY}, and finite")
        for name, allowed in [("quant_max", (1, 255)), ("zero_point", (0, self.quant_max))]:
            value = getattr(self, name)
            if type(value) is not int or not allowed[0] <= value <= allowed[1]:
                raise ValueError(f"{name} is {value!r}; it must be an integer from {allowed[0]} "
                                 f"to {allowed[1]}")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer, and the ReLU after it if `relu`. Codes of shape (n, in) become (n, out).

    weight: int8, shape (out, in), codes of `weight_bits` bits with zero point 0.
    weight_scale: float32, shape () per tensor or (out,) per channel.
    bias: float32, shape (out,), in the unit of the outputs.
    before, after: QParams of the inputs and of the outputs.

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

    def __post_init__(self):
        check_weighted(self, axes=2)

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

    def __post_init__(self):
        check_weighted(self, axes=4)
        check_window(self)
        if type(self.groups) is not int or self.groups < 1 or len(self.weight) % self.groups:
            raise ValueError(f"layer {self.name!r}: groups is {self.groups!r}; it must divide the "
                             f"{len(self.weight)} outputs")  # fmt: skip

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


@dataclass(frozen=True)
class MaxPool2d:
    """The largest code of each window, which is the code of the largest number."""

    name: str
    kernel_size: tuple
    stride: tuple
    padding: tuple
    dilation: tuple

    def __post_init__(self):
        check_window(self)

    def prepared(self, arithmetic, products):
        return lambda codes: windows(self, codes, self.kernel_size, fill=0).max(axis=(4, 5))


@dataclass(frozen=True)
class ReLU:
    """max(q, zero_point): the code of max(x, 0)."""

    name: str
    zero_point: int

    def prepared(self, arithmetic, products):
        return lambda codes: np.maximum(codes, np.uint8(self.zero_point))


@dataclass(frozen=True)
class Reshape:
    """Gives each image another shape; one length may be -1.

    Raises ValueError if any other length isn't an integer from 1 to MOST_NUMBERS.
    """

    name: str
    shape: tuple

    def __post_init__(self):
        lengths = [n for n in self.shape if n != -1]
        right = all(type(n) is int and 1 <= n <= MOST_NUMBERS for n in lengths)
        if not right or len(lengths) < len(self.shape) - 1:
            raise ValueError(f"layer {self.name!r}: shape is {self.shape!r}; it must have integers "
                             f"from 1 to {MOST_NUMBERS:,}, and at most one -1")  # fmt: skip

    def prepared(self, arithmetic, products):
        return lambda codes: codes.reshape(len(codes) if -1 in self.shape else -1, *self.shape)


def check_weighted(layer, axes):
    """Raise ValueError if the fields of a Linear or Conv2d don't fit together."""

    def check(right, message):
        if not right:
            raise ValueError(f"layer {layer.name!r}: {message}")

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
    requantize = ARITHMETICS[arithmetic](layer)
    lowest = layer.after.zero_point if layer.relu else 0

    def codes_of(acc):
        new = requantize(acc)
        return np.clip(new, lowest, layer.after.quant_max, out=new).astype(np.uint8)

    return codes_of


def windows(layer, codes, size, fill):
    """Return a view of the patches of images, padded with `fill`: (n, channels, h, w, *size).

    Raises ValueError if there is no patch, or if the patches would take too much memory.
    """
    if codes.ndim != 4:
        raise ValueError(f"layer {layer.name!r} gets codes of shape {codes.shape}; they must have "
                         "4 axes")  # fmt: skip
    span = [(n - 1) * d + 1 for n, d in zip(size, layer.dilation)]
    lengths = [n + 2 * pad for n, pad in zip(codes.shape[2:], layer.padding)]
    places = [(n - over) // step + 1 for n, over, step in zip(lengths, span, layer.stride)]
    if min(places) < 1:
        raise ValueError(f"layer {layer.name!r} gets images of {codes.shape[2:]}, {lengths} with "
                         f"padding, which are smaller than its window, {span}")  # fmt: skip
    check_numbers(layer, codes.shape[1] * max(math.prod(places) * math.prod(size),
                                              math.prod(lengths)))  # fmt: skip
    (down, right), (i, j), (k, m) = layer.padding, layer.stride, layer.dilation
    codes = np.pad(codes, ((0, 0), (0, 0), (down, down), (right, right)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(codes, span, axis=(2, 3))
    return view[:, :, ::i, ::j, ::k, ::m]


def check_numbers(layer, count):
    if count > MOST_NUMBERS:
        raise ValueError(f"layer {layer.name!r} computes {count:,} numbers for each image; "
                         f"{MOST_NUMBERS:,} are allowed")  # fmt: skip


def check_window(layer):
    """Raise ValueError if kernel size, stride, padding or dilation isn't a pair of sizes."""
    for name, least in [("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)]:
        pair = getattr(layer, name, (1, 1))
        if len(pair) != 2 or not all(type(n) is int and n >= least for n in pair):
            raise ValueError(f"layer {layer.name!r}: {name} is {pair!r}; it must be a pair of "
                             f"integers, at least {least}")  # fmt: skip
