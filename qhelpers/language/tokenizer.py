"""Byte-level BPE, the tokenizer of GPT-2 and SmolLM2: text to token ids and back."""

import re
from functools import lru_cache
from itertools import groupby
from unicodedata import category

# GPT-2 writes each byte as one visible character: most as themselves, the others from 256 on.
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHARACTERS = {byte: chr(byte) for byte in VISIBLE}
CHARACTERS |= {byte: chr(256 + place) for place, byte in enumerate(HIDDEN)}
BYTES = {character: byte for byte, character in CHARACTERS.items()}

# Unicode's White_Space, which `\s` means elsewhere; Python's has four more characters.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# GPT-2's expression, for text without numbers, where [^\W_] is a letter: an ending, a word or
# other signs, each with the space before it; or spaces, of which a word takes the last.
WORD = re.compile(
    rf"'(?:[sdmt]|ll|ve|re)| ?[^\W_]+| ?(?:[^{SPACE}\w]|_)+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
)
WORDS_KEPT = 100_000  # of which the tokens are remembered


class Tokenizer:
    """Text to ids by merging pairs of tokens, the earliest in the list of merges first.

    tokens: list of texts; a token's place is its id. A character stands for a byte, see
        CHARACTERS.
    merges: list of pairs of tokens as "left right"; the first is merged first.
    Raises ValueError if a merge gives what is no token.
    Source: Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2, for the bytes.
    """

    def __init__(self, tokens, merges):
        self.tokens = tokens
        self.ids = {token: place for place, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        for pair in self.ranks:
            if "".join(pair) not in self.ids:
                raise ValueError(f"merges has {pair}, which gives no token")
        self.ids_of_word = lru_cache(WORDS_KEPT)(self.merge)

    def encode(self, text):
        """Return the ids of a text, as a list.

        Names of special tokens, such as "<|im_start|>", are read as any other text.
        Raises ValueError if the text holds a byte that is no token, or half a surrogate pair.
        """
        return [each for word in words_of(text) for each in self.ids_of_word(word)]

    def decode(self, ids):
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD.

        Raises ValueError for an id that isn't in the vocabulary.
        """
        ids = [int(each) for each in ids]
        for each in ids:
            if not 0 <= each < len(self.tokens):
                raise ValueError(f"ids holds {each}; it must be 0 to {len(self.tokens) - 1}")
        joined = "".join(self.tokens[each] for each in ids)
        return bytes(BYTES[character] for character in joined).decode(errors="replace")

    def merge(self, word):
        """Return the ids of one word: from single bytes, merge while a pair has a rank."""
        parts = [CHARACTERS[byte] for byte in word.encode()]
        while pairs := {*zip(parts, parts[1:])} & self.ranks.keys():
            parts = merged(parts, min(pairs, key=self.ranks.get))
        for part in parts:
            if part not in self.ids:
                raise ValueError(f"text holds {word!r}, whose byte {BYTES[part]} is no token")
        return [self.ids[part] for part in parts]


def words_of(text):
    """Cut a text into the words within which tokens are merged; each digit is one."""
    for numbers, characters in groupby(text, is_number):
        run = "".join(characters)
        yield from run if numbers else WORD.findall(run)


def is_number(character):
    return category(character)[0] == "N"


def merged(parts, pair):
    """Return the parts with each occurrence of the pair joined, from the left."""
    result, place = [], 0
    while place < len(parts):
        here = tuple(parts[place : place + 2])
        result.append("".join(pair) if here == pair else parts[place])
        place += 2 if here == pair else 1
    return result
