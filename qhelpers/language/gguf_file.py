"""GGUF, llama.cpp's file format: a header of names and sizes, then the tensors in blocks."""

import math
from dataclasses import dataclass

import numpy as np

from qhelpers.formats.ggml_blocks import BLOCKS, unpack_blocks

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the same for files of low byte first, which nearly all are
ALIGNMENT = 32  # unless the file has another
MOST_AXES = 4
LEAST_TENSOR, LEAST_METADATA = 32, 13  # bytes of the header that each takes
# The numbers that stand for types, in the format's description. What isn't here is refused.
NUMBERS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
TEXT, ARRAY = 8, 9
ELEMENTS = NUMBERS | {TEXT: "text"}
VALUES = ELEMENTS | {ARRAY: "array"}
TENSORS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 12: "Q4_K"}
FLOATS = {"F32": (1, 4), "F16": (1, 2)}  # as in BLOCKS: numbers in a block, and its bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its type ("F32", "F16" or a key of BLOCKS), shape, and bytes (uint8)."""

    type: str
    shape: tuple
    raw: np.ndarray

    def numbers(self):
        """Return the tensor's numbers, float32 of its shape."""
        if self.type in FLOATS:
            dtype = f"<f{FLOATS[self.type][1]}"
            return self.raw.view(dtype).astype(np.float32).reshape(self.shape)
        return unpack_blocks(self.raw, self.type, self.shape)


def read_gguf(path):
    """Return what a GGUF file holds: (metadata, tensors).

    metadata: name -> number, text, list of texts or array of numbers.
    tensors: name -> Tensor, the last axis of whose shape counts neighbours (the file has it first).
    The file is mapped into memory: a tensor's bytes are read when they are used.
    Raises OSError if the file can't be read, and ValueError, which names it, if it is not a GGUF
    file, is cut off or inconsistent, or uses a type that isn't known here.
    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise ValueError(f"it doesn't begin with the bytes {MAGIC}")
        reader = Reader(np.memmap(path, np.uint8, mode="r"))
        reader.take(len(MAGIC))
        version = reader.integer(4)
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; it must be 2 or 3")
        n_tensors, n_metadata = reader.count(LEAST_TENSOR), reader.count(LEAST_METADATA)
        metadata = read_metadata(reader, n_metadata)
        return metadata, read_tensors(reader, n_tensors, alignment_of(metadata))
    except ValueError as error:
        raise ValueError(f"{path} can't be read as a GGUF file: {error}") from error


class Reader:
    """Takes bytes in order; ValueError where the file has fewer than it says."""

    def __init__(self, data):
        self.data, self.at = memoryview(data), 0

    def check(self, count):
        left = max(len(self.data) - self.at, 0)
        if count > left:
            raise ValueError(f"at byte {self.at:,} it should go on for {count:,} bytes, and has "
                             f"{left:,}")  # fmt: skip

    def take(self, count):
        self.check(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self, n_bytes):
        return int.from_bytes(self.take(n_bytes), "little")

    def count(self, least):
        """Return how many things follow that take at least so many bytes each."""
        count = self.integer(8)
        self.check(count * least)
        return count

    def numbers(self, kind, count):
        dtype = np.dtype(NUMBERS[kind])
        raw = np.frombuffer(self.take(count * dtype.itemsize), np.uint8)
        if dtype.kind == "b" and (raw > 1).any():
            raise ValueError(f"before byte {self.at:,} a boolean is neither 0 nor 1")
        return raw.view(dtype)

    def text(self):
        return str(self.take(self.count(1)), "utf-8")

    def value(self):
        kind = self.type(VALUES)
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self.array()
        return self.numbers(kind, 1)[0].item()

    def array(self):
        kind = self.type(ELEMENTS)
        if kind == TEXT:
            return [self.text() for _ in range(self.count(8))]
        return self.numbers(kind, self.integer(8))

    def type(self, known):
        kind = self.integer(4)
        if kind not in known:
            names = ", ".join(f"{number} ({name})" for number, name in known.items())
            raise ValueError(f"it uses the type {kind}; known here are {names}")
        return kind


def read_metadata(reader, count):
    metadata = {}
    for _ in range(count):
        add(metadata, reader.text(), reader.value())
    return metadata


def add(entries, name, value):
    if name in entries:
        raise ValueError(f"it has the name {name!r} twice")
    entries[name] = value


def alignment_of(metadata):
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {alignment!r}; it must be a power of two")
    return alignment


def read_tensors(reader, count, alignment):
    """Return the tensors whose names, shapes and places come next in the file."""
    described = [(reader.text(), *read_place(reader)) for _ in range(count)]
    start = padded(reader.at, alignment)
    expected, tensors = 0, {}
    for name, kind, shape, offset in described:
        size, n_bytes = (FLOATS | BLOCKS)[kind]
        if min(shape) < 1 or shape[-1] % size:
            raise ValueError(f"{name!r} has the shape {shape}; {kind} needs whole blocks of {size}")
        if offset != expected:
            raise ValueError(f"{name!r} begins at {offset:,}; the one before ends at {expected:,}")
        reader.at = start + offset
        raw = reader.take(math.prod(shape) // size * n_bytes)
        add(tensors, name, Tensor(kind, shape, np.frombuffer(raw, np.uint8)))
        expected = padded(offset + len(raw), alignment)
    return tensors


def read_place(reader):
    """Return a tensor's type, its shape, and where its bytes begin behind the header."""
    n_axes = reader.integer(4)
    if not 1 <= n_axes <= MOST_AXES:
        raise ValueError(f"a tensor has {n_axes} axes; it must have 1 to {MOST_AXES}")
    shape = tuple(reader.integer(8) for _ in range(n_axes))[::-1]
    return TENSORS[reader.type(TENSORS)], shape, reader.integer(8)


def padded(place, alignment):
    return -(-place // alignment) * alignment
