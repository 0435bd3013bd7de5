"""The range with the least squared error: of all numbers, or of each row of an array."""

from collections import defaultdict

import numpy as np

from qhelpers.checks import checked_bits, checked_params, finite_ends
from qhelpers.granularity import BLOCK, blocks
from qhelpers.ranges.histogram import histogram
from qhelpers.ranges.search import search_rows
from qhelpers.ranges.strategies import min_max_range, span

ROWS = 2**20  # numbers of the rows that are worked on at a time


def mse_range(params, bits, *, symmetric=False, narrow_range=True, counts=None):
    """Return the (low, high), in `params`' type, that quantizes it with the least squared error.

    params: array or tensor of finite real numbers, any shape. Where there are more than 16,384
        of them, they are read once, into a histogram, and the error is that of its bins.
    bits: integer from 1 to 16; from 2 where `symmetric`.
    symmetric, narrow_range: search for `symmetric_quantization`, so that low = -high.
    counts: how often each of `params` occurs, an array of its shape; once by default.

    Only ranges that lie within min-max and include 0 are tried.
    Raises TypeError or ValueError for anything else.
    Source: Nagel et al. 2021, section 3.1.
    """
    top = 2 ** checked_bits(bits, fewest=2 if symmetric else 1) - 1
    params = checked_params(params)
    low, high, unit = span(params)
    if unit == 0:
        return min_max_range(params)
    values, counts = histogram(params) if counts is None else (np.float64(params), counts)
    values, weights = values.reshape(1, -1) / unit, np.reshape(counts, (1, -1)) / np.sum(counts)
    if symmetric:
        (high,) = symmetric_ends(values, weights, top, narrow_range)
        low = -high
    else:
        (low,), (high,) = asymmetric_ends(values, weights, low / unit, high / unit, top)
    return params.dtype.type(low * unit), params.dtype.type(high * unit)


def mse_range_of_rows(rows, bits):
    """Return the high end of each row's range, found for all rows together.

    Row by row, `mse_range` with symmetric=True and narrow_range=False returns the same.

    rows: array of finite floats, 2-d. bits: integer from 2 to 16.
    Returns an array of `rows`' type and shape (rows,). The memory it takes besides doesn't grow
    with the number of rows.
    """
    top = 2 ** checked_bits(bits, fewest=2) - 1
    finite_ends(rows)
    units = np.maximum(-rows.min(axis=1), rows.max(axis=1)).astype(np.float64)
    highs, some = np.zeros_like(units), max(1, ROWS // rows.shape[1])
    for start in range(0, len(rows), some):
        equally_long = defaultdict(list)
        for i in start + np.flatnonzero(units[start : start + some]):
            values, counts = histogram(rows[i])
            equally_long[len(values)].append((i, values / units[i], counts / rows.shape[1]))
        for found in equally_long.values():
            places, values, weights = map(np.array, zip(*found))
            highs[places] = symmetric_ends(values, weights, top, narrow_range=False)
    return (highs * units).astype(rows.dtype)


def asymmetric_ends(values, weights, low, high, top):
    """Return (low, high), arrays of shape (1,), with the least squared error, for one row."""

    def errors(low, high):
        scale = (high - low) / top
        zero = np.rint(-low / scale)
        return squared_errors(values, weights, scale, -zero, top - zero)

    return search_rows(errors, [low], [high], shortest_ends(values, weights))


def symmetric_ends(values, weights, top, narrow_range):
    """Return the high end with the least squared error for each row, of shape (rows,).

    values: of shape (rows, numbers), the largest magnitude of each row 1, so that no square
        overflows. weights: how often they occur, of the same shape; they sum up to 1.
    """
    half, ones = top // 2, np.ones(len(values))

    def errors(_, high):
        ends = (high / half, -half, half) if narrow_range else (2 * high / top, -half - 1, half)
        return squared_errors(values, weights, *ends)

    shortest = shortest_ends(values, weights)
    return search_rows(errors, np.zeros_like(ones), ones, shortest, rungs=64)[1]


def shortest_ends(values, weights):
    """Return the shortest range to try for each row: a shorter one loses most of the numbers."""
    return 0.1 * np.sqrt(np.vecdot(weights, values**2))


def squared_errors(values, weights, scale, bottom, top):
    """Return the weighted means of the squared errors of rounding to bottom*scale..top*scale.

    values, weights: of shape (rows, numbers).
    scale: of shape (rows, ranges), as is what is returned; bottom, top: the same, or one number.
    """
    errors = np.empty(scale.shape)
    bottom, top = (np.broadcast_to(end, scale.shape) for end in (bottom, top))
    for block in blocks(scale.shape, BLOCK // values.shape[1]):
        numbers, step = values[block[0], None], scale[block][..., None]
        work = numbers * (1 / step)
        np.rint(work, out=work)
        np.clip(work, bottom[block][..., None], top[block][..., None], out=work)
        work *= step
        work -= numbers
        errors[block] = np.vecdot(weights[block[0], None], np.square(work, out=work))
    return errors
