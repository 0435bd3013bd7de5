"""What the functions refuse: each error names the argument, its value and what is allowed."""

import numpy as np
import pytest

from qhelpers import (
    asymmetric_dequantize,
    asymmetric_quantization,
    cross_entropy_range,
    kl_range,
    min_max_range,
    mse_range,
    percentile_range,
    quantization_error,
    symmetric_quantization,
)

TAKE_BITS = {
    asymmetric_quantization: 1,
    symmetric_quantization: 2,
    mse_range: 1,
    cross_entropy_range: 1,
    kl_range: 1,
}
TAKE_NUMBERS = [*TAKE_BITS, min_max_range, percentile_range]
GOOD = np.linspace(0, 6, 12).reshape(3, 4)


def name(function):
    return function.__name__


def call(function, params, *args, **options):
    """Call it with 8 bits where it takes bits and none are given."""
    return function(params, *(args or (8,) * (function in TAKE_BITS)), **options)


@pytest.mark.parametrize(
    "params, error, message",
    [
        ([], ValueError, r" is empty \(shape \(0,\)\); it must hold a number"),
        (np.zeros((3, 0)), ValueError, r" is empty \(shape \(3, 0\)\)"),
        ([1, np.nan], ValueError, " holds nan; all its values must be finite"),
        ([1, np.inf], ValueError, " holds inf; all its values must be finite"),
        (np.float32([-np.inf, 1]), ValueError, " holds -inf; all its values must be finite"),
        ([1 + 2j], TypeError, " has the type complex128; it must hold real numbers"),
        (["1.5"], TypeError, " has the type <U3; it must hold real numbers"),
        ([True], TypeError, " has the type bool; it must hold real numbers"),
        ([None], TypeError, " has the type object; it must hold real numbers"),
    ],
)
def test_bad_numbers(params, error, message):
    with pytest.raises(error, match=f"^params{message}"):
        asymmetric_quantization(params, 8)


@pytest.mark.parametrize("function", TAKE_NUMBERS, ids=name)
@pytest.mark.parametrize("wrong, error", [([1, np.inf], ValueError), (["1.5"], TypeError)])
def test_every_function_checks_its_numbers(function, wrong, error):
    argument = "logits" if function is cross_entropy_range else "params"
    with pytest.raises(error, match=f"^{argument} "):
        call(function, wrong)


@pytest.mark.parametrize("function", [asymmetric_quantization, symmetric_quantization], ids=name)
@pytest.mark.parametrize("place, wrong", [(0, np.nan), (40_000, -np.inf), (-1, np.inf)])
@pytest.mark.parametrize("options", [{}, {"range": (-1, 1)}, {"axis": 0}, {"group_size": 5}])
def test_no_bad_number_is_overlooked(function, place, wrong, options):
    params = np.zeros(100_000)
    params[place] = wrong
    with pytest.raises(ValueError, match=f"^params holds {wrong}; all its values must be finite"):
        function(params, 8, **options)


def bad_bits(function, bits, error):
    message = f"^bits is {bits!r}; it must be an integer from {TAKE_BITS[function]} to 16$"
    with pytest.raises(error, match=message):
        function(GOOD, bits)


@pytest.mark.parametrize(
    "bits, error",
    [(0, ValueError), (-1, ValueError), (17, ValueError), (8.0, TypeError), ("8", TypeError)]
    + [(None, TypeError), (True, TypeError), (np.nan, TypeError)],
)
def test_bad_bits(bits, error):
    bad_bits(asymmetric_quantization, bits, error)


@pytest.mark.parametrize("function", TAKE_BITS, ids=name)
def test_every_function_checks_its_bits(function):
    bad_bits(function, 0, ValueError)
    bad_bits(function, 8.0, TypeError)


def test_what_is_symmetric_needs_two_bits():
    message = "^bits is 1; it must be an integer from 2 to 16$"
    for function, params, options in [
        (symmetric_quantization, GOOD, {}),
        (mse_range, GOOD, {"symmetric": True}),
        (kl_range, GOOD - 1, {}),  # both signs: one bit would leave a single code for each
    ]:
        with pytest.raises(ValueError, match=message):
            function(params, 1, **options)
    assert asymmetric_quantization(GOOD, np.int64(1))[0].max() == 1


