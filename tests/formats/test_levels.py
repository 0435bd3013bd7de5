"""qhelpers.formats.levels: published numbers, brute force, and what must hold for any data."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qhelpers import quantization_error, symmetric_dequantize
from qhelpers.formats import levels as levels_module
from qhelpers.formats import lloyd, nearest_level, normal_float, ternary

NF4 = """
-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
-0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725
0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941
0.7229568362236023 1.0
"""  # Dettmers et al. 2023, appendix E

numbers = st.floats(-1000, 1000, width=32)
# Multiples of 2**-10, so that a middle is exact, too.
tables = st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=9, unique=True).map(
    lambda multiples: [multiple / 2**10 for multiple in sorted(multiples)]
)


@given(tables, arrays(np.float32, 5, elements=numbers))
def test_the_nearest_level_is_the_nearest(levels, x):
    middles = np.float32((np.array(levels[1:]) + levels[:-1]) / 2)
    x = np.concatenate([x, levels, middles]).astype(np.float64)
    for number, code in zip(x, nearest_level(x, levels)):
        errors = [abs(Fraction(number) - Fraction(level)) for level in levels]
        nearest = [place for place, error in enumerate(errors) if error == min(errors)]
        assert code in nearest and (len(nearest) == 1 or code % 2 == 0)


def test_a_tie_goes_to_the_even_code():
    assert nearest_level(np.arange(-0.5, 16), np.arange(16)).tolist() == [
        0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 15
    ]  # fmt: skip


def test_the_nearest_integer_is_rint_s():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(-300, 300, 100_000) / 2, rng.normal(0, 60, 1_000_000)])
    codes = nearest_level(x.reshape(100, -1), np.arange(-128, 128))
    assert codes.dtype == np.uint8
    assert np.array_equal(codes.reshape(-1) - 128.0, np.clip(np.rint(x), -128, 127))


@pytest.mark.parametrize("count, code_type", [(1, "uint8"), (256, "uint8"), (257, "uint16")])
def test_codes_come_in_the_smallest_type(count, code_type):
    assert nearest_level(0.0, np.arange(count)).dtype == code_type


def test_bad_levels_and_numbers():
    for levels in ([1, 0], [0, 0], [[0, 1]], np.arange(2**16 + 1), 1.0):
        with pytest.raises(ValueError, match="must be 1-d and ascending, at most 65536 numbers"):
            nearest_level([1.0], levels)
    with pytest.raises(ValueError, match="levels holds inf; all its values must be finite"):
        nearest_level([1.0], [0, np.inf])
    with pytest.raises(ValueError, match="levels is empty"):
        nearest_level([1.0], [])


@pytest.mark.parametrize("function", [
    lambda x: nearest_level(x, [0, 1]), lambda x: lloyd(x, 2), ternary
])  # fmt: skip
def test_numbers_that_have_no_level(function):
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=f"x holds {number}; all its values must be finite"):
            function([1.0, number])
    with pytest.raises(ValueError, match="x is empty"):
        function([])
    with pytest.raises(TypeError, match="x has the type"):
        function(["1"])


def test_nf4_is_the_published_one():
    levels = normal_float()
    assert levels.dtype == np.float32
    assert levels.tolist() == [float(number) for number in NF4.split()]


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_float_of_other_bits(bits):
    levels = normal_float(bits)
    assert len(levels) == 2**bits and (np.diff(levels) > 0).all()
    assert levels[0] == -1 and levels[2 ** (bits - 1) - 1] == 0 and levels[-1] == 1


@pytest.mark.parametrize("bits", [1, 9])
def test_normal_float_of_too_few_or_many_bits(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}; it must be an integer from 2 to 8"):
        normal_float(bits)


def error_of(x, levels):
    return quantization_error(np.float64(x), levels[nearest_level(x, levels)])


def least_error(x, count):
    """By all ways to cut the sorted numbers into `count` groups."""
    x = np.sort(np.float64(x))
    return min(
        sum(((group - group.mean()) ** 2).sum() for group in np.split(x, cuts))
        for cuts in itertools.combinations(range(1, len(x)), count - 1)
    ) / len(x)


@given(arrays(np.float32, st.integers(5, 11), elements=numbers), st.sampled_from([1, 2]))
def test_lloyd_is_the_optimum_on_small_data(x, bits):
    error, optimum = error_of(x, lloyd(x, bits)), least_error(x, 2**bits)
    assert error <= optimum * (1 + 1e-9) + 1e-13 * np.square(x, dtype=np.float64).max()


def test_lloyd_leaves_a_local_optimum():
    """Lloyd's iteration alone would stay at 0.5, 15.5, 100 and 101."""
    x = np.array([0, 1, 10, 11, 20, 21, 100, 101.0])
    assert np.allclose(lloyd(x, 2), [0.5, 10.5, 20.5, 100.5], rtol=1e-14)


