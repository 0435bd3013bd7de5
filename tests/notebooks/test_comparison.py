"""The comparison of outputs: what it lets pass, what it doesn't, and what it says."""

import os
import subprocess
import sys
from decimal import Decimal

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.nbval_compare import Output
from tools.files import ROOT


def output(text, tolerance=None):
    text = Output(text)
    text.tolerance = None if tolerance is None else Decimal(str(tolerance))
    return text


@pytest.mark.parametrize(
    "ref, new, tolerance",
    [
        ("scale 1.5e-05", "scale 1.6e-05", None),
        ("-0.4242129", "-0.4242", 0.001),
        ("100 images", "103 images", 5),
        ("tensor([ 9.99, 1.00])", "tensor([10.00, 1.00])", None),
    ],
)
def test_close_numbers_are_equal(ref, new, tolerance):
    assert output(ref, tolerance) == output(new, tolerance)


@pytest.mark.parametrize(
    "ref, new, tolerance",
    [
        ("100 images", "101 images", None),
        ("100 images", "101 images", 0.5),
        ("96.00%, 100 bytes", "96.02%, 103 bytes", 5),
        ("accuracy 0.96", "Accuracy 0.96", None),
        ("one\ntwo", "one", None),
        ("0.5 0.5", "0.5", None),
        ("nan", "0.5", None),
        ("x1", "x2", None),
    ],
)
def test_all_else_is_not(ref, new, tolerance):
    assert output(ref, tolerance) != output(new, tolerance)


@given(st.floats(-1e6, 1e6), st.integers(1, 6), st.integers(-20, 20))
def test_one_unit_in_the_last_place_and_no_more(number, digits, units):
    printed = f"{number:.{digits}f}"
    moved = f"{float(printed) + units * 10.0**-digits:.{digits}f}"
    apart = abs(Decimal(moved) - Decimal(printed)) * 10**digits
    assert (Output(printed) == Output(moved)) == (apart <= 1)


def nbval(path, **environment):
    """Run nbval over one notebook as `make test` does; return its exit code and what it said."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "--numprocesses=0", path],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    return run.returncode, run.stdout


@pytest.fixture
def write(tmp_path):
    """Write a notebook whose cells have these (source, outputs, tags); return its path."""

    def write(*cells):
        nodes = [
            new_code_cell(source, outputs=outputs, execution_count=n, metadata={"tags": tags})
            for n, (source, outputs, tags) in enumerate(cells, 1)
        ]
        path = tmp_path / "small.ipynb"
        nbformat.write(new_notebook(cells=nodes), path)
        return path

    return write


def stdout(text):
    return [new_output("stream", name="stdout", text=text)]


def figure(path=ROOT / "notebooks" / "01_math_basics.ipynb"):
    """The first figure of a notebook, as an output."""
    for cell in nbformat.read(path, as_version=4).cells:
        for found in cell.get("outputs", []):
            if "image/png" in found.get("data", {}):
                return found


DRAW = "import matplotlib.pyplot as plt\nplt.figure(figsize=(8, 3.2))\n"


WRONG_TAGS = ("tol-", "tol-x", "tolerance-1", "mnits", "nbval-skip")


@pytest.mark.slow
def test_what_differs_fails_and_says_where_and_the_rest_is_counted(write):
    """On the digits, where cells with numbers of MNIST run and aren't compared."""
    blank = [new_output("display_data", {"text/plain": "<Figure size 800x320 with 0 Axes>"})]
    different = [
        ("print(0.962)", stdout("0.960\n"), []),
        ("import sys\nprint('careful', file=sys.stderr)", [], []),
        ("import sys\nprint('careful', file=sys.stderr)", stdout("5\n"), ["timing"]),
        (DRAW + "plt.close()", [figure()], []),
        (DRAW + "plt.axis('off')\nplt.show()", [figure()], []),
        (DRAW + "plt.plot([1, 2])\nplt.show()", blank, []),
        ("1 / 0", [], []),
        *(("print(1)", stdout("1\n"), [tag]) for tag in WRONG_TAGS),
    ]
    same = [
        ("print(0.961)", stdout("0.960\n"), []),
        ("print(5)", stdout("7\n"), ["tol-2"]),
        ("print(123.4)", stdout("5.6\n"), ["timing"]),
        ("print(1.5)", stdout("99.9\n"), ["mnist"]),
        ("x = 1", [], []),
    ]
    code, said = nbval(write(*different, *same), QHELPERS_DATASET="digits")
    assert code == 1 and "12 failed, 5 passed" in said, said
    assert "In [1] of small.ipynb: Cell outputs differ" in said
    assert "0.962 is not within one in the last digit of the notebook's 0.960" in said
    assert said.count("Unexpected output fields from running code: {'stderr'}") == 2
    assert "figure with 0 inked pixels" in said
    assert "Unexpected output fields from running code: {'image/png'}" in said
    assert "In [7] of small.ipynb: Cell execution caused an exception" in said
    for tag in WRONG_TAGS:
        assert f"tag '{tag}'; known are tol-X" in said
    assert "14 cells print something: 11 were compared with the committed outputs, 3 ran" in said
    assert "2 not compared: it prints timings" in said
    assert "1 not compared: its numbers are MNIST's, and this machine has the digits" in said
