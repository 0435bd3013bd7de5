"""integer/packing and integer/file: what comes back, how large it is, what is refused."""

import io
import json
import random
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qhelpers import (
    build_model,
    integer_model,
    load_data,
    load_integer_model,
    quantize_model,
    save_integer_model,
)
from qhelpers.experiments.ptq import KEPT_LOGITS, float_net
from qhelpers.integer.file import MOST_BYTES, digest, read_arrays
from qhelpers.integer.layers import Reshape
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.packing import pack, packed_bytes, unpack
from tests.test_integer import Chain


@given(st.integers(1, 8), st.data())
def test_packed_codes_come_back(bits, draw):
    code = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    codes = draw.draw(arrays(np.int8, st.integers(0, 40), elements=code))
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.size == packed_bytes(codes.size, bits)
    assert packed.size == -(-codes.size // (8 // bits))
    assert np.array_equal(unpack(packed, bits, codes.size), codes)


def test_the_first_code_has_the_lowest_bits():
    assert pack([1, -1, -2, 0], 2).tolist() == [0b00_10_11_01]
    assert pack([-8, 7, 3], 4).tolist() == [0b0111_1000, 0b0011]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: pack([4], 3), ValueError, "^codes go from 4 to 4; 3 bits hold -4 to 3"),
        (lambda: pack([0], 9), ValueError, "^bits is 9; it must be an integer from 1 to 8"),
        (lambda: pack([0], 2.0), TypeError, "^bits is 2.0; it must be an integer"),
        (lambda: unpack(np.zeros(2, np.uint8), 4, 5), ValueError, r"uint8 of shape \(3,\)"),
        (lambda: unpack(np.zeros(2, np.int8), 8, 2), ValueError, "^packed is int8 of shape"),
    ],
)
def test_mistakes_of_packing(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.fixture(scope="module")
def data():
    return load_data()


@pytest.fixture(scope="module")
def model():
    """A small convolutional integer model, with weights of 3 bits and every kind of layer."""
    images = torch.linspace(-1, 2, 4 * 784).reshape(4, 1, 28, 28)
    return integer_model(quantize_model(build_model(Chain, 0).eval(), [images], 3))


@pytest.fixture
def path(tmp_path, model):
    save_integer_model(model, tmp_path / "model.npz")
    return tmp_path / "model.npz"


IMAGES = np.random.default_rng(0).normal(size=(5, 1, 28, 28)).astype(np.float32)


def test_a_model_comes_back(model, path, tmp_path):
    again = load_integer_model(path, "fixed-point")
    assert again.arithmetic == "fixed-point"
    assert {type(layer).__name__ for layer in again.layers} == {
        "Conv2d", "Linear", "MaxPool2d", "ReLU", "Reshape"
    }  # fmt: skip
    assert np.array_equal(again(IMAGES), model.computing("fixed-point")(IMAGES))
    save_integer_model(again, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()
    with np.load(path, allow_pickle=False) as file:
        assert file["0.weight" if "0.weight" in file else "1.weight"].dtype == np.uint8


def test_the_sizes_on_disk(data, tmp_path):
    """8 bits, per tensor: under 75 kB. 4 and 2 bits: a half and a quarter of the bytes."""
    net = float_net(data, 0)
    for bits, granularity, most in [
        (8, "per tensor", 75_000), (4, "per channel", 46_000), (2, "per channel", 24_000)
    ]:  # fmt: skip
        quantized = quantize_model(
            net, [data.train_images[:1000]], bits, bits,
            granularity=granularity, per_layer=KEPT_LOGITS,
        )  # fmt: skip
        model = integer_model(quantized)
        path = tmp_path / f"{bits}.npz"
        save_integer_model(model, path)
        # The digits' network has weights that compress less.
        assert path.stat().st_size < (most if data.name == "mnist" else model.weight_bytes())
        with zipfile.ZipFile(path) as archive:
            sizes = [entry.file_size for entry in archive.infolist() if "weight." in entry.filename]
        assert sum(sizes) - 3 * 128 == model.weight_bytes() == 89_400 * bits // 8  # 128: headers
        images = data.test_images[:200]
        assert np.array_equal(load_integer_model(path)(images), model(images))


REFUSED = "is not an integer model that qhelpers saved, or is damaged: "


def test_a_truncated_file_is_refused(path):
    whole = path.read_bytes()
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=REFUSED):
            load_integer_model(path)


def test_a_changed_byte_is_refused_or_changes_nothing(model, path):
    """In the file as it is, and in the arrays, past the zip's own checks."""
    whole, expected = path.read_bytes(), model(IMAGES)
    changes = random.Random(0)
    contents = contents_of(path)
    refused = 0
    for trial in range(300):
        if trial % 2:
            damaged = bytearray(whole)
            damaged[changes.randrange(len(damaged))] ^= 1 << changes.randrange(8)
            path.write_bytes(damaged)
        else:
            name = changes.choice([*contents])
            entry = bytearray(contents[name])
            entry[changes.randrange(len(entry))] ^= 1 << changes.randrange(8)
            write_zip(path, contents | {name: bytes(entry)})
        try:
            loaded = load_integer_model(path)
        except ValueError as error:
            assert REFUSED in str(error)
            refused += 1
        else:
            assert np.array_equal(loaded(IMAGES), expected)
    assert refused > 200


def contents_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def rewrite(path, change):
    """Change the arrays in a file, and give it the checksum that fits."""
    contents = read_arrays(path.read_bytes())
    del contents["sha256"]
    structure = json.loads(contents["structure"].tobytes())
    change(contents, structure)
    contents["structure"] = np.frombuffer(json.dumps(structure).encode(), np.uint8)
    np.savez(path, **contents, sha256=digest(contents))


def first_linear(structure):
    return next(i for i, part in enumerate(structure["layers"]) if part["kind"] == "Linear")


def first(structure, field):
    return next(part for part in structure["layers"] if field in part)


def cut_a_layer(contents, structure):
    number = first_linear(structure)
    structure["layers"][number]["name"] = "other"
    structure["layers"][number]["before"][1] += 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda contents, s: s.update(format="other"), "its format is 'other'; it must be"),
        (lambda contents, s: s["layers"][0].update(kind="LSTM"), "'LSTM'"),
        (lambda contents, s: s["layers"].pop(), "it holds arrays|has no"),
        (
            lambda contents, s: contents.update(more=np.zeros(3)),
            "it holds arrays of no layer: .'more'.",
        ),
        (lambda contents, s: contents.pop(f"{first_linear(s)}.bias"), "bias"),
        (cut_a_layer, "layer 'other' takes .*, and gets"),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(weight=[20, 353]),
            "packed is uint8 of shape",
        ),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(weight=[10**9, 10**9]),
            "it has 1,000,000,000,000,.* weights; 16,777,216 are allowed",
        ),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(weight_bits=8),
            "packed is uint8 of shape",
        ),
        (
            lambda contents, s: contents.update(
                {f"{first_linear(s)}.bias": np.full(20, np.nan, np.float32)}
            ),
            "bias is float32",
        ),
        (lambda contents, s: s["layers"][first_linear(s)]["after"].append(1), "positional"),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(relu="no"),
            "relu is 'no'; its type must be bool",
        ),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(name=["fc"]),
            r"name is \['fc'\]; its type must be str",
        ),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(before=["0.1", 0, 255]),
            "scale is '0.1'; its type must be float",
        ),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(weight=["a", 10**12]),
            "weight is 'a'; its type must be int",
        ),
        (
            lambda contents, s: s["layers"][first_linear(s)].update(weight=[-(10**6), 10**6]),
            "it has 1,000,000,.* weights; 16,777,216 are allowed",
        ),
        (lambda contents, s: first(s, "shape").update(shape=["a"]), "shape is 'a'; its type"),
        (lambda contents, s: first(s, "shape").update(shape=[0, -1]), "shape is .*; it must have"),
        (
            lambda contents, s: first(s, "groups").update(groups=10**5),
            "it has 100,00. groups; 10,000 are allowed",
        ),
        (
            lambda contents, s: s.update(layers=s["layers"] * 1000),
            "000 layers; 1,000 are allowed",
        ),
    ],
)
def test_an_inconsistent_file_is_refused(path, change, message):
    rewrite(path, change)
    with pytest.raises(ValueError, match=f"{REFUSED}.*{message}"):
        load_integer_model(path)


