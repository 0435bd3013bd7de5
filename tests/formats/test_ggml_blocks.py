"""qhelpers.formats.ggml_blocks: the bytes and numbers of the package gguf, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qhelpers.formats.ggml_blocks import (
    BLOCKS,
    pack_blocks,
    pack_six_bits,
    unpack_blocks,
    unpack_six_bits,
)

WRITTEN = ["Q8_0", "Q4_0", "Q4_1"]  # what gguf writes; of Q4_K it only reads
KINDS = [*BLOCKS]
# All are small enough for a float16; exact ties are among them.
NUMBERS = st.floats(-30_000, 30_000, width=32) | st.integers(-40, 40).map(lambda n: n / 4)


@pytest.fixture(scope="module")
def gguf():
    return pytest.importorskip("gguf", reason="not installed: gguf, the reference for the bytes")


def rows_of_many_kinds():
    """A million numbers: normal ones from subnormal to large, ties, zeros, few in a block."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1000, 1024)) * 10.0 ** rng.integers(-45, 5, (1000, 1))
    rows[::5] = rng.integers(-30, 30, rows[::5].shape) / 4
    rows[1::5] *= rng.random(rows[1::5].shape) < 0.05
    rows[2::5, ::32] *= 20
    rows[3::50] = np.abs(rows[3::50])
    rows[4::50] = 1.5
    return rows.clip(-65_504, 65_504).astype(np.float32)


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_bytes_and_the_numbers_are_gguf_s(gguf, kind):
    reference, rows = gguf.GGMLQuantizationType[kind], rows_of_many_kinds()
    rows[np.abs(rows) < 1e-35] = 0  # so small that gguf divides by 0: see the next test
    raw = pack_blocks(rows, kind)
    assert np.array_equal(raw, gguf.quants.quantize(rows, reference))
    numbers = unpack_blocks(raw, kind, rows.shape)
    assert numbers.dtype == np.float32
    assert np.array_equal(numbers, gguf.quants.dequantize(raw, reference))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_too_small_for_a_scale_become_zero(kind):
    rows = np.full((3, 256), 1e-40, np.float32)
    rows[1] *= np.arange(256) - 100
    rows[2] = 1e-12  # its scale is a float32, and no float16
    numbers = unpack_blocks(pack_blocks(rows, kind), kind, rows.shape)
    assert np.array_equal(numbers, np.zeros_like(rows))


