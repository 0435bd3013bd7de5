"""The search for the range with the least loss: a coarse grid, then finer ones."""

import functools

import numpy as np

STARTS, ZOOMS, ZOOM_STEPS = 5, 3, 4  # how thorough the finer grids are


def search(loss, low, high, shortest, rungs=16):
    """Return the (low, high) with the least loss, which is a function of two numbers.

    As `search_rows` with a single row.
    """
    loss = functools.cache(loss)  # the finer grids have numbers in common

    def losses(lows, highs):
        return np.array([[loss(*ends) for ends in zip(lows[0], highs[0])]])

    (low,), (high,) = search_rows(losses, [low], [high], [shortest], rungs)
    return low, high


def search_rows(losses, low, high, shortest, rungs=16):
    """Return the (low, high) with the least loss in a coarse grid and then in finer ones, by row.

    The finer grids surround the STARTS best of the coarse one, because the loss has many
    valleys: one wherever numbers come to lie on levels. Of equally good ranges the widest wins.

    losses: function of two arrays, the low and the high ends of the ranges that are tried, both
        of shape (rows, ranges); it returns their losses in an array of that shape.
    low, high, shortest: of shape (rows,): the ends of the widest range that is tried, and the
        length at which the grid from there to 0 ends. The grids must be equally long in all rows:
        an end that is 0 in one row is 0 in all.
    Returns two arrays of shape (rows,).
    """
    grids = [[ladder(*row, rungs) for row in zip(ends, shortest)] for ends in (low, high)]
    lows, highs = (np.array(grid)[:, None] for grid in grids)  # (rows, starts, numbers)
    loss, low, high = candidates(losses, lows, highs)
    best = np.argsort(loss[:, 0], axis=-1, kind="stable")[:, :STARTS]
    low, high = (np.take_along_axis(ends[:, 0], best, axis=1) for ends in (low, high))
    for _ in range(ZOOMS):
        lows, highs = neighbours(lows, low), neighbours(highs, high)
        loss, low, high = least(*candidates(losses, lows, highs))
    _, low, high = least(loss, low, high)
    return low, high


def candidates(losses, lows, highs):
    """Return (loss, low, high) of all pairs from two grids, each of shape (rows, starts, pairs).

    The loss is infinite where low < high doesn't hold.
    """
    pairs = np.broadcast_arrays(lows[..., :, None], highs[..., None, :])
    low, high = (ends.reshape(*ends.shape[:2], -1) for ends in pairs)
    possible = low < high
    # What can't be tried gives way to the first pair, the widest.
    tried = (np.where(possible, ends, ends[..., :1]) for ends in (low, high))
    loss = losses(*(ends.reshape(len(ends), -1) for ends in tried)).reshape(low.shape)
    return np.where(possible, loss, np.inf), low, high


def least(loss, low, high):
    """Return the (loss, low, high) with the least loss along the last axis, the first of equals."""
    best = loss.argmin(axis=-1, keepdims=True)
    return (np.take_along_axis(each, best, axis=-1)[..., 0] for each in (loss, low, high))


def ladder(end, shortest, rungs):
    """Return candidates from `end` to 0: `rungs` at equal ratios down to `shortest`, then 0."""
    if end == 0:
        return np.zeros(1)
    if abs(end) <= shortest:
        return np.linspace(end, 0, rungs)
    return np.append(end * np.geomspace(1, shortest / abs(end), rungs), 0)


def neighbours(grid, end):
    """Return a finer grid around `end`, from the number before it in `grid` to the one after.

    grid: of shape (rows, starts or 1, numbers). end: of shape (rows, starts).
    """
    if grid.shape[-1] == 1:
        return end[..., None]
    grid = np.broadcast_to(grid, (*end.shape, grid.shape[-1]))
    same, last = grid == end[..., None], grid.shape[-1] - 1  # the same number may be there twice
    before = np.maximum(same.argmax(axis=-1) - 1, 0)
    after = np.minimum(last - same[..., ::-1].argmax(axis=-1) + 1, last)
    before, after = (np.take_along_axis(grid, i[..., None], -1)[..., 0] for i in (before, after))
    return np.concatenate([line(before, end)[..., :-1], line(end, after)], axis=-1)


def line(start, stop):
    """Return ZOOM_STEPS numbers from each start to its stop, in a new last axis.

    np.linspace would compute all of them in another way as soon as one start is its stop.
    """
    step = (stop - start) / (ZOOM_STEPS - 1)
    numbers = start[..., None] + np.arange(ZOOM_STEPS) * step[..., None]
    numbers[..., -1] = stop
    return numbers
