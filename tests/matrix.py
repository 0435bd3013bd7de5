"""All tests in other settings: other instructions of the CPU, other threads, other PyTorch.

Run as `python -m tests.matrix` (or `make test-matrix`), with the names of settings for some of
them. Each takes as long as `make test`. The output of each goes to build/matrix, and a table to
the screen. Settings that this machine doesn't have are printed with the reason.
"""

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

from tools.notebooks import BUILD, ROOT

FOLDER = BUILD / "matrix"


@dataclass
class Setting:
    """environment: variables. python: a command, or this one's. packages: of an own environment."""

    environment: dict = field(default_factory=dict)
    python: str = sys.executable
    packages: tuple = ()


SETTINGS = {
    "as it is": Setting(),
    "1 thread": Setting({"OMP_NUM_THREADS": "1"}),
    "2 threads": Setting({"OMP_NUM_THREADS": "2"}),
    "no vector instructions": Setting({"ATEN_CPU_CAPABILITY": "default"}),
    "AVX2": Setting({"ATEN_CPU_CAPABILITY": "avx2"}),
    "AVX2 in fbgemm and oneDNN": Setting(
        {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    ),
    "oldest torch": Setting(packages=("torch==2.12.*", "torchvision==0.27.*")),
    "newest torch": Setting(packages=("torch", "torchvision")),
    "Python 3.12": Setting(python="python3.12", packages=("-c", "constraints.txt")),
    "Python 3.13": Setting(python="python3.13", packages=("-c", "constraints.txt")),
    "Python 3.14": Setting(python="python3.14", packages=("-c", "constraints.txt")),
}


def main():
    names = sys.argv[1:] or list(SETTINGS)
    for name in set(names) - set(SETTINGS):
        sys.exit(f"There is no setting {name!r}; there are {', '.join(SETTINGS)}.")
    print(
        f"{'setting':<27}{'passed':>7}{'failed':>7}{'skipped':>8}{'cells compared':>16}{'min':>6}"
    )
    failed = False
    for name in names:
        started = time.perf_counter()
        counts, reason = run(name, SETTINGS[name])
        minutes = (time.perf_counter() - started) / 60
        if counts is None:
            print(f"{name:<27}not run: {reason}", flush=True)
            continue
        cells = f"{counts['compared']} of {counts['cells']}"
        numbers = f"{counts['passed']:>7}{counts['failed']:>7}{counts['skipped']:>8}{cells:>16}"
        print(f"{name:<27}{numbers}{minutes:>6.1f}", flush=True)
        failed |= counts["failed"] > 0
    sys.exit(failed)


def run(name, setting):
    """Run the tests in a setting; return the counts, or None and why it was not possible."""
    if not runs(setting.python):
        return None, f"there is no {setting.python} here"
    folder = FOLDER / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = setting.python
    if setting.packages:
        python, reason = make_environment(folder / "environment", setting)
        if python is None:
            return None, reason
    report = folder / "report.xml"
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
    with open(folder / "output.txt", "w", encoding="utf-8") as output:
        subprocess.run(
            command, cwd=ROOT, env=os.environ | setting.environment, stdout=output, stderr=output
        )
    if not report.exists():
        return dict(passed=0, failed=1, skipped=0, compared=0, cells=0), None
    return counts_of(ElementTree.parse(report)), None


def runs(python):
    """Whether the command starts a Python. That there is a file of the name doesn't tell."""
    try:
        return subprocess.run([python, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def make_environment(folder, setting):
    """Return the Python of a new environment with these packages, or None and why not."""
    subprocess.run([setting.python, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", *setting.packages, "-e", ".[dev,deploy]"]
    done = subprocess.run(install, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1]
    return python, None


def counts_of(report):
    """The counts of a JUnit report: tests, and cells of notebooks that print something."""
    cases = list(report.iter("testcase"))
    kinds = [{child.tag for child in case} for case in cases]
    failed = sum(bool(kind & {"failure", "error"}) for kind in kinds)
    skipped = sum("skipped" in kind for kind in kinds)
    cells = [
        one.get("value") for one in report.iter("property") if one.get("name") == "notebook cell"
    ]
    return {
        "passed": len(cases) - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "compared": cells.count("compared"),
        "cells": len(cells),
    }


if __name__ == "__main__":
    main()
