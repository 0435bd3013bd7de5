"""qhelpers.formats.floats: PyTorch's and NumPy's casts on every pattern, and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qhelpers.formats import BFLOAT16, E2M1, E2M3, E3M2, E4M3, E5M2, FLOAT16, FloatFormat

IN_TORCH = {
    "float16": (FLOAT16, torch.float16),
    "bfloat16": (BFLOAT16, torch.bfloat16),
    "e4m3": (E4M3, torch.float8_e4m3fn),
    "e5m2": (E5M2, torch.float8_e5m2),
}
with_torch = pytest.mark.parametrize("format, dtype", IN_TORCH.values(), ids=IN_TORCH)


def patterns_of(format):
    return np.arange(2**format.bits, dtype=np.min_scalar_type(2**format.bits - 1))


def torch_codes(numbers, format, dtype):
    """The codes that PyTorch gives to float32 numbers."""
    code_type = torch.uint16 if format.bits == 16 else torch.uint8
    return torch.from_numpy(numbers).to(dtype).view(code_type).numpy()


def hard_numbers(format, count=1_000_000):
    """float32: each number of the format, each middle between two and both its neighbours, with
    both signs; many of all sizes; and numbers far beyond the largest."""
    numbers = format.numbers
    middles = np.float32((numbers[1:] + numbers[:-1]) / 2)
    rng = np.random.default_rng(0)
    low, high = np.log2(numbers[1]) - 2, np.log2(numbers[-1])
    sizes = np.exp2(rng.uniform(max(low, -149), high, count))
    positive = [np.float32(numbers), middles, np.nextafter(middles, np.float32(0)),
                np.nextafter(middles, np.float32(np.inf)), np.float32(sizes)]  # fmt: skip
    positive = np.concatenate(positive)
    return np.concatenate([positive, -positive])


def beyond(format):
    """float32: around the border to infinity, and far beyond."""
    border = np.float32(format.largest + (format.numbers[-1] - format.numbers[-2]) / 2)
    positive = np.float32([border, np.nextafter(border, np.float32(0)),
                           np.nextafter(border, np.float32(np.inf)), 3e38, np.inf])  # fmt: skip
    return np.concatenate([positive, -positive])


@with_torch
def test_every_pattern_is_torch_s_number(format, dtype):
    by_torch = torch.from_numpy(patterns_of(format)).view(dtype).double().numpy()
    assert np.array_equal(format.values, by_torch, equal_nan=True)
    assert np.array_equal(np.signbit(format.values), np.signbit(by_torch))
    assert np.array_equal(format.decode(patterns_of(format)), by_torch, equal_nan=True)


@with_torch
def test_every_number_gets_its_pattern_back(format, dtype):
    """Also from PyTorch's own type, for the 16 bits; a NaN gets one NaN, with its sign."""
    tensor = torch.from_numpy(patterns_of(format)).view(dtype)
    isnan = np.isnan(format.values)
    for numbers in (tensor.float(), *([tensor] if format.bits == 16 else [])):
        codes = format.encode(numbers)
        assert codes.dtype == patterns_of(format).dtype
        assert np.array_equal(codes[~isnan], patterns_of(format)[~isnan])
        ones = 2 ** (format.bits - 1) - 1
        assert np.array_equal(codes[isnan] & ones, np.full(isnan.sum(), ones))


@with_torch
def test_rounding_is_torch_s(format, dtype):
    numbers = hard_numbers(format)
    assert np.array_equal(format.encode(numbers), torch_codes(numbers, format, dtype))


@with_torch
def test_what_is_too_large_and_nan_are_torch_s(format, dtype):
    if format is E4M3 and torch_codes(np.float32([500]), format, dtype) == 0x7F:
        pytest.skip("this PyTorch casts to NaN what is too large for float8_e4m3fn")
    assert np.array_equal(format.encode(beyond(format)), torch_codes(beyond(format), format, dtype))
    nans = np.float32([np.nan, -np.nan])
    by_torch = torch_codes(nans, format, dtype)
    assert np.isnan(format.values[by_torch]).all()
    assert format.bits == 16 or np.array_equal(format.encode(nans), by_torch)


