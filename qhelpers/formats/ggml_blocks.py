"""Numbers in blocks, byte for byte as llama.cpp's files hold them: Q8_0, Q4_0, Q4_1 and Q4_K."""

import math

import numpy as np

from qhelpers.checks import checked_finite, checked_params

# Numbers in a block, and the bytes it takes.
BLOCKS = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144)}
SUB_BLOCKS = 8  # of 32 numbers, in a block of Q4_K


def pack_blocks(params, kind):
    """Return real numbers as bytes: uint8 of `params`' shape, its last axis counting bytes.

    params: array or tensor of finite real numbers, shape (..., a multiple of the block).
    kind: "Q8_0", "Q4_0", "Q4_1" (blocks of 32) or "Q4_K" (blocks of 256).

    The first three give the bytes of llama.cpp's reference, ggml-quants.c, and so of the package
    gguf. For Q4_K llama.cpp searches for better scales, worth 0.8 dB with normal numbers; here
    each sub-block covers its range.
    Raises TypeError or ValueError for arguments other than these, and ValueError for numbers so
    large that the scale of their block, a float16, would be infinite.
    """
    size, _ = checked_kind(kind)
    params = checked_finite(checked_params(params))
    if params.ndim == 0 or params.shape[-1] % size:
        raise ValueError(f"params has the shape {params.shape}; its last axis must be a multiple "
                         f"of {size}, the block of {kind}")  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):  # float16_bytes refuses what is infinite
        blocks = params.astype(np.float32).reshape(-1, size)
        packed = PACK[kind](blocks)
    return packed.reshape(*params.shape[:-1], -1)


def unpack_blocks(raw, kind, shape):
    """Return the numbers that `pack_blocks` or a file's blocks stand for, float32 of this shape.

    raw: uint8, any shape, as many bytes as `shape` needs. kind: as for `pack_blocks`.
    A scale in `raw` that is NaN or infinite makes NaN and infinity of its block's numbers.
    Raises TypeError or ValueError for arguments other than these.
    """
    size, n_bytes = checked_kind(kind)
    raw = np.asarray(raw)
    n_blocks, rest = divmod(math.prod(shape), size)
    if raw.dtype != np.uint8 or n_blocks < 1 or rest or raw.size != n_blocks * n_bytes:
        raise ValueError(f"raw is {raw.dtype} of shape {raw.shape}; for shape={tuple(shape)} it "
                         f"must be uint8, {n_bytes} for each {size} numbers of {kind}")  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        return UNPACK[kind](raw.reshape(-1, n_bytes)).reshape(shape)


def checked_kind(kind):
    if kind not in BLOCKS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(BLOCKS)}")
    return BLOCKS[kind]