DATA = {
    "normal": lambda rng: rng.normal(size=1200),
    "laplace": lambda rng: rng.laplace(size=1200),
    "two clusters": lambda rng: np.concatenate([rng.normal(0, 1, 600), rng.normal(50, 1, 600)]),
    "outliers": lambda rng: np.concatenate([rng.normal(size=1190), 100 * rng.normal(size=10)]),
    "mostly 0": lambda rng: rng.normal(size=1200) * (rng.random(1200) < 0.3),
}


@pytest.mark.parametrize("bits, near", [(2, 1.001), (4, 1.01)])
@pytest.mark.parametrize("draw", DATA.values(), ids=DATA)
def test_lloyd_is_near_the_optimum_on_large_data(draw, bits, near, monkeypatch):
    x = draw(np.random.default_rng(0))
    error = error_of(x, lloyd(x, bits))
    monkeypatch.setattr(levels_module, "PLACES", len(x))
    optimum = error_of(x, lloyd(x, bits))
    assert optimum <= error * (1 + 1e-9) and error <= near * optimum


@pytest.mark.parametrize("draw", DATA.values(), ids=DATA)
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_each_level_is_the_mean_of_its_numbers(draw, bits):
    x = draw(np.random.default_rng(1))
    levels = lloyd(x, bits)
    assert len(levels) == 2**bits and (np.diff(levels) > 0).all()
    codes = nearest_level(x, levels)
    for code in np.unique(codes):
        assert levels[code] == pytest.approx(x[codes == code].mean(), abs=1e-6)


def test_lloyd_finds_max_s_levels():
    """Max 1960, table I: 4 levels for the normal distribution."""
    x = np.random.default_rng(0).normal(size=1_000_000)
    assert np.abs(lloyd(x, 2) - [-1.510, -0.4528, 0.4528, 1.510]).max() < 0.01


@given(arrays(np.float32, st.integers(1, 40), elements=st.integers(-3, 3).map(float)))
def test_few_distinct_numbers_are_levels_themselves(x):
    levels = lloyd(x, 3)
    assert np.array_equal(levels, np.unique(x)) and levels.dtype == np.float64


def test_numbers_too_close_to_tell_apart_share_a_level():
    levels = lloyd([0, 1e-200, 2e-200, 3e-200, 1], 2)
    assert levels == pytest.approx([0, 1], abs=1e-15)


@pytest.mark.parametrize("unit", [1e-45, 1e-30, 1e30])
def test_lloyd_in_any_unit(unit):
    x = np.random.default_rng(0).integers(0, 1000, 500)
    assert np.allclose(lloyd(x * unit, 3), lloyd(x, 3) * unit, rtol=1e-9, atol=0)


def test_lloyd_leaves_its_argument_alone():
    x = np.array([3.0, 1.0, 2.0])
    lloyd(x, 1)
    assert x.tolist() == [3, 1, 2]


@pytest.mark.parametrize("bits", [0, 9])
def test_lloyd_of_too_few_or_many_bits(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}; it must be an integer from 1 to 8"):
        lloyd([1.0, 2.0], bits)


def test_ternary_by_hand():
    codes, scale = ternary(np.float32([0.1, -0.5, 3.0, -2.0, 0.51, 0.4, 0.49, 1.0]))
    assert scale == 1 and scale.dtype == np.float32 and codes.dtype == np.int8
    assert codes.tolist() == [0, 0, 1, -1, 1, 0, 0, 1]  # a half goes to 0
    assert symmetric_dequantize(codes, scale).tolist() == [0, 0, 1, -1, 1, 0, 0, 1]


def test_ternary_zeros_stay_zeros():
    codes, scale = ternary(np.zeros((2, 3)))
    assert scale == 0 and codes.shape == (2, 3) and not codes.any()
    assert not symmetric_dequantize(codes, scale).any()
