"""Pooling layers of an integer model: the largest code of each window, or the mean of each."""

import math
from dataclasses import dataclass

import numpy as np

from qhelpers.integer.qparams import TINY, QParams, check_taken
from qhelpers.integer.requantize import fixed_point_multiplier
from qhelpers.integer.windows import (
    MOST_NUMBERS,
    check_images,
    check_numbers,
    check_pairs,
    count_places,
    windows,
)

MOST_IN_WINDOW = 2**16  # numbers that AvgPool2d may average; a loop goes through them


@dataclass(frozen=True)
class MaxPool2d:
    """The largest code of each window, which is the code of the largest number."""

    name: str
    kernel_size: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    ceil_mode: bool = False
    takes = 1

    def __post_init__(self):
        check_pairs(self, "kernel_size", "stride", "padding", "dilation")

    def returns(self, qparams):
        return qparams

    def prepared(self, arithmetic, products):
        return lambda codes: windows(self, codes, self.kernel_size, fill=0).max(axis=(4, 5))


@dataclass(frozen=True)
class AvgPool2d:
    """The mean of each window. before, after: QParams of the inputs and of the means.

    Padding stands for the real number 0; it counts if `count_include_pad`.
    """

    name: str
    before: QParams
    after: QParams
    kernel_size: tuple
    stride: tuple
    padding: tuple
    ceil_mode: bool
    count_include_pad: bool
    takes = 1
    dilation = (1, 1)

    def __post_init__(self):
        check_pairs(self, "kernel_size", "stride", "padding")
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel_size)):
            raise ValueError(f"layer {self.name!r}: padding is {self.padding}; it must be at most "
                             f"half of the window, {self.kernel_size}")  # fmt: skip
        if math.prod(self.kernel_size) > MOST_IN_WINDOW:
            raise ValueError(f"layer {self.name!r}: kernel_size is {self.kernel_size}; a window "
                             f"may have {MOST_IN_WINDOW:,} numbers")  # fmt: skip
        check_ratio(self, MOST_IN_WINDOW)

    def returns(self, qparams):
        check_taken(self, self.before, qparams)
        return self.after

    def prepared(self, arithmetic, products):
        if arithmetic == "onnxruntime":
            return averaging_floats(self)
        return averaging(self, self.windows, arithmetic)

    def windows(self, axis, length):
        """Return where the windows start and end along an axis, and how many numbers count."""
        size, step, pad = (pair[axis] for pair in (self.kernel_size, self.stride, self.padding))
        places = count_places(self, length, size, step, pad, self.ceil_mode)
        start = np.arange(places) * step - pad
        end = np.minimum(start + size, length + pad)
        counted = end - start
        start, end = start.clip(0, length), end.clip(0, length)
        return start, end, counted if self.count_include_pad else end - start


@dataclass(frozen=True)
class AdaptiveAvgPool2d:
    """The means of as many windows as `output_size` says, a pair; (1, 1) is the mean of all.

    before, after: QParams of the inputs and of the means.
    """

    name: str
    before: QParams
    after: QParams
    output_size: tuple
    takes = 1

    def __post_init__(self):
        check_pairs(self, "output_size")
        check_ratio(self, MOST_NUMBERS)

    def returns(self, qparams):
        check_taken(self, self.before, qparams)
        return self.after

    def prepared(self, arithmetic, products):
        return averaging(self, self.windows, arithmetic)

    def windows(self, axis, length):
        """Return where the windows start and end along an axis, and how many numbers they hold."""
        count = self.output_size[axis]
        check_numbers(self, count)
        places = np.arange(count)
        start, end = places * length // count, -(-(places + 1) * length // count)
        return start, end, end - start


