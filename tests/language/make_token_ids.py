"""Writes token_ids.json: prompts, and the ids that Hugging Face's tokenizers gives them.

Run by hand, where tokenizers is installed too:
`python -m tests.language.make_token_ids ggml-vocab-gpt-2.gguf.inp`. The prompts in that file are
those that llama.cpp tests its tokenizers with.
"""

import json
import sys
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from qhelpers.language.gguf_file import read_gguf
from qhelpers.language.smollm import smollm_file

FOUND = Path(__file__).with_name("token_ids.json")
BETWEEN = "\n__ggml_vocab_test__\n"


def reference():
    """The tokenizer of SmolLM2, built from the vocabulary and the merges in its GGUF file."""
    metadata, _ = read_gguf(smollm_file())
    ids = {token: place for place, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    # What llama.cpp does for the name "smollm", in two steps.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def main(path):
    prompts = Path(path).read_bytes().decode().split(BETWEEN)
    tokenizer = reference()
    found = {
        "made by": f"tokenizers {tokenizers.__version__}: python -m tests.language.make_token_ids; "
        "prompts: llama.cpp, models/ggml-vocab-gpt-2.gguf.inp",
        "prompts": [{"text": text, "ids": tokenizer.encode(text).ids} for text in prompts if text],
    }
    FOUND.write_text(json.dumps(found, indent=None) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
