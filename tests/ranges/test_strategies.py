"""qhelpers.ranges: brute-force searches, textbook definitions, and properties."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax

from qhelpers import (
    asymmetric_dequantize,
    asymmetric_quantization,
    cross_entropy_range,
    kl_range,
    min_max_range,
    mse_range,
    percentile_range,
    quantization_error,
    symmetric_dequantize,
    symmetric_quantization,
)
from qhelpers.ranges.histogram import EXACT, bin_counts, histogram, middles
from qhelpers.ranges.strategies import kl_divergence

STRATEGIES = {
    "min-max": lambda params, bits: min_max_range(params),
    "percentile": lambda params, bits: percentile_range(params),
    "mse": mse_range,
    "mse, symmetric": lambda params, bits: mse_range(params, bits, symmetric=True),
    "cross-entropy": cross_entropy_range,
    "kl": kl_range,
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
BITS = [2, 3, 4, 8]


def distributions(count):
    """Numbers of the kinds that the notebook shows, and of some worse ones."""
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-50, 150, count)
    made = {
        "uniform": uniform,
        "one outlier": np.append(uniform[1:], 1000),
        "a far outlier": np.append(uniform[1:], 5000),
        "normal": rng.normal(size=count),
        "Laplace": rng.laplace(size=count),
        "Student t": rng.standard_t(3, count),
        "heavier": rng.standard_t(2, count),
        "post-ReLU": np.maximum(rng.normal(size=count), 0),
        "two humps": np.append(rng.normal(-1, 0.1, count // 2), rng.normal(3, 0.3, count // 2)),
        "skewed": rng.gamma(0.3, size=count) - 0.1,
        "logits": np.append(
            rng.normal(-5, 4, 9 * count // 10), rng.normal(10, 3, count - 9 * count // 10)
        ),
    }
    return {name: numbers.astype(np.float32) for name, numbers in made.items()}


def error(params, bits, range_):
    codes, scale, zero = asymmetric_quantization(params, bits, range=range_)
    return quantization_error(params, asymmetric_dequantize(codes, scale, zero))


def fractions(count):
    """Parts of an end to try: evenly spaced ones, and ones in equal ratios."""
    return np.concatenate([np.linspace(0, 1, count), np.geomspace(0.003, 1, count)])


@pytest.mark.parametrize("name, params", [*distributions(2000).items()][::3])
def test_mse_is_within_1_percent_of_brute_force(name, params):
    low, high = min(params.min(), 0), max(params.max(), 0)
    numbers = params.astype(np.float64)
    lows = [low * part for part in fractions(40)] if low else [0.0]
    ends = [pair for pair in itertools.product(lows, high * fractions(40)) if pair[0] < pair[1]]
    for bits in BITS:
        steps = 2**bits - 1
        best = np.inf
        for low_end, high_end in ends:
            scale = (high_end - low_end) / steps
            zero = np.rint(-low_end / scale)
            back = (np.clip(np.rint(numbers / scale) + zero, 0, steps) - zero) * scale
            best = min(best, np.square(numbers - back).mean())
        assert error(params, bits, mse_range(params, bits)) <= 1.01 * best


@pytest.mark.parametrize("narrow_range", [True, False])
@pytest.mark.parametrize("name, params", [*distributions(2000).items()][::5])
def test_symmetric_mse_is_within_1_percent_of_brute_force(name, params, narrow_range):
    def error(alpha):
        options = {"range": (-alpha, alpha), "narrow_range": narrow_range}
        back = symmetric_dequantize(*symmetric_quantization(params, bits, **options))
        return quantization_error(params, back)

    for bits in BITS:
        best = min(error(np.abs(params).max() * part) for part in fractions(400) if part)
        low, high = mse_range(params, bits, symmetric=True, narrow_range=narrow_range)
        assert low == -high and error(high) <= 1.01 * best


@pytest.mark.parametrize("name", [*distributions(1)][::2])
def test_the_histogram_gives_the_answer_of_the_values(name, monkeypatch):
    params = distributions(40_000)[name]
    for bits in BITS:
        assert len(histogram(params)[0]) < 10_000
        by_histogram = error(params, bits, mse_range(params, bits))
        with monkeypatch.context() as patch:
            patch.setattr("qhelpers.ranges.histogram.EXACT", params.size)
            by_values = error(params, bits, mse_range(params, bits))
        assert by_histogram <= 1.01 * by_values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_histogram_keeps_every_number(dtype):
    rng = np.random.default_rng(0)
    params = (rng.normal(size=2 * EXACT) * 10.0 ** rng.integers(-20, 20, 2 * EXACT)).astype(dtype)
    params[:100] = 0
    values, counts = histogram(params)
    assert counts.sum() == params.size
    stand_ins = np.repeat(values, counts)
    sorted_ = np.concatenate([np.sort(params[params >= 0]), np.sort(params[params < 0])[::-1]])
    assert np.allclose(stand_ins, sorted_, rtol=2**-9, atol=1e-37)


@strategies
@pytest.mark.parametrize("name", [*distributions(1)][::3])
def test_a_range_lies_within_the_numbers(strategy, name):
    params = distributions(1000)[name]
    for bits in (2, 8):
        low, high = strategy(params, bits)
        assert low.dtype == high.dtype == params.dtype
        assert low <= high
        if strategy is not STRATEGIES["mse, symmetric"]:
            assert min(params.min(), 0) <= low and high <= max(params.max(), 0)


def test_min_max_and_percentile_are_what_they_say():
    params = np.append(np.arange(10_001), -5000.0)
    assert min_max_range(params) == (-5000, 10_000)
    assert percentile_range(params, 100) == (-5000, 10_000)
    low, high = percentile_range(params, 99)
    assert (params < low).mean() == pytest.approx(0.01, abs=1e-4)
    assert (params > high).mean() == pytest.approx(0.01, abs=1e-4)


def cross_entropy(logits, back):
    """By SciPy: the entropy of p and the divergence from p to what is left of it."""
    p, q = scipy_softmax(logits, axis=-1), scipy_softmax(back, axis=-1)
    return (rel_entr(p, q) - rel_entr(p, 1)).sum(axis=-1).mean()


def some_logits():
    logits = np.random.default_rng(1).normal(0, 3, size=(300, 10))
    logits[:5, 0] = -60
    return logits


@pytest.mark.parametrize("bits", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_cross_entropy_is_within_1_percent_of_brute_force(bits):
    logits = some_logits()

    def loss(low, high):
        codes, scale, zero = asymmetric_quantization(logits, bits, range=(low, high))
        return cross_entropy(logits, asymmetric_dequantize(codes, scale, zero))

    ends = itertools.product(logits.min() * fractions(30), logits.max() * fractions(20))
    best = min(loss(low, high) for low, high in ends if low < high)
    found = loss(*cross_entropy_range(logits, bits))
    assert found <= 1.01 * best
    assert found < 0.99 * loss(*mse_range(logits, bits))  # the control


def test_kl_divergence_is_scipy_s():
    """Of a histogram worked through by hand: 6 bins kept of 8, merged into 3 codes."""
    counts = np.array([4, 2, 0, 6, 1, 1, 3, 2])
    before = np.array([4, 2, 0, 6, 1, 1 + 3 + 2])
    after = np.array([3, 3, 0, 6, 1, 1])
    expected = rel_entr(before / before.sum(), after / after.sum()).sum()
    assert kl_divergence(counts, 6, 3) == pytest.approx(expected)
    assert kl_divergence(np.array([5, 5, 0, 0, 0, 0, 1]), 4, 2) == np.inf


def test_kl_cuts_what_min_max_keeps_and_suffers_from_a_peak():
    """Good on a bell curve with outliers; ruined where most numbers are one number."""
    rng = np.random.default_rng(0)
    bell = np.append(rng.normal(size=100_000), [40, -40]).astype(np.float32)
    assert error(bell, 4, kl_range(bell, 4)) < error(bell, 4, min_max_range(bell)) / 5
    peaked = np.where(rng.random(100_000) < 0.8, -0.42, rng.uniform(-0.42, 2.8, 100_000))
    assert error(peaked, 4, kl_range(peaked, 4)) > 5 * error(peaked, 4, mse_range(peaked, 4))


def test_kl_falls_back_to_min_max_where_bins_are_few():
    params = np.random.default_rng(0).normal(size=1000)
    for bits in (12, 16):
        assert kl_range(params, bits) == min_max_range(params)


@strategies
@settings(max_examples=10)
@given(
    params=arrays(np.float32, (7, 3), elements={"allow_nan": False, "allow_infinity": False}),
    bits=st.integers(2, 16),
)
def test_any_numbers_get_a_finite_range(strategy, params, bits):
    before = params.copy()
    with np.errstate(all="raise", under="ignore"):
        low, high = strategy(params, bits)
        asymmetric_quantization(params, bits, range=(low, high))
    assert np.isfinite(low) and np.isfinite(high) and low <= high
    assert np.array_equal(params, before)
    assert strategy(np.asfortranarray(params), bits) == (low, high)
    if strategy is not cross_entropy_range:  # which sums in the order of the rows
        assert strategy(params[::-1, ::-1].ravel(), bits) == (low, high)


@strategies
@pytest.mark.parametrize("value", [0, 7.5, -7.5, 1e308, 1e-308, 5e-324])
def test_constant_numbers_are_kept(strategy, value):
    for params in (np.full((3, 2), value), np.full((1, 1), value), np.full((40_000, 1), value)):
        low, high = strategy(params, 8)
        codes, scale, zero = asymmetric_quantization(params, 8, range=(low, high))
        back = asymmetric_dequantize(codes, scale, zero)
        assert np.abs(back - value).max() <= max(abs(value) / 100, 5e-324)


@strategies
def test_tensors_and_integers_are_accepted(strategy):
    params = np.random.default_rng(0).integers(-9, 30, (50, 4))
    expected = strategy(params.astype(np.float64), 4)
    assert strategy(params, 4) == expected
    assert strategy(torch.tensor(params, dtype=torch.float64, requires_grad=True), 4) == expected


@pytest.mark.parametrize("name, params", [*distributions(40_000).items()][::7])
def test_counts_stand_for_repeated_numbers(name, params):
    """A histogram of two halves, added up, gives the ranges of the whole."""
    counts = sum(bin_counts(half) for half in np.split(params, 2))
    values, counts = middles(counts, np.float32)
    for bits in BITS:
        by_counts = error(params, bits, mse_range(values, bits, counts=counts))
        assert by_counts <= 1.01 * error(params, bits, mse_range(params, bits))
        repeated = np.repeat(values, counts)
        assert kl_range(values, bits, counts=counts) == pytest.approx(kl_range(repeated, bits))
    expected = np.percentile(repeated, [0.1, 99.9], method="inverted_cdf")
    assert np.array_equal(percentile_range(values, 99.9, counts=counts), expected)
