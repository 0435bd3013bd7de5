"""qhelpers.affine: the original notebook's results, torch's kernels, and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, floating_dtypes

from qhelpers import (
    asymmetric_dequantize,
    asymmetric_quantization,
    clamp,
    quantization_error,
    symmetric_dequantize,
    symmetric_quantization,
)
from qhelpers.granularity import BLOCK, blocks

ORIGINAL = np.array(
    [149.28, -17.66, 0, 61.84, -0.25, 134.6, 148.28, 68.34, 74.51, 51.24]
    + [43.13, 140.25, 142.08, 114.53, -16.66, 81.33, 135.17, -8.6, 112.6, 103.86]
)
# Any floats at all but NaN and infinity, of 32 or 64 bits, subnormal and huge ones included.
floats = floating_dtypes(endianness="=", sizes=(32, 64)).flatmap(
    lambda dtype: arrays(
        dtype, array_shapes(max_dims=3), elements={"allow_nan": False, "allow_infinity": False}
    )
)
matrices = arrays(np.float32, (4, 6), elements=st.floats(-1000, 1000, width=32))


def round_trip(params, bits, **options):
    return asymmetric_dequantize(*asymmetric_quantization(params, bits, **options))


def symmetric_round_trip(params, bits, **options):
    return symmetric_dequantize(*symmetric_quantization(params, bits, **options))


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
    for narrow_range in (True, False):
        codes, _ = symmetric_quantization(ORIGINAL, bits, narrow_range=narrow_range)
        assert codes.dtype == signed


def tie_laden(scale, count=200_000):
    """float32 values, many of them exactly between two codes."""
    rng = np.random.default_rng(0)
    halves = rng.integers(-600, 600, count).astype(np.float32) * np.float32(scale) / 2
    return np.concatenate([halves, rng.normal(0, 60 * scale, count).astype(np.float32)])


def same(codes, dequantized, by_torch):
    """Whether codes and what they stand for are torch's, all of them."""
    return np.array_equal(codes, by_torch.int_repr().numpy()) and np.array_equal(
        dequantized, by_torch.dequantize().numpy()
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 0.1, 0.0256, 0.3, 1e-30, 3e30])
def test_per_tensor_is_torch_s(scale):
    """Zero differences from torch.quantize_per_tensor in 400,000 values for each scale."""
    params = tie_laden(scale)
    low, high = np.float32(-100 * scale), np.float32(155 * scale)
    codes, scale, zero = asymmetric_quantization(params, 8, range=(low, high))
    by_torch = torch.quantize_per_tensor(torch.tensor(params), scale.item(), zero, torch.quint8)
    assert same(codes, asymmetric_dequantize(codes, scale, zero), by_torch)

    codes, scale = symmetric_quantization(params, 8, range=(-high, high), narrow_range=False)
    by_torch = torch.quantize_per_tensor(torch.tensor(params), scale.item(), 0, torch.qint8)
    assert same(codes, symmetric_dequantize(codes, scale), by_torch)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_is_torch_s(axis):
    """Zero differences from torch.quantize_per_channel in 400,000 values for each axis."""
    params = np.moveaxis(tie_laden(0.25).reshape(8, 500, 100), 0, axis)
    params = params * np.float32([1, 0.1, 2, 0.3, 4, 0.5, 6, 0.7]).reshape(
        [8 if i == axis else 1 for i in range(3)]
    )
    given = torch.tensor(params)
    half = (params.min() / 2, params.max() / 3)  # clips, and makes more ties
    for range_ in (None, half):
        codes, scale, zero = asymmetric_quantization(params, 8, axis=axis, range=range_)
        by_torch = torch.quantize_per_channel(
            given, torch.tensor(scale.ravel()), torch.tensor(zero.ravel()), axis, torch.quint8
        )
        assert same(codes, asymmetric_dequantize(codes, scale, zero), by_torch)

        codes, scale = symmetric_quantization(
            params, 8, axis=axis, range=range_, narrow_range=False
        )
        by_torch = torch.quantize_per_channel(
            given, torch.tensor(scale.ravel()), torch.zeros(8, dtype=int), axis, torch.qint8
        )
        assert same(codes, symmetric_dequantize(codes, scale), by_torch)


