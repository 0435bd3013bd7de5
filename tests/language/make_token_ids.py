"""Writes token_ids.json: prompts, and the ids that Hugging Face's tokenizers gives them.

Run by hand, where tokenizers is installed too, with the folder "models" of llama.cpp's sources:
`python -m tests.language.make_token_ids models`. In it are prompts with which llama.cpp tests its
tokenizers, vocabularies, and the ids that come out. Three of those are of models whose text is cut
as SmolLM2's is; our Tokenizer must find their ids.
"""

import json
import sys
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers

from qhelpers.language.gguf_file import read_gguf
from qhelpers.language.smollm import smollm_file
from qhelpers.language.tokenizer import Tokenizer

FOUND = Path(__file__).with_name("token_ids.json")
BETWEEN = "\n__ggml_vocab_test__\n"
SAME_CUTS = ("starcoder", "refact", "command-r")  # llama-vocab.cpp treats them as "smollm"


def reference():
    """The tokenizer of SmolLM2, built from the vocabulary and the merges in its GGUF file."""
    tokens, merges = vocabulary(smollm_file())
    ids = {token: place for place, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    # What llama.cpp does for the name "smollm", in two steps.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def vocabulary(path):
    metadata, _ = read_gguf(path)
    return metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]


def check(path, prompts):
    """Whether Tokenizer, with a vocabulary of llama.cpp's, gives the ids beside it."""
    tokenizer = Tokenizer(*vocabulary(path))
    expected = Path(f"{path}.out").read_text(encoding="utf-8").splitlines()
    found = [" ".join(map(str, tokenizer.encode(prompt))) for prompt in prompts]
    assert found == [line.strip() for line in expected]
    print(f"{path.name}: the ids of {len(found)} prompts are equal")


def main(folder):
    text = (Path(folder) / "ggml-vocab-gpt-2.gguf.inp").read_bytes().decode()
    prompts = text.removesuffix(BETWEEN).split(BETWEEN)
    for name in SAME_CUTS:
        check(Path(folder) / f"ggml-vocab-{name}.gguf", prompts)
    tokenizer = reference()
    found = {
        "made by": f"tokenizers {tokenizers.__version__}: python -m tests.language.make_token_ids; "
        "prompts: llama.cpp, models/ggml-vocab-gpt-2.gguf.inp",
        "prompts": [{"text": text, "ids": tokenizer.encode(text).ids} for text in prompts],
    }
    FOUND.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
