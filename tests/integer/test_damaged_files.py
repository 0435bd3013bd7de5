"""Damaged files of integer models: they are refused, or hold a model that works.

They are damaged at four depths: the file's bytes; the zip's members and the headers in them; and,
with a new checksum that fits, the arrays; the JSON that describes the layers.
"""

import collections
import copy
import io
import json
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qhelpers import load_integer_model
from qhelpers.integer.file import digest, read_arrays, save_integer_model
from qhelpers.integer.requantize import ARITHMETICS
from tests.integer.test_file import IMAGES, graph_model

MOST_MEMORY = 2**29  # bytes: a few times what the largest file that is allowed takes
NAMES = ["", "/", "../../x.npy", "1.weight", "99.bias.npy", "a" * 60_000, "é\0x.npy"]
TYPES = ["<f4", ">f4", "<f8", "<f2", "|u1", "|i1", "<i8", "|b1", "<c8", "<M8[s]", "<U2", "|V3"]
LENGTHS = [0, 1, 2, 3, 7, 28, 784, 3000, 10**5, 2**31, 2**63, 10**30, -1, -2]
FLOATS = [0.0, -0.0, 1e-45, 1e-38, 1e-30, 0.01, 1.5, 1e30, 3e38, 1e300, np.nan, np.inf]
VALUES = st.one_of(
    st.sampled_from(LENGTHS + FLOATS),
    st.sampled_from([None, True, False, "", "1", "Linear", "ReLU", [[2], [2]], {}, {"a": 1}]),
    st.sampled_from(["Add", "AvgPool2d", "AdaptiveAvgPool2d", "input", "conv2", ["conv1", "pool"]]),
    st.integers(0, 255),
    st.lists(st.sampled_from(LENGTHS), max_size=4),
).map(copy.deepcopy)  # a later change would change the strategy
HEADERS = ["(" * 5000, "-" * 9000 + "1", "9**9**9", "__import__('os')", "1" * 9000, "{**{}}"]
TEXTS = ["[" * 10**5, '{"a":' * 900, "[" * 900 + "]" * 900, "NaN", "null", "9" * 5000, '"layers"']


@st.composite
def splices(draw, content):
    """The content with some bytes changed, cut out or put in."""
    start = draw(st.integers(0, len(content) - 1))
    if draw(st.booleans()):
        bit = 1 << draw(st.integers(0, 7))
        return content[:start] + bytes([content[start] ^ bit]) + content[start + 1 :]
    end = start + draw(st.sampled_from([0, 1, 1, 2, 8, 100, len(content)]))
    return content[:start] + draw(st.binary(max_size=8)) + content[end:]