@pytest.mark.parametrize("narrow_range, bottom", [(True, -127), (False, -128)])
def test_fake_quantization_is_torch_s(narrow_range, bottom):
    """Narrow and full range, against the kernel that takes the ends of the codes."""
    params = tie_laden(0.3)
    codes, scale = symmetric_quantization(params, 8, range=(-9, 9), narrow_range=narrow_range)
    by_torch = torch.fake_quantize_per_tensor_affine(
        torch.tensor(params), scale.item(), 0, bottom, 127
    )
    assert np.array_equal(symmetric_dequantize(codes, scale), by_torch.numpy())
    assert codes.min() == bottom


def test_scales_are_those_of_torch_s_observers():
    from torch.ao.quantization import MinMaxObserver

    rng = np.random.default_rng(0)
    for low, high in [(-3, 5), (0, 6), (-4, -1), (2, 9)]:
        params = rng.uniform(low, high, 1000).astype(np.float32)
        observer = MinMaxObserver(dtype=torch.quint8)
        observer(torch.tensor(params))
        scale, zero = observer.calculate_qparams()
        assert asymmetric_quantization(params, 8)[1:] == (scale.item(), zero.item())
        for options, narrow_range in [({}, False), ({"quant_min": -127, "quant_max": 127}, True)]:
            observer = MinMaxObserver(
                dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, **options
            )
            observer(torch.tensor(params))
            scale, _ = observer.calculate_qparams()
            ours = symmetric_quantization(params, 8, narrow_range=narrow_range)[1]
            assert ours == scale.item()


def last_place(number):
    """One unit in the last place of a float, on its side towards 0."""
    return np.abs(number - np.nextafter(number, number.dtype.type(0)))


def within(params, dequantized, distance):
    """Whether no number moved farther than this, up to float rounding."""
    distance = distance * (1 + 1e-4) + 2 * last_place(np.abs(params).max())
    halves = params / 2 - dequantized / 2  # the difference itself may overflow
    return np.isfinite(dequantized).all() and (np.abs(halves) <= distance / 2).all()


@settings(deadline=None)
@given(floats, st.integers(1, 16))
def test_round_trip_asymmetric(params, bits):
    before = params.copy()
    codes, scale, zero = asymmetric_quantization(params, bits)
    back = asymmetric_dequantize(codes, scale, zero)
    assert codes.shape == back.shape == params.shape
    assert scale.dtype == back.dtype == params.dtype
    assert 0 <= zero <= 2**bits - 1 and codes.max() <= 2**bits - 1
    largest = np.finfo(params.dtype).max
    if scale < largest / 2**bits:  # else two steps are more than there are floats
        assert within(params, back, scale / 2)
    assert asymmetric_dequantize(zero, scale, zero) == 0
    assert (back[params == 0] == 0).all()
    assert np.array_equal(params, before)


@settings(deadline=None)
@given(floats, st.integers(2, 16), st.booleans())
def test_round_trip_symmetric(params, bits, narrow_range):
    codes, scale = symmetric_quantization(params, bits, narrow_range=narrow_range)
    back = symmetric_dequantize(codes, scale)
    top = 2 ** (bits - 1) - 1
    assert codes.min() >= (-top if narrow_range else -top - 1) and codes.max() <= top
    assert scale.dtype == back.dtype == params.dtype
    assert within(params, back, scale / 2)
    assert (back[params == 0] == 0).all()


@settings(deadline=None)
@given(floats, st.integers(2, 16))
def test_codes_are_monotone(params, bits):
    for codes in (
        asymmetric_quantization(params, bits)[0],
        symmetric_quantization(params, bits)[0],
    ):
        in_order = codes.ravel()[np.argsort(params, axis=None)].astype(int)
        assert (np.diff(in_order) >= 0).all()


