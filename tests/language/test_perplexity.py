"""qhelpers.language.perplexity and texts: what is measured, and on which words."""

import json
from pathlib import Path

import pytest
import torch

from qhelpers.language.perplexity import perplexity, token_losses
from qhelpers.language.texts import calibration_text
from qhelpers.language.texts import test_text as extract
from qhelpers.language.tiny import CHARACTERS, load_tiny

FOUND = json.loads(Path(__file__).with_name("reference.json").read_text(encoding="utf-8"))
IDS = load_tiny().tokenizer.encode(extract())


def test_a_uniform_model_has_the_vocabularys_size_as_perplexity():
    model = load_tiny()
    model.weights["output_norm.weight"] = torch.zeros(64, dtype=torch.float64)  # all logits are 0
    assert perplexity(model, IDS[:200]) == pytest.approx(96, rel=1e-12)


def test_a_certain_model_has_perplexity_1():
    model = load_tiny()
    model.logits = lambda ids: 100.0 * torch.eye(96, dtype=torch.float64)[(ids + 1) % 96]
    assert perplexity(model, torch.arange(90)) == pytest.approx(1, rel=1e-12)


def test_losses_are_those_of_each_chunk_alone():
    model = load_tiny()
    losses = token_losses(model, IDS[:50], chunk=20)
    expected = []
    for chunk in (IDS[:20], IDS[20:40], IDS[40:50]):
        for place in range(1, len(chunk)):
            probabilities = model.logits(chunk[:place])[-1].softmax(-1)
            expected.append(-probabilities[chunk[place]].log())
    assert len(expected) == 47
    torch.testing.assert_close(losses, torch.stack(expected), rtol=0, atol=1e-12)
    assert perplexity(model, IDS[:50], 20) == pytest.approx(losses.mean().exp().item())


def test_chunks_fit_into_the_context_and_a_last_token_alone_predicts_nothing():
    model = load_tiny()
    assert len(token_losses(model, IDS[:129])) == 2 * 63
    torch.testing.assert_close(token_losses(model, IDS[:129]), token_losses(model, IDS[:128], 64))


@pytest.mark.parametrize("name", ["tiny", pytest.param("smollm", marks=pytest.mark.slow)])
def test_the_loss_on_the_text_is_that_of_transformers(name, request):
    model = load_tiny() if name == "tiny" else request.getfixturevalue("smollm")
    ids = model.tokenizer.encode(extract())[: FOUND[name]["tokens"]]
    assert token_losses(model, ids).mean().item() == pytest.approx(FOUND[name]["loss"], rel=1e-9)


@pytest.mark.slow
def test_smollms_perplexity_on_the_text(smollm):
    ids = smollm.tokenizer.encode(extract())[:1024]
    assert f"{perplexity(smollm, ids):.9f}" == "29.758087876"


@pytest.mark.parametrize(
    ("ids", "chunk", "error", "words"),
    [
        ([1], 512, ValueError, r"ids have the shape \(1,\); they must be \(tokens,\), two or more"),
        ([[1, 2], [3, 4]], 512, ValueError, r"shape \(2, 2\)"),
        ([], 512, ValueError, r"shape \(0,\)"),
        ([1, 96], 512, ValueError, "ids hold 96"),
        ([1.0, 2.0], 512, TypeError, "float64"),
        ([1, 2], 1, ValueError, "chunk is 1; it must be an integer from 2"),
        ([1, 2], 2.0, TypeError, "chunk is 2.0"),
    ],
)
def test_what_has_no_next_token_is_refused(ids, chunk, error, words):
    with pytest.raises(error, match=words):
        token_losses(load_tiny(), ids, chunk)


def test_the_texts_are_whole_lines_of_the_plays_in_characters_that_all_models_know():
    for text, begin in ((extract(), "As this which now"), (calibration_text(), "As oft as any")):
        assert 7900 < len(text) <= 8000 and text.startswith(begin) and text.endswith("\n")
        assert set(text) <= set(CHARACTERS)
    assert "\nMACBETH.\n" in extract() and "\nOph.\n" in calibration_text()
