"""Levels of any kind: the nearest one, and tables made for the normal distribution or for data."""

from statistics import NormalDist

import numpy as np
import torch

from qhelpers.checks import checked_finite, checked_integer, checked_params

PLACES = 512  # where lloyd's start may put the borders between its levels


def nearest_level(x, levels):
    """Return the code of the level nearest to each number: its place in the table.

    x: array or tensor of finite real numbers, any shape.
    levels: array of finite numbers, ascending, 1-d, at most 2**16 of them.

    A number in the middle between two levels, in float64, gets the even code. Returns an array of
    `x`'s shape in the smallest unsigned type that holds the codes; `levels[codes]` are the rounded
    numbers.
    Raises TypeError or ValueError for arguments other than these.
    """
    levels = checked_levels(levels)
    x = checked_finite(checked_params(x, "x"), "x")
    return nearest(x, levels).astype(np.min_scalar_type(len(levels) - 1))


def nearest(x, levels):
    """As `nearest_level`, without checks; infinities get the ends."""
    edges = (levels[:-1] + levels[1:]) / 2
    # The edge above an odd code belongs to the code above it, the even one.
    edges[1::2] = np.nextafter(edges[1::2], -np.inf)
    return np.searchsorted(edges, x.astype(np.float64, copy=False), side="left")


def checked_levels(levels):
    """Return `levels` as a float64 array, or raise TypeError or ValueError."""
    levels = checked_finite(checked_params(levels, "levels"), "levels").astype(np.float64)
    if levels.ndim != 1 or len(levels) > 2**16 or (np.diff(levels) <= 0).any():
        raise ValueError(
            f"levels, of shape {levels.shape}, must be 1-d and ascending, at most {2**16} numbers"
        )
    return levels


def normal_float(bits=4):
    """Return the levels of NormalFloat, ascending, float32 of shape (2**bits,), from -1 to 1.

    bits: integer from 2 to 8. The levels are quantiles of the normal distribution, in even steps
    of probability on either side of 0, divided by the largest. 0 is one of them; half of the
    codes belong to positive numbers.
    With 4 bits it is NF4, bit for bit as published.
    Source: Dettmers et al. 2023 (QLoRA), section 3 and appendix E; the probability at the ends
    is that of `create_normal_map` in their library, bitsandbytes.
    """
    half = 2 ** (checked_integer("bits", bits, 2, 8) - 1)
    # The outermost probability: the mean of half a step from the end, with 2n and 2n - 1 steps.
    last = round(1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2, 7)
    sides = []
    for count in (half, half - 1):
        # In float32 and with 7 digits: the published levels were computed so.
        probabilities = torch.linspace(last, 0.5, count + 1)[:-1].tolist()
        sides.append([NormalDist().inv_cdf(probability) for probability in probabilities])
    positive, negative = sides
    levels = np.sort(np.float32([*positive, 0, *(-level for level in negative)]))
    return levels / levels[-1]


def lloyd(x, bits):
    """Return the levels with the least squared error for these numbers: k-means in one dimension.

    x: array or tensor of finite real numbers, any shape. bits: integer from 1 to 8.

    Returns ascending levels, float64 of shape (2**bits,); fewer where there are fewer distinct
    numbers, or some that differ by less than rounding does. With up to PLACES distinct numbers,
    the levels are the best ones. With more, Lloyd's iteration starts from the best of those whose
    borders lie at PLACES places, and ends in a local optimum.
    Raises TypeError or ValueError for arguments other than these.
    Source: Lloyd 1982, Max 1960; for the start Wang and Song 2011 (Ckmeans.1d.dp); code books of
    weights: Han et al. 2016, section 3.
    """
    count = 2 ** checked_integer("bits", bits, 1, 8)
    x = checked_finite(checked_params(x, "x"), "x")
    values, counts = np.unique(x.astype(np.float64), return_counts=True)
    if len(values) <= count:
        return values
    unit = np.abs(values).max()
    middle = (values / unit).mean()
    values = values / unit - middle  # sums of squares lose the fewest digits around 0
    sums = np.cumsum(counts * np.stack([np.ones_like(values), values, values**2]), axis=1)
    sums = np.pad(sums, ((0, 0), (1, 0)))  # so that a run's sums are a difference of two columns
    cuts = best_cuts(values, sums, count)
    levels = np.zeros(count)
    error = np.inf
    while True:
        number, total, _ = np.diff(sums[:, cuts])
        levels = np.where(number > 0, total / np.maximum(number, 1), levels)
        inner = np.searchsorted(values, (levels[:-1] + levels[1:]) / 2)
        cuts = np.array([0, *inner, len(values)])
        last, error = error, run_errors(sums, cuts[:-1], cuts[1:]).sum()
        if not error < last:
            return np.unique((levels + middle) * unit)


def best_cuts(values, sums, count):
    """Return the cuts of the least error among PLACES places: count + 1 ascending indices.

    Dynamic programming: the best table that ends at a place with one level more is the best one
    that ends at an earlier place, and one level for the numbers between the two.
    """
    places = np.arange(len(values) + 1)
    if len(values) > PLACES:  # half of them close where the numbers are, half in even steps
        by_rank = np.linspace(0, len(values), PLACES // 2 + 1).astype(int)
        by_value = np.searchsorted(values, np.linspace(values[0], values[-1], PLACES // 2))
        places = np.union1d(by_rank, by_value)
    runs = run_errors(sums, places[:, None], places[None])
    runs[np.tril_indices(len(places))] = np.inf  # empty, or backwards
    best, choices = runs[0], []
    for _ in range(count - 1):
        errors = best[:, None] + runs
        choices.append(errors.argmin(axis=0))
        best = errors.min(axis=0)
    ends = [len(places) - 1]
    for choice in reversed(choices):
        ends.append(choice[ends[-1]])
    return places[[0, *reversed(ends)]]


def run_errors(sums, starts, ends):
    """Return the squared error of each run, values[start:end], around its mean."""
    starts, ends = np.broadcast_arrays(starts, ends)
    number, total, squares = sums[:, ends] - sums[:, starts]
    return np.maximum(squares - total**2 / np.maximum(number, 1), 0)


def ternary(x):
    """Map real numbers to the codes -1, 0 and 1; the scale is the mean magnitude.

    x: array or tensor of finite real numbers, any shape.
    Returns (codes, scale): int8 of `x`'s shape, and a number of `x`'s type; it is 0 where all of
    `x` is. `symmetric_dequantize` reads them.
    Raises TypeError or ValueError for anything else.
    Source: Ma et al. 2024 (BitNet b1.58), section 2, equations 1 to 3.
    """
    x = checked_finite(checked_params(x, "x"), "x")
    scale = x.dtype.type(np.mean(np.abs(x), dtype=np.float64))
    return np.clip(np.rint(x / (scale or 1)), -1, 1).astype(np.int8), scale