def pack_q8_0(blocks):
    """A scale, then 32 codes of 8 bits from -127 to 127."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    steps = blocks * reciprocal(scale)
    codes = np.copysign(np.floor(np.abs(steps) + np.float32(0.5)), steps)  # halves away from 0
    return joined(float16_bytes(scale), codes.astype(np.int8).view(np.uint8))


def unpack_q8_0(raw):
    return float16_at(raw, 0) * raw[:, 2:].view(np.int8)


def pack_q4_0(blocks):
    """A scale, then 32 codes of 4 bits; 8 stands for 0.

    The number farthest from 0 gets the code 0, so the scale has the opposite sign.
    """
    farthest = np.abs(blocks).argmax(axis=1)[:, None]
    scale = np.take_along_axis(blocks, farthest, axis=1) / -8
    codes = np.trunc(blocks * reciprocal(scale) + np.float32(8.5)).clip(0, 15)
    return joined(float16_bytes(scale), nibbles(codes))


def unpack_q4_0(raw):
    return float16_at(raw, 0) * (codes_of(raw[:, 2:]) - 8)


def pack_q4_1(blocks):
    """A scale, the smallest number, then 32 codes of 4 bits counted from it."""
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    scale = (high - low) / 15
    codes = np.trunc((blocks - low) * reciprocal(scale) + np.float32(0.5)).clip(0, 15)
    return joined(float16_bytes(scale), float16_bytes(low), nibbles(codes))


def unpack_q4_1(raw):
    return float16_at(raw, 0) * codes_of(raw[:, 4:]) + float16_at(raw, 2)


def pack_q4_k(blocks):
    """Two float16 for all, then a scale and a minimum of 6 bits for each 32 numbers, then codes.

    A number is (whole scale * scale) * code - (whole minimum * minimum).
    """
    parts = blocks.reshape(-1, SUB_BLOCKS, 32)
    lows = np.maximum(-parts.min(axis=2), 0)  # how far below 0 a sub-block reaches
    scales = (parts.max(axis=2) + lows) / 15
    whole, scales = six_bits(scales)
    whole_low, lows = six_bits(lows)
    step = as_float(whole) * scales
    shifted = parts + (as_float(whole_low) * lows)[:, :, None]
    codes = np.rint(shifted * reciprocal(step)[:, :, None]).clip(0, 15)
    codes = nibbles(codes.reshape(-1, 64)).reshape(len(blocks), 128)
    return joined(whole, whole_low, pack_six_bits(scales, lows), codes)


def unpack_q4_k(raw):
    scales, lows = unpack_six_bits(raw[:, 4:16])
    step, low = float16_at(raw, 0) * scales, float16_at(raw, 2) * lows
    codes = codes_of(raw[:, 16:].reshape(-1, 32)).reshape(-1, SUB_BLOCKS, 32)
    return step[:, :, None] * codes - low[:, :, None]


def six_bits(values):
    """Return positive values of shape (blocks, 8) as a float16 in bytes and codes 0..63."""
    whole = float16_bytes(values.max(axis=1, keepdims=True) / 63)
    return whole, np.rint(values * reciprocal(as_float(whole))).clip(0, 63).astype(np.uint8)


def pack_six_bits(scales, lows):
    """Return 8 scales and 8 minima as 12 bytes: 4 hold scales, 4 minima, 4 the rest of both.

    The last four numbers of each have their low 4 bits in the last 4 bytes, and their high 2 bits
    on top of the first 8.
    """
    first, last = slice(0, 4), slice(4, 8)
    high = [(each[:, last] >> 4 << 6) | each[:, first] for each in (scales, lows)]
    return joined(*high, (lows[:, last] & 15) << 4 | (scales[:, last] & 15))


def unpack_six_bits(raw):
    scales, lows, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    return (
        joined(scales & 63, scales >> 6 << 4 | rest & 15),
        joined(lows & 63, lows >> 6 << 4 | rest >> 4),
    )


def nibbles(codes):
    """Return codes 0..15 two to a byte: the first half in the low bits, the second in the high."""
    first, second = np.split(codes.astype(np.uint8), 2, axis=1)
    return first | second << 4


def codes_of(raw):
    return joined(raw & 15, raw >> 4).astype(np.float32)


def float16_bytes(values):
    """Return one value for each block as the two bytes of a float16; ValueError if infinite."""
    halves = values.astype("<f2")
    if np.isinf(halves).any():
        largest = np.abs(values).max()
        raise ValueError(f"params needs a scale or minimum of {largest}; it is stored as float16, "
                         "whose largest number is 65504")  # fmt: skip
    return halves.view(np.uint8)


def float16_at(raw, place):
    """Return the float16 at this byte of each block, as float32 of shape (blocks, 1)."""
    return as_float(raw[:, place : place + 2])


def as_float(two_bytes):
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)


def reciprocal(scale):
    """Return 1 / scale, or 0 where that is infinite: the block's numbers are 0 or vanish."""
    with np.errstate(divide="ignore"):
        factor = 1 / scale
    return np.where(np.isinf(factor), np.float32(0), factor)


def joined(*parts):
    return np.concatenate(parts, axis=1)


PACK = {"Q8_0": pack_q8_0, "Q4_0": pack_q4_0, "Q4_1": pack_q4_1, "Q4_K": pack_q4_k}
UNPACK = {"Q8_0": unpack_q8_0, "Q4_0": unpack_q4_0, "Q4_1": unpack_q4_1, "Q4_K": unpack_q4_k}
