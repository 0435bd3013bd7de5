"""integer/packing and integer/file: what comes back, how large it is, what is refused."""

import functools
import io
import json
import os
import re
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn import functional

from qhelpers import (
    build_model,
    integer_model,
    load_integer_model,
    quantize_model,
    save_integer_model,
)
from qhelpers.experiments.ptq import KEPT_LOGITS, float_net
from qhelpers.integer.file import KINDS, MOST_BYTES, digest, read_arrays
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.moves import Reshape
from qhelpers.integer.packing import pack, packed_bytes, unpack
from tests.integer.test_model import Chain


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


@functools.cache
def small_model():
    """A convolutional integer model, with weights of 3 bits and every kind of layer."""
    images = torch.linspace(-1, 2, 4 * 784).reshape(4, 1, 28, 28)
    return integer_model(quantize_model(build_model(Chain, 0).eval(), [images], 3))


class Everything(nn.Module):
    """A part of each kind, in a graph."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 12, 2)
        self.pool, self.average = nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, padding=1)
        self.mean, self.linear = nn.AdaptiveAvgPool2d((2, 1)), nn.Linear(24, 10)

    def forward(self, x):
        x = self.pool(functional.relu6(self.norm(self.conv1(x))))
        x = functional.relu(self.conv3(x + self.conv2(x)).flatten(1).reshape(-1, 12, 6, 6))
        return self.linear(torch.flatten(self.mean(self.average(x)), 1))


@functools.cache
def graph_model():
    """An integer model with every kind of layer."""
    images = torch.linspace(-1, 2, 4 * 784).reshape(4, 1, 28, 28)
    return integer_model(quantize_model(build_model(Everything, 0).eval(), [images], 3))


@pytest.fixture
def path(tmp_path):
    save_integer_model(small_model(), tmp_path / "model.npz")
    return tmp_path / "model.npz"


IMAGES = np.random.default_rng(0).normal(size=(5, 1, 28, 28)).astype(np.float32)


def test_a_model_comes_back(path, tmp_path):
    model = small_model()
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


def test_a_graph_comes_back(tmp_path):
    model, path = graph_model(), tmp_path / "model.npz"
    assert {type(layer) for layer in model.layers} == {*KINDS.values()}
    save_integer_model(model, path)
    again = load_integer_model(path, "fixed-point")
    assert again.inputs == model.inputs
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert np.array_equal(again(IMAGES), model.computing("fixed-point")(IMAGES))
    save_integer_model(again, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_a_file_of_version_1_is_a_chain(path):
    """It has no inputs, and no ends of ReLU6."""

    def to_version_1(arrays, structure):
        structure["format"] = structure["format"].replace("version 2", "version 1")
        for fields in structure["layers"]:
            for name in ("inputs", "top", "ceil_mode"):
                fields.pop(name, None)

    changed(path, to_version_1)
    assert load_integer_model(path).inputs == small_model().inputs
    assert np.array_equal(load_integer_model(path)(IMAGES), small_model()(IMAGES))


def changed(path, change):
    """Change the arrays and the structure in a file, whose checksum fits again."""
    arrays = read_arrays(path.read_bytes())
    del arrays["sha256"]
    structure = json.loads(arrays["structure"].tobytes())
    change(arrays, structure)
    arrays["structure"] = np.frombuffer(json.dumps(structure).encode(), np.uint8)
    np.savez(path, **arrays, sha256=digest(arrays))


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


def refused(path, message):
    """Whether the file is refused with this message, and without taking much memory."""
    tracemalloc.start()
    start = f"^{re.escape(str(path))} is not an integer model that qhelpers saved, or is damaged: "
    with pytest.raises(ValueError, match=f"{start}.*{message}"):
        load_integer_model(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most < 2**26  # bytes, four times what a file may hold


def first_linear(structure):
    return next(i for i, part in enumerate(structure["layers"]) if part["kind"] == "Linear")


def linear(structure):
    return structure["layers"][first_linear(structure)]


def first(structure, field):
    return next(part for part in structure["layers"] if field in part)


def change_codes_between_layers(arrays, structure):
    linear(structure)["name"] = "other"
    linear(structure)["before"][1] += 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a, s: s.update(format="other"), "its format is 'other'; it must be"),
        (lambda a, s: s["layers"][0].update(kind="LSTM"), "'LSTM'"),
        (lambda a, s: s["layers"][0].pop("inputs"), "inputs"),
        (lambda a, s: s["layers"][0].update(inputs=[0]), "inputs is 0; its type must be str"),
        (lambda a, s: s["layers"][0].update(inputs=["fc"]), "takes 'fc', which no layer before"),
        (lambda a, s: s["layers"][1].update(inputs=["input"] * 2), "it takes 1 of them"),
        (lambda a, s: s["layers"].pop(), "it holds arrays|has no"),
        (lambda a, s: a.update(more=np.zeros(3)), "it holds arrays of no layer: .'more'."),
        (lambda a, s: a.pop(f"{first_linear(s)}.bias"), "bias"),
        (change_codes_between_layers, "layer 'other' takes .*, and gets"),
        (lambda a, s: linear(s).update(weight=[20, 353]), "packed is uint8 of shape"),
        (lambda a, s: linear(s).update(weight=[-(10**6), 10**6]), "weights; 16,777,216 are"),
        (lambda a, s: linear(s)["after"].append(1), "positional"),
        (lambda a, s: linear(s).update(relu="no"), "relu is 'no'; its type must be bool"),
        (lambda a, s: linear(s).update(before=["1", 0, 255]), "scale is '1'; its type must be"),
        (lambda a, s: linear(s).update(weight=["a", 1]), "weight is 'a'; its type must be int"),
        (lambda a, s: first(s, "shape").update(shape=[0, -1]), "shape is .*; it must have"),
        (lambda a, s: first(s, "groups").update(groups=10**5), "00. groups; 10,000 are allowed"),
        (lambda a, s: s.update(layers=s["layers"] * 1000), "000 layers; 1,000 are allowed"),
    ],
)
def test_an_inconsistent_file_is_refused(path, change, message):
    """Though its checksum fits."""
    changed(path, change)
    assert refused(path, message)


class Alarm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it was unpickled')",))


def array_file(array, **header):
    """A .npy file of the array, or of a header that says something else."""
    file = io.BytesIO()
    if header:
        np.lib.format.write_array_header_1_0(file, {"fortran_order": False} | header)
    else:
        np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def with_members(method=zipfile.ZIP_STORED, **changed):
    """Return the function that gives the zip at a path these members."""

    def change(path):
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in (members | changed).items():
                archive.writestr(name, data)

    return change


def with_a_changed_bit(path):
    """In a weight; the zip's own sums fit."""
    with zipfile.ZipFile(path) as archive:
        weight = bytearray(archive.read("8.weight.npy"))
    weight[-1] ^= 1
    with_members(**{"8.weight.npy": bytes(weight)})(path)


