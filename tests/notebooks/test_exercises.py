"""Each exercise: not tried as it stands, right with its solution, refused with what is wrong."""

import contextlib
import io
import re

import nbformat
import pytest

from qhelpers.exercises import progress
from qhelpers.exercises.answers import rounded
from qhelpers.exercises.check import CHECKS, SOLVED, check
from tests.notebooks.test_stored import PATHS
from tests.notebooks.wrong_answers import WRONG
from tools.notebooks import code_cells

CHECKED = re.compile(r'^check\("(\d\.\d)", .*\)$', re.MULTILINE)
SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n.+\n\n</details>", re.DOTALL
)


def exercises(notebook):
    """Yield the number, the code and the solution of each exercise."""
    for cell, below in zip(notebook.cells, notebook.cells[1:] + [None]):
        found = CHECKED.search(cell.source) if cell.cell_type == "code" else None
        if found:
            solutions = SOLUTION.findall(below.source)
            assert len(solutions) == 1, f"exercise {found[1]} has no folded solution below it"
            yield found[1], cell.source, solutions[0]


def solved(code, answer):
    """The code of an exercise with this answer in place of the dots."""
    return f"{answer}\n{code[CHECKED.search(code).start() :]}"


def section(notebook):
    """The code of the section Your turn up to its first exercise."""
    start = next(i for i, c in enumerate(notebook.cells) if c.source.startswith("## Your turn"))
    return notebook.cells[start + 1].source


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_every_notebook_has_exercises():
    found = [[number for number, *_ in exercises(nbformat.read(p, as_version=4))] for p in PATHS]
    assert all(len(numbers) >= 2 for numbers in found)
    assert [number for numbers in found for number in numbers] == [*CHECKS] == [*WRONG]
    assert all(numbers[0][0] == path.stem[1] for numbers, path in zip(found, PATHS))


def said_by(code, names):
    """What code prints that runs with these names, as in a kernel."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def test_untouched_wrong_and_right_answers_get_their_verdict(notebook):
    """Where nothing but the section itself has run."""
    names = {"__name__": "__main__"}
    exec(section(notebook), names)
    for number, code, solution in exercises(notebook):
        assert said_by(code, names).startswith(f"Exercise {number}: not tried yet.\n")
        for answer, hint in WRONG[number]:
            said = said_by(solved(code, answer), names)
            assert said.startswith(f"Exercise {number}: not right yet. "), answer
            assert hint in said.partition("\n")[0], answer
        assert said_by(solved(code, solution), names).startswith(f"Exercise {number}: right.\n")


def test_the_committed_page_says_not_tried_yet(notebook):
    for cell in code_cells(notebook):
        if CHECKED.search(cell.source):
            assert ": not tried yet.\n" in cell.outputs[0].text


def test_a_mistaken_call_is_refused():
    with pytest.raises(ValueError, match="exercise is '9.9'; there are 1.1, "):
        check("9.9", 1)
    with pytest.raises(TypeError, match="exercise 1.1 takes 2 answers"):
        check("1.1", 1)


def test_the_last_exercise_says_what_is_left(capsys):
    SOLVED.clear()
    check("1.1", 4 / 15, 4)
    check("1.3", ...)
    assert capsys.readouterr().out == (
        "Exercise 1.1: right.\nExercise 1.3: not tried yet.\n1 of 3 solved; left: 1.2, 1.3.\n"
    )
    check("6.1", 90_240)
    progress()
    told = capsys.readouterr().out
    assert "Notebook 1: 1 of 3 solved; left: 1.2, 1.3.\n" in told
    assert "Notebook 2: 0 of 3 solved" in told


@pytest.mark.parametrize("exact", [4 / 15, -4 / 15, 1530.6, 1.23456])
def test_an_answer_is_right_to_the_digits_that_it_has(exact):
    for digits in range(2, 17):
        text = f"{exact:.{digits - 1}e}"
        assert rounded(float(text), exact)
        if digits < 4:
            unit = 10.0 ** (int(text.partition("e")[2]) - digits + 1)
            assert not rounded(float(f"{float(text) + unit:.{digits - 1}e}"), exact)
    assert not rounded(float(f"{exact:.0e}"), exact)


def test_every_number_of_an_answer_counts():
    assert rounded([0.27, -1.2], [4 / 15, -1.2])
    assert not rounded([0.27, -1.3], [4 / 15, -1.2])
