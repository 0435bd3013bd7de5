"""A tiny language model whose tokens are characters, for methods that take too long on a real one.

Its architecture is that of the real one, with about 105,000 weights, and every character of
ASCII that prints is a token. `make tables TABLE=tiny` trains it: see
`qhelpers.experiments.tiny_language_model`, which says on what.
"""

import hashlib
import io
from importlib.resources import files

import numpy as np
import torch

from qhelpers.language.transformer import Config, LanguageModel

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
CONFIG = Config(layers=2, heads=4, kv_heads=2, context=64)
FILE = "tiny.npz"
SHA256 = "95f707e43380c1c55444175f411842e15954d40a0cfeef1c669fd6292edda487"


class CharacterTokenizer:
    """The id of a character is its place in CHARACTERS."""

    def encode(self, text):
        """Return the ids of a text; raises ValueError at a character that isn't there."""
        ids = [CHARACTERS.find(character) for character in text]
        if -1 in ids:
            raise ValueError(
                f"text holds {text[ids.index(-1)]!r}; its characters must be line breaks, or from "
                f"{CHARACTERS[1]!r} to {CHARACTERS[-1]!r}"
            )
        return ids

    def decode(self, ids):
        """Return the text of these ids."""
        return "".join(CHARACTERS[i] for i in ids)


def load_tiny(path=None):
    """Return the tiny LanguageModel, its weights in float64; they were stored as float32.

    path: where the file is, if not in the package. Raises ValueError if its SHA-256 isn't the
    one that is written here.
    """
    content = (path or files("qhelpers.language") / FILE).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{FILE} has the SHA-256 {found}; it must be {SHA256}: it was changed")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        weights = {name: torch.from_numpy(file[name].astype(np.float64)) for name in file}
    return LanguageModel(CONFIG, weights, CharacterTokenizer())
