"""Blocks of numbers that share a scale: MX, NVFP4, and code books such as NF4's.

Blocks lie along the last axis. Each code takes a byte here; the docstrings say how many bits a
number takes once its code and its share of the scales are packed.
"""

import numpy as np

from qhelpers.checks import checked_array, checked_finite, checked_integer, checked_params
from qhelpers.formats.floats import E2M1, E4M3, FloatFormat, checked_codes
from qhelpers.formats.levels import checked_levels, nearest_level

E8M0_BIAS, E8M0_NAN = 127, 255  # the code of a power of two is its exponent + 127
NVFP4_BLOCK = 16
MOST = 2**30  # numbers in a block
EIGHT_BITS = np.arange(-128, 128)  # what double quantization rounds the scales to


def pad_to_blocks(x, block):
    """Return `x` with zeros behind its last axis, as few as make `block` divide its length.

    x: array or tensor of real numbers. In a block they change no largest magnitude.
    """
    x = np.atleast_1d(checked_array(x, "x"))
    missing = -x.shape[-1] % checked_integer("block", block, 1, MOST)
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def mx_quantize(x, element, block=32):
    """Round each block to floats of few bits times a power of two. Returns (codes, scales).

    x: array or tensor of real numbers; `block` divides the length of its last axis.
    element: a FloatFormat: E4M3 or E5M2 (MXFP8), E3M2 or E2M3 (MXFP6), E2M1 (MXFP4).
    codes: `element`'s, in `x`'s shape. scales: E8M0 codes, uint8, one for each block.

    The scale is the power of two that takes the exponent of the block's largest magnitude to that
    of the element's. What is still beyond the element's largest number is clipped to it. A block
    of zeros gets the smallest scale. A block that holds NaN or infinity gets the scale NaN, which
    makes all its numbers NaN.
    Bits per number: element.bits + 8 / block; 4.25 for MXFP4.
    Raises TypeError or ValueError for arguments other than these.
    Source: OCP Microscaling Formats (MX) specification 1.0, sections 5.4 and 6.3.
    """
    with np.errstate(invalid="ignore"):  # a signaling NaN that is cast warns
        x = checked_params(x, "x").astype(np.float64)
    blocks = in_blocks(x, block, "x")
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    finite = np.isfinite(largest)
    exponent = exponent_of(largest) - exponent_of(checked_format(element).largest)
    exponent = np.where(largest > 0, np.clip(exponent, -E8M0_BIAS, E8M0_BIAS), -E8M0_BIAS)
    scaled = np.where(finite, np.ldexp(blocks, -exponent), 0)
    codes = element.encode(np.clip(scaled, -element.largest, element.largest))
    scales = np.where(finite, exponent + E8M0_BIAS, E8M0_NAN).astype(np.uint8)
    return codes.reshape(x.shape), scales[..., 0]


def mx_dequantize(codes, scales, element):
    """Return the numbers that `mx_quantize`'s codes and scales stand for, float32.

    Raises TypeError or ValueError if they aren't codes, or the shapes don't fit.
    """
    scales = checked_codes(scales, 256, "scales").astype(int)
    powers = np.where(scales == E8M0_NAN, np.nan, np.ldexp(1.0, scales - E8M0_BIAS))
    return scaled_back(checked_format(element).decode(codes), powers)


def nvfp4_quantize(x):
    """Round blocks of 16 to E2M1 times an E4M3 scale times one float32 for the whole tensor.

    x: array or tensor of finite real numbers; 16 divides the length of its last axis. It is
        rounded to float32 first.

    Returns (codes, scales, tensor_scale): E2M1 codes in `x`'s shape; E4M3 codes, one for each
    block; a float32. The tensor's scale takes the largest block scale to 448, E4M3's largest.
    No block scale is below E4M3's smallest normal number, 2**-6, so that none is 0.
    Bits per number: 4 + 8 / 16 = 4.5, and 32 for the tensor.
    Raises TypeError or ValueError for arguments other than these.
    Source: NVIDIA 2025, Pretraining Large Language Models with NVFP4, section 2 and appendix B;
    the order of operations is torchao's.
    """
    x = finite_float32(x, "x")
    blocks = in_blocks(x, NVFP4_BLOCK, "x")
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    most = np.float32(E4M3.largest * E2M1.largest)
    tensor_scale = np.maximum(largest.max() / most, np.float32(2**-120))  # one can divide by it
    wanted = largest / np.float32(E2M1.largest) / tensor_scale
    scales = E4M3.encode(np.maximum(wanted, np.float32(2**-6)))
    factor = 1 / tensor_scale / E4M3.decode(scales).astype(np.float32)
    codes = E2M1.encode(blocks * factor)
    return codes.reshape(x.shape), scales[..., 0], tensor_scale


def nvfp4_dequantize(codes, scales, tensor_scale):
    """Return the numbers that `nvfp4_quantize`'s codes and scales stand for, float32.

    Raises TypeError or ValueError if they aren't codes, or the shapes don't fit.
    """
    scales = E4M3.decode(checked_codes(scales, 256, "scales")).astype(np.float32)
    return scaled_back(E2M1.decode(codes), scales * np.float32(tensor_scale))


