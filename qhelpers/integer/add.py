"""The sum of two tensors of codes, each with a scale of its own."""

from dataclasses import dataclass

import numpy as np

from qhelpers.integer.qparams import TINY, QParams, check_taken, check_top, clipping
from qhelpers.integer.requantize import ONE, fixed_point_multiplier

CODES = np.arange(256)


@dataclass(frozen=True)
class Add:
    """The sum of two tensors of one shape, and the ReLU or ReLU6 after it.

    before, other: QParams of the first and of the second. after: QParams of the sum.
    top: the last code that it may return, the code of 6 for ReLU6.
    """

    name: str
    before: QParams
    other: QParams
    after: QParams
    relu: bool
    top: int = 255
    takes = 2

    def __post_init__(self):
        check_top(self)
        with np.errstate(all="ignore"):  # such scales are refused
            ratios = np.array([self.before.scale, self.other.scale]) / self.after.scale
        if not ((ratios >= TINY) & (ratios < 2**29)).all():
            raise ValueError(f"layer {self.name!r}: its scales, {self.before.scale} and "
                             f"{self.other.scale} of inputs, are too far from "
                             f"{self.after.scale}, that of the sum")  # fmt: skip

    def returns(self, first, second):
        check_taken(self, self.before, first)
        check_taken(self, self.other, second)
        return self.after

    def prepared(self, arithmetic, products):
        """Return the function from two arrays of codes to codes.

        What a code adds to the sum is computed once for each of the 256 codes.
        """
        first, second, codes_of = SUMS.get(arithmetic, by_torch)(self)
        clipped = clipping(self)

        def layer(one, other):
            if one.shape != other.shape:
                raise ValueError(f"layer {self.name!r} gets codes of the shapes {one.shape} and "
                                 f"{other.shape}; they must be the same")  # fmt: skip
            total = np.take(first, one)
            total += np.take(second, other)
            return clipped(codes_of(total))

        return layer


def by_torch(layer):
    """round((x_1 + x_2) * (1 / s_y)) + z_y in float32, with x = s q - s z for each input.

    s z is rounded, then s q is subtracted in a fused multiply-add, which matters for one code in
    10,000. float64 holds that difference exactly, so it is rounded once here, too. A tie goes to
    the even number of steps, before z_y is added. (torch's vectors compute so. What is left over,
    up to 127 numbers at the end of each thread's part, it computes as s (q - z).)
    Source: qadd_kernel in pytorch's QuantizedOpKernels.cpp.
    """
    first, second = (
        (np.float64(qparams.scale) * CODES - qparams.scale * np.float32(qparams.zero_point))
        for qparams in (layer.before, layer.other)
    )
    reciprocal, zero_point = ONE / layer.after.scale, np.float32(layer.after.zero_point)

    def codes_of(total):
        total *= reciprocal
        np.rint(total, out=total)
        total += zero_point
        return total

    return first.astype(np.float32), second.astype(np.float32), codes_of


def onnxruntime(layer):
    """round(r_1 q_1 + (r_2 q_2 + c)) in float32: r is s / s_y, c is z_y - (r_1 z_1 + r_2 z_2).

    The zero points are in the constant c, so a tie goes to the even code. The additions of r_1 q_1
    and r_2 q_2 are fused with their multiplications, and so is that of r_1 z_1 in c, but r_2 z_2 is
    rounded. float64 holds the products exactly.
    Source: qladd_avx2.cpp in onnxruntime's MLAS, for CPUs with AVX2.
    """
    one, two = (q.scale / layer.after.scale for q in (layer.before, layer.other))
    zeros = np.float64(one) * layer.before.zero_point + two * np.float32(layer.other.zero_point)
    constant = np.float32(layer.after.zero_point) - zeros.astype(np.float32)
    second = (np.float64(two) * CODES + constant).astype(np.float32).astype(np.float64)

    def codes_of(total):
        return np.rint(total.astype(np.float32))

    return np.float64(one) * CODES, second, codes_of


def fixed_point(layer):
    """(M_1 (q_1 - z_1) + M_2 (q_2 - z_2) + half) >> shift, plus z_y, all in integers.

    M 2**-shift is s / s_y; the larger M has 31 bits, the other has the same shift.
    Source: Jacob et al. 2018, appendix A.2.
    """
    scales = np.array([layer.before.scale, layer.other.scale], np.float64) / layer.after.scale
    _, shift = fixed_point_multiplier(scales.max())
    multipliers = np.rint(np.ldexp(scales, int(shift))).astype(np.int64)
    first, second = (
        multiplier * (CODES - qparams.zero_point)
        for multiplier, qparams in zip(multipliers, (layer.before, layer.other))
    )
    half = np.int64(1) << (shift - 1)

    def codes_of(total):
        total += half
        total >>= shift
        total += layer.after.zero_point
        return total

    return first, second, codes_of


# Of all others, those of torch's engines, by_torch.
SUMS = {"onnxruntime": onnxruntime, "fixed-point": fixed_point}
