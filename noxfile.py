"""The tests in other settings: `nox --list` names them, `nox -s oldest` runs them in one.

What stands behind `--` goes to pytest: `nox -s oldest -- -m "not slow"`. Settings that are
variables take the environment that nox is in; each of the others makes its own, and deletes it.
"""

import re
import shutil
import sys
import tomllib
from pathlib import Path

import nox

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPLOY = PROJECT["optional-dependencies"]["deploy"]
ALL = ["-e", ".[dev,deploy]"]
VARIABLES = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "no-vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2-engines": {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "1-thread": {"OMP_NUM_THREADS": "1"},
    "2-threads": {"OMP_NUM_THREADS": "2"},
}


@nox.session(venv_backend="none")
@nox.parametrize("name", [*VARIABLES], ids=[*VARIABLES])
def variables(session, name):
    """The environment as it is, with other instructions or threads."""
    session.run(sys.executable, "-m", "pytest", *session.posargs, env=VARIABLES[name])


@nox.session
def oldest(session):
    """The oldest torch that pyproject.toml admits."""
    pins = [f"{name}=={version}.*" for name, version in oldest_torch(PROJECT["dependencies"])]
    # Notebook 6 is skipped where its packages need a newer one.
    test(session, *pins, "-e", ".[dev]" if oldest_torch(DEPLOY) else ".[dev,deploy]")


@nox.session
def newest(session):
    """The newest torch there is, whatever the ranges say."""
    test(session, *ALL, then=["--upgrade", "torch", "torchvision"])


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def python(session):
    """Another Python, with the pinned versions."""
    test(session, "-c", "constraints.txt", *ALL)


def oldest_torch(requirements):
    """Return the names and lowest versions of torch and torchvision among the requirements."""
    return re.findall(r"^(torch|torchvision)>=([0-9.]+)", "\n".join(requirements), re.MULTILINE)


def test(session, *packages, then=()):
    try:
        session.install(*packages)
        if then:
            session.install(*then)
        session.run("python", "-m", "pytest", *session.posargs)
    finally:
        shutil.rmtree(session.virtualenv.location)
