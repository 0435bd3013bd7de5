"""The two mappings between real numbers and integer codes: asymmetric and symmetric."""

import numpy as np

from qhelpers.checks import (
    checked_array,
    checked_bits,
    checked_finite,
    checked_params,
    checked_range,
)
from qhelpers.granularity import align_with_scale, blocks, share_scales


def clamp(params_q, lower_bound, upper_bound):
    """Return `params_q` with every value brought into [lower_bound, upper_bound].

    The argument is not changed.
    """
    return np.clip(params_q, lower_bound, upper_bound)


def asymmetric_quantization(params, bits, *, range=None, axis=None, group_size=None):
    """Map real numbers to the codes 0..2**bits-1, so that 0.0 has a code of its own.

    params: array or tensor of finite real numbers, any shape; float32 computes in float32.
    bits: integer from 1 to 16.
    range: (low, high), the real numbers to cover; values beyond are clipped. Each end is one
        number, or one for each scale. By default the smallest and the largest of the numbers
        that share the scale. A range that leaves out 0 is widened.
    axis: each index along this axis has a scale of its own (per channel).
    group_size: each group of so many neighbours along the last axis has a scale of its own.

    Returns (quantized, scale, zero): an array of `params`' shape in the smallest unsigned
    type that holds the codes; the width of a step, of `params`' type; and the code of 0.0.
    With one scale for all, scale and zero are numbers. With `axis` they are arrays that
    broadcast against `params`; with `group_size` their last axis counts the groups.
    Raises TypeError or ValueError for arguments other than these.
    Source: Jacob et al. 2018, section 2.1; the order of operations is torch's, see
    https://docs.pytorch.org/docs/stable/generated/torch.quantize_per_tensor.html.
    """
    params = checked_params(params)
    top = 2 ** checked_bits(bits) - 1
    view, scale_shape = share_scales(params, axis, group_size)
    low, high = covered(view, range)
    low, high = np.minimum(low, 0), np.maximum(high, 0)  # 0.0 must be exact, whatever the data
    scale = step_width(low, high, top)
    zero = clamp(np.rint(-low / scale), 0, top)
    codes = quantize(view, scale, zero, 0, top, np.min_scalar_type(top))
    zero = zero.astype(np.int32).reshape(scale_shape)
    return (
        codes.reshape(params.shape),
        scale.reshape(scale_shape)[()],
        zero if zero.ndim else int(zero),
    )


def symmetric_quantization(
    params, bits, *, range=None, axis=None, group_size=None, narrow_range=True
):
    """Map real numbers to signed codes, 0.0 to the code 0.

    params, axis, group_size: as for `asymmetric_quantization`.
    bits: integer from 2 to 16.
    range: (low, high), the real numbers to cover; the end farther from 0 decides.
    narrow_range: with True the codes are -n..n with n = 2**(bits-1) - 1, and the farthest
        number gets n or -n. With False the lowest code is -n-1, and a step is the range's
        width divided by 2**bits - 1, as in torch; a number at the high end is clipped.

    Returns (quantized, scale): an array of `params`' shape in the smallest signed type that
    holds the codes; and the width of a step, as for `asymmetric_quantization`.
    Raises TypeError or ValueError for arguments other than these.
    Source: Krishnamoorthi 2018, section 2.2; for False, torch.ao's MinMaxObserver.
    """
    params = checked_params(params)
    top = 2 ** (checked_bits(bits, fewest=2) - 1) - 1
    view, scale_shape = share_scales(params, axis, group_size)
    alpha = np.maximum(*map(np.abs, covered(view, range)))
    scale = step_width(np.zeros_like(alpha), alpha, top if narrow_range else top + 0.5)
    bottom = -top if narrow_range else -top - 1
    codes = quantize(view, scale, np.zeros_like(scale), bottom, top, np.min_scalar_type(bottom))
    return codes.reshape(params.shape), scale.reshape(scale_shape)[()]


