"""qhelpers.formats.blocks: torchao's codes, definitions in plain Python, and bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qhelpers.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    code_book_dequantize,
    code_book_quantize,
    dequantize_scales,
    mx_dequantize,
    mx_quantize,
    normal_float,
    nvfp4_dequantize,
    nvfp4_quantize,
    pack_pairs,
    pad_to_blocks,
    quantize_scales,
    unpack_pairs,
)

ELEMENTS = {"E4M3": E4M3, "E5M2": E5M2, "E3M2": E3M2, "E2M3": E2M3, "E2M1": E2M1}
IN_TORCHAO = {
    "E4M3": torch.float8_e4m3fn,
    "E5M2": torch.float8_e5m2,
    "E3M2": "fp6_e3m2",
    "E2M3": "fp6_e2m3",
    "E2M1": torch.float4_e2m1fn_x2,
}
with_elements = pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


def same(ours, theirs):
    """Whether two arrays of floats are the same: signs of zeros included, NaN equal to NaN."""
    return np.array_equal(ours, theirs, equal_nan=True) and np.array_equal(
        np.signbit(ours)[~np.isnan(ours)], np.signbit(theirs)[~np.isnan(ours)]
    )


def million(kind):
    """A million float32 numbers in rows of 32."""
    rng = np.random.default_rng(0)
    shape = (31250, 32)

    def powers(low, high, shape):
        return np.exp2(rng.integers(low, high, shape))

    numbers = {
        "normal": lambda: rng.normal(size=shape),
        "of all sizes": lambda: rng.normal(size=shape) * powers(-145, 126, (31250, 1)),
        "ties": lambda: rng.integers(-64, 65, shape) / 4 * powers(-8, 8, (31250, 1)),
        "outliers": lambda: rng.normal(size=shape) * powers(-20, 20, shape),
        "zeros": lambda: rng.normal(size=shape) * (rng.random(shape) < 0.03),
    }  # fmt: skip
    return np.float32(numbers[kind]())


KINDS = ["normal", "of all sizes", "ties", "outliers", "zeros"]


@pytest.fixture(scope="module")
def torchao():
    """torchao's modules for MX and NVFP4."""
    pytest.importorskip("torchao", reason="not installed: torchao, of the extra deploy")
    from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor

    return mx_tensor, nvfp4_tensor


def mx_by_torchao(torchao, x, name):
    """Codes (packed, for E2M1), scale codes, and what they stand for."""
    mx, dtype = torchao[0], IN_TORCHAO[name]
    scales, codes = mx.to_mx(torch.from_numpy(x), dtype, 32)
    back = mx.to_dtype(codes, scales.view(torch.uint8), dtype, 32, torch.float32)
    return codes.view(torch.uint8).numpy(), scales.view(torch.uint8).numpy(), back.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_mx_is_torchao_s(torchao, name, kind):
    x = million(kind)
    codes, scales = mx_quantize(x, ELEMENTS[name])
    their_codes, their_scales, back = mx_by_torchao(torchao, x, name)
    assert codes.shape == x.shape and codes.dtype == scales.dtype == np.uint8
    assert np.array_equal(scales, their_scales)
    values = mx_dequantize(codes, scales, ELEMENTS[name])
    assert values.dtype == np.float32
    # Where the scale is the smallest, 2**-127, torchao divides by 2**-126, as its comments say.
    small = (scales[:, 0] == 0) & (np.abs(x).max(axis=1) > 0)
    assert small.any() == (kind == "of all sizes")
    assert same(values[~small], back[~small])
    if small.any():
        codes[small] = ELEMENTS[name].encode(x[small] * 2.0**126)
    assert np.array_equal(pack_pairs(codes) if name == "E2M1" else codes, their_codes)


@with_elements
def test_a_block_with_nan_or_infinity_is_nan(torchao, element):
    """NaN as in torchao; infinity as in microxcaling, where torchao makes it a finite number."""
    name = next(name for name in ELEMENTS if ELEMENTS[name] is element)
    x = million("normal")[:4]
    x[1, 3], x[2, 4], x[3, 5] = np.nan, np.inf, -np.inf
    x.view(np.uint32)[1, 4] = 0x7FA00000  # a signaling NaN, of which NumPy warns
    codes, scales = mx_quantize(x, element)
    assert (scales[:, 0] == 255).tolist() == [False, True, True, True]
    values = mx_dequantize(codes, scales, element)
    assert np.isnan(values[1:]).all() and not np.isnan(values[0]).any()
    _, their_scales, back = mx_by_torchao(torchao, x[:2], name)
    assert np.array_equal(scales[:2], their_scales) and same(values[:2], back)
    assert np.array_equal(codes[:1], mx_quantize(x[:1], element)[0])