@pytest.mark.parametrize(
    "percentile, error",
    [(50, ValueError), (100.1, ValueError), (np.nan, ValueError), ("99", TypeError)]
    + [(True, TypeError)],
)
def test_bad_percentiles(percentile, error):
    with pytest.raises(error, match="^percentile is .*; it must be a number over 50, and at most"):
        percentile_range(GOOD, percentile)


PAIR = r"it must be a pair of numbers, \(low, high\)$"
FINITE = "it must be finite in float64, low first$"


AXES, SIZES = "it must be an integer from -2 to 1$", "it must be an integer from 1 to 4$"


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"range": (2, 1)}, ValueError, rf"range is \(2, 1\); {FINITE}"),
        ({"range": (0, np.inf)}, ValueError, rf"range is \(0, inf\); {FINITE}"),
        ({"range": (np.nan, 1)}, ValueError, rf"range is \(nan, 1\); {FINITE}"),
        ({"range": 5}, TypeError, f"range is 5; {PAIR}"),
        ({"range": (1, 2, 3)}, TypeError, rf"range is \(1, 2, 3\); {PAIR}"),
        ({"range": ("a", "b")}, TypeError, rf"range is \('a', 'b'\); {PAIR}"),
        ({"axis": 0, "range": ([0, 0], [1, 1])}, ValueError, ".*one for each of the 3 scales$"),
        ({"axis": 2}, ValueError, f"axis is 2; {AXES}"),
        ({"axis": -3}, ValueError, f"axis is -3; {AXES}"),
        ({"axis": 0.0}, TypeError, f"axis is 0.0; {AXES}"),
        ({"axis": (0, 1)}, TypeError, rf"axis is \(0, 1\); {AXES}"),
        ({"group_size": 3}, ValueError, "group_size is 3; it must divide the length of the last "),
        ({"group_size": 0}, ValueError, f"group_size is 0; {SIZES}"),
        ({"group_size": 8}, ValueError, f"group_size is 8; {SIZES}"),
        ({"group_size": 2.0}, TypeError, f"group_size is 2.0; {SIZES}"),
        ({"axis": 0, "group_size": 2}, ValueError, "axis is 0 and group_size is 2; give one"),
    ],
)
def test_bad_options(options, error, message):
    for function in (asymmetric_quantization, symmetric_quantization):
        with pytest.raises(error, match=f"^{message}"):
            function(GOOD, 8, **options)


def test_an_axis_of_a_single_number():
    with pytest.raises(ValueError, match="^axis is 0; params is a single number"):
        asymmetric_quantization(1.5, 8, axis=0)


def test_a_range_beyond_the_type_of_the_numbers():
    with pytest.raises(ValueError, match=r"^range is \(0, 1e\+39\); it must be finite in float32"):
        asymmetric_quantization(GOOD.astype(np.float32), 8, range=(0, 1e39))


TABLE = np.zeros((8, 6), int)


@pytest.mark.parametrize(
    "codes, scale, zero, error, message",
    [
        (TABLE, np.ones(8), 0, ValueError, r"scale has the shape \(8,\); for"),
        (TABLE, np.ones((1, 3)), 0, ValueError, r"scale has the shape \(1, 3\);"),
        (TABLE, np.ones((8, 4)), 0, ValueError, r"scale has the shape \(8, 4\);"),
        (TABLE[0], 1.0, np.zeros(3, int), ValueError, r"zero has the shape \(3,\); it"),
        (["a"], 1.0, 0, TypeError, "params_q has the type <U1"),
        ([1], "b", 0, TypeError, "scale has the type <U1"),
        ([1], 1.0, None, TypeError, "zero has the type object"),
    ],
)
def test_bad_codes(codes, scale, zero, error, message):
    with pytest.raises(error, match=f"^{message}"):
        asymmetric_dequantize(codes, scale, zero)


def test_the_error_of_two_shapes():
    """NumPy would compare every number with every other, and return a number all the same."""
    with pytest.raises(ValueError, match=r"^params_dequantized has the shape \(12,\); it must be"):
        quantization_error(GOOD.reshape(12, 1), GOOD.ravel())