def test_a_foreign_file_is_refused(path, tmp_path):
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(ValueError, match=REFUSED):
        load_integer_model(path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=REFUSED):
        load_integer_model(path)
    path.write_text("not a zip")
    with pytest.raises(ValueError, match=REFUSED):
        load_integer_model(path)
    with pytest.raises(FileNotFoundError):
        load_integer_model(tmp_path / "nowhere.npz")


class Alarm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it was unpickled')",))


def test_nothing_is_unpickled_and_no_size_is_believed(path):
    contents = contents_of(path)
    pickled = io.BytesIO()
    np.lib.format.write_array(pickled, np.array([Alarm()], object), allow_pickle=True)
    write_zip(path, contents | {"sha256.npy": pickled.getvalue()})
    with pytest.raises(ValueError, match=f"{REFUSED}.*sha256.npy doesn't hold object"):
        load_integer_model(path)
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, fields)
    write_zip(path, contents | {"sha256.npy": header.getvalue()})
    with pytest.raises(ValueError, match=f"{REFUSED}sha256.npy doesn't hold uint8 of shape"):
        load_integer_model(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", bytes(MOST_BYTES + 1))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=f"{REFUSED}it has 16,777,217 bytes of arrays"):
        load_integer_model(path)


def packed_as_bomb(path, method):
    """Put zeros in the place of an array, and make the zip's directory say that they are few."""
    contents = contents_of(path)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, bytes(10**8) if name == "sha256.npy" else data)
    size = (10**8).to_bytes(4, "little")
    content = path.read_bytes()
    start = content.rindex(size)
    few = zlib.crc32(bytes(100)).to_bytes(4, "little")
    changed = bytearray(content[:start] + (100).to_bytes(4, "little") + content[start + 4 :])
    changed[start - 8 : start - 4] = few
    path.write_bytes(changed)


