"""How an answer is read, and how a checker says what is wrong with it."""

from decimal import Decimal

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


def require_result(answer):
    """Raise Wrong if a function returned nothing."""
    require(answer is not None, "It is None: does your function return something?")


def real(answer, name):
    """Return an answer as a float."""
    try:
        return float(answer)
    except (TypeError, ValueError):
        raise Wrong(f"{name} should be a number, and is {answer!r}.") from None


def reals(answer, count=None):
    """Return an answer as a float64 array, of `count` numbers if it is given."""
    require_result(answer)
    try:
        if isinstance(answer, torch.Tensor):
            answer = answer.detach()
        numbers = np.asarray(answer, float)
    except (TypeError, ValueError):
        raise Wrong(f"It should hold numbers, and is {answer!r}.") from None
    require(count in (None, numbers.size), f"It should hold {count} numbers, not {numbers.size}.")
    return numbers


def near(answer, wanted):
    """Whether an answer equals the wanted number, or each of the wanted numbers, up to rounding."""
    return np.allclose(answer, wanted, rtol=1e-3, atol=1e-6)


def rounded(answer, wanted):
    """Whether each number is the wanted one, rounded to two significant digits or more."""
    pairs = zip(np.ravel(answer).tolist(), np.ravel(wanted).tolist(), strict=True)
    return near(answer, wanted) or all(rounds_to(number, exact) for number, exact in pairs)


def rounds_to(number, exact):
    """Whether `exact`, rounded to the digits in which `number` is written, is `number`."""
    written = Decimal(repr(number)).normalize()
    unit = Decimal(1).scaleb(written.as_tuple().exponent)  # of the last digit that is written
    return abs(written) >= 10 * unit and abs(written - Decimal(exact)) <= unit / 2


def round_trip(params, bits, range_=None):
    """Return `params` quantized and dequantized."""
    codes, scale, zero = asymmetric_quantization(params, bits, range=range_)
    return asymmetric_dequantize(codes, scale, zero)
