"""qhelpers.files: a file is whole at every moment, whoever is killed, and all writers see to it."""

import os
import shutil
import subprocess
import sys
import tempfile
from hashlib import md5
from pathlib import Path

import pytest
import torch

import qhelpers.files
from qhelpers import (
    VerySimpleNet,
    build_model,
    data,
    integer_model,
    quantize_model,
    save_integer_model,
)
from qhelpers.experiments import tables
from qhelpers.files import ABANDONED, whole_file
from qhelpers.training import save_checkpoint
from tools.notebooks import replace

OLD, NEW = b"old " * 9000, b"new " * 9000
# Writes NEW in two halves; at the step of this number the process is killed, or the disk is full.
# It takes files.py alone: PyTorch would make each of these processes start in seconds.
WRITER = """
import itertools, os, sys
folder, path, last, fault = sys.argv[1:]
sys.path.append(folder)
from files import Path, whole_file

steps = itertools.count(1)

def step():
    if next(steps) == int(last):
        if fault == "killed":
            os.kill(os.getpid(), 9)
        raise OSError(28, "No space left on device")

def with_steps(function):
    def wrapped(*arguments, **options):
        step()
        result = function(*arguments, **options)
        step()
        return result
    return wrapped

os.mkdir, os.replace, os.unlink = map(with_steps, (os.mkdir, os.replace, os.unlink))
try:
    with whole_file(Path(path)) as part, with_steps(open)(part, "wb", buffering=0) as file:
        for half in range(2):
            with_steps(file.write)(b"new " * 4500)
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
print(next(steps) - 1)
"""


def write(path, step=0, fault="killed"):
    """Let another process write NEW, with a fault at this step; return how it ended."""
    folder = os.path.dirname(qhelpers.files.__file__)
    command = [sys.executable, "-I", "-c", WRITER, folder, path, str(step), fault]
    return subprocess.run(command, capture_output=True, text=True)


def parts(folder):
    return sorted(folder.rglob("*.part"))


@pytest.mark.parametrize("old", [None, OLD])
@pytest.mark.parametrize("fault", ["killed", "full"])
def test_whatever_happens_at_any_step_the_file_is_whole(tmp_path, fault, old):
    path = tmp_path / "folder" / "model.npz"
    found = []
    for step in range(1, 1 + int(write(tmp_path / "counted" / "model.npz").stdout)):
        shutil.rmtree(path.parent, ignore_errors=True)
        if old is not None:
            path.parent.mkdir()
            path.write_bytes(old)
        ended = write(path, step, fault)
        found.append(path.read_bytes() if path.exists() else None)
        assert found[-1] in (old, NEW)
        if fault == "full":
            refused = f"{path}: could not write the file (No space left on device)\n"
            assert ended.stderr == ("" if ended.returncode == 0 else refused)
            assert ended.returncode or found[-1] == NEW
            assert parts(tmp_path) == []
        elif old is None:  # else the folder is there, and there are fewer steps
            assert ended.returncode in (-9, 9)  # 9 on Windows
    assert len(found) >= 11 and found.count(old) >= 7 and found.count(NEW) >= 2


def test_parts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path):
    path = tmp_path / "model[1].npz"
    assert write(path, 6).returncode  # after half of it
    (dead,) = parts(tmp_path)
    other = tmp_path / "other.npz.0123abcd.part"
    other.write_bytes(b"half")
    assert write(path).returncode == 0 and parts(tmp_path) == [dead, other]  # dead, but young
    for part in (dead, other):
        os.utime(part, (0, os.stat(part).st_mtime - ABANDONED - 60))
    with whole_file(path) as living:
        living.write_bytes(b"half")
        assert write(path).returncode == 0
        assert parts(tmp_path) == sorted([living, other])


