"""Whether the reader of integer models survives damaged files: `python -m tests.fuzz`.

Each file of tests.fuzz_mutations is loaded, in one arithmetic after another, and computes the
logits of two images if it can be. A ValueError or OSError refuses it; else the logits must be
those of the valid file. Only where its checksum is right, too, may it be another model.

The files are read in workers, processes of their own. One that crashes or hangs is counted, and
the next worker goes on after it. Exits with 1 where a file did anything else than those, or where
too few got past the zip's own checks.
"""

import argparse
import collections
import importlib
import io
import json
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np

from qhelpers.integer.file import load_integer_model
from qhelpers.integer.requantize import ARITHMETICS
from tests.fuzz_mutations import KINDS, SEALED, SLOW, kind_of, write_models

ROOT = Path(__file__).parent.parent
COUNT = 10_000
CHUNK = 2000  # files for one worker
SECONDS = 5  # for one file
MOST_MEMORY = 2**29  # bytes more than a worker has at first
LIMIT = 12 * 2**30  # bytes of addresses, so that a file that asks for all memory doesn't get it
FEWEST_PAST_ZIP = 0.1  # of all files
READER = "qhelpers.integer.file:load_integer_model"
VERDICTS = {
    "refused": "a ValueError or OSError when it is loaded",
    "misfit": "loaded, and a ValueError for images of this shape",
    "same": "the logits of the valid file",
    "other": "the logits of another model; its checksum is right",
    "unnoticed": "the logits of another model, and its checksum isn't right",
    "error": "any other exception",
    "memory": "over half a gigabyte, or refused only because there was no memory",
    "hang": f"more than {SECONDS} seconds",
    "crash": "the process ended",
}
GOOD, BAD = [*VERDICTS][:4], [*VERDICTS][4:]
IMAGES = np.random.default_rng(1).normal(size=(2, 1, 28, 28)).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="how many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        first, last, reader, seconds = options.worker
        work(options.seed, range(int(first), int(last)), reader, float(seconds))
        return
    started = time.perf_counter()
    rows = run(options.seed, options.count)
    print(table(rows))
    print(f"seed {options.seed}, {time.perf_counter() - started:.0f} seconds")
    wrong = faults(rows)
    print("\n".join(wrong) or "no file did harm")
    sys.exit(1 if wrong else 0)


def run(seed, count, reader=READER, seconds=SECONDS):
    """Return a dict for each file: its index, kind, verdict, what was said, whether it got past
    the zip's checks, and the memory it took."""
    rows = []
    while len(rows) < count:
        first, last = len(rows), min(count, len(rows) + CHUNK)
        worker = ["--worker", str(first), str(last), reader, str(seconds)]
        ended = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--seed", str(seed), *worker],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        ready, *lines = ended.stdout.splitlines() or [""]
        if ready != "ready":
            raise RuntimeError(f"the worker for the files from {first} on didn't start")
        rows += map(json.loads, lines)
        if len(rows) < last and not (lines and rows[-1]["verdict"] == "memory"):
            verdict = "hang" if ended.returncode == -signal.SIGALRM else "crash"
            said = f"the process ended with the code {ended.returncode}"
            rows.append({"verdict": verdict, "said": said, "past": False, "memory": 0})
    return [{"index": n, "kind": kind_of(n)} | row for n, row in enumerate(rows)]


def work(seed, indices, reader, seconds):
    """Read the files, and print a line of JSON for each as soon as it has its verdict."""
    module, _, name = reader.partition(":")
    load = getattr(importlib.import_module(module), name)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process, in C code too
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_models(Path(folder))
        valid = [path.read_bytes() for path in paths]
        expected = {
            (number, arithmetic): load_integer_model(path, arithmetic)(IMAGES)
            for number, path in enumerate(paths)
            for arithmetic in ARITHMETICS
        }
        base = peak_memory()  # with what the libraries take once
        print("ready", flush=True)
        for index in indices:
            rng = random.Random(f"{seed} {index}")
            kind, number = kind_of(index), rng.randrange(len(valid))
            content = KINDS[kind](rng, valid[number])
            path = Path(folder) / f"{index}.npz"
            path.write_bytes(content)
            arithmetic = rng.choice([*ARITHMETICS])
            before = peak_memory()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            logits = expected[number, arithmetic]
            verdict, said = read(load, path, arithmetic, logits, kind in SEALED)
            signal.setitimer(signal.ITIMER_REAL, 0)
            path.unlink()
            memory = peak_memory() - base if peak_memory() > before else 0
            if memory > MOST_MEMORY:
                verdict, said = "memory", f"{memory / 1e6:,.0f} MB"
            past = kind not in SLOW and passes_zip(content)
            row = {"verdict": verdict, "said": said, "past": past, "memory": memory}
            print(json.dumps(row), flush=True)
            if verdict == "memory":  # the next peaks would be hidden below this one
                return


def read(load, path, arithmetic, expected, sealed):
    """Return the verdict on a file, and what an error said."""
    try:
        model = load(path, arithmetic)
    except (ValueError, OSError) as error:
        lacks = isinstance(error.__cause__, MemoryError)
        return ("memory" if lacks else "refused"), str(error)[:500]
    except Exception:
        return "error", traceback.format_exc()[-500:]
    try:
        with np.errstate(invalid="raise", over="ignore", divide="ignore"):
            logits = model(IMAGES)
    except ValueError as error:
        return "misfit", str(error)[:500]
    except Exception:
        return "error", traceback.format_exc()[-500:]
    if np.array_equal(logits, expected):
        return "same", ""
    return ("other" if sealed else "unnoticed"), ""


def passes_zip(content):
    """Whether this is a zip whose members can all be read, with the CRCs that it states."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return bool(archive.namelist()) and archive.testzip() is None
    except Exception:  # zipfile raises many
        return False


def peak_memory():
    """Return the most bytes that this process has had in memory."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage counts what the parent had, too
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(rows):
    """Return the counts as text: a line for each kind, and what the columns mean."""
    columns = ["files", "past zip", *VERDICTS]
    by_kind = collections.defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row)
    lines = [f"{'':<19}" + "".join(f"{name:>10}" for name in columns) + f"{'peak MB':>9}"]
    for kind, those in [*by_kind.items(), ("all", rows)]:
        counts = collections.Counter(row["verdict"] for row in those)
        numbers = [len(those), sum(row["past"] for row in those), *map(counts.get, VERDICTS)]
        peak = max(row["memory"] for row in those)
        cells = "".join(f"{number or 0:>10,}" for number in numbers)
        lines.append(f"{kind:<19}{cells}{peak / 1e6:>9,.0f}")
    meanings = [f"{name}: {meaning}" for name, meaning in VERDICTS.items()]
    return "\n".join([*lines, "", *meanings])


def faults(rows):
    """Return what is wrong, a line each: files that did harm, or too few that tested much."""
    found = [f"file {row['index']} ({row['kind']}): {row['verdict']}: {row['said']}"
             for row in rows if row["verdict"] in BAD]  # fmt: skip
    past = sum(row["past"] for row in rows)
    if past < FEWEST_PAST_ZIP * len(rows):
        found.append(f"{past:,} of {len(rows):,} files got past the zip's checks; at least "
                     f"{FEWEST_PAST_ZIP:.0%} must")  # fmt: skip
    return found


if __name__ == "__main__":
    main()