@with_elements
@given(x=arrays(np.float32, 4, elements=finite))
def test_mx_by_its_definition(element, x):
    codes, scales = mx_quantize(x, element, block=4)
    largest = float(np.abs(x).max())
    exponent = math.frexp(largest)[1] - math.frexp(element.largest)[1] if largest else -127
    exponent = max(exponent, -127)
    assert scales.tolist() == [exponent + 127]
    levels = np.concatenate([element.numbers, -element.numbers]) * 2.0**exponent
    values = mx_dequantize(codes, scales, element)
    assert np.array_equal(values, element.values[codes] * 2.0**exponent)  # exact in float32
    assert np.array_equal(
        np.abs(values - np.float64(x)), np.abs(levels - np.float64(x)[:, None]).min(axis=1)
    )


def test_the_power_of_two_clips_the_largest_number():
    x = np.array([7.9, 4.0, 1.0, 0.5])
    codes, scales = mx_quantize(x, E2M1, block=4)
    assert scales.tolist() == [127]  # 2**0, as 2**2 is the exponent of 7.9 and of 6
    assert mx_dequantize(codes, scales, E2M1).tolist() == [6, 4, 1, 0.5]
    codes, scales = mx_quantize(8.0 * x / 7.9, E2M1, block=4)
    assert scales.tolist() == [128] and mx_dequantize(codes, scales, E2M1)[0] == 8


@with_elements
def test_zeros_stay_zeros(element):
    x = np.zeros((2, 64))
    x[1] = -0.0
    codes, scales = mx_quantize(x, element)
    assert scales.tolist() == [[0, 0], [0, 0]]
    assert same(mx_dequantize(codes, scales, element), x)


def test_mx_takes_float64_beyond_float32():
    codes, scales = mx_quantize([1e300, 1.0], E2M1, block=2)
    assert scales.tolist() == [254] and codes.tolist() == [7, 0]


@given(x=arrays(np.float32, (3, 8), elements=finite), block=st.sampled_from([1, 2, 4, 8]))
def test_mx_takes_any_block(x, block):
    codes, scales = mx_quantize(x, E2M1, block)
    assert codes.shape == x.shape and scales.shape == (3, 8 // block)
    one_by_one = [mx_quantize(part, E2M1, block) for part in x.reshape(-1, block)]
    assert np.array_equal(codes.reshape(-1, block), [codes for codes, _ in one_by_one])
    assert np.array_equal(scales.reshape(-1, 1), [scales for _, scales in one_by_one])


@pytest.mark.parametrize("kind", KINDS)
def test_nvfp4_is_torchao_s(torchao, kind):
    x = million(kind)
    if kind == "of all sizes":  # among them block scales that E4M3 can't hold
        x = np.float32(np.random.default_rng(0).normal(size=x.shape) * np.exp2(
            np.random.default_rng(1).integers(-15, 3, (len(x), 1))))  # fmt: skip
    nvfp4 = torchao[1]
    their_scale = nvfp4.per_tensor_amax_to_scale(torch.from_numpy(x).abs().max())
    theirs = nvfp4.NVFP4Tensor.to_nvfp4(torch.from_numpy(x), per_tensor_scale=their_scale)
    codes, scales, tensor_scale = nvfp4_quantize(x)
    assert codes.shape == x.shape and scales.shape == (len(x), 2)
    assert tensor_scale == their_scale and tensor_scale.dtype == np.float32
    assert np.array_equal(scales, theirs.scale.view(torch.uint8).numpy())
    assert np.array_equal(pack_pairs(codes), theirs.qdata.view(torch.uint8).numpy())
    values = nvfp4_dequantize(codes, scales, tensor_scale)
    assert values.dtype == np.float32 and same(values, theirs.dequantize().numpy())


@given(arrays(np.float32, 16, elements=st.floats(-1000, 1000, width=32)))
def test_nvfp4_is_near(x):
    """Half of E2M1's widest step, 2 of 6, and E4M3's rounding of the scale, 1 of 16; the least
    number that it can hold is 2**-127."""
    values = nvfp4_dequantize(*nvfp4_quantize(x))
    assert np.abs(values - x).max() <= np.abs(x).max() * (1 / 6 + 1 / 16 + 1e-6) + 2.0**-128


def test_nvfp4_zeros_stay_zeros():
    x = np.zeros((2, 32))
    assert same(nvfp4_dequantize(*nvfp4_quantize(x)), x)
    x[0, 3] = 5  # a tensor with one block that is none
    values = nvfp4_dequantize(*nvfp4_quantize(x))
    assert values[0, 3] == 5 and same(np.where(x == 5, 5, values), x)


def test_codes_are_packed_as_in_torch_s_float4():
    codes = np.arange(16, dtype=np.uint8).reshape(2, 8)
    packed = pack_pairs(codes)
    assert packed.tolist() == [[0x10, 0x32, 0x54, 0x76], [0x98, 0xBA, 0xDC, 0xFE]]
    assert np.array_equal(unpack_pairs(packed), codes)
    viewed = torch.from_numpy(packed).view(torch.float4_e2m1fn_x2)  # all it can do on a CPU
    assert viewed.shape == (2, 4)
    assert np.array_equal(viewed.view(torch.uint8).numpy(), packed)


def nf4_of_torchao(x):
    path = "torchao.quantization.quantize_.workflows.nf4.nf4_tensor"
    module = pytest.importorskip(path, reason="no torchao, or one without NF4Tensor")
    return module.NF4Tensor.from_tensor(torch.from_numpy(x), block_size=64, scaler_block_size=256)


@pytest.fixture(scope="module")
def weights():
    """A million numbers in blocks of 64, of several sizes."""
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(size=(4096, 256)) * rng.uniform(0.5, 2, (4096, 1)))


