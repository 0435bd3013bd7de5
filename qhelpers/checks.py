"""Checks of arguments: each error names the argument, its value and what is allowed."""

import numbers

import numpy as np
import torch


def checked_array(values, name):
    """Return an array or a tensor of real numbers as a NumPy array of the same type.

    Raises TypeError for other types and ValueError for an empty array.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{name} has the type {values.dtype}; it must hold real numbers")
    if values.size == 0:
        raise ValueError(f"{name} is empty (shape {values.shape}); it must hold a number")
    return values


def checked_params(params, name="params"):
    """Return `params`, an array or a tensor of real numbers, as a NumPy array of floats.

    float32 and float64 stay what they are, float16 and bfloat16 become float32, integers
    float64. Whether the numbers are finite is left to `checked_finite`.
    """
    params = checked_array(params, name)
    if params.dtype.kind in "iu":
        return params.astype(np.float64)
    smallest = np.float32 if params.dtype.itemsize <= 4 else params.dtype.newbyteorder("=")
    return params.astype(smallest, copy=False)


def checked_finite(params, name="params"):
    """Return the array `params`, or raise ValueError if it holds NaN or infinity."""
    finite = np.isfinite(params)
    if not finite.all():
        raise ValueError(f"{name} holds {params[~finite][0]}; all its values must be finite")
    return params


def finite_ends(params, name="params"):
    """Return the smallest and the largest number of an array.

    Raises ValueError if it holds NaN or infinity. Only the ends are checked, because NaN and
    infinity end up there; checking every number would take an array as large as `params`.
    """
    low, high = params.min(), params.max()
    if not np.isfinite([low, high]).all():
        checked_finite(params, name)
    return low, high


def checked_bits(bits, fewest=1):
    """Return `bits` as an int, or raise TypeError or ValueError."""
    return checked_integer("bits", bits, fewest, 16)


def checked_integer(name, value, low, high):
    """Return `value` as an int from `low` to `high`, or raise TypeError or ValueError."""
    allowed = f"{name} is {value!r}; it must be an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(allowed)
    if not low <= value <= high:
        raise ValueError(allowed)
    return int(value)


def checked_percentile(percentile):
    """Return `percentile`, or raise TypeError or ValueError."""
    allowed = f"percentile is {percentile!r}; it must be a number over 50, and at most 100"
    if isinstance(percentile, bool) or not isinstance(percentile, numbers.Real):
        raise TypeError(allowed)
    if not 50 < percentile <= 100:
        raise ValueError(allowed)
    return percentile


def checked_range(range, dtype, shape):
    """Return the two ends of a given range, (low, high), as arrays of this type and shape.

    Each end is one number, or as many as `shape` has room for. Raises TypeError if
    `range` isn't a pair of numbers, and ValueError if an end isn't finite, `low` is
    above `high`, or an end has the wrong number of values.
    """
    try:
        low, high = (np.asarray(end, dtype=np.float64) for end in range)
    except (TypeError, ValueError):
        raise TypeError(f"range is {range!r}; it must be a pair of numbers, (low, high)") from None
    with np.errstate(over="ignore"):  # what `dtype` can't hold becomes infinite
        low, high = low.astype(dtype), high.astype(dtype)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise ValueError(f"range is {range!r}; it must be finite in {dtype}, low first")
    count = int(np.prod(shape))
    for end in (low, high):
        if end.size not in (1, count):
            raise ValueError(
                f"range is {range!r}; each end must be one number, or one for each of the "
                f"{count} scales"
            )
    return tuple(
        np.broadcast_to(end.reshape(shape if end.size > 1 else ()), shape) for end in (low, high)
    )