def averaging(layer, windows_of, arithmetic):
    """Return the function from codes of images to the codes of the means of their windows."""
    codes_of = MEANS.get(arithmetic, by_torch)

    def average(codes):
        check_images(layer, codes)
        channels, *lengths = codes.shape[1:]
        check_numbers(layer, channels * math.prod(n + 1 for n in lengths))
        if 0 in lengths:
            raise ValueError(f"layer {layer.name!r} gets images of {lengths}")
        (top, bottom, rows), (left, right, columns) = (
            windows_of(axis, length) for axis, length in enumerate(lengths)
        )
        check_numbers(layer, channels * len(rows) * len(columns))
        # The sum up to here, along both axes: differences of it are the sums of the windows.
        upto = np.pad(codes, ((0, 0), (0, 0), (1, 0), (1, 0))).astype(np.int32)
        upto = np.cumsum(np.cumsum(upto, axis=2, dtype=np.int32), axis=3, dtype=np.int32)
        rows_upto = upto[:, :, bottom] - upto[:, :, top]
        sums = rows_upto[..., right] - rows_upto[..., left]
        size = np.multiply.outer(bottom - top, right - left).astype(np.int32)
        new = codes_of(layer, sums - layer.before.zero_point * size, np.outer(rows, columns))
        return np.clip(new, 0, layer.after.quant_max, out=new).astype(np.uint8)

    return average


def by_torch(layer, sums, counts):
    """round(sum * (s_x / s_y / count)) + z_y in float32; a tie goes to the even number of steps.

    torch computes so if the channels lie last, as they do behind its convolutions; else it adds
    z_y before it rounds. (Its adaptive pools invert the factor twice, as does AvgPool2d for
    channels that don't fill a vector. With one scale before and after, all that torch has, that
    changes no code for windows of up to 3,000 numbers.)
    Source: QuantizedOpKernels.cpp of pytorch.
    """
    factor = layer.before.scale / layer.after.scale / counts.astype(np.float32)
    return np.rint(sums.astype(np.float32) * factor) + np.float32(layer.after.zero_point)


def onnxruntime(layer, sums, counts):
    """round(s_x * sum / count / s_y) + z_y in float32: the mean is computed in floats.

    That is ReduceMean. It adds up the floats s_x (q - z_x), whose sum may differ in its last bits.
    """
    means = sums.astype(np.float32) * layer.before.scale / counts.astype(np.float32)
    return np.rint(means / layer.after.scale) + np.float32(layer.after.zero_point)


def averaging_floats(layer):
    """Return the function from codes to codes of ONNX Runtime's QLinearAveragePool.

    It adds up the floats s_x (q - z_x) of a window, row by row, and the result is
    round(sum / count / s_y + z_y). If the mean lies between two codes, the rounding errors of the
    sum decide, so they must be the same.
    Source: qlinear_pool.cc of onnxruntime.
    """
    before, after = layer.before, layer.after
    numbers = before.scale * (np.arange(256) - before.zero_point).astype(np.float32)

    def average(codes):
        patches = windows(layer, codes, layer.kernel_size, fill=before.zero_point)
        total = np.zeros(patches.shape[:4], np.float32)
        for place in np.ndindex(*layer.kernel_size):
            total += np.take(numbers, patches[(..., *place)])
        counts = [layer.windows(axis, length)[2] for axis, length in enumerate(codes.shape[2:])]
        total /= np.outer(*counts).astype(np.float32)
        new = np.rint(total / after.scale + np.float32(after.zero_point))
        return np.clip(new, 0, after.quant_max).astype(np.uint8)

    return average


def fixed_point(layer, sums, counts):
    """(sum * M_0 + half) >> shift, plus z_y, in integers; M_0 2**-shift is s_x / s_y / count."""
    ratio = np.float64(layer.before.scale) / layer.after.scale
    multiplier, shift = fixed_point_multiplier(ratio / counts)
    total = sums.astype(np.int64) * multiplier
    total += np.int64(1) << (shift - 1)
    total >>= shift
    total += layer.after.zero_point
    return total


MEANS = {"onnxruntime": onnxruntime, "fixed-point": fixed_point}


def check_ratio(layer, most):
    """Raise ValueError if the scales are too far apart to divide by up to `most` numbers."""
    with np.errstate(all="ignore"):
        ratio = np.float64(layer.before.scale) / layer.after.scale
    if not TINY * most <= ratio < 2**29:
        raise ValueError(f"layer {layer.name!r}: its scales, {layer.before.scale} of inputs and "
                         f"{layer.after.scale} of means, are too far apart")  # fmt: skip
