"""Floats of any few bits, as tables of the numbers that their patterns stand for."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qhelpers.checks import checked_array, checked_integer, checked_params
from qhelpers.formats.levels import nearest

SPECIAL = ("ieee", "nan", "none")


@dataclass(frozen=True)
class FloatFormat:
    """A sign bit, then the exponent's bits, then the mantissa's: at most 16 together.

    exponent_bits: integer from 1 to 8. The bias is 2**(exponent_bits - 1) - 1.
    mantissa_bits: integer from 0 to 14. With exponent 0 the number is subnormal.
    special: what the largest patterns stand for, and so what happens to large numbers:
        "ieee": the highest exponent means infinity (mantissa 0) and NaN (any other mantissa;
            mantissa_bits must be 1 or more). Numbers that round beyond the largest finite one
            become infinite.
        "nan": the pattern of all ones is NaN; there is no infinity. Numbers beyond the largest
            one, infinity included, saturate: they become the largest. So does PyTorch since
            2.12; before, they became NaN.
        "none": all patterns are numbers. Larger ones saturate; NaN is refused.
    Raises TypeError or ValueError for other arguments.
    Source: IEEE 754-2019, section 3.4; for "nan" Micikevicius et al. 2022, section 3; for "none"
    OCP Microscaling Formats (MX) specification 1.0, section 5.3.
    """

    exponent_bits: int
    mantissa_bits: int
    special: str = "ieee"

    def __post_init__(self):
        if self.special not in SPECIAL:
            raise ValueError(f"special is {self.special!r}; it must be one of {SPECIAL}")
        checked_integer("exponent_bits", self.exponent_bits, 1, 8)
        fewest = 1 if self.special == "ieee" else 0
        checked_integer("mantissa_bits", self.mantissa_bits, fewest, 15 - self.exponent_bits)

    @property
    def bits(self):
        """The bits of a pattern."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def largest(self):
        """The largest finite number."""
        return float(self.numbers[-1])

    @cached_property
    def values(self):
        """What each pattern stands for, by its code: float64 of shape (2**bits,), read-only."""
        codes = np.arange(2 ** (self.bits - 1))  # the positive half
        exponent, mantissa = np.divmod(codes, 2**self.mantissa_bits)
        # With exponent 0 there is no leading 1, and the step is that of exponent 1.
        mantissa += np.where(exponent > 0, 2**self.mantissa_bits, 0)
        bias = 2 ** (self.exponent_bits - 1) - 1
        values = np.ldexp(
            mantissa.astype(float), np.maximum(exponent, 1) - bias - self.mantissa_bits
        )
        if self.special == "ieee":
            values[-(2**self.mantissa_bits) :] = [np.inf] + [np.nan] * (2**self.mantissa_bits - 1)
        elif self.special == "nan":
            values[-1] = np.nan
        values = np.concatenate([values, -values])
        values.flags.writeable = False
        return values

    @cached_property
    def numbers(self):
        """The finite numbers from 0.0 up; their codes are 0, 1, 2 and so on."""
        positive = self.values[: 2 ** (self.bits - 1)]
        return positive[np.isfinite(positive)]

    def encode(self, x):
        """Return the code of the number nearest to each of `x`; a tie goes to the even code.

        x: array or tensor of real numbers, any shape. What happens to large numbers and to NaN
        is said at `special`; a NaN becomes the pattern of all ones behind its sign.
        Returns an array of `x`'s shape, uint8 or uint16.
        Raises ValueError for NaN if the format has none, and for an empty array.
        """
        x = checked_params(x, "x")
        isnan = np.isnan(x)
        if self.special == "none" and isnan.any():
            raise ValueError("x holds nan; this format has no pattern for it")
        levels = self.numbers
        if self.special == "ieee":  # infinity's code is the next one, and so is its place
            levels = np.append(levels, 2.0 ** np.frexp(self.largest)[1])
        sign_bit = 2 ** (self.bits - 1)
        codes = np.where(isnan, sign_bit - 1, nearest(np.abs(np.where(isnan, 0, x)), levels))
        return (codes + sign_bit * np.signbit(x)).astype(np.min_scalar_type(2 * sign_bit - 1))

    def decode(self, codes):
        """Return the numbers that codes stand for, float64 of the same shape.

        codes: array of integers from 0 to 2**bits - 1; TypeError or ValueError for others.
        """
        return self.values[checked_codes(codes, 2**self.bits)]


def checked_codes(codes, count, name="codes"):
    """Return `codes` as an array of integers below `count`, or raise TypeError or ValueError."""
    codes = checked_array(codes, name)
    if codes.dtype.kind == "f":
        raise TypeError(f"{name} has the type {codes.dtype}; it must hold integers")
    if codes.min() < 0 or codes.max() >= count:
        raise ValueError(
            f"{name} goes from {codes.min()} to {codes.max()}; allowed are 0 to {count - 1}"
        )
    return codes


FLOAT16 = FloatFormat(5, 10)
BFLOAT16 = FloatFormat(8, 7)
E5M2 = FloatFormat(5, 2)
E4M3 = FloatFormat(4, 3, "nan")
E3M2 = FloatFormat(3, 2, "none")
E2M3 = FloatFormat(2, 3, "none")
E2M1 = FloatFormat(2, 1, "none")
