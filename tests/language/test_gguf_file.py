"""qhelpers.language.gguf_file: what gguf's own reader finds; files cut off, damaged or foreign."""

import collections
import contextlib
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qhelpers.formats.ggml_blocks import BLOCKS, pack_blocks
from qhelpers.language.gguf_file import FLOATS, NUMBERS, TENSORS, read_gguf
from qhelpers.language.smollm import smollm_file
from tests.language_model import skip_without_model

SIZES = FLOATS | BLOCKS
TYPES = {name: number for number, name in TENSORS.items()}
TEXTS = ["", "a", "ein Wort", "é\N{GREEK SMALL LETTER ALPHA}"]
ARRAYS = {number: np.arange(3).astype(kind) for number, kind in NUMBERS.items()}
ROWS = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
MOST_MEMORY = 10**6  # bytes, for reading a file of 4,000


def u32(value):
    return value.to_bytes(4, "little")


def u64(value):
    return value.to_bytes(8, "little")


def text(value):
    encoded = value.encode() if isinstance(value, str) else value
    return u64(len(encoded)) + encoded


def tensor_of(kind):
    if kind in FLOATS:
        return ROWS.astype(f"<f{SIZES[kind][1]}").tobytes()
    return pack_blocks(ROWS, kind).tobytes()


METADATA = [
    text("general.alignment") + u32(4) + u32(64),
    text("name") + u32(8) + text("small"),
    text("texts") + u32(9) + u32(8) + u64(len(TEXTS)) + b"".join(map(text, TEXTS)),
    *(text(f"one {n}") + u32(n) + values[1:2].tobytes() for n, values in ARRAYS.items()),
    *(text(f"all {n}") + u32(9) + u32(n) + u64(3) + values.tobytes()
      for n, values in ARRAYS.items()),
]  # fmt: skip


def small_file(metadata=METADATA, kinds=tuple(TYPES), shape=(256, 3), names="t {}", offsets=(),
               magic=b"GGUF", version=3, n_tensors=None, n_metadata=None):  # fmt: skip
    """A file with a tensor of each type, every part of which can be another."""
    infos, data = b"", b""
    for place, kind in enumerate(kinds):
        offset = dict(offsets).get(place, len(data))
        number = kind if isinstance(kind, int) else TYPES[kind]
        infos += text(names.format(kind)) + u32(len(shape)) + b"".join(map(u64, shape))
        infos += u32(number) + u64(offset)
        data += tensor_of(kind if kind in TYPES else "Q4_0")
        data += bytes(-len(data) % 64)
    counts = [len(kinds) if n_tensors is None else n_tensors,
              len(metadata) if n_metadata is None else n_metadata]  # fmt: skip
    header = magic + u32(version) + b"".join(map(u64, counts)) + b"".join(metadata) + infos
    return header + bytes(-len(header) % 64) + data


@pytest.fixture
def read(tmp_path):
    """Returns what read_gguf finds in these bytes."""
    numbers = itertools.count()

    def read(content):
        path = tmp_path / f"{next(numbers)}.gguf"  # Windows writes no file that is mapped
        path.write_bytes(content)
        try:
            return read_gguf(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} can't be read as a GGUF file: ")
            raise
        finally:
            with contextlib.suppress(PermissionError):  # on Windows, as long as it is mapped
                path.unlink()

    return read


def test_everything_in_a_file_is_found(read):
    metadata, tensors = read(small_file())
    assert metadata["name"] == "small" and metadata["texts"] == TEXTS
    for number, values in ARRAYS.items():
        one, every = metadata[f"one {number}"], metadata[f"all {number}"]
        assert one == values[1] and type(one) in (int, float, bool)
        assert every.dtype == values.dtype and np.array_equal(every, values)
    assert len(metadata) == 3 + 2 * len(ARRAYS)
    assert [*tensors] == [f"t {kind}" for kind in TYPES]
    for kind, tensor in zip(TYPES, tensors.values()):
        assert (tensor.type, tensor.shape) == (kind, (3, 256))
        assert tensor.raw.dtype == np.uint8 and tensor.raw.tobytes() == tensor_of(kind)
        numbers = tensor.numbers()
        assert numbers.dtype == np.float32 and numbers.shape == (3, 256)
        np.testing.assert_allclose(numbers, ROWS, atol=0.5 if "4" in kind else 0.02)
    assert np.array_equal(tensors["t F32"].numbers(), ROWS)