@settings(deadline=None)
@given(floats, st.integers(2, 16), st.randoms(use_true_random=False))
def test_order_and_layout_do_not_matter(params, bits, random):
    order = list(range(params.size))
    random.shuffle(order)
    every_other = np.zeros((*params.shape[:-1], 2 * params.shape[-1]), params.dtype)[..., ::2]
    every_other[...] = params
    for quantize in (asymmetric_quantization, symmetric_quantization):
        codes, *rest = quantize(params, bits)
        for same_numbers in (np.asfortranarray(params), every_other, params.byteswap().view(
            params.dtype.newbyteorder()
        )):  # fmt: skip
            again, *same_rest = quantize(same_numbers, bits)
            assert np.array_equal(codes, again) and rest == same_rest
        shuffled, *same_rest = quantize(params.ravel()[order], bits)
        assert np.array_equal(codes.ravel()[order], shuffled) and rest == same_rest


@settings(deadline=None)
@given(matrices, st.integers(2, 10), st.integers(-2, 1))
def test_per_channel_is_per_tensor_channel_by_channel(params, bits, axis):
    codes, scale, zero = asymmetric_quantization(params, bits, axis=axis)
    back = asymmetric_dequantize(codes, scale, zero)
    symmetric, symmetric_scale = symmetric_quantization(params, bits, axis=axis)
    symmetric_back = symmetric_dequantize(symmetric, symmetric_scale)
    expected_shape = (4, 1) if axis % 2 == 0 else (1, 6)
    assert scale.shape == zero.shape == symmetric_scale.shape == expected_shape
    for index in range(params.shape[axis]):
        channel = np.take(params, index, axis)
        alone, alone_scale, alone_zero = asymmetric_quantization(channel, bits)
        assert np.array_equal(np.take(codes, index, axis), alone)
        assert (scale.ravel()[index], zero.ravel()[index]) == (alone_scale, alone_zero)
        assert np.array_equal(np.take(back, index, axis), round_trip(channel, bits))
        alone, alone_scale = symmetric_quantization(channel, bits)
        assert np.array_equal(np.take(symmetric, index, axis), alone)
        assert symmetric_scale.ravel()[index] == alone_scale
        assert np.array_equal(
            np.take(symmetric_back, index, axis), symmetric_round_trip(channel, bits)
        )


