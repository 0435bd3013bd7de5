"""tools/notebooks.py: what `make run` and `make refresh` write, leave alone, and report."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path):
    """A project with the real tool and two small notebooks, of which the second raises."""
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
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


def run(project, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.notebooks", *arguments],
        cwd=project, capture_output=True, text=True,
    )  # fmt: skip


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_run_builds_pages_reports_the_error_and_leaves_the_notebooks_alone(project):
    before = files(project / "notebooks")
    done = run(project, "run")
    assert done.returncode == 1
    *_, good, bad = done.stdout.splitlines()
    assert good.split()[0::3] == ["01_good.ipynb", "ok"] and good.split()[1] == "2"
    assert bad.split()[0::3] == ["02_bad.ipynb", "failed"] and bad.split()[1] == "3"
    for part in ("02_bad.ipynb: code cell 2 raised", "number = 0\n1 / number", "ZeroDivisionError"):
        assert part in done.stderr
    assert files(project / "notebooks") == before
    assert set(files(project / "build")) == {
        f"{stem}.{suffix}" for stem in ("01_good", "02_bad") for suffix in ("ipynb", "html")
    } | {"index.html"}
    executed = nbformat.read(project / "build" / "01_good.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].text == "1\n"
    assert "42" in (project / "build" / "01_good.html").read_text(encoding="utf-8")


def test_the_index_has_all_notebooks_that_were_run_before(project):
    run(project, "run", "02")
    assert links(project) == ["02_bad.html"]
    run(project, "run", "01")
    assert links(project) == ["01_good.html", "02_bad.html"]
    assert 'href="01_good.html"' in (project / "build" / "02_bad.html").read_text(encoding="utf-8")


def links(project):
    index = (project / "build" / "index.html").read_text(encoding="utf-8")
    return re.findall(r'href="(\w+\.html)"', index)


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


def test_refresh_keeps_a_notebook_that_raises(project):
    before = files(project / "notebooks")
    assert run(project, "refresh", "02").returncode == 1
    assert files(project / "notebooks") == before


def test_no_such_notebook(project):
    done = run(project, "run", "7")
    assert done.returncode == 1 and "begins with '7'" in done.stderr