def is_as_gguf_reads(path):
    """Compare with GGUFReader: all metadata, and of each tensor the type, the shape and bytes."""
    gguf = pytest.importorskip("gguf", reason="not installed: gguf, the reference for its files")
    metadata, tensors = read_gguf(path)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    fields = {name: value for name, value in fields.items() if not name.startswith("GGUF.")}
    assert [*metadata] == [*fields]
    for name, value in metadata.items():
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        assert plain == fields[name], name
    assert [*tensors] == [tensor.name for tensor in reader.tensors]
    for ours, theirs in zip(tensors.values(), reader.tensors):
        assert ours.type == theirs.tensor_type.name
        assert [*ours.shape] == theirs.shape.tolist()[::-1]
        assert ours.raw.tobytes() == theirs.data.tobytes()
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        assert np.array_equal(ours.numbers(), expected.reshape(ours.shape))


def test_gguf_reads_the_same(tmp_path):
    path = tmp_path / "small.gguf"
    path.write_bytes(small_file())
    is_as_gguf_reads(path)


def test_a_file_that_gguf_writes_is_read(tmp_path):
    gguf = pytest.importorskip("gguf", reason="not installed: gguf, the reference for its files")
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("one", ROWS)
    writer.add_tensor("two", ROWS[0])
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("three", gguf.quants.quantize(ROWS, kind), raw_dtype=kind)
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    is_as_gguf_reads(path)
    assert [*read_gguf(path)[1]["three"].shape] == [3, 256]


def smollm_path():
    skip_without_model()
    return smollm_file()


@pytest.mark.slow
def test_gguf_reads_the_same_from_the_language_model():
    is_as_gguf_reads(smollm_path())


def test_opening_the_language_model_takes_little_memory():
    """Its 93 MB stay on the disk; the names of its tokens are what takes some."""
    path = smollm_path()
    tracemalloc.start()
    try:
        _, tensors = read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 5
    finally:
        tracemalloc.stop()
    assert sum(tensor.raw.size for tensor in tensors.values()) > 0.97 * path.stat().st_size


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_cut_off_anywhere_is_refused(read, step):
    content = small_file(kinds=["F32", "Q4_1"])
    padding = -len(tensor_of("Q4_1")) % 64
    for end in range(0, len(content) - padding, step):
        with pytest.raises(ValueError, match="should go on for|doesn't begin with the bytes"):
            read(content[:end])
    for end in range(len(content) - padding, len(content)):
        read(content[:end])  # only the zeros behind the last tensor are missing


