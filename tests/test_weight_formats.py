"""The table "formats": bits are counted right, weights of any shape fit, rows come out again."""

import itertools

import numpy as np
import pytest

from qhelpers import test as accuracy_of
from qhelpers.affine import symmetric_dequantize, symmetric_quantization
from qhelpers.experiments.formats import WEIGHT_FORMATS, folded, sqnr, stored_in
from qhelpers.experiments.ptq import SEEDS
from qhelpers.experiments.rounding import NETWORKS, network
from qhelpers.experiments.tables import load_table, select

IMAGES = 10  # of 10,000, by which a row may differ on another CPU
NORMAL = np.random.default_rng(0).normal(size=(40, 1280))  # 1,280 is a multiple of all blocks
COUNTED = {  # bits per number, counted by hand
    "int8 per tensor": 8 + 16 / 51200,
    "int4 per channel": 4 + 16 / 1280,
    "int3 groups": 3 + 16 / 32,
    "E4M3 per channel": 8 + 16 / 1280,
    "E2M1 groups": 4 + 16 / 32,
    "NF4": 4 + 32 / 64,
    "NF4 double": 4 + 8 / 64 + (4 * 32 + 32) / 51200,  # 800 scales are 4 blocks of at most 256
    "MXFP8 E4M3": 8 + 8 / 32,
    "MXFP6 E3M2": 6 + 8 / 32,
    "MXFP4": 4 + 8 / 32,
    "NVFP4": 4 + 8 / 16 + 32 / 51200,
    "k-means 3 bits": 3 + 8 * 16 / 51200,
    "ternary": 1.6 + 16 / 51200,
    "Q8_0": 34 * 8 / 32,
    "Q4_0": 18 * 8 / 32,
    "Q4_1": 20 * 8 / 32,
    "Q4_K": 144 * 8 / 256,
}


@pytest.mark.parametrize("format", COUNTED)
def test_bits_are_counted_with_scales(format):
    assert WEIGHT_FORMATS[format](NORMAL)[1] / NORMAL.size == pytest.approx(COUNTED[format])


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(
    "sharing, options", [("per tensor", {}), ("per channel", {"axis": 0}),
                         ("groups", {"group_size": 32})]
)  # fmt: skip
def test_integers_are_those_of_affine(bits, sharing, options):
    """Where the scale is a power of two, which float16 holds."""
    half = 2 ** (bits - 1)
    top = 1 - 1 / (2 * half)  # of each channel and group
    weight = np.clip(NORMAL / 3, -top, top)
    weight[:, ::32] = top
    restored, _ = WEIGHT_FORMATS[f"int{bits} {sharing}"](weight)
    codes, scale = symmetric_quantization(weight, bits, narrow_range=False, **options)
    assert np.all(scale == 1 / half)
    assert np.array_equal(restored, symmetric_dequantize(codes, scale))


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
def test_weights_of_any_shape_fit(format):
    """The zeros that fill the last block are cut off again; what is given isn't changed."""
    for shape in [(7, 3, 3, 3), (5, 1), (3, 300)]:
        weight = np.random.default_rng(1).normal(size=shape)
        given = weight.copy()
        restored, bits = WEIGHT_FORMATS[format](weight)
        assert restored.shape == shape and restored.dtype == float and bits > 1.5 * weight.size
        assert np.array_equal(weight, given) and sqnr(weight, restored) > 0
        assert np.array_equal(WEIGHT_FORMATS[format](0 * weight)[0], 0 * weight)


def test_no_format_is_beyond_the_limit_of_rate_and_distortion():
    """6.02 dB a bit, on normal numbers."""
    for weights_in in WEIGHT_FORMATS.values():
        restored, bits = weights_in(NORMAL)
        assert sqnr(NORMAL, restored) < 20 * np.log10(2) * bits / NORMAL.size


def test_every_row_is_there_once():
    rows = load_table("formats")
    found = [(row["network"], row["format"], row["seed"]) for row in rows]
    expected = [*itertools.product(NETWORKS, ["float32", *WEIGHT_FORMATS], SEEDS)]
    assert len(found) == len(expected) == 222 and set(found) == set(expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "seed", [SEEDS[0], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])]
)
def test_rows_come_out_again(mnist, name, seed):
    net = network(name, mnist, seed)
    for format in WEIGHT_FORMATS:
        (row,) = select(load_table("formats"), network=name, format=format, seed=seed)
        changed, bits, ratio = stored_in(net, format)
        assert bits == pytest.approx(row["bits"], abs=1e-4)
        assert ratio == pytest.approx(row["sqnr"], abs=0.01)
        assert accuracy_of(changed, mnist) == pytest.approx(row["accuracy"], abs=IMAGES / 10_000)
    (row,) = select(load_table("formats"), network=name, format="float32", seed=seed)
    for same in (net, folded(net)):
        assert accuracy_of(same, mnist) == pytest.approx(row["accuracy"], abs=IMAGES / 10_000)
