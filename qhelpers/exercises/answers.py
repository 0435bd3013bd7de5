"""How an answer is read, and how a checker says what is wrong with it."""

import numpy as np
import torch

from qhelpers.affine import asymmetric_dequantize, asymmetric_quantization


class Wrong(Exception):
    """An answer is not right; the message is a hint for the reader."""


def mistake(condition, hint):
    """Raise Wrong with the hint if the condition holds: the answer makes a known mistake."""
    if condition:
        raise Wrong(hint)


def require(condition, hint):
    """Raise Wrong with the hint unless the condition holds."""
    if not condition:
        raise Wrong(hint)


def real(answer, name):
    """Return an answer as a float."""
    try:
        return float(answer)
    except (TypeError, ValueError):
        raise Wrong(f"{name} should be a number, and is {answer!r}.") from None


def reals(answer, count=None):
    """Return an answer as a float64 array, of `count` numbers if it is given."""
    require(answer is not None, "It is None: does your function return something?")
    try:
        if isinstance(answer, torch.Tensor):
            answer = answer.detach()
        numbers = np.asarray(answer, float)
    except (TypeError, ValueError):
        raise Wrong(f"It should hold numbers, and is {answer!r}.") from None
    require(count in (None, numbers.size), f"It should hold {count} numbers, not {numbers.size}.")
    return numbers


def near(answer, wanted):
    """Whether an answer is the wanted number, or holds the wanted numbers, but for rounding."""
    return np.allclose(answer, wanted, rtol=1e-3, atol=1e-6)


def round_trip(params, bits, range_=None):
    """Return `params` quantized and dequantized."""
    codes, scale, zero = asymmetric_quantization(params, bits, range=range_)
    return asymmetric_dequantize(codes, scale, zero)