def test_two_processes_can_write_the_same_file_at_the_same_time(tmp_path):
    path = tmp_path / "model.npz"
    with whole_file(path) as part, open(part, "wb", buffering=0) as file:
        file.write(OLD[:100])
        assert write(path).returncode == 0
        file.write(OLD[100:])
        assert path.read_bytes() == NEW
    assert path.read_bytes() == OLD and parts(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_where_nothing_may_be_written_old_parts_stay_and_an_error_names_the_file():
    code = """
import os, sys
sys.path.append(sys.argv[1])
from files import Path, remove_abandoned_parts, whole_file
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
path = Path(sys.argv[2])
remove_abandoned_parts(path)  # as loading does
with whole_file(path) as part:
    part.write_bytes(b"new")
"""
    with tempfile.TemporaryDirectory() as folder:  # that everybody may enter, as not tmp_path
        path = Path(folder, "model.npz")
        dead = path.with_name("model.npz.0123abcd.part")
        dead.touch()
        os.utime(dead, (0, 0))
        os.chmod(folder, 0o555)
        command = [sys.executable, "-c", code, os.path.dirname(qhelpers.files.__file__), path]
        ended = subprocess.run(command, capture_output=True, text=True)
        os.chmod(folder, 0o755)
        assert dead.exists()
    said = f"PermissionError: [Errno 13] could not write the file (Permission denied): '{path}'"
    assert ended.stderr.splitlines()[-1] == said


def test_an_error_that_is_not_the_system_s_stays_as_it_is(tmp_path):
    with pytest.raises(OSError, match="^the network is down$"), whole_file(tmp_path / "page"):
        raise OSError("the network is down")


AUDITED = """
import os, sys
written = []

def audit(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and isinstance(path, (str, bytes)):
            written.append(path)
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
        written.append(arguments[0])
    elif event in ("os.rename", "os.link", "os.symlink"):
        written.extend(arguments[:2])

sys.addaudithook(audit)
from qhelpers import VerySimpleNet, build_model, integer_model, load_data, quantize_model
from qhelpers import save_integer_model, train_or_load
images = load_data()
for _ in range(2):
    net = build_model(VerySimpleNet, 0)
    train_or_load(net, images, batch_size=60_000)
model = integer_model(quantize_model(net, [images.train_images[:100]]))
save_integer_model(model, "model.npz")
open(sys.argv[1], "w").close()
print(*(os.path.realpath(os.fsdecode(path)) for path in written if path != os.devnull), sep="\\n")
"""


@pytest.mark.slow
def test_nothing_is_written_outside_the_project_and_the_data(tmp_path):
    """Except caches and temporary files."""
    project, temporary, stray = (tmp_path.resolve() / n for n in ("project", "temporary", "stray"))
    (project / "notebooks").mkdir(parents=True)
    (project / "pyproject.toml").write_text('name = "qhelpers"\n')
    temporary.mkdir()
    names = ["TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR"]
    environment = os.environ | dict.fromkeys(names, str(temporary))
    environment |= {"QHELPERS_DATA": str(data.data_folder().resolve())}
    environment |= {"PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", AUDITED, stray]
    run = subprocess.run(command, cwd=project / "notebooks", env=environment, text=True,
                         stdout=subprocess.PIPE, check=True)  # fmt: skip
    paths = [Path(line) for line in run.stdout.splitlines() if os.path.isabs(line)]
    inside = {path.suffix for path in paths if path.is_relative_to(project)}
    assert {".pt", ".npz", ".part"} <= inside
    caches = [Path.home() / name for name in (".cache", "Library/Caches", "AppData/Local")]
    allowed = [project, temporary, data.data_folder().resolve(), *caches]
    outside = {path for path in paths if not any(path.is_relative_to(one) for one in allowed)}
    assert outside == {stray}  # what it finds, and nothing else


def write_integer_model(path):
    net = build_model(lambda: VerySimpleNet(4, 4), 0).eval()
    quantized = quantize_model(net, [torch.linspace(-1, 2, 784).reshape(1, 1, 28, 28)])
    save_integer_model(integer_model(quantized), path)


WRITERS = {
    "a checkpoint": lambda path: save_checkpoint(path, "the key", torch.nn.Linear(2, 2), [0.5]),
    "an integer model": write_integer_model,
    "a table": lambda path: tables.write_tables(path.parent, [path.stem]),
    "MNIST": lambda path: data.write_verified([b"new"], path, md5(b"new").hexdigest()),
    "a notebook, page or badge": lambda path: replace(path, "new"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_goes_through_whole_file(writer, tmp_path, monkeypatch):
    def full(part, path):
        assert Path(part).read_bytes() and Path(path).read_bytes() == b"old"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setitem(tables.TABLES, "made-up", (["row"], lambda data: [[1], [2]]))
    monkeypatch.setattr(tables, "load_data", lambda: None)
    path = tmp_path / "made-up.csv"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="could not write the file .No space left on device"):
        WRITERS[writer](path)
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
