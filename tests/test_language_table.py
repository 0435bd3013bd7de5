"""The table "language" is whole, its rows come out again, and it shows what notebook 9 says."""

import pytest

from qhelpers.experiments.language import LARGE, TINY, choices, language_row, language_setting
from qhelpers.experiments.tables import load_table, select
from tests.language_model import skip_without_model

SOME = [  # of the tiny model, one of each kind
    ("float", "", 64, 64, 64),
    ("weights", "per tensor", 2, 64, 64),
    ("weights", "groups of 32, asymmetric", 3, 64, 64),
    ("weights", "NF4, blocks of 64", 4, 64, 64),
    ("weights", "MXFP4, blocks of 32", 4, 64, 64),
    ("weights", "NVFP4, blocks of 16", 4, 64, 64),
    ("weights", "AWQ, groups of 32", 3, 64, 64),
    ("weights", "GPTQ, groups of 32", 3, 64, 64),
    ("activations", "per tensor, static", 64, 4, 64),
    ("activations", "per channel", 64, 4, 64),
    ("activations", "LLM.int8()", 64, 4, 64),
    ("cache", "K per channel, V per token", 64, 64, 2),
    ("both", "SmoothQuant 0.8, static", 8, 8, 64),
    ("both", "LLM.int8()", 8, 8, 64),
    ("both", "rotated, with the cache", 4, 4, 4),
    ("one input", "only blk.1.ffn_down", 64, 8, 64),
]
SLOW = [  # of the large one
    ("float", "", 64, 64, 64),
    ("weights", "per channel", 4, 64, 64),
    ("weights", "NVFP4, blocks of 16", 4, 64, 64),
    ("activations", "per tensor, static", 64, 8, 64),
    ("activations", "SmoothQuant 0.8, static", 64, 8, 64),
    ("activations", "rotated, per token", 64, 4, 64),
    ("cache", "K per channel, V per token", 64, 64, 2),
    ("both", "LLM.int8()", 8, 8, 64),
    ("one input", "only blk.11.ffn_down", 64, 8, 64),
]


@pytest.fixture(scope="module")
def tiny():
    return language_setting(TINY)


@pytest.fixture(scope="module")
def large():
    skip_without_model()
    return language_setting(LARGE)


def row(model, what, method, weight_bits=64, activation_bits=64, cache_bits=64):
    (found,) = select(
        load_table("language"), model=model, what=what, method=method, weight_bits=weight_bits,
        activation_bits=activation_bits, cache_bits=cache_bits,
    )  # fmt: skip
    return found


def check(setting, model, choice):
    expected = row(model, *choice)
    assert language_row(setting, *choice) == pytest.approx([*expected][-3:], rel=1e-4, abs=1e-6)


def test_every_row_is_there_once():
    expected = [(TINY, *choice) for choice in choices(TINY, 2)]
    expected += [(LARGE, *choice) for choice in choices(LARGE, 30)]
    found = [tuple(row)[:6] for row in load_table("language")]
    assert found == expected and len(set(found)) == len(found)


@pytest.mark.parametrize("choice", SOME, ids=lambda choice: " ".join(map(str, choice)))
def test_tiny_rows_come_out_again(tiny, choice):
    check(tiny, TINY, choice)


@pytest.mark.slow
@pytest.mark.parametrize("choice", SLOW, ids=lambda choice: " ".join(map(str, choice)))
def test_large_rows_come_out_again(large, choice):
    check(large, LARGE, choice)


@pytest.mark.slow
def test_the_other_tiny_rows_come_out_again(tiny):
    for choice in choices(TINY, 2):
        check(tiny, TINY, choice)


def clearly_better(model, better, worse):
    """Whether a choice's loss is below another's by more than three standard errors of both."""
    a, b = row(model, *better), row(model, *worse)
    error = (a["standard_error"] ** 2 + b["standard_error"] ** 2) ** 0.5
    return a["loss_difference"] < b["loss_difference"] - 3 * error


def activations(method, bits):
    return "activations", method, 64, bits, 64


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_each_cure_for_outliers_works(bits):
    cures = ["per token", "SmoothQuant 0.8, static", "LLM.int8()", "rotated, static"]
    for cure in cures:
        assert clearly_better(
            LARGE, activations(cure, bits), activations("per tensor, static", bits)
        )
    better, worse = activations("SmoothQuant 0.8, static", bits), "SmoothQuant 0.5, static"
    assert clearly_better(LARGE, better, activations(worse, bits))
    best = activations("rotated, per token", bits)
    assert clearly_better(LARGE, best, activations("per token", bits))


def test_ffn_down_costs_most():
    kinds = ["attn_q", "attn_output", "ffn_gate"]
    for model, kind in ((model, kind) for model in (LARGE, TINY) for kind in kinds):
        worse = "one input", f"only {kind}", 64, 8
        assert clearly_better(model, worse, ("one input", "only ffn_down", 64, 8))


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_keys_want_a_scale_for_each_channel(bits):
    kivi = "cache", "K per channel, V per token", 64, 64, bits
    for model in (LARGE, TINY)[: 1 if bits == 4 else 2]:
        assert clearly_better(model, kivi, ("cache", "per token", 64, 64, bits))


def test_searches_find_better_weights():
    assert clearly_better(
        TINY, ("weights", "GPTQ, per channel", 3), ("weights", "per channel", 3)
    ) and clearly_better(LARGE, ("weights", "GPTQ, per channel", 4), ("weights", "per channel", 4))