def asymmetric_dequantize(params_q, scale, zero):
    """Return the real numbers that asymmetric codes stand for: scale * (params_q - zero).

    params_q: array of codes; scale and zero: as `asymmetric_quantization` returned them.
    Returns an array of `params_q`'s shape and `scale`'s type.
    Raises ValueError if the shapes don't fit.
    """
    params_q, scale = checked_array(params_q, "params_q"), checked_params(scale, "scale")
    zero = checked_array(zero, "zero").astype(scale.dtype)
    if zero.shape not in ((), scale.shape):
        raise ValueError(f"zero has the shape {zero.shape}; it must be scale's, {scale.shape}")
    view, inner = align_with_scale(params_q, scale)
    zero = np.broadcast_to(zero, scale.shape)
    return dequantize(view, scale.reshape(inner), zero.reshape(inner)).reshape(params_q.shape)


def symmetric_dequantize(params_q, scale):
    """Return the real numbers that symmetric codes stand for: scale * params_q.

    As `asymmetric_dequantize` with a zero point of 0.
    """
    return asymmetric_dequantize(params_q, scale, 0)


def quantization_error(params, params_dequantized):
    """Return the mean of the squared differences, in the square of `params`' unit.

    Both are arrays or tensors of the same shape; ValueError if they aren't.
    """
    params = checked_params(params)
    params_dequantized = checked_params(params_dequantized, "params_dequantized")
    if params.shape != params_dequantized.shape:
        raise ValueError(
            f"params_dequantized has the shape {params_dequantized.shape}; it must be that of "
            f"params, {params.shape}"
        )
    # So that the squares are summed in the same order, whatever the memory layout.
    difference = np.ascontiguousarray(params - params_dequantized)
    return np.mean(np.square(difference, dtype=np.float64))


def covered(view, range):
    """Return the low and the high end that each scale has to cover, of shape (1, scales, 1)."""
    shape = (1, view.shape[1], 1)
    if range is not None:
        return checked_range(range, view.dtype, shape)
    low, high = (end(axis=(0, 2), keepdims=True) for end in (view.min, view.max))
    checked_finite(low), checked_finite(high)  # NaN and infinity end up here
    return low, high


def step_width(low, high, steps):
    """Return (high - low) / steps, for arrays of low <= 0 <= high, as a step one can divide by.

    Where that is 0, subnormal or infinite, another step that works is returned instead.
    """
    limits, largest = np.finfo(low.dtype), np.maximum(-low, high)
    with np.errstate(over="ignore"):
        width = high - low
        scale = np.where(np.isinf(width), high / steps - low / steps, width / steps)
        # A subnormal scale would lose digits: take fewer and wider steps instead.
        scale = np.maximum(scale, largest / clamp(np.floor(largest / limits.tiny), 1, steps))
    scale = np.minimum(scale, limits.max).astype(low.dtype)
    return np.where(scale == 0, scale.dtype.type(1), scale)  # all zero: any scale will do


def quantize(view, scale, zero, bottom, top, code_type, name="params"):
    """Return clamp(rint(view * (1 / scale)) + zero, bottom, top); scales as in `share_scales`.

    name: what an error message calls the numbers.
    """
    codes = np.empty(view.shape, code_type)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        factor = 1 / scale
        too_small = np.isinf(factor)
        for block in blocks(view.shape):
            numbers, scales = checked_finite(view[block], name), (slice(None), block[1])
            work = numbers * factor[scales]
            if too_small.any():
                work = np.where(too_small[scales], numbers / scale[scales], work)
            np.rint(work, out=work)
            work += zero[scales]
            codes[block] = np.clip(work, bottom, top, out=work)
    return codes


def dequantize(view, scale, zero):
    """Return (view - zero) * scale in scale's type; scales as in `share_scales`."""
    result = np.empty(view.shape, scale.dtype)
    most = np.finfo(scale.dtype).max
    with np.errstate(over="ignore"):
        for block in blocks(view.shape):
            work, scales = result[block], (slice(None), block[1])
            work[...] = view[block]  # widens: uint8 - zero would wrap
            work -= zero[scales]
            work *= scale[scales]
    if scale.max() > most / 2**17:  # rounding may lead half a step beyond the largest float
        np.clip(result, -most, most, out=result)
    return result
