"""qhelpers.data: what is verified, repaired, downloaded, refused, and used instead.

A tiny MNIST of the real format, served by a server on this machine, stands in for the real
one, so that these tests need neither the network nor MNIST.
"""

import contextlib
import functools
import gzip
import http.server
import os
import socket
import struct
import threading
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from torchvision.datasets import MNIST

from qhelpers import data, load_data

RAW = sorted(data.RAW_MD5)
NOWHERE = "http://127.0.0.1:9/"  # the port "discard": nothing answers


def made_up_file(name):
    """The bytes of an MNIST file with 20 images, or of one with their labels."""
    rng = np.random.default_rng(RAW.index(name))
    if "images" in name:
        return struct.pack(">iiii", 2051, 20, 28, 28) + rng.bytes(20 * 28 * 28)
    return struct.pack(">ii", 2049, 20) + rng.integers(0, 10, 20, dtype=np.uint8).tobytes()


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder with tiny .gz files, served by HTTP; the only mirror there is."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    made_up = {name: made_up_file(name) for name in RAW}
    packed = {f"{name}.gz": gzip.compress(content) for name, content in made_up.items()}
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    handler = functools.partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("QHELPERS_DATASET", raising=False)
    monkeypatch.setenv("QHELPERS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(MNIST, "resources", [(n, md5(c).hexdigest()) for n, c in packed.items()])
    monkeypatch.setattr(data, "RAW_MD5", {n: md5(c).hexdigest() for n, c in made_up.items()})
    yield folder
    server.shutdown()
    server.server_close()


@pytest.fixture
def raw(mirror, tmp_path):
    """The folder of the raw files, downloaded and unpacked."""
    load_data()
    return tmp_path / "data" / "MNIST" / "raw"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", [NOWHERE])


@pytest.fixture(params=[b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"])
def hanging(request, monkeypatch):
    """The address of a server that says nothing, or half of what it promised, and then hangs.

    It alone gets little time to answer, so that a slow machine's good mirror keeps all of its own.
    """
    connections = []

    def answer():
        with contextlib.suppress(OSError):  # the server was closed
            while True:
                connection, _ = server.accept()
                connections.append(connection)
                connection.sendall(request.param)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        address, get = f"http://127.0.0.1:{server.getsockname()[1]}/", requests.get

        def impatient(url, *, timeout, **options):
            return get(url, timeout=0.1 if url.startswith(address) else timeout, **options)

        monkeypatch.setattr(requests, "get", impatient)
        yield address
    for connection in connections:
        connection.close()


def assert_repaired(raw):
    """MNIST loads, and then all files are as served, with nothing else left beside them."""
    assert load_data().name == "mnist"
    for name in RAW:
        assert data.has_md5(raw / name, data.RAW_MD5[name])
    assert {path.name for path in raw.iterdir()} == {*RAW, *(f"{name}.gz" for name in RAW)}


def damage(path):
    """Change one byte, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def test_downloads_and_normalises(mirror):
    loaded = load_data()
    assert loaded.name == "mnist"
    assert loaded.train_images.shape == loaded.test_images.shape == (20, 1, 28, 28)
    assert loaded.train_images.dtype == torch.float32 and loaded.train_labels.dtype == torch.int64
    pixels = made_up_file("train-images-idx3-ubyte")[16:]
    expected = (np.frombuffer(pixels, np.uint8) / 255 - 0.1307) / 0.3081
    assert np.allclose(loaded.train_images.flatten(), expected, atol=1e-6)


def test_files_that_are_there_need_no_network_and_are_not_written(raw, offline, monkeypatch):
    for name in RAW:
        part = raw / f"{name}.gz.0123abcd.part"  # of a process that was killed long ago
        (raw / f"{name}.gz").rename(part)
        os.utime(part, (0, 0))
    monkeypatch.setattr(data, "whole_file", None)  # a call would raise
    assert load_data().name == "mnist"
    assert {path.name for path in raw.iterdir()} == {*RAW}


@pytest.mark.parametrize("harm", [truncate, damage])
@pytest.mark.parametrize("name", RAW)
def test_a_bad_raw_file_is_repaired_from_the_gz(raw, offline, harm, name):
    harm(raw / name)
    assert_repaired(raw)


@pytest.mark.parametrize("harm", [truncate, damage])
def test_a_bad_raw_file_and_a_bad_gz_are_downloaded_again(raw, harm):
    harm(raw / RAW[0])
    harm(raw / f"{RAW[0]}.gz")
    assert_repaired(raw)


@pytest.mark.parametrize("harm", [truncate, damage])
def test_what_nothing_repairs_is_an_error_that_names_it(raw, offline, monkeypatch, harm):
    harm(raw / RAW[0])
    (raw / f"{RAW[0]}.gz").unlink()
    monkeypatch.setenv("QHELPERS_DATASET", "mnist")
    with pytest.raises(data.MNISTUnavailable) as error:
        load_data()
    assert f"{RAW[0]} is damaged" in str(error.value)
    assert "Connect to the network, put the four" in str(error.value)
    assert "QHELPERS_DATASET=digits" in str(error.value)
    assert str(raw) in str(error.value)


def test_a_mirror_with_other_content_is_refused(mirror):
    (mirror / f"{RAW[0]}.gz").write_bytes(gzip.compress(b"not this"))
    assert load_data().name == "digits"
    assert not list(data.data_folder().rglob(f"{RAW[0]}*"))


def test_files_of_an_old_torchvision_are_not_read(raw):
    """Nothing verifies those, which its class MNIST prefers."""
    expected, folder = load_data().train_images, raw.with_name("processed")
    folder.mkdir()
    for name in (MNIST.training_file, MNIST.test_file):
        torch.save((torch.zeros(5, 28, 28), torch.zeros(5)), folder / name)
    assert len(MNIST(raw.parent.parent).data) == 5
    assert torch.equal(load_data().train_images, expected)


def test_a_mirror_that_hangs_is_left_for_the_next(mirror, hanging, monkeypatch, capsys):
    good = MNIST.mirrors
    monkeypatch.setattr(MNIST, "mirrors", [hanging, hanging])
    assert load_data().name == "digits"
    assert "could not be downloaded" in capsys.readouterr().out
    monkeypatch.setattr(MNIST, "mirrors", [hanging, *good])
    assert load_data().name == "mnist"


def test_without_mnist_one_line_says_what_is_used_and_why(mirror, offline, capsys):
    assert load_data().name == "digits"
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\n") == 1
    for part in ("scikit-learn's 1,797 digits", f"{RAW[0]} is missing", "text are MNIST's"):
        assert part in said.out


def test_forced_digits_ask_no_one(mirror, monkeypatch, capsys):
    monkeypatch.setenv("QHELPERS_DATASET", "digits")
    monkeypatch.setattr(data, "load_mnist", None)  # a call would raise
    digits = load_data()
    assert digits.train_images.shape == (1437, 1, 28, 28)
    assert digits.test_images.shape == (360, 1, 28, 28)
    assert digits.train_images.dtype == torch.float32 and digits.test_labels.dtype == torch.int64
    assert digits.train_images.min() == pytest.approx(-0.1307 / 0.3081)
    assert digits.test_labels.bincount().min() >= 34  # stratified: each digit about 36 times
    assert torch.equal(load_data().test_images, digits.test_images)


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv("QHELPERS_DATASET", "cifar")
    with pytest.raises(ValueError, match="QHELPERS_DATASET is 'cifar'; it may be mnist, digits"):
        load_data()


def test_a_file_that_cannot_be_written_is_named(raw, monkeypatch, capsys):
    def full(part, path):
        raise OSError(28, "No space left on device")

    (raw / RAW[0]).unlink()
    monkeypatch.setattr("os.replace", full)
    assert load_data().name == "digits"
    said = f"could not write the file (No space left on device): '{raw / RAW[0]}'"
    assert said in capsys.readouterr().out
    monkeypatch.setenv("QHELPERS_DATASET", "mnist")
    with pytest.raises(data.MNISTUnavailable, match="could not write the file"):
        load_data()
    assert not (raw / RAW[0]).exists()


def test_batches_cover_the_data_in_an_order_from_the_seed(mirror):
    loaded = load_data()
    first_pass = list(loaded.batches(batch_size=8, steps=3, seed=0))
    assert [len(labels) for _, labels in first_pass] == [8, 8, 4]
    pixels = torch.cat([images for images, _ in first_pass]).sum((1, 2, 3)).sort()[0]
    assert torch.equal(pixels, loaded.train_images.sum((1, 2, 3)).sort()[0])

    def labels(steps, seed):
        return torch.cat([labels for _, labels in loaded.batches(8, steps, seed)])

    assert torch.equal(labels(7, seed=0), labels(7, seed=0))
    assert not torch.equal(labels(3, seed=0), labels(3, seed=1))
    assert not torch.equal(labels(6, seed=0)[:20], labels(6, seed=0)[20:])
    assert len(labels(7, seed=0)) == 20 + 20 + 8
    assert loaded.steps_per_epoch(64) == 938  # as MNIST's 60,000


def test_the_data_folder_is_that_of_the_project(tmp_path, monkeypatch):
    monkeypatch.delenv("QHELPERS_DATA", raising=False)
    below = tmp_path / "project" / "notebooks"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert data.data_folder() == below / "data"
    (tmp_path / "project" / "pyproject.toml").write_text('[project]\nname = "qhelpers"\n')
    assert data.data_folder() == tmp_path / "project" / "data"
    (below / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert data.data_folder() == tmp_path / "project" / "data"
    monkeypatch.setenv("QHELPERS_DATA", str(tmp_path / "elsewhere"))
    assert data.data_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("QHELPERS_DATA", "~/mnist")
    assert data.data_folder() == Path.home() / "mnist"