@pytest.mark.parametrize("kind", WRITTEN)
@given(rows=arrays(np.float32, (2, 64), elements=NUMBERS, fill=st.nothing()))
def test_any_numbers_have_gguf_s_bytes(gguf, kind, rows):
    rows = np.where(np.abs(rows) < 1e-30, np.float32(0), rows)
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(pack_blocks(rows, kind), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_the_numbers_that_gguf_reads(gguf, kind):
    raw = np.random.default_rng(0).integers(0, 256, (500, 5 * BLOCKS[kind][1]), np.uint8)
    with np.errstate(invalid="ignore"):  # some scales are infinite or NaN
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert np.isnan(expected).any() and np.isfinite(expected).mean() > 0.9
    numbers = unpack_blocks(raw, kind, expected.shape)
    assert np.array_equal(numbers, expected, equal_nan=True)


def test_a_block_of_each_is_where_it_should_be():
    """By hand: the halves share bytes, and a scale is a float16 with its low byte first."""
    row = np.arange(-16, 16, dtype=np.float32)
    codes = np.minimum((np.arange(32) + 1) // 2, 15)
    raw = pack_blocks(row, "Q4_0")
    assert raw[:2].view("<f2") == 2  # -16 / -8: the farthest number has the code 0
    assert raw[2:].tolist() == (codes[:16] | codes[16:] << 4).tolist()
    raw = pack_blocks(row + 16, "Q4_1")
    assert raw[:2].view("<f2") == np.float16(31 / 15) and raw[2:4].view("<f2") == 0
    raw = pack_blocks(row, "Q8_0")
    assert raw[:2].view("<f2") == np.float16(16 / 127)
    assert raw[2:].view(np.int8)[[0, 16, 31]].tolist() == [-127, 0, 119]


def test_every_pair_of_six_bits_comes_back():
    scales, lows = np.divmod(np.arange(64 * 64, dtype=np.uint16), 64)
    scales, lows = (each.astype(np.uint8).reshape(-1, 8) for each in (scales, lows[::-1]))
    raw = pack_six_bits(scales, lows)
    assert raw.shape == (512, 12)
    for before, after in zip((scales, lows), unpack_six_bits(raw)):
        assert np.array_equal(before, after)


def test_q4_k_errs_by_half_a_step_and_what_six_bits_lose():
    rows = rows_of_many_kinds()
    rows = rows[(np.abs(rows).max(axis=1) > 1e-3) | (rows == 0).all(axis=1)]
    raw = pack_blocks(rows, "Q4_K")
    error = np.abs(unpack_blocks(raw, "Q4_K", rows.shape) - rows).reshape(-1, 8, 32)
    whole, whole_low = raw.reshape(-1, 144)[:, :4].copy().view("<f2").astype(float).T[..., None]
    scales, _ = unpack_six_bits(raw.reshape(-1, 144)[:, 4:16])
    # A scale is off by half a unit, which counts 15 times at the top; so is a minimum.
    bound = whole * scales / 2 + whole_low / 2 + 15 * whole / 2
    assert (error <= 1.001 * bound[..., None] + 1e-7).all()
    assert ((scales.max(axis=1) == 63) | (whole[:, 0] < 1e-4)).all()  # six bits are used


def test_q4_k_is_worth_what_its_bits_are():
    """4.5 bits for a number: as good as Q4_1 with 5, better than Q4_0 with as many."""
    rows = np.random.default_rng(0).normal(size=(100, 2560)).astype(np.float32)
    errors = {
        kind: np.square(unpack_blocks(pack_blocks(rows, kind), kind, rows.shape) - rows).mean()
        for kind in KINDS
    }
    assert errors["Q8_0"] < 0.01 * errors["Q4_1"]
    assert errors["Q4_K"] == pytest.approx(errors["Q4_1"], rel=0.02)
    assert errors["Q4_K"] < 0.9 * errors["Q4_0"]


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_and_shapes_are_taken_and_nothing_is_changed(kind):
    params = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0))
    before = params.clone()
    raw = pack_blocks(params, kind)
    assert torch.equal(params, before)
    assert raw.dtype == np.uint8
    assert raw.shape == (2, 3, 256 // BLOCKS[kind][0] * BLOCKS[kind][1])
    assert np.array_equal(raw, pack_blocks(params.numpy().astype(np.float64), kind))
    raw.flags.writeable = False  # as a file's bytes are
    numbers = unpack_blocks(raw, kind, params.shape)
    assert numbers.shape == params.shape
    assert np.array_equal(numbers, unpack_blocks(raw.reshape(-1), kind, (2, 3, 256)))
    low = params.bfloat16()
    assert np.array_equal(pack_blocks(low, kind), pack_blocks(low.float(), kind))


ROW = np.ones(256, np.float32)


@pytest.mark.parametrize(
    "params, kind, error, message",
    [
        (ROW, "Q4_2", ValueError, "kind is 'Q4_2'; it must be one of Q8_0, Q4_0, Q4_1, Q4_K"),
        (ROW[:33], "Q8_0", ValueError, r"params has the shape \(33,\); .* a multiple of 32"),
        (ROW[:32], "Q4_K", ValueError, "a multiple of 256, the block of Q4_K"),
        (1.0, "Q4_0", ValueError, r"params has the shape \(\)"),
        (ROW[:0], "Q4_0", ValueError, "params is empty"),
        (ROW * np.nan, "Q4_0", ValueError, "params holds nan"),
        (ROW * np.inf, "Q4_1", ValueError, "params holds inf"),
        (ROW > 0, "Q4_0", TypeError, "params has the type bool"),
        (ROW * 1e7, "Q8_0", ValueError, "needs a scale or minimum of 78740.*65504"),
        (ROW * 1e7, "Q4_0", ValueError, "needs a scale or minimum of 1250000"),
        (ROW * -1e5, "Q4_1", ValueError, "needs a scale or minimum of 100000"),
        (ROW * np.float64(1e300), "Q4_K", ValueError, "needs a scale or minimum of inf"),
    ],
)
def test_what_can_not_be_packed_is_refused(params, kind, error, message):
    with pytest.raises(error, match=message):
        pack_blocks(params, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [3e38, 1e300])
def test_numbers_too_large_for_a_scale_are_refused(kind, largest):
    with pytest.raises(ValueError, match="params needs a scale or minimum of .*; it is stored as"):
        pack_blocks(np.linspace(-largest, largest, 256), kind)


@pytest.mark.parametrize(
    "raw, shape",
    [
        (np.zeros(18), (32,)),  # no bytes
        (np.zeros(17, np.uint8), (32,)),
        (np.zeros(36, np.uint8), (32,)),
        (np.zeros(9, np.uint8), (16,)),
        (np.zeros(0, np.uint8), (0,)),
        (np.zeros(18, np.uint8), (48,)),
    ],
)
def test_bytes_that_are_not_whole_blocks_are_refused(raw, shape):
    with pytest.raises(ValueError, match=r"raw is .*; for shape=.* must be uint8, 18 for each 32"):
        unpack_blocks(raw, "Q4_0", shape)
