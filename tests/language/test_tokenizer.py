"""qhelpers.language.tokenizer: a reference's ids, another engine's words, and texts come back."""

import functools
import json
import sys
from pathlib import Path
from unicodedata import category, ucd_3_2_0

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qhelpers.language.gguf_file import read_gguf
from qhelpers.language.smollm import smollm_file
from qhelpers.language.texts import calibration_text
from qhelpers.language.texts import test_text as extract
from qhelpers.language.tokenizer import BYTES, CHARACTERS, Tokenizer, is_number, words_of
from tests.language_model import skip_without_model

# Written by make_token_ids.py, with Hugging Face's tokenizers.
FOUND = json.loads(Path(__file__).with_name("token_ids.json").read_text(encoding="utf-8"))
# Bytes that SmolLM2 has no token for: six control characters, and what UTF-8 never or rarely has.
NO_TOKEN = {4, 6, 19, 20, 22, 29, 192, 193, 241, 242, *range(245, 256)}
ALL = [*map(chr, range(sys.maxunicode + 1))]
# Characters that Unicode has had since 2002, so that no engine is too old for them.
OLD = [character for character in ALL if ucd_3_2_0.category(character) not in ("Cn", "Cs")]
KNOWN = [character for character in OLD if not NO_TOKEN & {*character.encode()}]


def texts(alphabet):
    """Texts of characters, of what words are cut at, and of words."""
    parts = st.sampled_from(["'s", "'ll", "'re", "'", " ", "  ", "\n", "_", "1", "²", "一", "word"])
    return st.lists(parts | st.sampled_from(alphabet), max_size=30).map("".join)


@functools.cache
def vocabulary():
    skip_without_model()
    metadata, _ = read_gguf(smollm_file())
    return metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(*vocabulary())


@pytest.fixture(scope="module")
def small():
    """All bytes, and three merges, the last of which can come only after the first."""
    tokens = [CHARACTERS[byte] for byte in range(256)] + ["bc", "ab", "abc"]
    return Tokenizer(tokens, ["b c", "a b", "a bc"])


def test_the_ids_are_those_of_the_reference(tokenizer):
    assert FOUND["made by"].startswith("tokenizers 0.23.3: ") and len(FOUND["prompts"]) > 40
    for prompt in FOUND["prompts"]:
        assert tokenizer.encode(prompt["text"]) == prompt["ids"], prompt["text"]
        assert tokenizer.decode(prompt["ids"]) == prompt["text"]


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_texts_come_back(tokenizer, count):
    @settings(max_examples=count)
    @given(texts(KNOWN))
    def check(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()


def test_plays_come_back_in_fewer_tokens(tokenizer):
    for text in (extract(), calibration_text()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert 0.2 * len(text) < len(ids) < 0.4 * len(text)


def test_the_earliest_merge_comes_first(small):
    assert small.encode("abc") == [258]  # b c, then a bc; "a b" is later in the list
    assert small.encode("abab") == [257, 257]
    assert small.encode("aab bcb") == [97, 257, 32, 256, 98]
    assert small.encode("") == []


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_with_all_bytes_any_text_comes_back(small, text):
    assert small.decode(small.encode(text)) == text


def test_bytes_and_characters_are_pairs():
    assert [*CHARACTERS] != [*range(256)] and sorted(CHARACTERS) == [*range(256)]
    assert all(BYTES[character] == byte for byte, character in CHARACTERS.items())
    assert len(BYTES) == 256
    # From GPT-2's encoder.py: a space is written as Ġ, a line's end as Ċ.
    assert (CHARACTERS[32], CHARACTERS[10], CHARACTERS[127]) == ("Ġ", "Ċ", "ġ")
    assert all(character.isprintable() and character != " " for character in BYTES)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_letters_numbers_and_spaces_are_unicode_s(step):
    r"""Each character is in \p{N}, \p{L}, White_Space or none of them: see what it goes with."""
    spaces = {character for character in ALL if character.isspace()} - {*"\x1c\x1d\x1e\x1f"}
    for character in [*ALL[::step], *spaces]:
        group = category(character)[0]
        assert is_number(character) == (group == "N")
        if character != " " and group != "N":
            with_letter, with_sign = (len([*words_of(character + end)]) == 1 for end in "a!")
            assert with_letter == (group == "L"), hex(ord(character))
            assert with_sign == (group != "L" and character not in spaces), hex(ord(character))


@functools.cache
def other_engine():
    r"""GPT-2's expression as published, in an engine that knows \p."""
    regress = pytest.importorskip("regress", reason="not installed: regress, the reference here")
    space = r"\p{White_Space}"
    number = regress.Regex(r"\p{N}|\P{N}+", "u")
    word = regress.Regex(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+|"
        rf" ?[^{space}\p{{L}}\p{{N}}]+|{space}+(?!\P{{White_Space}})|{space}+",
        "u",
    )
    return number, word


def cut(regex, text):
    encoded = text.encode()  # it counts in bytes
    return [encoded[found.range()].decode() for found in regex.find_iter(text)]


@given(text=texts(OLD))
@settings(max_examples=300)
def test_words_are_cut_as_another_engine_cuts_them(text):
    number, word = other_engine()
    assert [*words_of(text)] == [each for run in cut(number, text) for each in cut(word, run)]


def test_what_can_not_be_encoded_or_decoded_is_refused(tokenizer, small):
    assert {b for b in range(256) if CHARACTERS[b] not in tokenizer.ids} == NO_TOKEN
    with pytest.raises(ValueError, match=r"text holds '\\x04', whose byte 4 is no token"):
        tokenizer.encode("a\x04")
    with pytest.raises(ValueError, match="surrogates not allowed"):
        small.encode("\ud800")
    for wrong in ([0, 259], [-1]):
        with pytest.raises(ValueError, match=f"ids holds {wrong[-1]}; it must be 0 to 258"):
            small.decode(wrong)
    assert small.decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"
    with pytest.raises(ValueError, match=r"merges has \('a', 'b'\), which gives no token"):
        Tokenizer(["a", "b"], ["a b"])


def test_names_of_special_tokens_are_text(tokenizer):
    assert tokenizer.tokens[1] == "<|im_start|>" and tokenizer.decode([1]) == "<|im_start|>"
    assert 1 not in tokenizer.encode("<|im_start|>")
