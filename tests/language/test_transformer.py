"""qhelpers.language.transformer: transformers' numbers, what its parts promise, and its hooks."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qhelpers.language.texts import test_text as extract
from qhelpers.language.tiny import load_tiny
from qhelpers.language.transformer import checked_ids, rotate

# Written by make_reference.py, with transformers.
FOUND = json.loads(Path(__file__).with_name("reference.json").read_text(encoding="utf-8"))
IDS = load_tiny().tokenizer.encode(extract()[:64])


@pytest.fixture(scope="module")
def tiny():
    return load_tiny()


@torch.no_grad()
def check_next_token(model, row):
    assert model.tokenizer.encode(row["prompt"]) == row["ids"]
    probabilities, ids = model.logits(row["ids"])[-1].softmax(-1).topk(5)
    assert ids.tolist() == row["top"]
    np.testing.assert_allclose(probabilities, row["probabilities"], rtol=1e-9)


def check_generated(model, row):
    assert model.next_ids(row["ids"], 20) == row["generated"]
    text = model.tokenizer.decode(row["ids"] + row["generated"])
    assert model.generate(row["prompt"], 20) == text


@pytest.mark.parametrize("row", FOUND["tiny"]["prompts"], ids=lambda row: row["prompt"][:8])
def test_tiny_models_next_tokens_are_those_of_transformers(tiny, row):
    check_next_token(tiny, row)
    check_generated(tiny, row)


def test_smollms_next_token_is_that_of_transformers(smollm):
    check_next_token(smollm, FOUND["smollm"]["prompts"][0])


@pytest.mark.slow
@pytest.mark.parametrize("row", FOUND["smollm"]["prompts"], ids=lambda row: row["prompt"][:8])
def test_what_smollm_generates_is_what_transformers_does(smollm, row):
    check_next_token(smollm, row)
    check_generated(smollm, row)


def test_a_later_token_changes_nothing_before_it(tiny):
    plain = tiny.logits(IDS)
    for at in (1, 17, 63):
        changed = tiny.logits([*IDS[:at], (IDS[at] + 1) % 96, *IDS[at + 1 :]])
        torch.testing.assert_close(changed[:at], plain[:at], rtol=0, atol=1e-12)
        assert (changed[at:] != plain[at:]).any(-1).all()


def test_a_batch_gives_what_each_row_gives_alone(tiny):
    rows = torch.tensor([IDS[:20], IDS[20:40], IDS[40:60]])
    together = tiny.logits(rows)
    assert together.shape == (3, 20, 96)
    for row, logits in zip(rows, together):
        torch.testing.assert_close(logits, tiny.logits(row), rtol=0, atol=1e-12)


@given(st.sets(st.integers(1, 29)), st.booleans())
def test_the_cache_gives_what_one_pass_gives(cuts, batched):
    tiny, cache = load_tiny(), {}
    ids = torch.tensor([IDS[:30], IDS[30:60]] if batched else IDS[:30])
    parts = ids.tensor_split(sorted(cuts), dim=-1)
    found = torch.cat([tiny.logits(part, cache) for part in parts], dim=-2)
    torch.testing.assert_close(found, tiny.logits(ids), rtol=0, atol=1e-12)
    assert cache[1][0].shape == (*ids.shape[:-1], 2, 30, 16)


def test_generating_with_the_cache_is_generating_without(tiny):
    assert tiny.next_ids(IDS[:5], 60) == tiny.next_ids(IDS[:5], 60, cached=False)


def test_with_the_cache_a_step_computes_one_token(tiny):
    tokens, plain = [], tiny.linear

    def watched(name, x):
        if name == "blk.0.attn_q.weight":
            tokens.append(len(x))
        return plain(name, x)

    with tiny.hooked(linear=watched):
        tiny.next_ids(IDS[:5], 4)
        tiny.next_ids(IDS[:5], 4, cached=False)
    assert tokens == [5, 1, 1, 1, 5, 6, 7, 8]


@given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from([2, 16, 64]))
def test_rotation_keeps_lengths_and_depends_on_distances(start, shift, size):
    random = torch.Generator().manual_seed(start)
    q, k = torch.randn(2, 3, 7, size, dtype=torch.float64, generator=random)
    turned, moved = rotate(q, start=start), rotate(k, start=start)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1), rtol=1e-12, atol=0)
    products = turned @ moved.transpose(-1, -2)
    later = rotate(q, start=start + shift) @ rotate(k, start=start + shift).transpose(-1, -2)
    torch.testing.assert_close(later, products, rtol=0, atol=1e-9)


def test_rotation_turns_neighbours_by_the_angles_of_the_paper():
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]] * 3, dtype=torch.float64)
    pairs = torch.view_as_complex(rotate(x, base=100.0).unflatten(-1, (2, 2)))
    expected = [[np.exp(1j * t), 1j * np.exp(0.1j * t)] for t in range(3)]
    np.testing.assert_allclose(pairs, expected, atol=1e-15)


def test_hooks_see_every_product_and_are_gone_after_the_block(tiny):
    names, streams, plain = [], [], tiny.linear
    expected = tiny.logits(IDS)

    def linear(name, x):
        names.append(name)
        return plain(name, x)

    def residual(layer, x):
        streams.append((layer, tuple(x.shape)))
        return x

    with tiny.hooked(linear=linear, residual=residual) as hooked:
        assert hooked is tiny
        torch.testing.assert_close(tiny.logits(IDS), expected, rtol=0, atol=0)
    assert sorted(names) == sorted(tiny.matrices) and len(names) == 14
    assert streams == [(0, (64, 64)), (1, (64, 64))]
    tiny.logits(IDS)
    assert len(names) == 14 and "linear" not in vars(tiny)


def test_the_stream_that_goes_on_is_what_the_hook_returns(tiny):
    """Without the second layer: its output is replaced by what went into it."""
    streams, shorter = {}, load_tiny()
    shorter.config = dataclasses.replace(tiny.config, layers=1)

    def skipped(layer, x):
        return streams.setdefault(0, x)

    with tiny.hooked(residual=skipped):
        torch.testing.assert_close(tiny.logits(IDS), shorter.logits(IDS), rtol=0, atol=0)


def test_hooks_change_the_result_nest_and_go_even_if_one_raises(tiny):
    expected = tiny.logits(IDS)

    def broken(layer, x):
        raise RuntimeError("mine")

    with tiny.hooked(keys_values=lambda layer, k, v: (k, 2 * v)):
        doubled = tiny.logits(IDS)
        assert (doubled - expected).abs().max() > 0.1
        with pytest.raises(RuntimeError, match="mine"), tiny.hooked(residual=broken):
            tiny.logits(IDS)
        with tiny.hooked(keys_values=lambda layer, k, v: (k, v)):
            torch.testing.assert_close(tiny.logits(IDS), expected, rtol=0, atol=0)
        torch.testing.assert_close(tiny.logits(IDS), doubled, rtol=0, atol=0)
    torch.testing.assert_close(tiny.logits(IDS), expected, rtol=0, atol=0)


def test_what_the_cache_keeps_is_what_the_hook_returns(tiny):
    cache = {}
    with tiny.hooked(keys_values=lambda layer, k, v: (k.round(), v.round())):
        tiny.logits(IDS[:9], cache)
        tiny.logits(IDS[9:10], cache)
    assert all((part == part.round()).all() for pair in cache.values() for part in pair)


def test_gradients_reach_every_weight():
    model = load_tiny()
    for weight in model.weights.values():
        weight.requires_grad_()
    model.logits(IDS).square().mean().backward()
    step = 1e-6
    for weight in model.weights.values():
        values, gradient = weight.detach().view(-1), weight.grad.view(-1)
        at = gradient.abs().argmax()
        with torch.no_grad():
            values[at] += step
            more = model.logits(IDS).square().mean().item()
            values[at] -= 2 * step
            less = model.logits(IDS).square().mean().item()
            values[at] += step
        assert gradient[at].item() == pytest.approx((more - less) / (2 * step), rel=1e-5)


def test_a_last_matrix_of_its_own_serves_instead_of_the_embedding(tiny):
    untied = load_tiny()
    untied.weights["output.weight"] = 2 * untied.weights["token_embd.weight"]
    torch.testing.assert_close(untied.logits(IDS), 2 * tiny.logits(IDS))
    assert untied.matrices == tiny.matrices


def test_integers_of_any_kind_are_ids(tiny):
    expected = tiny.logits(IDS[:5])
    for ids in (np.array(IDS[:5], np.uint8), torch.tensor(IDS[:5], dtype=torch.int32)):
        torch.testing.assert_close(tiny.logits(ids), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([], ValueError, r"shape \(0,\)"),
        ([[]], ValueError, r"shape \(1, 0\)"),
        (5, ValueError, r"shape \(\)"),
        ([[[1]]], ValueError, r"shape \(1, 1, 1\)"),
        ([1.0], TypeError, "float64"),
        (torch.ones(2, requires_grad=True), TypeError, "float32"),
        ([True], TypeError, "bool"),
        (["a"], TypeError, "<U1"),
        ([3, -1], ValueError, "hold -1; they must be from 0 to 95"),
        ([96], ValueError, "hold 96; they must be from 0 to 95"),
        ([0] * 65, ValueError, "65 tokens; at most 64 fit"),
    ],
)
def test_what_are_no_ids_is_refused(tiny, ids, error, words):
    with pytest.raises(error, match=words):
        tiny.logits(ids)
    with pytest.raises(error, match=words):
        checked_ids(ids, 96, 64)


def test_a_full_context_is_refused(tiny):
    cache = {}
    tiny.logits(IDS, cache)
    with pytest.raises(ValueError, match="1 tokens; at most 0 fit"):
        tiny.logits([1], cache)
    assert len(tiny.next_ids(IDS, 1)) == 1
    with pytest.raises(ValueError, match="n is 2; it must be an integer from 1 to 1"):
        tiny.next_ids(IDS, 2)
