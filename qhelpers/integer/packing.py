"""Codes of few bits, packed: two of 4 bits to a byte, four of 2 bits."""

import numpy as np

from qhelpers.checks import checked_integer


def packed_bytes(count, bits):
    """Return how many bytes `count` packed codes take."""
    return -(-count // (8 // checked_integer("bits", bits, 1, 8)))


def pack(codes, bits):
    """Return signed codes packed into bytes, uint8 of shape (packed_bytes,).

    codes: integers from -2**(bits-1) to 2**(bits-1) - 1, any shape; ValueError for others.
    bits: from 1 to 8. 8 // bits codes share a byte, the first in its lowest bits; a code takes
        the lowest bits of its two's complement. The rest of the last byte is 0.
    """
    codes, half = np.asarray(codes), 2 ** (checked_integer("bits", bits, 1, 8) - 1)
    if codes.size and not -half <= codes.min() <= codes.max() < half:
        raise ValueError(f"codes go from {codes.min()} to {codes.max()}; {bits} bits hold "
                         f"{-half} to {half - 1}")  # fmt: skip
    fields = np.zeros((packed_bytes(codes.size, bits), 8 // bits), np.uint8)
    fields.reshape(-1)[: codes.size] = codes.reshape(-1).astype(np.uint8) & (2**bits - 1)
    return np.bitwise_or.reduce(fields << shifts(bits), axis=1)


def unpack(packed, bits, count):
    """Return the first `count` codes of what `pack` returned, int8 of shape (count,).

    Raises ValueError if `packed` isn't uint8, or has another length than `count` codes need.
    """
    if packed.dtype != np.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise ValueError(f"packed is {packed.dtype} of shape {packed.shape}; it must be uint8 of "
                         f"shape ({packed_bytes(count, bits)},)")  # fmt: skip
    fields = (packed[:, None] >> shifts(bits)) & np.uint8(2**bits - 1)
    codes = fields.reshape(-1)[:count].astype(np.int16)
    return np.where(codes < 2 ** (bits - 1), codes, codes - 2**bits).astype(np.int8)


def shifts(bits):
    return (bits * np.arange(8 // bits)).astype(np.uint8)