def test_a_float64_is_rounded_once():
    """PyTorch rounds it to float32 first; NumPy doesn't."""
    rng = np.random.default_rng(0)
    middles = (FLOAT16.numbers[1:] + FLOAT16.numbers[:-1]) / 2
    numbers = np.concatenate([np.nextafter(middles, 0), middles, np.nextafter(middles, np.inf),
                              rng.normal(size=1_000_000)])  # fmt: skip
    assert np.array_equal(FLOAT16.encode(numbers), numbers.astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("name, format", [("f4", E2M1), ("f6_e3m2", E3M2), ("f6_e2m3", E2M3)])
def test_four_and_six_bits_are_torchao_s(name, format):
    pytest.importorskip("torchao", reason="not installed: torchao, of the extra deploy")
    from torchao.prototype.mx_formats import kernels

    to_codes = getattr(kernels, f"f32_to_{name}_unpacked")
    to_numbers = getattr(kernels, f"{name}_unpacked_to_f32")
    by_torchao = to_numbers(torch.from_numpy(patterns_of(format))).numpy()
    assert np.array_equal(format.values, by_torchao)
    assert np.array_equal(np.signbit(format.values), np.signbit(by_torchao))
    numbers = np.concatenate([hard_numbers(format), beyond(format)])
    assert np.array_equal(format.encode(numbers), to_codes(torch.from_numpy(numbers)).numpy())


@pytest.mark.parametrize("format, numbers", [
    (E2M1, [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
    (FloatFormat(3, 0, "none"), [0, 0.25, 0.5, 1, 2, 4, 8, 16]),
    (FloatFormat(1, 2, "none"), [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
    (FloatFormat(2, 1, "nan"), [0, 0.5, 1, 1.5, 2, 3, 4, np.nan]),
    (FloatFormat(2, 1), [0, 0.5, 1, 1.5, 2, 3, np.inf, np.nan]),
])  # fmt: skip
def test_four_bits_by_hand(format, numbers):
    assert np.array_equal(format.values[:8], numbers, equal_nan=True)
    assert np.array_equal(format.values[8:], np.negative(numbers), equal_nan=True)
    assert format.largest == np.max(np.where(np.isfinite(numbers), numbers, 0))


@st.composite
def formats(draw):
    exponent_bits = draw(st.integers(1, 8))
    special = draw(st.sampled_from(["ieee", "nan", "none"]))
    mantissa_bits = draw(st.integers(special == "ieee", min(6, 15 - exponent_bits)))
    return FloatFormat(exponent_bits, mantissa_bits, special)


@given(formats(), st.lists(st.floats(allow_nan=False), min_size=1))
def test_any_format_takes_the_nearest_number(format, drawn):
    drawn = np.array(drawn)
    top = format.largest
    half_a_step = (top - format.numbers[-2]) / 2 if len(format.numbers) > 1 else 0
    for number, code in zip(drawn, format.encode(drawn)):
        rounded = format.values[code]
        assert np.signbit(rounded) == np.signbit(number)
        if format.special == "ieee" and abs(number) >= top + half_a_step:
            assert np.isinf(rounded)
        elif abs(number) > top:
            assert abs(rounded) == top
        else:
            errors = np.abs(np.abs(number) - format.numbers)
            nearest = np.flatnonzero(errors == errors.min())
            place = code % 2 ** (format.bits - 1)
            assert place in nearest and (len(nearest) == 1 or place % 2 == 0)


@given(formats())
def test_any_format_s_numbers_keep_their_codes(format):
    codes = patterns_of(format)[~np.isnan(format.values)]
    assert np.array_equal(format.encode(format.decode(codes)), codes)


def test_the_table_can_t_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        E2M1.values[0] = 1


@pytest.mark.parametrize("arguments, error, message", [
    ((0, 3), ValueError, "exponent_bits is 0; it must be an integer from 1 to 8"),
    ((9, 3), ValueError, "exponent_bits is 9; it must be an integer from 1 to 8"),
    ((5, 11), ValueError, "mantissa_bits is 11; it must be an integer from 1 to 10"),
    ((5, 0), ValueError, "mantissa_bits is 0; it must be an integer from 1 to 10"),
    ((5, 2.0), TypeError, "mantissa_bits is 2.0; it must be an integer"),
    ((5, 2, "fn"), ValueError, "special is 'fn'; it must be one of"),
])  # fmt: skip
def test_formats_that_are_none(arguments, error, message):
    with pytest.raises(error, match=message):
        FloatFormat(*arguments)


def test_what_can_t_be_encoded():
    for format in (E2M1, E2M3, E3M2):
        with pytest.raises(ValueError, match="x holds nan; this format has no pattern for it"):
            format.encode([1.0, np.nan])
    with pytest.raises(ValueError, match="x is empty"):
        E4M3.encode([])
    with pytest.raises(TypeError, match="x has the type <U3; it must hold real numbers"):
        E4M3.encode("one")


def test_what_can_t_be_decoded():
    with pytest.raises(ValueError, match="codes goes from 3 to 16; allowed are 0 to 15"):
        E2M1.decode([3, 16])
    with pytest.raises(ValueError, match="codes goes from -1 to 3; allowed are 0 to 15"):
        E2M1.decode([-1, 3])
    with pytest.raises(TypeError, match="codes has the type float64; it must hold integers"):
        E2M1.decode([1.0])
    with pytest.raises(ValueError, match="codes is empty"):
        E2M1.decode([])
