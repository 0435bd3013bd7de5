"""Kill what writes files, at every step and at random moments; count what is lost or half there.

Run as `python -m tests.kills`. A process is killed by SIGKILL, or its disk is full, before, in the
middle of and after every write and rename; then processes are killed at moments drawn from a
seed. Each time all files must be whole, old or new, and the next run must end as if nothing had
been. It needs `fork`, which Windows lacks. OMP_NUM_THREADS=1 is set here before NumPy and torch
are imported: a copy of a process has none of its threads.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["TQDM_DISABLE"] = "1"

import contextlib  # noqa: E402
import hashlib  # noqa: E402
import itertools  # noqa: E402
import multiprocessing  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402

import nbformat  # noqa: E402
import torch  # noqa: E402
from nbformat.v4 import new_code_cell, new_notebook  # noqa: E402

from qhelpers import VerySimpleNet, build_model, data, train_or_load  # noqa: E402
from tests.faults import disk_full, faults, kill  # noqa: E402
from tests.mirror import Server, settings, write_mirror  # noqa: E402
from tests.writers import ROOT, WRITERS, contents, parts  # noqa: E402

KILLS = 10  # at random moments, of each kind of work
KILLS_OF_RUN = 3  # of `make run`, which takes longer
IMAGES = 10_000  # in the made-up MNIST, whose files are as long as a sixth of MNIST's
PAUSE = 0.003  # seconds, after each 64 kB that the server sends
LONGEST = 120  # seconds that a process may take
MOMENTS = random.Random(0)
REWRITTEN = [name for name in WRITERS if name not in ("a download", "unpacking")]
CELLS = """
from qhelpers import VerySimpleNet, build_model, train_or_load
from qhelpers.data import load_digits
_ = train_or_load(build_model(VerySimpleNet, 0), load_digits(), batch_size=20_000)
"""


@dataclass
class Row:
    """One line of the table: `bad` says what was lost or half there, `failed` how runs ended."""

    what: str
    how: str
    times: int = 0
    parts: int = 0
    bad: list = field(default_factory=list)
    failed: list = field(default_factory=list)

    def expect_whole(self, folder, *allowed):
        """Note each file that has other content than in one of the allowed states."""
        found = contents(folder)
        for path in sorted({*found}.union(*allowed)):
            if found.get(path) not in [state.get(path) for state in allowed]:
                self.bad.append(f"{path} at number {self.times}")

    def expect_same(self, result, expected):
        if result != expected:
            self.failed.append(f"{result!r}, not {expected!r}, at number {self.times}")


def fork(function, *arguments):
    """Start the function in a copy of this process, which says nothing; give the process."""
    process = multiprocessing.get_context("fork").Process(
        target=quiet, args=(function, *arguments), daemon=True
    )
    process.start()
    return process


def quiet(function, *arguments):
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    warnings.simplefilter("error", UserWarning)  # a file that is refused was half there
    function(*arguments)


def code_of(process):
    """Wait for the process; return its exit code, or None where it hangs."""
    process.join(LONGEST)
    return process.exitcode


def result_of(function, *arguments):
    """Return what the function returns in a process of its own, or how that ended."""
    there, here = multiprocessing.Pipe(duplex=False)
    process = fork(lambda: here.send(function(*arguments)))
    code = code_of(process)
    return there.recv() if there.poll() else f"exit code {code}"


def killed_at_random(start, seconds, code_of=code_of):
    """Start processes until one is killed before it ends by itself, at a moment until `seconds`."""
    while True:
        process = start()
        time.sleep(MOMENTS.uniform(0, seconds))
        process.kill()
        if code_of(process) == -signal.SIGKILL:
            return


def at_every_step(name, folder, fault):
    """Let a writer go through all its steps; at each, kill it or let the disk be full."""
    write = WRITERS[name]
    row = Row(name, "killed at every step" if fault is kill else "disk full at every step")
    folder.mkdir(parents=True)
    write(folder, 0)
    old = contents(folder)
    with faults(folder) as counted:
        write(folder, 1)
    new = contents(folder)
    for first in range(counted.count):
        if contents(folder) != old:
            write(folder, 0)
        row.times += 1
        if fault is kill:
            code = code_of(fork(write_with_fault, write, folder, first, kill))
            row.expect_same(code, -signal.SIGKILL)
        else:
            write_with_fault(write, folder, first, fault)
        row.expect_whole(folder, old, new)
        write(folder, 1)
        row.expect_whole(folder, new)
    expect_parts_to_go(row, folder, write)
    return row


def write_with_fault(write, folder, first, fault):
    with contextlib.suppress(OSError), faults(folder, first, fault):
        write(folder, 1)


def expect_parts_to_go(row, folder, write):
    """Count the parts, and let the next write come when they are old."""
    row.parts = len(parts(folder))
    for part in parts(folder):
        os.utime(part, (0, 0))
    for version in (0, 1):
        write(folder, version)
    row.expect_same([part.name for part in parts(folder)], [])


def while_it_rewrites(name, folder):
    """Let a process write two versions in turn for ever, and kill it."""
    write, row = WRITERS[name], Row(name, "killed at random")
    folder.mkdir(parents=True)
    states = []
    for version in (0, 1):
        write(folder, version)
        states.append(contents(folder))
    for row.times in range(1, KILLS + 1):
        killed_at_random(lambda: fork(rewrite_for_ever, write, folder), 0.3)
        row.expect_whole(folder, *states)
        write(folder, 1)
        row.expect_whole(folder, states[1])
    expect_parts_to_go(row, folder, write)
    return row


def rewrite_for_ever(write, folder):
    for version in itertools.cycle([0, 1]):
        write(folder, version)


def during(what, function, folder, prepare):
    """Kill a process that calls function(an empty folder), and let the next one call it again."""
    row = Row(what, "killed at random")
    started = time.perf_counter()
    expected = result_of(function, prepare(folder / "undisturbed"))
    seconds = time.perf_counter() - started
    whole = contents(folder / "undisturbed")
    before = contents(prepare(folder / "before"))
    for row.times in range(1, KILLS + 1):
        place = folder / str(row.times)

        def start(place=place):
            shutil.rmtree(place, ignore_errors=True)
            return fork(function, prepare(place))

        killed_at_random(start, seconds)
        row.expect_whole(place, before, whole)
        row.parts += len(parts(place))
        row.expect_same(result_of(function, place), expected)
        row.expect_whole(place, whole)
    return row


def empty(folder):
    folder.mkdir(parents=True)
    return folder


def training(folder, digits):
    """Train in a project in this folder; return all that comes out."""
    os.chdir(folder)
    model = build_model(VerySimpleNet, 0)
    history = train_or_load(model, digits, batch_size=6000)
    return history, sum_of(*model.state_dict().values())


def mnist(folder):
    os.environ["QHELPERS_DATA"] = str(folder)
    loaded = data.load_mnist()
    return sum_of(loaded.train_images, loaded.train_labels, loaded.test_images, loaded.test_labels)


def sum_of(*tensors):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def running_notebooks(folder):
    """Kill `make run` in a small project, and let the next one come."""
    row = Row("make run", "killed at random")
    make_project(folder)
    started = time.perf_counter()
    row.expect_same(code_of_command(run_notebooks(folder)), 0)
    seconds = time.perf_counter() - started
    expected = outputs(folder)
    for row.times in range(1, KILLS_OF_RUN + 1):

        def start():
            shutil.rmtree(folder / "build", ignore_errors=True)
            return run_notebooks(folder)

        killed_at_random(start, seconds, code_of_command)
        row.expect_same(outputs(folder) | expected, expected)
        row.parts += len(parts(folder))
        row.expect_same(code_of_command(run_notebooks(folder)), 0)
        row.expect_same(outputs(folder), expected)
    return row


def make_project(folder):
    (folder / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "tools", folder / "tools")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, source in (("01_training", CELLS), ("02_none", "6 * 7")):
        notebook = new_notebook(cells=[new_code_cell(source)])
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


def run_notebooks(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "tools.notebooks", "run"],
        cwd=folder, env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def code_of_command(process):
    return process.wait(LONGEST)


def outputs(folder):
    """What the files in build/ hold, by name, but for the times in notebooks."""
    found = {}
    for name, content in contents(folder / "build").items():
        if name.endswith(".ipynb"):
            with contextlib.suppress(ValueError):
                cells = nbformat.reads(content.decode(), as_version=4).cells
                content = [(cell.source, cell.outputs) for cell in cells]
        elif name.endswith(".html"):
            content = content.endswith(b"</html>\n")
        found[name] = content
    return found


def rows(folder):
    """Do everything below this folder; yield the table's rows."""
    sums = write_mirror(folder / "mirror", IMAGES)
    server = Server(folder / "mirror", PAUSE)
    for setting in settings(server.address, *sums):
        setattr(*setting)
    fork(server.serve_forever)
    for fault in (kill, disk_full):
        for name in WRITERS:
            yield at_every_step(name, folder / fault.__name__ / name, fault)
    for name in REWRITTEN:
        yield while_it_rewrites(name, folder / "random" / name)
    digits = data.load_digits()
    yield during("training", lambda place: training(place, digits), folder / "training", empty)
    yield during("download of MNIST", mnist, folder / "download", empty)

    def downloaded(place):
        shutil.copytree(folder / "mirror", place / "MNIST" / "raw")
        return place

    yield during("unpacking of MNIST", mnist, folder / "unpack", downloaded)
    yield running_notebooks(folder / "run")


def main():
    if not hasattr(os, "fork"):
        sys.exit("tests.kills needs os.fork, which this system doesn't have.")
    torch.set_num_threads(1)
    print(f"{'interrupted':<20}{'how':<25}{'times':>6}{'lost or half':>14}{'next run failed':>17}"
          f"{'parts left':>12}")  # fmt: skip
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder)):
            done.append(row)
            print(f"{row.what:<20}{row.how:<25}{row.times:>6}{len(row.bad):>14}"
                  f"{len(row.failed):>17}{row.parts:>12}", flush=True)  # fmt: skip
    print(f"{'':<20}{'all':<25}{sum(row.times for row in done):>6}"
          f"{sum(len(row.bad) for row in done):>14}{sum(len(row.failed) for row in done):>17}"
          f"{sum(row.parts for row in done):>12}")  # fmt: skip
    wrong = [f"{row.what}, {row.how}: {text}" for row in done for text in row.bad + row.failed]
    if wrong:
        sys.exit("\n".join(["", *wrong]))


if __name__ == "__main__":
    main()
