"""What the codes between two layers of an integer model stand for."""

from dataclasses import dataclass

import numpy as np

TINY = np.finfo(np.float32).tiny  # the reciprocal of a smaller one may be infinite


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

    def code_of(self, number):
        """Return the code of a real number, as torch quantizes it."""
        with np.errstate(over="ignore"):  # infinity has the last code
            steps = np.rint(np.float32(number) * (1 / self.scale)) + self.zero_point
        return int(np.clip(steps, 0, self.quant_max))


def check_taken(layer, expected, given):
    """Raise ValueError if a layer is given codes with another scale or zero point."""
    if expected != given:
        raise ValueError(f"layer {layer.name!r} takes {expected}, and gets {given}")


def check_top(layer):
    """Raise ValueError if the code at which a layer clips isn't one that it may return."""
    top, low = layer.top, layer.after.zero_point
    if type(top) is not int or not low <= top <= 255:
        raise ValueError(f"layer {layer.name!r}: top is {top!r}; it must be an integer from {low} "
                         "to 255")  # fmt: skip


def clipping(layer):
    """Return the function that clips a layer's new codes, in place, and returns them as uint8.

    ReLU is the lower end, the code of 0. ReLU6 has an upper end, too: the code of 6, `top`.
    """
    lowest = layer.after.zero_point if layer.relu else 0
    highest = min(layer.after.quant_max, layer.top)
    return lambda codes: np.clip(codes, lowest, highest, out=codes).astype(np.uint8)