def code_book_quantize(x, levels, block=64):
    """Round each block to levels times a float32 scale. Returns (codes, scales).

    x: array or tensor of finite real numbers; `block` divides the length of its last axis.
    levels: ascending, as for `nearest_level`; `normal_float()` for NF4.
    codes: places in `levels`, in `x`'s shape. scales: float32, one for each block: its largest
        magnitude divided by that of the levels. A block of zeros has the scale 0.
    Bits per number: those of a code, and 32 / block; 4.5 for NF4. See `quantize_scales` for fewer.
    Raises TypeError or ValueError for arguments other than these.
    Source: Dettmers et al. 2022 (8-bit Optimizers via Block-wise Quantization), section 2.1.
    """
    levels, x = checked_levels(levels), finite_float32(x, "x")
    top = np.abs(levels).max()
    if top == 0:
        raise ValueError("levels holds nothing but 0; it must hold another number")
    blocks = in_blocks(x, block, "x")
    scales = finite_float32(np.abs(blocks).max(axis=-1, keepdims=True) / top, "scales")
    codes = nearest_level(blocks / np.where(scales > 0, scales, 1).astype(np.float64), levels)
    return codes.reshape(x.shape), scales[..., 0]


def code_book_dequantize(codes, scales, levels):
    """Return the numbers that `code_book_quantize`'s codes and scales stand for, float32.

    Raises TypeError or ValueError if they aren't codes, or the shapes don't fit.
    """
    levels = checked_levels(levels)
    values = levels[checked_codes(codes, len(levels))]
    return scaled_back(values, checked_params(scales, "scales"))


def quantize_scales(scales, block=256):
    """Quantize scales in turn (double quantization). Returns (codes, steps, mean).

    scales: as from `code_book_quantize`, any shape; they are taken in a row. The last of their
        blocks may be shorter.
    codes: the scales less their mean, rounded to -128..127 times a step; uint8 in `scales`'
        shape, 128 for the mean. steps: float32, one for each block. mean: a float32.
    Bits per number, where 64 share a scale: 8 / 64 + 32 / (64 * 256) = 0.127, and 32 for the
    tensor; so NF4 takes 4.127.
    Raises TypeError or ValueError for arguments other than these.
    Source: Dettmers et al. 2023 (QLoRA), section 3. Their 8 bits are a float's; integers, as in
    torchao, take as many.
    """
    scales = finite_float32(scales, "scales")
    mean = np.float32(scales.mean(dtype=np.float64))
    around_0 = pad_to_blocks((scales - mean).reshape(-1), block)
    codes, steps = code_book_quantize(around_0, EIGHT_BITS, block)
    return codes[: scales.size].reshape(scales.shape), steps, mean


def dequantize_scales(codes, steps, mean, block=256):
    """Return the scales that `quantize_scales`' codes stand for, float32, none below 0."""
    codes = checked_codes(codes, 256)
    around_0 = code_book_dequantize(pad_to_blocks(codes.reshape(-1), block), steps, EIGHT_BITS)
    return np.maximum(around_0[: codes.size].reshape(codes.shape) + np.float32(mean), 0)


def pack_pairs(codes):
    """Return 4-bit codes, two to a byte, the first in the lower half: float4_e2m1fn_x2's order.

    codes: integers from 0 to 15; the last axis has an even length. Returns uint8, of half of it.
    Raises TypeError or ValueError for others.
    """
    pairs = in_blocks(checked_codes(codes, 16).astype(np.uint8), 2, "codes")
    return pairs[..., 0] | pairs[..., 1] << 4


def unpack_pairs(packed):
    """Return the codes that `pack_pairs` packed: uint8, the last axis twice as long."""
    packed = checked_codes(packed, 256, "packed").astype(np.uint8)
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)


def in_blocks(x, block, name):
    """Return `x` with its last axis cut into blocks: of shape (..., blocks, block)."""
    length = x.shape[-1] if x.ndim else 1
    if length % checked_integer("block", block, 1, MOST):
        raise ValueError(
            f"{name} has {length} numbers in its last axis; a block of {block} must divide it"
        )
    return x.reshape(*x.shape[:-1], length // block, block)


def scaled_back(values, scales):
    """Return `values` times the scale of their block, float32; the shapes are checked."""
    length = values.shape[-1] if values.ndim else 1
    if scales.shape[:-1] != values.shape[:-1] or not scales.ndim or length % scales.shape[-1]:
        raise ValueError(
            f"scales has the shape {scales.shape}; for codes of shape {values.shape} it must be "
            "one for each block of the last axis"
        )
    products = values.reshape(*scales.shape, -1) * scales[..., None].astype(np.float64)
    most = np.finfo(np.float32).max  # a scale that was rounded up may lead beyond it
    return np.clip(products, -most, most).astype(np.float32).reshape(values.shape)


def checked_format(element):
    """Return `element`, or raise TypeError."""
    if not isinstance(element, FloatFormat):
        raise TypeError(f"element is {element!r}; it must be a FloatFormat")
    return element


def exponent_of(x):
    """Return floor(log2(x)) of positive numbers, exactly."""
    return np.frexp(x)[1] - 1


def finite_float32(x, name):
    """Return `x` as a float32 array, or raise TypeError or ValueError."""
    x = checked_params(x, name)
    with np.errstate(over="ignore", invalid="ignore"):
        return checked_finite(x.astype(np.float32), name)