@settings(deadline=None)
@given(matrices, st.integers(2, 10), st.sampled_from([1, 2, 3, 6]))
def test_per_group_is_per_tensor_group_by_group(params, bits, group_size):
    codes, scale, zero = asymmetric_quantization(params, bits, group_size=group_size)
    assert codes.shape == params.shape and scale.shape == (4, 6 // group_size) == zero.shape
    back = asymmetric_dequantize(codes, scale, zero)
    groups = params.reshape(-1, group_size)
    alone = np.concatenate([round_trip(group, bits) for group in groups])
    assert np.array_equal(back.ravel(), alone)
    back = symmetric_round_trip(params, bits, group_size=group_size)
    alone = np.concatenate([symmetric_round_trip(group, bits) for group in groups])
    assert np.array_equal(back.ravel(), alone)


def test_blocks_fit_the_cache_and_cover_all():
    for shape in [(1, 1, 100_000), (3, 7, 40_000), (50_000, 3, 1), (1, 3000, 30), (5, 4, 3)]:
        visits = np.zeros(shape, int)
        for block in blocks(shape):
            assert visits[block].size <= BLOCK
            visits[block] += 1
        assert (visits == 1).all()


def test_more_values_than_a_block_holds():
    """Blocks are cut across each of the three axes and put together again."""
    rng = np.random.default_rng(0)
    for shape, axis in [((3, 7, 40_000), 1), ((50_000, 3), 1), ((3, 50_000), 1), ((90_000,), 0)]:
        params = rng.normal(size=shape).astype(np.float32)
        codes, scale, zero = asymmetric_quantization(params, 8, axis=axis)
        expected = np.clip(np.rint(params * (1 / scale)) + zero, 0, 255)
        assert np.array_equal(codes, expected)
        back = asymmetric_dequantize(codes, scale, zero)
        assert np.array_equal(back, (expected - zero).astype(np.float32) * scale)


def test_a_range_for_each_channel():
    params = np.array([[1.0, -2.0], [30.0, 40.0]])
    codes, scale, zero = asymmetric_quantization(params, 8, axis=0, range=([-2, 0], [1, 40]))
    assert np.array_equal(scale, [[3 / 255], [40 / 255]]) and zero.tolist() == [[170], [0]]
    _, wide = symmetric_quantization(params, 8, axis=0, range=(-127, 10))
    assert wide.tolist() == [[1], [1]]


def test_a_range_without_zero_is_widened():
    codes, scale, zero = asymmetric_quantization(np.array([100.0, 110.0]), 8)
    assert zero == 0 and scale == 110 / 255
    codes, scale, zero = asymmetric_quantization(np.array([-110.0, -100.0]), 8)
    assert zero == 255 and codes[0] == 0


CONSTANTS = {
    np.float32: [0.0, 7.5, 1e38, 3.4028235e38, 1e-37, 3e-38, 1e-38, 1e-40, 1e-45],
    np.float64: [0.0, 7.5, 1e38, 1.7e308, 1e-38, 1e-307, 3e-308, 1e-310, 5e-324],
}


@pytest.mark.parametrize(
    "dtype, value", [(dtype, value) for dtype in CONSTANTS for value in CONSTANTS[dtype]]
)
def test_a_constant_comes_back_to_one_unit_in_the_last_place(dtype, value):
    for params in (np.full(3, value, dtype), np.full(1, -value, dtype)):
        unit = last_place(params[0])
        for bits in (1, 2, 8, 16):
            assert (np.abs(round_trip(params, bits) - params[0]) <= unit).all()
            if bits > 1:
                assert (np.abs(symmetric_round_trip(params, bits) - params[0]) <= unit).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_ends_of_the_floats(dtype):
    """The width of the range overflows; nothing becomes NaN or infinite."""
    largest = np.finfo(dtype).max
    params = np.array([-largest, -1, 0, 1, largest], dtype)
    for bits in (1, 2, 8, 16):
        assert np.isfinite(round_trip(params, bits)).all()
    assert np.array_equal(symmetric_round_trip(params, 8), [-largest, 0, 0, 0, largest])


def test_values_beyond_the_range_are_clipped():
    params = np.array([-9.0, 0, 9, 1e308])
    codes, scale, zero = asymmetric_quantization(params, 8, range=(-1, 1))
    assert codes.tolist() == [0, zero, 255, 255]
    codes, scale = symmetric_quantization(params, 8, range=(-1, 1))
    assert codes.tolist() == [-127, 0, 127, 127] and scale == 1 / 127
    codes, scale = symmetric_quantization(params, 8, range=(-1, 1), narrow_range=False)
    assert codes.tolist() == [-128, 0, 127, 127] and scale == 1 / 127.5


def test_dequantizing_never_wraps():
    assert asymmetric_dequantize(np.uint8([0, 3]), 1.0, 200).tolist() == [-200, -197]
    assert symmetric_dequantize(np.int8([-128, 127]), 2.0).tolist() == [-256, 254]


def test_tensors_are_accepted():
    weights = torch.linspace(-1, 2, 50, requires_grad=True)
    expected = weights.detach().numpy()
    for tensor in (weights, weights.bfloat16(), weights.half(), weights.double()):
        numbers = tensor.detach().float().numpy().astype(np.float64)
        back = round_trip(tensor, 8)
        assert isinstance(back, np.ndarray) and np.abs(back - numbers).max() < 0.006
    assert quantization_error(weights, torch.zeros(50)) == np.mean(expected.astype(float) ** 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_the_arithmetic_is_in_the_type_that_came_in_or_a_wider_one(dtype):
    codes, scale, zero = asymmetric_quantization(ORIGINAL.astype(dtype), 8)
    assert scale.dtype == dtype and asymmetric_dequantize(codes, scale, zero).dtype == dtype
    assert symmetric_round_trip(ORIGINAL.astype(dtype), 8).dtype == dtype
    assert asymmetric_quantization(ORIGINAL.astype(np.float16), 8)[1].dtype == np.float32
    assert asymmetric_quantization(np.array([1, 2, 3]), 8)[1] == 3 / 255


def test_the_error_is_a_mean_in_float64():
    assert quantization_error(np.float32([1e30, 0]), np.float32([0, 0])) == pytest.approx(5e59)
    assert quantization_error(np.uint8([3, 250]), np.uint8([250, 3])) == 247**2
