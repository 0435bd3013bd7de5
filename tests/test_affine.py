"""qhelpers.affine: the original notebook's results, torch's kernels, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from qhelpers import (
    asymmetric_dequantize,
    asymmetric_quantization,
    clamp,
    quantization_error,
    symmetric_dequantize,
    symmetric_quantization,
)

ORIGINAL = np.array(
    [149.28, -17.66, 0, 61.84, -0.25, 134.6, 148.28, 68.34, 74.51, 51.24]
    + [43.13, 140.25, 142.08, 114.53, -16.66, 81.33, 135.17, -8.6, 112.6, 103.86]
)
floats = arrays(
    np.float64, array_shapes(max_dims=3), elements=st.floats(-1e6, 1e6, allow_subnormal=False)
)


def test_original_numbers_asymmetric():
    codes, scale, zero = asymmetric_quantization(ORIGINAL, 8)
    expected = "255 0 27 121 27 233 253 131 141 105 93 241 244 202 2 151 233 14 199 186"
    assert codes.tolist() == [int(code) for code in expected.split()]
    assert (round(scale, 2), zero) == (0.65, 27)
    assert round(quantization_error(ORIGINAL, asymmetric_dequantize(codes, scale, zero)), 2) == 0.04


def test_original_numbers_symmetric():
    codes, scale = symmetric_quantization(ORIGINAL, 8)
    expected = "127 -15 0 53 0 115 126 58 63 44 37 119 121 97 -14 69 115 -7 96 88"
    assert codes.tolist() == [int(code) for code in expected.split()]
    assert round(scale, 2) == 1.18
    assert round(quantization_error(ORIGINAL, symmetric_dequantize(codes, scale)), 2) == 0.11


def test_clamp_leaves_its_argument_alone():
    given_codes = np.array([-3, 128, 300])
    assert clamp(given_codes, 0, 255).tolist() == [0, 128, 255]
    assert given_codes.tolist() == [-3, 128, 300]


@pytest.mark.parametrize("bits, unsigned, signed", [(8, "uint8", "int8"), (9, "uint16", "int16")])
def test_codes_come_in_the_smallest_type(bits, unsigned, signed):
    assert asymmetric_quantization(ORIGINAL, bits)[0].dtype == unsigned
    assert symmetric_quantization(ORIGINAL, bits)[0].dtype == signed


def tie_laden(scale, count=200_000):
    """float32 values of which many lie exactly between two codes."""
    rng = np.random.default_rng(0)
    halves = rng.integers(-600, 600, count).astype(np.float32) * np.float32(scale) / 2
    return np.concatenate([halves, rng.normal(0, 60 * scale, count).astype(np.float32)])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("scale", [0.5, 1.0, 0.1, 0.0256, 0.3])
def test_codes_are_those_of_torch(scale):
    """Zero differences from torch.quantize_per_tensor in 400,000 values for each scale."""
    params = tie_laden(scale)
    low, high = np.float32(-100 * scale), np.float32(155 * scale)
    codes, scale, zero = asymmetric_quantization(params, 8, range=(low, high))
    by_torch = torch.quantize_per_tensor(torch.tensor(params), scale.item(), zero, torch.quint8)
    assert (codes != by_torch.int_repr().numpy()).sum() == 0

    codes, scale = symmetric_quantization(params, 8, range=(-high, high))
    by_torch = torch.quantize_per_tensor(torch.tensor(params), scale.item(), 0, torch.qint8)
    assert (codes != by_torch.int_repr().numpy()).sum() == 0


@settings(deadline=None)
@given(floats, st.integers(1, 16))
def test_round_trip_asymmetric(params, bits):
    before = params.copy()
    codes, scale, zero = asymmetric_quantization(params, bits)
    back = asymmetric_dequantize(codes, scale, zero)
    assert codes.shape == params.shape
    assert codes.min() >= 0 and codes.max() <= 2**bits - 1 and 0 <= zero <= 2**bits - 1
    # half a step for rounding the value, and another for rounding the zero point
    assert np.abs(params - back).max() <= scale * (1 + 1e-9)
    assert asymmetric_dequantize(zero, scale, zero) == 0
    assert np.array_equal(params, before)


@settings(deadline=None)
@given(floats, st.integers(2, 16))
def test_round_trip_symmetric(params, bits):
    codes, scale = symmetric_quantization(params, bits)
    assert codes.min() >= -(2 ** (bits - 1)) and codes.max() <= 2 ** (bits - 1) - 1
    assert np.abs(params - symmetric_dequantize(codes, scale)).max() <= scale / 2 * (1 + 1e-9)


def test_a_range_without_zero_is_widened():
    codes, scale, zero = asymmetric_quantization(np.array([100.0, 110.0]), 8)
    assert zero == 0 and scale == 110 / 255
    codes, scale, zero = asymmetric_quantization(np.array([-110.0, -100.0]), 8)
    assert zero == 255 and codes[0] == 0


@pytest.mark.parametrize("value", [0.0, 7.5, -7.5])
def test_constant_input_comes_back(value):
    params = np.full(5, value)
    assert np.allclose(asymmetric_dequantize(*asymmetric_quantization(params, 8)), params)
    assert np.allclose(symmetric_dequantize(*symmetric_quantization(params, 8)), params)


def test_values_beyond_the_range_are_clipped():
    codes, scale, zero = asymmetric_quantization(np.array([-9.0, 0, 9]), 8, range=(-1, 1))
    assert codes.tolist() == [0, zero, 255]
    codes, scale = symmetric_quantization(np.array([-9.0, 0, 9]), 8, range=(-1, 1))
    assert codes.tolist() == [-128, 0, 127]


@pytest.mark.parametrize(
    "params, bits, options, message",
    [
        ([], 8, {}, "params is empty"),
        ([1, np.nan], 8, {}, "params holds NaN or infinity"),
        ([1, np.inf], 8, {}, "params holds NaN or infinity"),
        ([1 + 2j], 8, {}, "params has the type complex128"),
        (["a"], 8, {}, "params has the type <U1"),
        ([1.0], 0, {}, "bits is 0"),
        ([1.0], 17, {}, "bits is 17"),
        ([1.0], 8.0, {}, "bits is 8.0"),
        ([1.0], 8, {"range": (2, 1)}, r"range is \(2, 1\)"),
        ([1.0], 8, {"range": (0, np.inf)}, r"range is \(0, inf\)"),
    ],
)
def test_bad_input_is_named(params, bits, options, message):
    for quantize in (asymmetric_quantization, symmetric_quantization):
        with pytest.raises(ValueError, match=message):
            quantize(np.array(params), bits, **options)


def test_symmetric_needs_two_bits():
    with pytest.raises(ValueError, match="bits is 1; it must be an integer from 2 to 16"):
        symmetric_quantization(ORIGINAL, 1)
