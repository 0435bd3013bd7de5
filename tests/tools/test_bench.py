"""bench: the arithmetic of its table, and that each comparison runs and checks what it compares."""

import numpy as np
import pytest

from qhelpers import load_data
from tools.bench import engines, kernels, loops, searches
from tools.bench.__main__ import rows
from tools.bench.comparison import OURS, Comparison, peak_of

MADE_UP = Comparison(
    "sorting", 1000, "values", {OURS: [0.1, 0.2, 0.9], "torch": [0.5, 0.6, 0.1]}, {"torch": 2.4}
)


def test_the_table_has_medians_spreads_ratio_and_whether_the_goal_is_reached():
    (row,) = rows(MADE_UP)
    expected = "sorting|1,000 values|200|100 to 900|torch|500|100 to 600|2.5|2.4: reached|"
    assert [cell.strip() for cell in row.split("|")[1:-1]] == expected.split("|")
    missed = Comparison("sorting", 1000, "values", MADE_UP.times, {"torch": 2.6})
    assert "2.6: missed" in next(rows(missed))


def test_the_peak_is_what_is_taken_beside_the_output():
    def function(size):
        np.ones(3 * size, np.uint8)  # freed before the output is made
        return np.ones(size, np.uint8)

    assert peak_of(function, 10**6, output_bytes=10**6) == pytest.approx(2 * 10**6, rel=0.01)


def test_kernels_take_little_memory_and_must_agree(monkeypatch):
    (comparison,) = kernels.comparisons({10**6: 2})
    assert set(comparison.times) == {OURS, kernels.TORCH} and len(comparison.times[OURS]) == 2
    assert comparison.peak < 2**26
    monkeypatch.setattr(kernels, "ours", lambda params: params + 1)
    with pytest.raises(AssertionError, match="not torch's"):
        list(kernels.comparisons({1000: 1}))


def test_searches_take_little_memory_and_must_agree(monkeypatch):
    (comparison,) = searches.comparisons({20_000: 2}, {20_000: 20})
    assert {OURS, searches.NAIVE} <= set(comparison.times) and comparison.peak < 2**26
    monkeypatch.setattr(searches, "mse_range", lambda params, bits: (params.min(), params.max()))
    with pytest.raises(AssertionError, match="worse range"):
        list(searches.comparisons({20_000: 1}, {20_000: 20}))


def test_loops_and_engines_run(monkeypatch):
    data = load_data()
    if data.name != "mnist":
        pytest.skip("the original notebook's loops need MNIST")
    train, test = loops.comparisons(data, iterations=[3], images=[1000], rounds=1)
    assert (train.size, test.size) == (3, 1000) and loops.PLAIN in test.goals
    monkeypatch.setattr(engines, "missing_packages", lambda: ["torchao"])  # compiling takes long
    (engine,) = engines.comparisons(data, {10: 1})
    assert engines.FLOAT in engine.times and len(engine.times) >= 3