@pytest.mark.parametrize(
    "method, message",
    [
        (zipfile.ZIP_DEFLATED, "the magic string is not correct"),
        (zipfile.ZIP_LZMA, "is compressed, but not by deflate"),
        (zipfile.ZIP_BZIP2, "is compressed, but not by deflate"),
    ],
)
def test_no_more_is_unpacked_than_the_zip_says(path, method, message):
    packed_as_bomb(path, method)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"{REFUSED}.*({message})"):
        load_integer_model(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20_000_000


def test_a_file_without_end_is_not_read_whole(path):
    with open(path, "wb") as file:
        file.truncate(2**40)  # it takes no room on the disk
    with pytest.raises(ValueError, match=f"{REFUSED}it has more than 16,777,216 bytes"):
        load_integer_model(path)


def test_a_name_that_is_there_twice_is_refused(path):
    contents = contents_of(path)
    write_zip(path, contents | {"sha256": contents["sha256.npy"]})
    with pytest.raises(ValueError, match=f"{REFUSED}it has a name twice: "):
        load_integer_model(path)


def test_a_header_that_numpy_would_not_write_is_refused(path):
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (1,) * 60}
    np.lib.format.write_array_header_1_0(header, fields)
    write_zip(path, contents_of(path) | {"sha256.npy": header.getvalue() + b"1"})
    with pytest.raises(ValueError, match=f"{REFUSED}Header info length .* is large"):
        load_integer_model(path)


def test_a_model_that_could_not_be_read_back_is_not_written(model, path):
    before = path.read_bytes()
    longer = IntegerModel([*model.layers, *[Reshape("again", (-1,))] * 1000])
    with pytest.raises(ValueError, match="^it has 1,0.* layers; 1,000 are allowed"):
        save_integer_model(longer, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["model.npz"]


def test_a_file_is_written_whole_or_not_at_all(model, path, monkeypatch):
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        save_integer_model(model, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["model.npz"]
