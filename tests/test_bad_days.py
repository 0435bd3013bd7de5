"""Bad days: full disks, folders that can't be written, damaged files, two writers at once.

Processes that are killed are the subject of tests/kills.py, `make kills`.
"""

import copy
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from qhelpers import (
    VerySimpleNet,
    build_model,
    data,
    load_data,
    train_or_load,
    training,
)
from qhelpers.data import load_digits
from qhelpers.files import ABANDONED, whole_file
from qhelpers.training import save_checkpoint
from tests.faults import disk_full, faults, no_permission, read_only
from tests.mirror import NAMES, Server, settings, write_mirror
from tests.test_training import net, same
from tests.writers import WRITERS, contents, parts, write_page

ROOT = Path(__file__).parent.parent
REFUSALS = [disk_full, no_permission, read_only]
REASON = "No space left on device|Permission denied|Read-only file system"


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The settings by which a server on this machine is the only mirror."""
    folder = tmp_path_factory.mktemp("mirror") / "files"
    sums = write_mirror(folder)
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield settings(server.address, *sums)
    server.shutdown()
    server.server_close()


@pytest.fixture
def small_mnist(mirror, monkeypatch, tmp_path):
    """The made-up MNIST, to be had; gives the folder of its raw files, which isn't there yet."""
    for setting in mirror:
        monkeypatch.setattr(*setting)
    monkeypatch.delenv("QHELPERS_DATASET", raising=False)
    monkeypatch.setenv("QHELPERS_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "MNIST" / "raw"


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_anywhere_leaves_whole_files_and_names_them(
    name, tmp_path, small_mnist, monkeypatch
):
    write, folder = WRITERS[name], tmp_path / "written"
    monkeypatch.setattr(data, "CHUNK", 2**13)  # several writes for a small file, too
    folder.mkdir()
    write(folder, 0)
    old = contents(folder)
    with faults(folder) as counted:
        write(folder, 1)
    new = contents(folder)
    assert new.keys() == old.keys() and new != old and counted.count >= 8
    for first in range(counted.count):
        if contents(folder) != old:
            write(folder, 0)
        with faults(folder, first), pytest.raises(OSError, match="No space left on dev") as error:
            write(folder, 1)
        assert error.value.filename in {str(folder / path) for path in old}
        found = contents(folder)
        assert found.keys() == old.keys()
        assert all(found[path] in (old[path], new[path]) for path in old)
        assert parts(folder) == []
    write(folder, 1)
    assert contents(folder) == new


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_checkpoint_that_cannot_be_written_costs_a_warning(digits, tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    model, expected = net(), net()
    message = rf"will train again: .*({REASON})\): '.*\.pt'"
    with pytest.warns(UserWarning, match=message), faults(tmp_path, 0, fault):
        history = train_or_load(model, digits, batch_size=60_000)
    assert history == train_or_load(expected, digits, batch_size=60_000)
    assert same(model, expected) and not same(model, net())


@pytest.mark.parametrize("fault", REFUSALS)
def test_mnist_that_cannot_be_written_is_an_error_that_names_the_file(
    small_mnist, monkeypatch, capsys, fault
):
    with faults(small_mnist, 0, fault):
        assert load_data().name == "digits"
        said = capsys.readouterr().out
        monkeypatch.setenv("QHELPERS_DATASET", "mnist")
        with pytest.raises(data.MNISTUnavailable) as error:
            load_data()
    for text in (said, str(error.value)):
        path = re.escape(str(small_mnist / f"{NAMES[0]}.gz"))
        assert re.search(rf"could not write the file \(({REASON})\): '{path}'", text)
    assert load_data().name == "mnist"


def test_mnist_that_is_whole_loads_where_nothing_can_be_written(small_mnist):
    load_data()
    before = contents(small_mnist)
    with faults(small_mnist, 0, read_only) as steps:
        assert load_data().name == "mnist"
    assert steps.count == 0 and contents(small_mnist) == before


def other_name(digits):
    other = copy.copy(digits)
    object.__setattr__(other, "name", "mnist")
    return other


@pytest.mark.parametrize("what", ["model", "data set", "torch"])
def test_a_checkpoint_of_another_training_is_refused_whatever_its_name(
    digits, tmp_path, monkeypatch, what
):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as there:
        if what == "torch":
            there.setattr(torch, "__version__", "9.9")
        model = build_model(VerySimpleNet, 1 if what == "model" else 0)
        train_or_load(
            model, other_name(digits) if what == "data set" else digits, batch_size=60_000
        )
    (path,) = (tmp_path / "build" / "checkpoints").iterdir()
    whole = path.read_bytes()
    path.unlink()
    expected, again = net(), net()
    history = train_or_load(expected, digits, batch_size=60_000)
    (path,) = path.parent.iterdir()
    path.write_bytes(whole)
    with pytest.warns(UserWarning, match=f"{path.name} belongs to another training; training ag"):
        assert train_or_load(again, digits, batch_size=60_000) == history
    assert same(again, expected)


@pytest.mark.filterwarnings("ignore:.*training again")
def test_a_checkpoint_with_one_changed_bit_is_never_taken_for_good(tmp_path):
    """torch.load doesn't look at the sums in the file, and raises a dozen kinds of errors."""
    path, model, before = tmp_path / "model.pt", net(), net(seed=1)
    save_checkpoint(path, "the key", model, [0.5, 0.25])
    whole, seeded, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[seeded.choice([seeded.randrange(3000), seeded.randrange(len(whole))])] ^= 1
        path.write_bytes(changed)
        loaded = copy.deepcopy(before)
        history = training.load_checkpoint(path, "the key", loaded)
        refused += history is None
        assert same(loaded, before if history is None else model)
        assert history in (None, [0.5, 0.25])
    assert refused > 50


def test_a_checkpoint_that_cannot_be_read_is_trained_again(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_or_load(net(), digits, batch_size=60_000)
    (path,) = (tmp_path / "build" / "checkpoints").iterdir()
    path.unlink()
    path.mkdir()  # the one thing that nobody can read as a file, root included
    with pytest.warns(UserWarning) as warned:
        train_or_load(net(), digits, batch_size=60_000)
    said = [str(warning.message) for warning in warned]
    assert len(said) == 2 and f"{path} can't be read" in said[0] and str(path) in said[1]


def test_parts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path):
    path, long_ago = tmp_path / "page.html", time.time() - ABANDONED - 60
    with whole_file(path) as living:
        living.write_text("half")
        dead = living.with_name("page.html.0123abcd.part")
        other = living.with_name("other.html.0123abcd.part")  # another file's
        for part in (dead, other):
            part.write_text("half")
            os.utime(part, (long_ago, long_ago))
        write_page(tmp_path, 1)
        assert parts(tmp_path) == sorted([living, other])
        living.write_text("whole")
    assert path.read_text() == "whole" and parts(tmp_path) == [other]


def test_loading_removes_abandoned_parts_too(small_mnist, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_data()
    train_or_load(net(), digits, batch_size=60_000)
    (checkpoint,) = (tmp_path / "build" / "checkpoints").iterdir()
    for path in (checkpoint, small_mnist / NAMES[0], small_mnist / f"{NAMES[0]}.gz"):
        part = path.with_name(f"{path.name}.0123abcd.part")
        part.write_text("half")
        os.utime(part, (0, 0))
    assert len(parts(tmp_path)) == 3
    load_data()
    train_or_load(net(), digits, batch_size=60_000)
    assert parts(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that another has open")
def test_two_can_write_the_same_file_at_the_same_time(tmp_path):
    errors = []

    def write(version):
        try:
            for _ in range(100):
                write_page(tmp_path, version)
        except OSError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=[version]) for version in (0, 1)]
    for writer in writers:
        writer.start()
    whole = {f"version {version}\n" * 1000 for version in (0, 1)}
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "page.html").exists():
            assert (tmp_path / "page.html").read_text() in whole
    assert errors == [] and parts(tmp_path) == []


AS_NOBODY = """
import os, sys, warnings
from pathlib import Path
import sklearn.datasets, sklearn.model_selection, torchvision  # as long as they can be read
from qhelpers import VerySimpleNet, build_model, data, load_data, save_integer_model, train_or_load
from tests.mirror import settings, write_mirror
from tests.writers import integers

project = Path.cwd()
raw = project / "data" / "MNIST" / "raw"
sums = write_mirror(project / "mirror")
for setting in settings("http://127.0.0.1:9/", *sums):
    setattr(*setting)
raw.parent.mkdir(parents=True)
(project / "mirror").rename(raw)
os.environ["QHELPERS_DATA"] = str(project / "data")
os.environ.pop("QHELPERS_DATASET", None)
load_data()
model = integers(0)
for path in [*raw.iterdir(), raw]:
    path.chmod(0o444 if path.is_file() else 0o111)  # names can be opened, not listed
project.chmod(0o555)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
images = load_data()
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    print(len(train_or_load(build_model(VerySimpleNet, 0), images, batch_size=60_000)))
print(*(warning.message for warning in warned), sep="\\n")
try:
    save_integer_model(model, project / "model.npz")
except PermissionError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_an_ordinary_user_without_permission_loads_trains_and_is_told():
    with tempfile.TemporaryDirectory() as folder:
        run = python(AS_NOBODY, Path(folder).resolve())
        for path in (folder, Path(folder, "data", "MNIST", "raw")):
            os.chmod(path, 0o755)
    assert run.returncode == 0, run.stderr
    _, loaded, _, count, warned, error = run.stdout.splitlines()
    assert loaded.startswith("Data: MNIST") and count == "1"
    assert "could not write the file (Permission denied)" in warned
    assert ".pt'" in warned and "will train again" in warned
    assert "could not write the file (Permission denied)" in error and "model.npz'" in error


def python(code, folder, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


AUDITED = """
import os, sys
written = []
FIRST = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
BOTH = ("os.rename", "os.link", "os.symlink")

def audit(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and isinstance(path, (str, bytes)) and path != os.devnull:
            written.append(path)
    elif event in FIRST:
        written.append(arguments[0])
    elif event in BOTH:
        written.extend(arguments[:2])

sys.addaudithook(audit)
from qhelpers import VerySimpleNet, build_model, load_data, quantize_model, integer_model
from qhelpers import save_integer_model, train_or_load
images = load_data()
net = build_model(VerySimpleNet, 0)
train_or_load(net, images, batch_size=60_000)
train_or_load(build_model(VerySimpleNet, 0), images, batch_size=60_000)
model = integer_model(quantize_model(net, [images.train_images[:100]]))
save_integer_model(model, "model.npz")
EXTRA
print("written:")
for path in written:
    print(os.path.realpath(os.fsdecode(path)))
"""


def audited(folder, extra):
    """Run typical work, and `extra`, in a project of its own; return all paths that were written.

    Its temporary folder is `folder`/temporary; torch hands its own on in the environment.
    """
    temporary = folder / "temporary"
    temporary.mkdir()
    names = ["TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR"]
    project = folder / "project"
    (project / "notebooks").mkdir(parents=True)
    (project / "pyproject.toml").write_text('name = "qhelpers"\n')
    run = python(AUDITED.replace("EXTRA", extra), project / "notebooks",
                 QHELPERS_DATA=str(data.data_folder().resolve()),
                 PYTHONDONTWRITEBYTECODE="1",
                 **dict.fromkeys(names, str(temporary)))  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [Path(path) for path in run.stdout.partition("written:\n")[2].splitlines()]


def outside(paths, allowed):
    return {path for path in paths if not any(path.is_relative_to(place) for place in allowed)}


def test_nothing_is_written_outside_the_project_and_the_data(tmp_path):
    stray = tmp_path / "stray"
    paths = audited(tmp_path, f"open({str(stray)!r}, 'w').close()")
    project = (tmp_path / "project").resolve()
    written = {path.relative_to(project).suffix for path in paths if path.is_relative_to(project)}
    assert {".pt", ".npz", ".part"} <= written
    caches = [Path.home() / name for name in (".cache", "Library/Caches", "AppData/Local")]
    temporary = (tmp_path / "temporary").resolve()
    allowed = [project, data.data_folder().resolve(), temporary, *caches]
    assert outside(paths, allowed) == {stray.resolve()}  # what it finds, and nothing else
