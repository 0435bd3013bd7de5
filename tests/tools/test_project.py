"""The files around the code: versions that agree, badges, the set-up cell, make, and CI's file."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import noxfile
import tools.badges as badges
from qhelpers.torch_ao import KNOWN_WARNINGS
from tools.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*map(Requirement, PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["deploy"])]


def pins():
    """The versions in constraints.txt, by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for requirement in requirements:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"not exact: {requirement}"
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in requirements}


def test_every_range_admits_its_pin():
    for requirement in REQUIREMENTS:
        pin = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement}, pinned {pin}"


PLATFORMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
]


def requirements_of(name):
    """The names of what a package requires on some platform, where it is installed here."""
    try:
        requirements = map(Requirement, importlib.metadata.requires(name) or [])
    except importlib.metadata.PackageNotFoundError:  # needed on another platform only
        return
    for needed in requirements:
        environments = [platform | {"extra": ""} for platform in PLATFORMS]
        if needed.marker is None or any(map(needed.marker.evaluate, environments)):
            yield canonicalize_name(needed.name)


@pytest.mark.slow
def test_every_package_that_is_needed_is_pinned():
    """Follows the requirements of the requirements, except PyTorch's own CUDA libraries."""
    waiting, seen = {canonicalize_name(needed.name) for needed in REQUIREMENTS}, set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if not re.match("nvidia|cuda|triton", name):
            assert name in pins(), f"{name} is needed and not in constraints.txt"
            waiting |= set(requirements_of(name)) - seen


def test_conda_builds_the_pinned_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, with_pip = environment["dependencies"]
    assert with_pip["pip"] == [
        "--extra-index-url https://download.pytorch.org/whl/cpu",
        "--constraint constraints.txt",
        "--editable .[dev,deploy]",
    ]
    assert [entry.partition("=")[0] for entry in conda] == ["python", "pip"]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        conda[0].partition("=")[2]
    )


def test_ci_runs_the_oldest_torch_that_is_admitted():
    for requirements in (PROJECT["dependencies"], EXTRAS["deploy"]):
        lowest = [pin.removesuffix(".*").replace("==", ">=")
                  for pin in noxfile.oldest_torch(requirements)]  # fmt: skip
        assert [Requirement(one).name for one in lowest] == ["torch", "torchvision"]
        assert {*lowest} <= {*requirements}
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    sessions = workflow["jobs"]["torch"]["strategy"]["matrix"]["torch"]
    assert {"oldest", "oldest_deploy"} <= {*sessions} and all(
        callable(getattr(noxfile, name)) for name in sessions
    )


@pytest.mark.slow
def test_the_workflows_fit_github_s_schema():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    run = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows",
         *workflows],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_public_names_are_there():
    import qhelpers

    assert sorted(qhelpers.__all__) == qhelpers.__all__
    assert all(callable(getattr(qhelpers, name)) for name in qhelpers.__all__)


def test_the_tests_ignore_the_warnings_that_the_notebooks_hide_and_no_others():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    filters = tomllib.loads(text)["tool"]["pytest"]["ini_options"]["filterwarnings"]
    assert filters == ["error", *(f"ignore:{message}" for message in KNOWN_WARNINGS)]


@pytest.mark.slow
@pytest.mark.parametrize("code, imported", [("qhelpers", []), ("requests", ["requests"])])
def test_importing_the_course_leaves_slow_packages_until_they_are_used(code, imported):
    slow = "{'matplotlib', 'onnx', 'onnxruntime', 'requests', 'sklearn', 'torchao', 'torchvision'}"
    asked = f"import sys, {code}; print(sorted({slow} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert run.stdout == f"{imported}\n"


@pytest.fixture
def copy(tmp_path):
    """A copy of the project's files that name its address."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks",
                    ignore=shutil.ignore_patterns(".*"))  # fmt: skip
    return tmp_path


def contents(folder):
    return {path: path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}


def test_badges_move_to_a_fork_and_back(copy):
    before = contents(copy)
    home = badges.place(copy)
    changed = list(badges.changed_files(copy, "some-one/fork.of-it", "wip/new"))
    assert len(changed) == len(before)  # every file names the address
    assert badges.place(copy) == ("some-one/fork.of-it", "wip/new")
    for text in contents(copy).values():
        assert home[0] not in text
    binder = "mybinder.org/v2/gh/some-one/fork.of-it/wip%2Fnew?urlpath="
    assert binder in contents(copy)[copy / "README.md"]
    hub = "git-pull?repo=https://github.com/some-one/fork.of-it&branch=wip/new&targetpath="
    assert hub in contents(copy)[copy / "README.md"]
    assert "https://github.com/hkproj/quantization-notes" in contents(copy)[copy / "README.md"]
    assert list(badges.changed_files(copy, "some-one/fork.of-it", "wip/new")) == []
    list(badges.changed_files(copy, *home))
    assert contents(copy) == before


def set_up_cell():
    first = nbformat.read(next((ROOT / "notebooks").glob("01*.ipynb")), as_version=4)
    return next(cell.source for cell in first.cells if cell.cell_type == "code")


def run_set_up():
    """Run the set-up cell; return the magics that it called, with their arguments."""
    called = []
    shell = SimpleNamespace(run_line_magic=lambda *call: called.append(call))
    exec(TransformerManager().transform_cell(set_up_cell()), {"get_ipython": lambda: shell})
    return called


def test_set_up_does_nothing_where_the_course_is_installed():
    assert run_set_up() == []


def test_set_up_installs_the_course_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "qhelpers", None)  # to import it raises ImportError
    repo, branch = badges.place(ROOT)
    assert run_set_up() == [("pip", f'install --quiet "git+https://github.com/{repo}@{branch}"')]


def test_set_up_can_leave_newer_packages_as_they_are():
    for requirement in map(Requirement, PROJECT["dependencies"] + EXTRAS["deploy"]):
        assert [bound.operator for bound in requirement.specifier] == [">="], requirement


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def make(folder, *arguments):
    """Run make as from a shell, not as a part of `make test`; return its code and all it said."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    run = subprocess.run(
        ["make", *arguments],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return run.returncode, run.stdout


@needs_make
def test_make_refuses_what_it_does_not_know():
    code, said = make(ROOT, "-n", "test", "NB=77")
    assert code != 0 and "77" in said
    assert "tools/environment.py gpu" in make(ROOT, "-n", "setup", "TORCH=gpu")[1]
