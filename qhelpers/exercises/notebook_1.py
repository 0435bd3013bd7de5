"""What makes the answers to the exercises of notebook 1 right, with a hint for each mistake."""

from itertools import product

import numpy as np
import torch

from qhelpers.affine import quantization_error
from qhelpers.exercises.answers import (
    Wrong,
    mistake,
    real,
    reals,
    require,
    round_trip,
    rounded,
)

FLOAT32 = "compute in float32, not in the 64 bits of Python's floats"
ONCE = "divide once, 1 / s, and multiply by that"
EVEN = "round half to even"
NEAREST = "round to the nearest integer"
LATER = "add z after rounding"


def scale_and_zero_point(scale, zero_point):
    scale, zero_point = real(scale, "scale"), real(zero_point, "zero_point")
    mistake(rounded(scale, 4 / 16), "16 codes have only 15 steps between them.")
    mistake(rounded(scale, 3 / 7), "Signed codes reach as far below 0 as above it. Unsigned codes "
            "need only reach from -1 to 3.")  # fmt: skip
    mistake(rounded(scale, 15 / 4), "That many steps are 1 wide together. How wide is one?")
    mistake(abs(scale - 4 / 15) < 0.04 and not rounded(scale, 4 / 15),
            "The scale is close. Round it to two digits or more.")  # fmt: skip
    require(rounded(scale, 4 / 15), "The scale is the width of the range, divided by its steps.")
    mistake(zero_point == -1, "-1 is β, the low end of the range. The zero point is the code of 0, "
            "counted in steps from there.")  # fmt: skip
    require(zero_point >= 0, "Mind the sign: the zero point is a code, and codes start at 0.")
    require(zero_point == int(zero_point), "The zero point is a code: an integer.")
    mistake(zero_point == 3, "Round to the nearest integer, not down.")
    require(zero_point == 4, "How many steps is it from the low end to 0?")


def same_codes_as_torch(quantize):
    rng = np.random.default_rng(0)
    scale, zero = np.float32(0.013), 27
    ties = (rng.integers(-60, 300, 100_000) + 0.5).astype(np.float32) * scale
    given = ties.copy()
    codes = reals(quantize(ties, scale, zero, 8), ties.size).ravel()
    require(np.array_equal(ties, given), "Your function changes the array that it is given.")
    require((codes == np.rint(codes)).all(), "Codes are integers, and some of yours aren't.")
    require(codes.min() >= 0 and codes.max() <= 255, "Some codes are not from 0 to 255: clamp.")
    wanted = codes_of_the_kernel(ties, scale, zero, 255)
    off = codes != wanted
    told = f"{off.sum():,} of 100,000 codes are not PyTorch's"
    beyond = np.abs(ties / scale + zero - 127.5) > 129  # far enough, however it is rounded
    mistake(off[beyond].any(), f"{told}: clamp before you convert the codes to an 8-bit type, in "
            "which 256 becomes 0.")  # fmt: skip
    if off.any():
        for mistaken, hints in mistaken_formulas(ties, scale, zero):
            mistake(np.array_equal(codes, mistaken), f"{told}: {'; '.join(hints)}.")
        first = off.argmax()
        raise Wrong(f"{told}. For x = {ties[first]!s} yours is {codes[first]:.0f}, PyTorch's "
                    f"{wanted[first]:.0f}.")  # fmt: skip
    few = reals(quantize(ties, scale, 5, 4), ties.size).ravel()
    require(few.max() <= 15, "With bits=4 the codes should end at 15.")
    require(np.array_equal(few, codes_of_the_kernel(ties, scale, 5, 15)),
            "With bits=8 the codes are PyTorch's, with bits=4 they aren't.")  # fmt: skip


def codes_of_the_kernel(x, scale, zero, last):
    """Return the codes 0 to `last` of PyTorch's CPU kernel, for an array of float32."""
    back = torch.fake_quantize_per_tensor_affine(torch.tensor(x), float(scale), zero, 0, last)
    return np.rint(back.numpy() / scale) + zero


def mistaken_formulas(x, scale, zero):
    """Yield the 8-bit codes of formulas that look right, and what to change in each.

    x: array of float32; scale: float32.
    """
    inverse, double, half = np.float32(1) / scale, x.astype(np.float64), np.float32(0.5)
    steps = [
        (x * inverse, []),
        (x / scale, [ONCE]),
        (double * inverse, [FLOAT32]),
        (double / scale, [FLOAT32]),  # as with the reciprocal, since no tie is exact in float64
    ]
    roundings = [
        (np.rint, []),
        (lambda count: np.floor(count + half), [EVEN]),
        (lambda count: np.trunc(count + np.copysign(half, count)), [EVEN]),
        (np.floor, [NEAREST]),
        (np.trunc, [NEAREST]),
    ]
    orders = [
        (lambda count, rounding: rounding(count) + zero, []),
        (lambda count, rounding: rounding(count + np.float32(zero)), [LATER]),
    ]
    for (count, a), (rounding, b), (codes, c) in product(steps, roundings, orders):
        yield np.clip(codes(count, rounding), 0, 255), a + b + c


def worse_with_more_bits(numbers):
    numbers = reals(numbers)
    require(numbers.size > 0, "It should hold at least one number.")
    seven, eight = (quantization_error(numbers, round_trip(numbers, bits)) for bits in (7, 8))
    mistake(seven == eight == 0, "All of them are levels, with 7 bits and with 8. Add one that is "
            "a level only with 7.")  # fmt: skip
    require(eight > seven, f"The error is {seven:.3g} with 7 bits and {eight:.3g} with 8. Which "
            "numbers have no error at all with 7 bits?")  # fmt: skip


CHECKS = {
    "1.1": scale_and_zero_point,
    "1.2": same_codes_as_torch,
    "1.3": worse_with_more_bits,
}
