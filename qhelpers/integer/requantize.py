"""Requantization: from accumulators to codes, as torch's engines and ONNX Runtime do it, and in
fixed point, without a float.

Each of the seven takes a layer (`Linear` or `Conv2d` of qhelpers.integer.layers), with s_x and s_w
the scales of its inputs and weights, b its bias, s_y and z_y the scale and zero point of its
outputs, and returns a function. It takes accumulators of shape (n, out), which it may overwrite,
and returns the codes before they are clipped. What is the same for all accumulators is computed
once, outside that function. There are three for oneDNN; `engine_arithmetic` of qhelpers.torch_ao
tells which of them torch uses on this CPU.

The order of operations was found by comparing with their kernels, code by code (tests/integer).
"""

from functools import partial

import numpy as np

from qhelpers.integer.products import largest_sum

ONE = np.float32(1)


def fbgemm(layer):
    """round((acc + b / (s_x s_w)) * (s_x s_w / s_y)) + z_y in float32; the bias stays a float.

    Per tensor, b is multiplied by the reciprocal, and that product and the sum are rounded once
    (a fused multiply-add). float64 holds the product exactly.
    """
    scale = layer.before.scale * layer.weight_scale
    per_tensor = layer.bias.astype(np.float64) * (ONE / scale)
    bias = layer.bias / scale if scale.ndim else per_tensor
    multiplier, zero_point = scale / layer.after.scale, layer.after.zero_point

    def requantize(acc):
        total = acc.astype(np.float32, copy=False) + bias
        return rounded(total.astype(np.float32, copy=False), multiplier, zero_point)

    return requantize


def qnnpack(layer):
    """round((acc + b_q) * (s_x s_w * (1 / s_y))) + z_y, with b_q = round(b * (1 / (s_x s_w)))
    an integer that is added exactly."""
    scale = layer.before.scale * layer.weight_scale
    bias = np.rint(layer.bias * (ONE / scale)).astype(np.float64)
    multiplier, zero_point = scale * (ONE / layer.after.scale), layer.after.zero_point

    def requantize(acc):
        return rounded((acc + bias).astype(np.float32), multiplier, zero_point)

    return requantize


def rounded(total, multiplier, zero_point):
    """Return round(total * multiplier) + zero_point, in float32; overwrites `total`."""
    total *= multiplier
    np.rint(total, out=total)
    total += np.float32(zero_point)
    return total


def onednn(layer):
    """round((acc * s_x s_w + b) * (1 / s_y) + z_y) in float32: the zero point comes before the
    rounding.

    torch passes the reciprocal of s_x, and for Linear also that of s_w, which oneDNN inverts
    again.
    """
    input_scale, weight_scale = inverted_again(layer)
    scale = input_scale * weight_scale
    return onednn_ending(layer, lambda acc: acc.astype(np.float32, copy=False) * scale)


def onednn_brgemm(layer, divides=False):
    """As `onednn`, but each accumulator is multiplied by s_x, rounded, and then by s_w.

    divides: a Linear whose inputs have a zero point divides by 1 / (1 / s_y) instead of
        multiplying by 1 / s_y, as oneDNN's reference code does, which these layers fall back to.
    """
    input_scale, weight_scale = inverted_again(layer)

    def scaled(acc):
        y = acc.astype(np.float32, copy=False) * input_scale
        y *= weight_scale
        return y

    falls_back = layer.weight.ndim == 2 and layer.before.zero_point != 0
    return onednn_ending(layer, scaled, divides and falls_back)


def inverted_again(layer):
    """Return s_x and s_w as oneDNN gets them from torch."""
    weight_scale = layer.weight_scale
    if layer.weight.ndim == 2:
        weight_scale = ONE / (ONE / weight_scale)
    return ONE / (ONE / layer.before.scale), weight_scale


def onednn_ending(layer, scaled, divides=False):
    """Return the function that adds the bias to `scaled(acc)` and turns the sum into codes."""
    reciprocal, zero_point = ONE / layer.after.scale, layer.after.zero_point
    operation, factor = (np.divide, ONE / reciprocal) if divides else (np.multiply, reciprocal)

    def requantize(acc):
        y = scaled(acc)
        y += layer.bias
        operation(y, factor, out=y)
        y += np.float32(zero_point)
        return np.rint(y, out=y)

    return requantize


def onnxruntime(layer):
    """round((acc + b_q) * (s_x s_w / s_y)) + z_y, with b_q = round(b / (s_x s_w)) an integer that
    is added exactly."""
    scale = layer.before.scale * layer.weight_scale
    bias = np.rint(layer.bias / scale).astype(np.float64)
    multiplier, zero_point = scale / layer.after.scale, layer.after.zero_point

    def requantize(acc):
        return rounded((acc + bias).astype(np.float32), multiplier, zero_point)

    return requantize


def fixed_point(layer):
    """((acc + b_q) * M_0 + half) >> shift, plus z_y, all in integers.

    b_q = round(b / (s_x s_w)) is an int32, and M_0 * 2**-shift is s_x s_w / s_y, see
    `fixed_point_multiplier`. The product has 64 bits, and is rounded once, halves up.
    Source: Jacob et al. 2018, sections 2.2 and 2.4.
    """
    scale = layer.before.scale.astype(np.float64) * layer.weight_scale
    bias = np.rint(layer.bias / scale)
    if not np.abs(bias).max() + largest_sum(layer.matrix, layer.before.quant_max) < 2**31:
        raise ValueError(f"{layer.name} doesn't fit in 32 bits: its bias is up to "
                         f"{np.abs(layer.bias).max():g}, in steps of {scale.min():g}")  # fmt: skip
    bias = bias.astype(np.int32)
    multiplier, shift = fixed_point_multiplier(scale / layer.after.scale)
    half, zero_point = np.int64(1) << (shift - 1), layer.after.zero_point

    def requantize(acc):
        y = (acc.astype(np.int32, copy=False) + bias).astype(np.int64)
        y *= multiplier
        y += half
        y >>= shift
        y += zero_point
        return y

    return requantize


def fixed_point_multiplier(multiplier):
    """Return (M_0, shift), int64 arrays, with M_0 * 2**-shift the positive real `multiplier`.

    M_0 is from 2**30 to 2**31 - 1, so its error is at most one part in 2**31; it is smaller
    where the multiplier is below 2**-32, for which no shift of 64 bits is long enough.
    Raises ValueError for a multiplier that is not positive, or 2**29 and more.
    """
    multiplier = np.asarray(multiplier, np.float64)
    if not ((multiplier > 0) & (multiplier < 2**29)).all():
        raise ValueError(f"multiplier is {multiplier}; it must be positive and below 2**29")
    _, exponent = np.frexp(multiplier)
    shift = np.minimum(31 - exponent, 62).astype(np.int64)
    fixed = np.rint(np.ldexp(multiplier, shift.astype(np.int32))).astype(np.int64)
    carried = fixed == 2**31  # rounded up to the next power of two
    return np.where(carried, fixed // 2, fixed), np.where(carried, shift - 1, shift)


ARITHMETICS = {
    "fbgemm": fbgemm,
    "qnnpack": qnnpack,
    "onednn": onednn,
    "onednn-brgemm": onednn_brgemm,
    "onednn-brgemm-division": partial(onednn_brgemm, divides=True),
    "onnxruntime": onnxruntime,
    "fixed-point": fixed_point,
}