def test_nf4_is_torchao_s(weights):
    """Its levels have four digits; its steps are kept as reciprocals, so scales differ by those."""
    theirs = nf4_of_torchao(weights)
    codes, scales = code_book_quantize(weights, theirs.nf4.numpy())
    pairs = pack_pairs(codes).reshape(-1)
    assert np.array_equal(pairs >> 4 | pairs << 4, theirs.quantized_data.numpy())
    scale_codes, steps, mean = quantize_scales(scales)
    assert mean == pytest.approx(theirs.scaler_mean.item(), rel=1e-6)
    assert steps == pytest.approx(1 / theirs.quantization_factor.numpy(), rel=1e-6)
    off = scale_codes.reshape(-1).astype(int) - 128 - theirs.quantized_scalers.numpy()
    assert np.abs(off).max() <= 1 and np.mean(off != 0) < 1e-3
    scales = dequantize_scales(scale_codes, steps, mean)
    values = code_book_dequantize(codes, scales, theirs.nf4.numpy())
    assert values.dtype == np.float32
    near = np.repeat(steps, 256 * 64).reshape(values.shape) * (np.abs(off).max() + 1e-3)
    assert (np.abs(values - theirs.get_original_weight().numpy()) <= near).all()


@given(x=arrays(np.float32, (2, 8), elements=finite))
def test_a_code_book_by_its_definition(x):
    levels = normal_float()
    codes, scales = code_book_quantize(x, levels, block=4)
    assert codes.dtype == np.uint8 and scales.dtype == np.float32
    blocks = np.float64(x).reshape(2, 2, 4)
    assert np.array_equal(scales, np.abs(blocks).max(axis=-1))
    errors = np.abs(blocks[..., None] - levels * np.float64(scales)[..., None, None])
    taken = np.take_along_axis(errors, codes.reshape(2, 2, 4, 1).astype(int), -1)[..., 0]
    assert np.allclose(taken, errors.min(axis=-1), rtol=1e-6, atol=0)
    expected = np.float32(levels[codes].reshape(2, 2, 4) * np.float64(scales)[..., None])
    assert np.array_equal(code_book_dequantize(codes, scales, levels), expected.reshape(2, 8))


def test_a_code_book_of_other_levels():
    """The scale takes the largest magnitude to the largest level; a block of zeros stays 0 even
    if 0 is no level."""
    x = np.array([3.0, -6.0, 0.0, 0.0])
    codes, scales = code_book_quantize(x, [-1.0, 2.0], block=2)
    assert scales.tolist() == [3, 0] and codes[:2].tolist() == [1, 0]
    assert code_book_dequantize(codes, scales, [-1.0, 2.0]).tolist() == [6, -3, 0, 0]


def test_double_quantization_is_within_half_a_step(weights):
    scales = code_book_quantize(weights, normal_float())[1]
    codes, steps, mean = quantize_scales(scales)
    assert codes.shape == scales.shape and codes.dtype == np.uint8 and steps.shape == (64,)
    error = np.abs(dequantize_scales(codes, steps, mean) - scales).reshape(64, 256)
    # The largest may lie at 128 steps, and 127 is the last.
    assert (error <= steps[:, None] * 1.001).all()
    assert np.mean(error <= steps[:, None] * 0.501) > 0.99


def test_the_last_block_of_scales_may_be_shorter():
    scales = np.random.default_rng(0).uniform(1, 2, (3, 100)).astype(np.float32)
    codes, steps, mean = quantize_scales(scales)
    assert codes.shape == (3, 100) and steps.shape == (2,)
    assert np.abs(dequantize_scales(codes, steps, mean) / scales - 1).max() < 0.01


def test_no_scale_turns_negative():
    for size in range(60):  # the 0 is rounded up or down
        scales = np.array([0, 1000] + [size] * 20)
        assert dequantize_scales(*quantize_scales(scales)).min() >= 0
    assert not dequantize_scales(*quantize_scales(np.zeros(5))).any()


