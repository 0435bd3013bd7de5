"""The search for the range with the least loss: a coarse grid, then finer ones."""

import itertools
from operator import itemgetter

import numpy as np

STARTS, ZOOMS, ZOOM_STEPS = 5, 3, 4  # how thorough the finer grids are

first = itemgetter(0)


def search(loss, low, high, shortest, rungs=16):
    """Return the (low, high) with the least loss in a coarse grid and then in finer ones.

    The finer grids surround the STARTS best of the coarse one, because the loss has many
    valleys: one wherever numbers come to lie on levels. Of equally good ranges the widest wins.
    """
    lows, highs = ladder(low, shortest, rungs), ladder(high, shortest, rungs)
    starts = sorted(candidates(loss, lows, highs), key=first)[:STARTS]
    return min((zoom(loss, lows, highs, start) for start in starts), key=first)[1:]


def candidates(loss, lows, highs):
    """Yield (loss, low, high) for each low < high of the two grids."""
    for low, high in itertools.product(lows, highs):
        if low < high:
            yield loss(low, high), low, high


def zoom(loss, lows, highs, best):
    """Return the best (loss, low, high) of ever finer grids around `best`."""
    for _ in range(ZOOMS):
        lows, highs = neighbours(lows, best[1]), neighbours(highs, best[2])
        best = min(candidates(loss, lows, highs), key=first)
    return best


def ladder(end, shortest, rungs):
    """Return candidates from `end` to 0: `rungs` at equal ratios down to `shortest`, then 0."""
    if end == 0:
        return np.zeros(1)
    if abs(end) <= shortest:
        return np.linspace(end, 0, rungs)
    return np.append(end * np.geomspace(1, shortest / abs(end), rungs), 0)


def neighbours(grid, end):
    """Return a finer grid around `end`, from the number before it in `grid` to the one after."""
    place = list(grid).index(end)
    before, after = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
    halves = np.linspace(before, end, ZOOM_STEPS), np.linspace(end, after, ZOOM_STEPS)
    return list(dict.fromkeys(np.concatenate(halves)))  # each once
