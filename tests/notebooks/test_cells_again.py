"""A cell may be run again, at once or after the whole notebook, and prints what it printed."""

import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.nbval_compare import Output, marks_of, tags, tolerance, why_not_compared
from tests.notebooks.test_stored import PATHS
from tools.notebooks import KERNEL_ENVIRONMENT, client_of, code_cells, figures_of


def printed(cell):
    """What a cell printed, how many figures it drew, and what it raised."""
    text = Output("".join(output.get("text", "") for output in cell.outputs))
    text.tolerance = tolerance(tags(cell))
    errors = [output.evalue for output in cell.outputs if output.output_type == "error"]
    return text, len(figures_of(cell)), errors


def faults(cells):
    """Run each cell twice, then all once more from the last to the first; list what differs.

    From the last, so that no cell is helped by those before it, which would make its names anew.
    What a cell should print is what it holds, or where that can't be the same here, what it
    prints first.
    """
    timed = ["timing" in tags(cell) for cell in cells]
    twice = [index for index, once in enumerate(timed) for _ in range(1 if once else 2)]
    order = twice + [index for index in reversed(range(len(cells))) if not timed[index]]
    runs = [new_code_cell(cells[index].source, metadata=cells[index].metadata) for index in order]
    client = client_of(new_notebook(cells=runs), allow_errors=True)
    client.execute(env=os.environ | KERNEL_ENVIRONMENT)
    found, expected = [], {}
    for number, (index, run) in enumerate(zip(order, runs)):
        when = "after the whole notebook" if number >= len(twice) else "again at once"
        if index not in expected:
            when = "for the first time"
            expected[index] = printed(run if why_not_compared(tags(run)) else cells[index])
        if printed(run) != expected[index]:
            found.append(f"In [{index + 1}] {when}: {expected[index]} became {printed(run)}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=marks_of(path), id=path.stem) for path in PATHS]
)
def test_a_cell_that_is_run_again_prints_the_same(path):
    assert faults(code_cells(nbformat.read(path, as_version=4))) == []


def test_what_differs_is_found():
    ones = [new_output("stream", text="1\n")]
    counts_on = new_code_cell("n += 1\nprint(n)", outputs=ones)
    loses_its_name = new_code_cell("print(m)", outputs=ones)
    cells = [new_code_cell("n, m = 0, 1"), counts_on, loses_its_name, new_code_cell("m = 2")]
    assert [fault.partition(":")[0] for fault in faults(cells)] == [
        "In [2] again at once",
        "In [3] after the whole notebook",
        "In [2] after the whole notebook",
    ]
