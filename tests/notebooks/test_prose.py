"""Numbers in the text that are results: marked, as _96.05_, and held against the page's outputs.

A marked number stands in the outputs of its own section, rounded as the text has it; in a section
without outputs, anywhere on the page. One that follows from others says how, in a comment that no
reader sees: _0.23_<!-- 96.06 - 95.83 -->. Its operands stand in the outputs of the page.

What is given, not measured, stands in a formula, as $0.5$, or in code. A decimal that is neither
that nor marked is found. Whole numbers that are results are marked, too, but no test can tell
which they are.
"""

import ast
import operator
import re
from decimal import Decimal

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from tests.notebooks.test_stored import PATHS

DIGITS = r"\d[\d,]*(?:\.\d+)?"
NUMBER = re.compile(rf"(?<![\w.])[-+]?{DIGITS}(?!\d)")
MARKED = re.compile(rf"(?<!\w)_([-+]?{DIGITS})_(?!\w)(?:<!-- (.+?) -->)?")
# What isn't prose: marked numbers, code, formulas, links, comments, tables, and versions.
APART = re.compile(
    MARKED.pattern + r"|```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$]*\$|\[.*?\]\(.*?\)|<!--.*?-->|^\|.*?$"
    r"|PyTorch \d\.\d+",
    re.DOTALL | re.MULTILINE,
)
DECIMAL = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.\d+")
HEADING = re.compile(r"^(?=## )", re.MULTILINE)
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(text):
    return Decimal(text.replace(",", ""))


def printed(cell):
    """The numbers that a cell prints, apart from timings, which are never the same."""
    if "timing" in cell.metadata.get("tags", []):
        return set()
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return {value(found) for text in texts for found in NUMBER.findall(text)}


def sections(notebook):
    """The prose of each section, from heading to heading, and the numbers that it prints."""
    found = [["", set()]]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found[-1][1] |= printed(cell)
            continue
        first, *more = HEADING.split(cell.source)
        found[-1][0] += "\n" + first
        found += [[part, set()] for part in more]
    return found


def fits(marked, number):
    """Whether a number, rounded to the digits of the marked one, equals it, up to the sign."""
    half = Decimal(10) ** marked.as_tuple().exponent / 2
    return min(abs(number - marked), abs(abs(number) - marked)) <= half


def computed(formula):
    """The value of a formula of numbers, + - * / and brackets, and its numbers."""

    def walk(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp):  # the sign of a number
            return -walk(node.operand)
        operands.append(Decimal(ast.get_source_segment(formula, node)))
        return operands[-1]

    operands = []
    return walk(ast.parse(formula, mode="eval").body), operands


def fault(marked, formula, here, page):
    """What is wrong with a marked number, or None."""
    if formula is None:
        if not any(fits(marked, number) for number in here or page):
            return f"{marked} is not among the outputs of its section"
        return None
    result, operands = computed(formula)
    for operand in operands:
        if operand not in {*page, *map(abs, page), 100}:  # 100: to percent
            return f"{marked} = {formula}: {operand} is not among the outputs of the page"
    return None if fits(marked, result) else f"{marked}: {formula} is {result}"


def marks(notebook):
    """Yield each marked number with its formula or None, its section's numbers and the page's."""
    found = sections(notebook)
    page = set().union(*(numbers for _, numbers in found))
    for prose, numbers in found:
        for number, formula in MARKED.findall(prose):
            yield value(number), formula or None, numbers, page


def unmarked(notebook):
    """The decimals in the prose that are not marked; exercises and their solutions aside."""
    prose = [text for text, _ in sections(notebook) if "## Your turn" not in text]
    return [number for text in prose for number in DECIMAL.findall(APART.sub(" ", text))]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_marked_numbers_are_the_outputs(notebook):
    found = list(marks(notebook))
    assert len(found) >= 5
    assert [message for mark in found if (message := fault(*mark))] == []


def test_every_decimal_in_the_text_is_marked_or_given(notebook):
    assert unmarked(notebook) == []


def test_a_decimal_that_is_not_marked_is_found():
    text = "At $0.5$, `x = 0.25` and _0.1_<!-- 0.5 - 0.4 -->, as in PyTorch 2.6, it loses -3.1."
    assert unmarked(new_notebook(cells=[new_markdown_cell(text)])) == ["-3.1"]


def test_a_number_that_went_stale_is_found():
    """Each marked number, changed by three in its last digit. (Some then equal another output.)"""
    found = [mark for path in PATHS for mark in marks(nbformat.read(path, as_version=4))]
    stale = [
        fault(marked + 3 * Decimal(10) ** marked.as_tuple().exponent, *rest)
        for marked, *rest in found
    ]
    assert sum(message is not None for message in stale) > 0.9 * len(found)