def test_rounding_does_not_lead_beyond_float32():
    x = np.full((1, 64), np.finfo(np.float32).max)
    for values in (
        nvfp4_dequantize(*nvfp4_quantize(x)),
        code_book_dequantize(*code_book_quantize(x, [-1.55, 1.55]), [-1.55, 1.55]),
        mx_dequantize(*mx_quantize(x, E3M2), E3M2),
    ):
        assert np.isfinite(values).all() and (values > 0.8 * x).all()


def test_padding():
    x = np.arange(6).reshape(2, 3)
    assert pad_to_blocks(x, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    assert pad_to_blocks(x, 3).tolist() == x.tolist()
    assert pad_to_blocks(7.0, 2).tolist() == [7, 0]


QUANTIZERS = {
    "mx": lambda x: mx_quantize(x, E2M1),
    "nvfp4": nvfp4_quantize,
    "code book": lambda x: code_book_quantize(x, normal_float()),
}
with_quantizers = pytest.mark.parametrize("quantize", QUANTIZERS.values(), ids=QUANTIZERS)


@with_quantizers
def test_what_can_t_be_cut_into_blocks(quantize):
    for x in (np.ones(65), np.ones((64, 3)), 1.0):
        with pytest.raises(ValueError, match=r"x has \d+ numbers in its last axis; a block of"):
            quantize(x)
    with pytest.raises(ValueError, match="x is empty"):
        quantize(np.ones((0, 64)))
    with pytest.raises(TypeError, match="x has the type bool; it must hold real numbers"):
        quantize(np.ones(64, bool))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("name", ["nvfp4", "code book"])
def test_numbers_without_a_scale(name, number):
    x = np.ones(64)
    x[5] = number
    with pytest.raises(ValueError, match="x holds .*(nan|inf); all its values must be finite"):
        QUANTIZERS[name](x)


@pytest.mark.parametrize("block", [0, -1, 2.0, True])
def test_bad_blocks(block):
    with pytest.raises((ValueError, TypeError), match="block is .*; it must be an integer from 1"):
        mx_quantize(np.ones(32), E2M1, block)
    with pytest.raises((ValueError, TypeError), match="block is .*; it must be an integer from 1"):
        pad_to_blocks(np.ones(32), block)


@pytest.mark.parametrize("element", ["E2M1", torch.float8_e4m3fn, None])
def test_elements_that_are_no_float_format(element):
    with pytest.raises(TypeError, match="element is .*; it must be a FloatFormat"):
        mx_quantize(np.ones(32), element)
    with pytest.raises(TypeError, match="element is .*; it must be a FloatFormat"):
        mx_dequantize(np.ones(32, int), np.ones(1, int), element)


def test_bad_levels():
    with pytest.raises(ValueError, match="levels holds nothing but 0"):
        code_book_quantize(np.ones(64), [0.0])
    with pytest.raises(ValueError, match="must be 1-d and ascending"):
        code_book_quantize(np.ones(64), [1.0, 0.0])
    with pytest.raises(ValueError, match="scales holds inf; all its values must be finite"):
        code_book_quantize(np.full(64, 3e38), [-0.1, 0.1])


def test_codes_and_scales_that_don_t_fit():
    codes, scales = mx_quantize(np.ones((2, 64)), E2M1)
    for wrong in (scales[:1], scales[0], scales[..., None], np.ones((2, 3), np.uint8), 127):
        with pytest.raises(ValueError, match="scales has the shape .* for codes of shape"):
            mx_dequantize(codes, wrong, E2M1)
    with pytest.raises(ValueError, match="codes goes from 2 to 16; allowed are 0 to 15"):
        mx_dequantize(np.full((2, 64), 2) + 14 * np.eye(2, 64, dtype=int), scales, E2M1)
    with pytest.raises(TypeError, match="scales has the type float64; it must hold integers"):
        mx_dequantize(codes, np.ones((2, 2)), E2M1)
    with pytest.raises(ValueError, match="scales goes from 256 to 256; allowed are 0 to 255"):
        nvfp4_dequantize(codes, np.full((2, 4), 256), 1.0)
    with pytest.raises(ValueError, match="codes goes from 16 to 16; allowed are 0 to 15"):
        code_book_dequantize([16] * 64, [1.0], normal_float())
    with pytest.raises(ValueError, match="codes has 3 numbers in its last axis; a block of 2"):
        pack_pairs([1, 2, 3])
    with pytest.raises(ValueError, match="codes goes from 16 to 16; allowed are 0 to 15"):
        pack_pairs([16, 16])


@with_quantizers
def test_the_argument_stays_as_it_is(quantize):
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    before = x.copy()
    from_tensor = quantize(torch.from_numpy(x))
    assert all(np.array_equal(a, b) for a, b in zip(from_tensor, quantize(x)))
    assert np.array_equal(x, before)
