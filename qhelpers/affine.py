"""The two mappings between real numbers and integer codes: asymmetric and symmetric."""

import numpy as np


def clamp(params_q, lower_bound, upper_bound):
    """Return `params_q` with every value brought into [lower_bound, upper_bound].

    The argument is not changed.
    """
    return np.clip(params_q, lower_bound, upper_bound)


def asymmetric_quantization(params, bits, *, range=None):
    """Map real numbers to the codes 0..2**bits-1, so that 0.0 has a code of its own.

    params: array of finite floats, any shape.
    bits: integer from 1 to 16.
    range: (low, high), the real numbers to cover; values beyond are clipped. By default
        the smallest and the largest of `params`. It is widened where it leaves out 0.

    Returns (quantized, scale, zero): an array of `params`' shape in the smallest unsigned
    type that holds the codes; the width of a step; and the code of 0.0, an int.
    Raises ValueError for bad values.
    Source: Jacob et al. 2018, section 2.1; the order of operations is torch's, see
    https://docs.pytorch.org/docs/stable/generated/torch.quantize_per_tensor.html.
    """
    params = checked_params(params)
    top = 2 ** checked_bits(bits, 1) - 1
    low, high = checked_range(params, range)
    low, high = min(low, 0), max(high, 0)  # 0.0 must be exact, whatever the data
    scale = (high - low) / top or params.dtype.type(1)  # all zero: any scale will do
    zero = int(clamp(np.rint(-low / scale), 0, top))
    codes = np.rint(params * (1 / scale)) + zero
    return clamp(codes, 0, top).astype(np.min_scalar_type(top)), scale, zero


def symmetric_quantization(params, bits, *, range=None):
    """Map real numbers to the signed codes -2**(bits-1)..2**(bits-1)-1, with 0.0 at code 0.

    params: array of finite floats, any shape.
    bits: integer from 2 to 16.
    range: (low, high), the real numbers to cover; the farther of the two from 0 counts.
        By default the smallest and the largest of `params`.

    Returns (quantized, scale): an array of `params`' shape in the smallest signed type
    that holds the codes; and the width of a step.
    Raises ValueError for bad values.
    Source: Krishnamoorthi 2018, section 2.2.
    """
    params = checked_params(params)
    top = 2 ** (checked_bits(bits, 2) - 1) - 1
    alpha = max(abs(end) for end in checked_range(params, range))
    scale = alpha / top or params.dtype.type(1)
    codes = np.rint(params * (1 / scale))
    return clamp(codes, -top - 1, top).astype(np.min_scalar_type(-top - 1)), scale


def asymmetric_dequantize(params_q, scale, zero):
    """Return the real numbers that asymmetric codes stand for: scale * (params_q - zero)."""
    return (np.asarray(params_q).astype(np.int32) - zero) * scale  # uint8 - zero would wrap


def symmetric_dequantize(params_q, scale):
    """Return the real numbers that symmetric codes stand for: scale * params_q."""
    return np.asarray(params_q) * scale


def quantization_error(params, params_dequantized):
    """Return the mean of the squared differences, in the square of `params`' unit."""
    return np.mean((np.asarray(params) - np.asarray(params_dequantized)) ** 2)


def checked_params(params):
    """Return `params` as an array of floats, or raise ValueError."""
    params = np.asarray(params)
    if params.dtype.kind in "iu":
        params = params.astype(np.float64)
    if params.dtype.kind != "f":
        raise ValueError(f"params has the type {params.dtype}; it must hold real numbers")
    if params.size == 0:
        raise ValueError(f"params is empty (shape {params.shape}); it must hold a number")
    if not np.isfinite(params).all():
        raise ValueError("params holds NaN or infinity; all its values must be finite")
    return params


def checked_bits(bits, fewest):
    """Return `bits`, or raise ValueError."""
    if not isinstance(bits, (int, np.integer)) or not fewest <= bits <= 16:
        raise ValueError(f"bits is {bits!r}; it must be an integer from {fewest} to 16")
    return int(bits)


def checked_range(params, range):
    """Return (low, high) in `params`' type: the given range, or that of `params`."""
    low, high = (params.min(), params.max()) if range is None else range
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"range is ({low}, {high}); it must be finite, low first")
    return params.dtype.type(low), params.dtype.type(high)