@st.composite
def other_members(draw, content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [[name, archive.read(name)] for name in archive.namelist()]
    one, other = (draw(st.sampled_from(members)) for _ in range(2))
    match draw(st.sampled_from(["bytes", "header", "name", "swap", "remove", "repeat"])):
        case "bytes":
            one[1] = draw(splices(one[1]))
        case "header":
            one[1] = draw(other_headers(one[1]))
        case "name":
            one[0] = draw(st.sampled_from([*NAMES, other[0], one[0].removesuffix(".npy")]))
        case "swap":
            one[1], other[1] = other[1], one[1]
        case "remove":
            members.remove(one)
        case "repeat":
            members.append([one[0], other[1]])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


@st.composite
def other_headers(draw, member):
    file = io.BytesIO(member)
    version = np.lib.format.read_magic(file)
    shape, order, dtype = np.lib.format.read_array_header_1_0(file)
    lengths = st.lists(st.sampled_from([*LENGTHS, *shape, 1.0, "a"]), max_size=3).map(tuple)
    types = st.sampled_from([*TYPES, "|O", "|S2147483647", "f4,f4", "(10000,10000)f4", 7])
    fields = {"descr": draw(st.just(dtype.str) | types), "fortran_order": order}
    fields["shape"] = draw(st.just(shape) | lengths | st.just((10**4000,)) | VALUES)
    text = draw(st.just(repr(fields)) | st.sampled_from(HEADERS) | st.just(f"{fields!r:<60000}"))
    version = draw(st.sampled_from([version, version, (2, 0), (255, 255)]))
    size = len(text).to_bytes(2, "little")
    return member[:6] + bytes(version) + size + text.encode() + file.read()


@st.composite
def other_arrays(draw, content):
    arrays = read_arrays(content)
    name = draw(st.sampled_from(sorted(arrays)))
    array = arrays[name].reshape(-1)
    some = array.copy()
    some[draw(st.integers(0, len(array) - 1))] = draw(
        st.integers(0, 255)
        if array.dtype == np.uint8
        else st.sampled_from(FLOATS[:9] + FLOATS[10:])
    )
    cut = [array[:0], array[:1], array[:-1], np.tile(array, 2), array[:, None], array[0]]
    cut.append(np.zeros((0, 10**9), array.dtype))
    cast = st.sampled_from(TYPES).map(lambda kind: arrays[name].astype(kind))
    same_shape = st.just(some.reshape(arrays[name].shape))
    arrays[name] = draw(same_shape | same_shape | st.sampled_from(cut) | cast)
    return sealed(arrays)


def sealed(arrays):
    """A file of these arrays whose checksum fits."""
    arrays.pop("sha256")
    file = io.BytesIO()
    np.savez(file, **arrays, sha256=digest(arrays))
    return file.getvalue()


def places_in(inner):
    """Yield each container and key of it in JSON, however deep."""
    for key in inner if isinstance(inner, dict) else range(len(inner)):
        yield inner, key
        if isinstance(inner[key], dict | list):
            yield from places_in(inner[key])


@st.composite
def other_structures(draw, content):
    arrays = read_arrays(content)
    structure = json.loads(arrays["structure"].tobytes())
    for _ in range(draw(st.integers(1, 3))):
        places = [*places_in(structure)]
        holder, key = draw(st.sampled_from(places))
        old = holder[key]
        match draw(st.sampled_from(["set", "set", "everywhere", "order", "remove", "repeat"])):
            case "everywhere":  # also where the next layer names the same
                new = draw(VALUES)
                for each, there in places:
                    if each[there] == old:
                        each[there] = new
            case "order" if isinstance(old, list):
                holder[key] = draw(st.permutations(old))
            case "remove" if len(places) > 1:
                del holder[key]
            case "repeat" if isinstance(holder, list):
                holder[key:key] = [old] * draw(st.sampled_from([1, 1, 1200]))
            case "repeat":
                holder[draw(st.sampled_from(["more", "bias", "__class__"]))] = old
            case _:
                holder[key] = draw(VALUES)
    text = json.dumps(structure)
    encoded = draw(st.just(text) | st.just(text) | st.sampled_from(TEXTS)).encode()
    encoded = draw(st.just(encoded) | st.just(encoded) | splices(encoded))
    arrays["structure"] = np.frombuffer(encoded or b" ", np.uint8)
    return sealed(arrays)


class Damaged(bytes):
    def __repr__(self):  # else the whole file would fill the screen
        return f"<{len(self)} bytes>"


def damaged(content):
    """Damaged files, and whether their checksum fits."""
    return st.one_of(
        st.tuples(splices(content).map(Damaged), st.just(False)),
        st.tuples(other_members(content).map(Damaged), st.just(False)),
        st.tuples(other_arrays(content).map(Damaged), st.just(True)),
        st.tuples(other_structures(content).map(Damaged), st.just(True)),
    )


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_refused_or_holds_a_model_that_works(tmp_path, count):
    path = tmp_path / "model.npz"
    save_integer_model(graph_model(), path)
    content, seen = path.read_bytes(), collections.Counter()
    model = load_integer_model(path)
    valid = {name: model.computing(name)(IMAGES) for name in ARITHMETICS}

    @settings(max_examples=count)
    @given(damaged(content), st.sampled_from(sorted(ARITHMETICS)))
    def check(file, arithmetic):
        data, fits = file
        path.write_bytes(data)
        tracemalloc.start()
        try:
            outcome = read(path, arithmetic, valid[arithmetic])
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()
        assert fits or outcome in ("refused", "the same")
        seen[outcome] += 1

    check()
    assert {*seen} >= {"refused", "another model", "the same"}, seen


def read(path, arithmetic, valid):
    """Return what came of the file, of these only."""
    try:
        model = load_integer_model(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error)
        return "refused"
    try:
        with np.errstate(over="ignore"):  # infinity is clipped to the last code
            logits = model.computing(arithmetic)(IMAGES)
    except ValueError:
        return "not for these images, or not in this arithmetic"
    assert np.isfinite(logits).all()
    return "the same" if np.array_equal(logits, valid) else "another model"
