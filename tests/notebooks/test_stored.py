"""What nbval passes over: cells that were never run, figures, paths, badges, and what all share."""

import copy
import re

import nbformat
import pytest

from tests.nbval_compare import ink
from tools.badges import FORMS, pattern, place, written
from tools.files import ROOT
from tools.notebooks import code_cells, describe_figures, figures_of

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# An absolute path of somebody's machine, or a package's file in it.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|Users|root|tmp|work|opt|usr|private|mnt)/|[A-Z]:\\|site-packages"
)
MOST_BYTES = 1_500_000


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def faults(notebook):
    """What is wrong with the stored outputs, a line each."""
    cells = code_cells(notebook)
    found = []
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        found.append(f"the cells were not run in order, each once: {counts}")
    for number, cell in enumerate(cells, 1):
        figures = figures_of(cell)
        if ("plt.show()" in cell.source) != bool(figures):
            found.append(f"In [{number}] calls plt.show() and has no figure, or the reverse")
        for figure in figures:
            if ink(figure.data["image/png"]) == 0:
                found.append(f"In [{number}] has a blank figure")
            if len(figure.metadata.get("image/png", {}).get("alt", "")) < 40:
                found.append(f"In [{number}] has a figure without alternative text")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"In [{number}] holds an error: {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"In [{number}] wrote to stderr: {output.text!r}")
            text = output.get("text", "") or str(output.get("data", {}).get("text/plain", ""))
            if MACHINE_PATH.search(text):
                found.append(f"In [{number}] shows a path of a machine: {text!r}")
    return found


def test_there_are_notebooks():
    assert [path.stem[:2] for path in PATHS] == [f"{number:02}" for number in range(1, 10)]


def test_stored_outputs_are_whole(notebook):
    assert faults(notebook) == []


def test_alternative_text_is_the_text_below_the_figure(notebook):
    again = copy.deepcopy(notebook)
    describe_figures(again)
    assert again == notebook
    for cell in again.cells:
        if cell.source.startswith("*Figure: "):
            cell.source = "No text."
    describe_figures(again)
    assert any("without alternative text" in fault for fault in faults(again))


def test_what_is_wrong_is_found():
    notebook = nbformat.read(PATHS[0], as_version=4)
    first, *_, drawing = (cell for cell in code_cells(notebook) if "plt.show()" in cell.source)
    first.outputs.append(nbformat.v4.new_output("stream", text="in /home/somebody/quant.py"))
    drawing.update(execution_count=None, outputs=[])
    assert [fault.split()[0] for fault in faults(notebook)] == ["the", "In", "In"]


def test_metadata_is_normalised(notebook, path):
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert path.stat().st_size < MOST_BYTES


def test_badges_lead_to_this_notebook(notebook, path):
    opening = notebook.cells[0].source
    addresses = [written(form, *place(ROOT)) for form in FORMS if form.startswith("https://")]
    colab, binder, *_ = addresses
    assert f"]({colab}{path.name})" in opening
    assert f"]({binder}lab/tree/notebooks/{path.name})" in opening


def test_the_set_up_cell_and_the_symbols_are_the_same_everywhere():
    notebooks = [nbformat.read(path, as_version=4) for path in PATHS]
    symbols = [cells_that_begin(notebook, "## Symbols") for notebook in notebooks]
    for shared in (
        [code_cells(notebook)[0].source for notebook in notebooks],
        [notebook.cells[2].source for notebook in notebooks],
        [cell.source for cells in symbols for cell in cells],
    ):
        assert len(shared) == len(PATHS) and len(set(shared)) == 1
    assert "pip" in code_cells(notebooks[0])[0].source
    assert "check the network" in notebooks[0].cells[2].source


def test_the_symbols_come_early():
    """At the start, or in notebook 1, which derives them, after the section that does."""
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        headings = [cell.source.split("\n")[0] for cell in cells_that_begin(notebook, "## ")]
        first = ["## Twenty parameters", "## From a number line to a formula"]
        before = first if path == PATHS[0] else []
        assert headings[: len(before) + 1] == [*before, "## Symbols"]


def cells_that_begin(notebook, text):
    return [cell for cell in notebook.cells if cell.source.startswith(text)]


def test_every_address_is_the_one_in_pyproject():
    repo, branch = place(ROOT)
    texts = [nbformat.writes(nbformat.read(path, as_version=4)) for path in PATHS]
    texts += [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "pyproject.toml")]
    found = [match[0] for text in texts for form in FORMS for match in pattern(form).finditer(text)]
    expected = {written(form, repo, branch) for form in FORMS}
    assert len(found) > 3 * len(PATHS) and set(found) <= expected
