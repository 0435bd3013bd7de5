"""A histogram whose bins get narrower towards 0, so that an outlier doesn't widen them.

A number's bin is the beginning of its binary form: sign, exponent and the first bits of the
fraction. The bins are the same for all data, so that histograms of batches can be added.
"""

import numpy as np

EXACT = 2**14  # up to so many numbers no bins are needed
CHUNK = 2**20  # numbers worked on at a time
FINENESS = 8  # bits of the fraction: 2**8 bins from each power of two to the next


def bin_counts(params, fineness=FINENESS):
    """Return how many numbers of a float array are in each of the 2**k bins of its type."""
    pattern, dropped = np.dtype(f"u{params.dtype.itemsize}"), dropped_bits(params.dtype, fineness)
    counts = np.zeros(2 ** (8 * params.dtype.itemsize - dropped), np.intp)
    for chunk in chunks(params):
        bins = (chunk.view(pattern) >> dropped).astype(np.intp)  # NumPy 2.0 counts no uint64
        found = np.bincount(bins)  # up to the last bin that isn't empty
        counts[: found.size] += found
    return counts


def middles(counts, dtype, fineness=FINENESS):
    """Return the middle of each bin that isn't empty, in float64, and its count."""
    pattern, dropped = np.dtype(f"u{np.dtype(dtype).itemsize}"), dropped_bits(dtype, fineness)
    bins = np.flatnonzero(counts)
    numbers = (bins.astype(pattern) << dropped) + pattern.type(1 << (dropped - 1))
    return numbers.view(dtype).astype(np.float64), counts[bins]


def histogram(params):
    """Return float64 values that represent the numbers of `params`, and the count of each.

    Up to EXACT numbers represent themselves; more are represented by the middles of their bins.
    """
    if params.size <= EXACT:
        return np.unique(params.astype(np.float64), return_counts=True)
    if params.dtype.itemsize > 8:  # longdouble
        params = params.astype(np.float64)
    return middles(bin_counts(params), params.dtype)


def chunks(array):
    """Yield the numbers of an array, CHUNK at a time, so that temporary arrays stay small."""
    flat = np.ravel(array)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK]


def dropped_bits(dtype, fineness):
    return np.finfo(dtype).nmant - fineness
