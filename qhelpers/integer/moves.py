"""Layers of an integer model that return codes with the scale of those that they take."""

from dataclasses import dataclass

import numpy as np

from qhelpers.integer.windows import MOST_NUMBERS


@dataclass(frozen=True)
class ReLU:
    """max(q, zero_point): the code of max(x, 0). With `top`, the code of 6, it is ReLU6."""

    name: str
    zero_point: int
    top: int = 255
    takes = 1

    def __post_init__(self):
        if not 0 <= self.zero_point <= self.top <= 255:
            raise ValueError(f"layer {self.name!r}: zero_point is {self.zero_point} and top is "
                             f"{self.top}; 0 <= zero_point <= top <= 255 must hold")  # fmt: skip

    def returns(self, qparams):
        if self.zero_point != qparams.zero_point:
            raise ValueError(f"layer {self.name!r} has the zero point {self.zero_point}, and gets "
                             f"{qparams}")  # fmt: skip
        return qparams

    def prepared(self, arithmetic, products):
        return lambda codes: np.clip(codes, np.uint8(self.zero_point), np.uint8(self.top))


@dataclass(frozen=True)
class Reshape:
    """Gives each image another shape; one length may be -1.

    Raises ValueError if any other length isn't an integer from 1 to MOST_NUMBERS.
    """

    name: str
    shape: tuple
    takes = 1

    def __post_init__(self):
        lengths = [n for n in self.shape if n != -1]
        right = all(type(n) is int and 1 <= n <= MOST_NUMBERS for n in lengths)
        if not right or len(lengths) < len(self.shape) - 1:
            raise ValueError(f"layer {self.name!r}: shape is {self.shape!r}; it must have integers "
                             f"from 1 to {MOST_NUMBERS:,}, and at most one -1")  # fmt: skip

    def returns(self, qparams):
        return qparams

    def prepared(self, arithmetic, products):
        return lambda codes: codes.reshape(len(codes) if -1 in self.shape else -1, *self.shape)
