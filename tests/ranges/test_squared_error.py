"""ranges/squared_error, ranges/search: all rows at once find what one range after another finds."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qhelpers import mse_range
from qhelpers.ranges import search, squared_error
from qhelpers.ranges.squared_error import mse_range_of_rows


def rows_of_many_kinds(count, length):
    rng = np.random.default_rng(length)
    normal = rng.normal(size=(count, length))
    some = rng.random((count, length))
    return {
        "normal": normal,
        "constant": np.repeat(normal[:, :1], length, axis=1),
        "tied": np.round(normal * 4) / 4,
        "ternary": 0.3 * np.sign(normal) * (some < 0.5),
        "pruned": normal * (some < 0.5),
        "rows of zeros": normal * (np.arange(count) % 2)[:, None],
        "positive": np.abs(normal),
        "on levels": np.round(normal) * some[:, :1],
        "of all sizes": normal * 10.0 ** rng.integers(-30, 30, (count, 1)),
        "with outliers": np.where(some < 0.1, 50 * normal, normal),
    }


def one_after_another(loss, low, high, shortest, rungs):
    """The same grids, in plain loops: each range alone, each number of a grid once."""

    def tried(lows, highs):
        return [(loss(a, b), a, b) for a, b in itertools.product(lows, highs) if a < b]

    def finer(grid, end):
        place = list(grid).index(end)
        before, after = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
        halves = np.linspace(before, end, 4), np.linspace(end, after, 4)
        return list(dict.fromkeys(np.concatenate(halves)))

    coarse = [search.ladder(end, shortest, rungs) for end in (low, high)]
    found = []
    for best in sorted(tried(*coarse), key=lambda each: each[0])[:5]:
        lows, highs = coarse
        for _ in range(3):
            lows, highs = finer(lows, best[1]), finer(highs, best[2])
            best = min(tried(lows, highs), key=lambda each: each[0])
        found.append(best)
    return min(found, key=lambda each: each[0])[1:]


def mse_range_one_after_another(row, bits, symmetric, narrow_range=False):
    unit = np.float64(np.abs(row).max())
    if unit == 0:
        return row.dtype.type(0), row.dtype.type(0)
    values, counts = np.unique(row.astype(np.float64), return_counts=True)
    values, weights, top = values / unit, counts / row.size, 2**bits - 1

    def error(low, high):
        if symmetric:
            half = top // 2
            scale, bottom, ceiling = 2 * high / top, -half - 1, half
            if narrow_range:
                scale, bottom = high / half, -half
        else:
            scale = (high - low) / top
            bottom, ceiling = -np.rint(-low / scale), top - np.rint(-low / scale)
        back = np.clip(np.rint(values * (1 / scale)), bottom, ceiling) * scale
        return weights @ (back - values) ** 2

    low, high = (0.0, 1.0) if symmetric else (min(values.min(), 0), max(values.max(), 0))
    shortest = 0.1 * np.sqrt(weights @ values**2)
    low, high = one_after_another(error, low, high, shortest, 64 if symmetric else 16)
    low = -high if symmetric else low
    return row.dtype.type(low * unit), row.dtype.type(high * unit)


@pytest.mark.parametrize("kind", rows_of_many_kinds(1, 1))
@pytest.mark.parametrize("length", [1, 3, 9, 70])
def test_rows_get_the_ranges_that_they_get_one_after_another(kind, length):
    """To the last bit."""
    rows = rows_of_many_kinds(7, length)[kind].astype(np.float32)
    for bits in range(2, 9):
        expected = [mse_range_one_after_another(row, bits, symmetric=True) for row in rows]
        found = mse_range_of_rows(rows, bits)
        assert found.dtype == np.float32
        assert np.array_equal(np.transpose([-found, found]), expected)


@pytest.mark.parametrize("symmetric, narrow_range", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("kind", rows_of_many_kinds(1, 1))
def test_a_range_is_that_of_one_after_another(kind, symmetric, narrow_range):
    row = rows_of_many_kinds(1, 15)[kind][0]
    for bits in range(1 + symmetric, 9):
        options = {"symmetric": symmetric, "narrow_range": narrow_range}
        expected = mse_range_one_after_another(row, bits, **options)
        assert mse_range(row, bits, **options) == expected


@given(
    rows=arrays(np.float32, (4, 6), elements={"min_value": -4, "max_value": 4}),
    bits=st.integers(2, 8),
)
def test_any_rows(rows, bits):
    alone = [mse_range(row, bits, symmetric=True, narrow_range=False)[1] for row in rows]
    assert np.array_equal(mse_range_of_rows(rows, bits), alone)


def test_long_rows_are_searched_in_their_histograms():
    rows = np.random.default_rng(0).standard_t(3, (3, 20_000)).astype(np.float32)
    alone = [mse_range(row, 4, symmetric=True, narrow_range=False)[1] for row in rows]
    assert np.array_equal(mse_range_of_rows(rows, 4), alone)


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    """All ranges of all rows at once would take 34 megabytes."""
    rows = np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32)
    together = mse_range_of_rows(rows, 4)
    monkeypatch.setattr(squared_error, "ROWS", 2**13)
    tracemalloc.start()
    try:
        in_parts = mse_range_of_rows(rows, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(in_parts, together) and peak < 2**22


def test_the_search_computes_each_loss_once():
    tried = []

    def loss(low, high):
        tried.append((low, high))
        return (low + 0.3) ** 2 + (high - 0.7) ** 2

    low, high = search.search(loss, -1.0, 1.0, 0.1)
    assert (low, high) == one_after_another(loss, -1.0, 1.0, 0.1, 16)
    assert low == pytest.approx(-0.3, abs=0.01) and high == pytest.approx(0.7, abs=0.01)
    tried.clear()
    search.search(loss, -1.0, 1.0, 0.1)
    assert len(tried) == len(set(tried)) < 17**2 + 5 * 3 * 7**2


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="^params holds nan"):
        mse_range_of_rows(np.array([[0, np.nan]], np.float32), 4)
    with pytest.raises(ValueError, match="^bits is 1"):
        mse_range_of_rows(np.ones((1, 2), np.float32), 1)


def test_rows_that_are_equally_long_are_searched_together(monkeypatch):
    searched, search_rows = [], squared_error.search_rows

    def counting(losses, low, high, shortest, **options):
        searched.append(len(high))
        return search_rows(losses, low, high, shortest, **options)

    monkeypatch.setattr(squared_error, "search_rows", counting)
    rows = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
    rows[:3, 1] = rows[:3, 0]  # one number twice: 8 different ones
    mse_range_of_rows(rows, 4)
    assert sorted(searched) == [3, 47]


def test_a_range_that_is_none_never_wins():
    """Not even where the widest is among the best, which is tried instead."""
    grid = np.array([[[-1.0, -0.5, 0.0]]]), np.array([[[1.0, 0.5, 0.0]]])
    loss, low, high = search.candidates(lambda low, high: high - low, *grid)
    assert loss.shape == (1, 1, 9)
    assert np.array_equal(np.isinf(loss), low >= high) and np.isinf(loss).sum() == 1
