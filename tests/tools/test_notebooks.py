"""tools/notebooks.py: what `make run` and `make refresh` write, leave alone, and report."""

import os
import re
import shutil
import signal
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.files import ROOT
from tools.notebooks import KERNEL_ENVIRONMENT, code_cells

README = """
| [Good](notebooks/01_good.ipynb) | what is good | 1 s |
| [Bad](notebooks/02_bad.ipynb) | what is bad | 2 s |
"""


@pytest.fixture
def project(tmp_path):
    """A project with the real tools and two small notebooks; the second raises."""
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "README.md").write_text(README)
    write(tmp_path, "01_good", "import os\nprint(os.environ['TQDM_DISABLE'])", "6 * 7")
    write(tmp_path, "02_bad", "print('before')", "number = 0\n1 / number", "print('after')")
    return tmp_path


def write(project, stem, *sources):
    cells = [new_markdown_cell("# Title"), *map(new_code_cell, sources)]
    cells[1].metadata["execution"] = {"when": "yesterday"}
    cells[1].metadata["tags"] = ["timing"]
    notebook = new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "mine", "display_name": "Mine"}}
    )
    nbformat.write(notebook, project / "notebooks" / f"{stem}.ipynb")


def run(project, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tools.notebooks", *arguments],
        cwd=project, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_run_builds_pages_reports_the_error_and_leaves_the_notebooks_alone(project):
    before = files(project / "notebooks")
    done = run(project, "run")
    assert done.returncode == 1
    *_, good, bad, where = done.stdout.splitlines()
    assert good.split()[0::3] == ["01_good.ipynb", "ok"] and good.split()[1] == "2"
    assert bad.split()[0::3] == ["02_bad.ipynb", "failed"] and bad.split()[1] == "3"
    for part in ("02_bad.ipynb: code cell 2 raised", "number = 0\n1 / number", "ZeroDivisionError"):
        assert part in done.stderr
    assert files(project / "notebooks") == before
    assert where == "The pages are at build/site/index.html."
    assert (project / "build" / "site" / "02_bad.html").exists()
    assert {path.name for path in (project / "build").iterdir()} == {
        "01_good.ipynb", "02_bad.ipynb", "site"
    }  # fmt: skip
    executed = nbformat.read(project / "build" / "01_good.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "1\n"
    assert "42" in (project / "build" / "site" / "01_good.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_has_all_notebooks_that_were_run_before(project):
    run(project, "run", "02")
    assert pages(project) == ["02_bad"]
    run(project, "run", "01")
    assert pages(project) == ["01_good", "02_bad"]


def pages(project):
    return sorted(path.stem for path in (project / "build" / "site").glob("0*.html"))


DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


@pytest.mark.slow
def test_a_user_s_own_settings_change_no_figure(project, tmp_path):
    write(project, "01_good", DRAW)
    settings = tmp_path / "ipython" / "profile_default" / "ipython_kernel_config.py"
    settings.parent.mkdir(parents=True)
    settings.write_text("c.InlineBackend.figure_formats = {'svg'}")
    done = run(project, "run", "01", MPLBACKEND="Agg", IPYTHONDIR=str(tmp_path / "ipython"))
    assert done.returncode == 0, done.stderr
    (cell,) = code_cells(nbformat.read(project / "build" / "01_good.ipynb", as_version=4))
    assert [set(output.data) for output in cell.outputs] == [{"image/png", "text/plain"}]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize("command", ["run", "refresh"])
def test_ctrl_c_says_one_line_and_leaves_nothing(project, command):
    """Every kernel writes its number, and then waits for longer than anybody would."""
    wait = "import os, time\nopen(f'../{os.getpid()}.pid', 'w')\ntime.sleep(10_000)"
    write(project, "01_good", wait)
    write(project, "02_bad", wait)
    before = files(project / "notebooks")
    running = subprocess.Popen(
        [sys.executable, "-m", "tools.notebooks", command],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    kernels = []
    while len(kernels) < (2 if command == "run" else 1):
        assert running.poll() is None, running.communicate()
        kernels = [int(path.stem) for path in project.glob("*.pid")]
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert (running.returncode, out) == (130, "")
    said = [line for line in re.split("[\r\n]+", err) if line and "cell/s" not in line]
    assert said == ["Stopped."]
    for kernel in kernels:
        with pytest.raises(ProcessLookupError):
            os.kill(kernel, 0)
    assert files(project / "notebooks") == before
    assert not (project / "build").exists()


@pytest.mark.slow
def test_refresh_writes_in_place_and_a_second_time_changes_no_byte(project):
    done = run(project, "refresh", "01")
    assert done.returncode == 0, done.stderr
    once = files(project / "notebooks")
    notebook = nbformat.reads(once["01_good.ipynb"].decode(), as_version=4)
    assert notebook.cells[1].metadata == {"tags": ["timing"]}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[2].outputs[0].data["text/plain"] == "42"
    assert run(project, "refresh", "01").returncode == 0
    assert files(project / "notebooks") == once
    assert not (project / "build").exists()


@pytest.mark.slow
def test_refresh_keeps_a_notebook_that_raises(project):
    before = files(project / "notebooks")
    assert run(project, "refresh", "02").returncode == 1
    assert files(project / "notebooks") == before


@pytest.mark.slow
def test_no_such_notebook(project):
    done = run(project, "run", "7")
    assert done.returncode == 1 and "begins with '7'" in done.stderr


def test_the_kernels_of_nbval_inherit_the_same_environment():
    fixed = KERNEL_ENVIRONMENT.items() - {("OMP_NUM_THREADS", "1")}  # tests may set another
    assert fixed <= os.environ.items()