def with_metadata(*entries):
    return small_file([*METADATA[:1], *entries])


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "doesn't begin with the bytes b'GGUF'"),
        (b"PK\3\4" + bytes(1000), "doesn't begin with the bytes b'GGUF'"),
        (small_file(magic=b"FUGG"), "doesn't begin with the bytes b'GGUF'"),
        (small_file(version=1), "its version is 1; it must be 2 or 3"),
        (small_file(version=3 << 24), "its version is 50331648"),  # high byte first
        (small_file(n_tensors=HUGE), "should go on for 5"),
        (small_file(n_metadata=HUGE), "should go on for 2"),
        (small_file(n_metadata=2**40), "should go on for 14,293,651,161,088 bytes"),
        (
            small_file(kinds=["F32", 14]),
            r"uses the type 14; known here are 0 \(F32\), .* 12 \(Q4_K\)$",
        ),
        (small_file(shape=(HUGE, HUGE)), "needs whole blocks|should go on for"),
        (small_file(shape=(2**62, 2**62, 4, 4)), "should go on for"),
        (small_file(shape=(256, 30_000)), "should go on for|begins at"),
        (small_file(shape=(255, 3), kinds=["Q8_0"]), r"shape \(3, 255\); Q8_0 needs whole blocks"),
        (small_file(shape=(0, 3)), r"shape \(3, 0\); F32 needs whole blocks of 1"),
        (small_file(shape=()), "a tensor has 0 axes; it must have 1 to 4"),
        (small_file(shape=(1,) * 5), "a tensor has 5 axes"),
        (small_file(names="same"), "has the name 'same' twice"),
        (small_file(offsets={1: 0}), "'t F16' begins at 0; the one before ends at 3,072"),
        (small_file(offsets={0: 64}), "'t F32' begins at 64; the one before ends at 0"),
        (small_file(offsets={5: HUGE}), "begins at 18,446,744,073,709,551,615"),
        (small_file([text("general.alignment") + u32(4) + u32(48)]), "its alignment is 48; "),
        (small_file([text("general.alignment") + u32(4) + u32(0)]), "its alignment is 0; "),
        (
            small_file([text("general.alignment") + u32(4) + u32(2**31)]),
            "at byte 2,147,483,648 it should go on for 3,072 bytes, and has 0$",
        ),
        (small_file([text("general.alignment") + u32(8) + text("64")]), "its alignment is '64'"),
        (with_metadata(text("a") + u32(13) + u64(0)), r"uses the type 13; known here are 0 \(u1\)"),
        (with_metadata(text("a") + u32(9) + u32(9) + u64(0)), "uses the type 9"),  # of arrays
        (with_metadata(text("a") + u32(9) + u32(8) + u64(HUGE)), "should go on for"),
        (with_metadata(text("a") + u32(9) + u32(0) + u64(HUGE)), "should go on for"),
        (with_metadata(text("a") + u32(7) + b"\2"), "a boolean is neither 0 nor 1"),
        (with_metadata(text("a") + u32(0) + b"1", text("a") + u32(0) + b"2"), "the name 'a' twice"),
        (with_metadata(text(b"\xff") + u32(0) + b"1"), "can't decode byte 0xff"),
        (with_metadata(text("a") + u32(8) + u64(2**63)), "should go on for"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(read, content, message):
    with pytest.raises(ValueError, match=message):
        read(content)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.gguf"):
        read_gguf(tmp_path / "no.gguf")
    with pytest.raises(OSError):
        read_gguf(tmp_path)


@st.composite
def damaged(draw, content):
    """The content with one to three places overwritten, cut out or put in; mostly the header."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content) - 1) | st.integers(0, 1000))
        new = draw(
            st.binary(max_size=8)
            | st.integers(0, HUGE).map(u64)
            | st.sampled_from([0, 1, 2, 3, 9, 12, 255, 2**31]).map(u32)
        )
        cut = draw(st.sampled_from([len(new), len(new), 0, 1, 8, len(content)]))
        content = content[:start] + new + content[start + cut :] or b"G"
    return content


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_refused_or_consistent(read, count):
    content, seen = small_file(), collections.Counter()
    valid = summary(*read(content))

    @settings(max_examples=count)
    @given(damaged(content))
    def check(data):
        tracemalloc.start()
        try:
            found = summary(*read(data))
        except ValueError:  # `read` has looked at its text
            seen["refused"] += 1
            return
        finally:
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
            tracemalloc.stop()
        seen["the same" if found == valid else "another"] += 1
        for name, kind, shape, raw in found[1]:
            size, n_bytes = SIZES[kind]
            assert isinstance(name, str) and raw in data
            assert len(raw) * size == np.prod(shape, dtype=object) * n_bytes

    check()
    assert {*seen} == {"refused", "another"} or {*seen} == {"refused", "another", "the same"}


def summary(metadata, tensors):
    """What was read, as values that can be compared; the numbers are computed, too."""
    for tensor in tensors.values():
        assert tensor.numbers().shape == tensor.shape
    tensors = [(name, each.type, each.shape, each.raw.tobytes()) for name, each in tensors.items()]
    return repr(metadata), tensors
