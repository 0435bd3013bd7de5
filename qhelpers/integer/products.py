"""Sums of products of integer codes, three ways: exact by integers, exact by BLAS, and saturating,
as CPUs without VNNI compute them.

Each of the three takes a weight, int8 of shape (out, k), the zero point of the inputs and their
last code, and returns a function. It takes rows of input codes, uint8 of shape (n, k), and returns
the accumulators sum_k (q_x - z_x) q_w, of shape (n, out).
"""

import numpy as np

INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1


def by_integers(weight, zero_point, quant_max):
    """NumPy's product of int32 matrices, which no library speeds up; accumulators in int32."""
    columns = weight.T.astype(np.int32)
    return lambda codes: (codes.astype(np.int32) - zero_point) @ columns


def by_blas(weight, zero_point, quant_max):
    """A product of float matrices that hold integers, exact and fast; accumulators as floats.

    In float32 if no intermediate sum can exceed 2**24, up to which float32 holds every integer,
    otherwise in float64.
    """
    dtype = np.float32 if largest_sum(weight, quant_max) <= 2**24 else np.float64
    columns = np.ascontiguousarray(weight.T, dtype)
    offset = (zero_point * weight.sum(axis=1, dtype=np.int64)).astype(dtype)

    def accumulators(codes):
        sums = codes.astype(dtype) @ columns
        sums -= offset
        return sums

    return accumulators


def saturating(weight, zero_point, quant_max):
    """As fbgemm and onednn compute on x86 without VNNI; accumulators as floats.

    There the instruction vpmaddubsw adds the products of two neighbours, the first and the
    second, the third and the fourth, in int16: beyond -32768..32767 it saturates. The pairs
    are then added in int32. (fbgemm takes the inputs of Conv2d with the channels last; so does
    `Conv2d`. With groups it pairs them in another way.)
    """
    exact = by_blas(weight, zero_point, quant_max)
    padded = np.pad(weight.astype(np.int32), ((0, 0), (0, weight.shape[1] % 2)))
    first, second = padded[:, 0::2], padded[:, 1::2]
    risky = [np.flatnonzero(pairs) for pairs in pairs_that_can_saturate(weight, quant_max)]

    def accumulators(codes):
        sums = exact(codes)
        codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).astype(np.int32)
        for channel, pairs in enumerate(risky):
            added = codes[:, 2 * pairs] * first[channel, pairs]
            added += codes[:, 2 * pairs + 1] * second[channel, pairs]
            sums[:, channel] -= (added - added.clip(INT16_MIN, INT16_MAX)).sum(axis=1)
        return sums

    return accumulators


def largest_sum(weight, quant_max):
    """Return the largest absolute value of a sum of products, intermediate sums included.

    A sum is largest where all weights of one sign meet the code quant_max, and the others 0.
    Subtracting the zero point makes no sum larger, because it is one of the codes.
    """
    up = weight.clip(min=0).sum(axis=1, dtype=np.int64)
    down = -weight.clip(max=0).sum(axis=1, dtype=np.int64)
    return int(quant_max * np.maximum(up, down).max())


def pairs_that_can_saturate(weight, quant_max):
    """Return for which pairs of weights the sum can exceed int16, bool of shape (out, pairs)."""
    pairs = np.pad(weight.astype(np.int32), ((0, 0), (0, weight.shape[1] % 2)))
    pairs = pairs.reshape(len(weight), -1, 2)
    up = quant_max * pairs.clip(min=0).sum(axis=2)
    down = quant_max * pairs.clip(max=0).sum(axis=2)
    return (up > INT16_MAX) | (down < INT16_MIN)


PRODUCTS = {"integers": by_integers, "blas": by_blas, "saturating": saturating}