def bomb_that_lies(method):
    """Return the function that packs many zeros, and makes the zip's directory say few."""

    def change(path):
        with_members(method, **{"sha256.npy": bytes(10**8)})(path)
        content = bytearray(path.read_bytes())
        place = content.rindex((10**8).to_bytes(4, "little"))
        content[place : place + 4] = (100).to_bytes(4, "little")
        content[place - 8 : place - 4] = zlib.crc32(bytes(100)).to_bytes(4, "little")
        path.write_bytes(content)

    return change


MEMBER = "sha256.npy"
PICKLE = array_file(np.array([Alarm()], object))
HUGE = array_file(None, descr="|u1", shape=(10**12,))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: path.write_text("not a zip"), "not a zip file"),
        (lambda path: np.savez(path, weights=np.zeros(3)), "sha256"),
        (lambda path: torch.save({"weights": torch.zeros(3)}, path), "unknown version|magic"),
        (lambda path: os.truncate(path, 2**40), "it has more than 16,777,216 bytes"),
        (with_members(**{MEMBER: PICKLE}), "sha256.npy doesn't hold object"),
        (with_members(**{MEMBER: HUGE}), "sha256.npy doesn't hold uint8 of shape"),
        (with_members(sha256=b"the name without .npy"), "it has a name twice: "),
        (with_members(zipfile.ZIP_DEFLATED, **{"bomb.npy": bytes(MOST_BYTES)}), "bytes of arrays"),
        (with_a_changed_bit, "its checksum is wrong"),
        (bomb_that_lies(zipfile.ZIP_DEFLATED), "the magic string is not correct"),
        (bomb_that_lies(zipfile.ZIP_LZMA), "is compressed, but not by deflate"),
    ],
)
def test_what_is_no_file_of_ours_is_refused(path, change, message):
    """Nothing in it is unpickled, and no size that it states is believed."""
    change(path)
    assert refused(path, message)


def test_a_file_that_is_not_there_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_integer_model(tmp_path / "nowhere.npz")


def test_a_model_that_could_not_be_read_back_is_not_written(path):
    before = path.read_bytes()
    longer = IntegerModel([*small_model().layers, *[Reshape(str(i), (-1,)) for i in range(1000)]])
    with pytest.raises(ValueError, match="^it has 1,0.* layers; 1,000 are allowed"):
        save_integer_model(longer, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["model.npz"]
