"""The figures' one style: every notebook uses it, in its colours, which differ in grey, too."""

import re

import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib import colors

from tests.notebooks.test_stored import PATHS
from tools.notebooks import code_cells

STYLE = 'plt.style.use("qhelpers.figures")'
COLOUR = re.compile(r"""["']?(?:color|fc|cmap)["']?\s*[=:]\s*f?["'](.+?)["']""")
# The style's own colours, greys, and maps whose lightness only grows or only falls.
ALLOWED = re.compile(r"C[0-5]|C\{place\}|black|white|[01]?\.\d+|gray|gray_r|cividis")


def faults(notebook):
    """What keeps a notebook's figures from the style, a line each."""
    sources = [cell.source for cell in code_cells(notebook)]
    draws = [source for source in sources if "plt." in source]
    found = [] if STYLE in draws[0] else ["the first cell that draws doesn't set the style"]
    for source in draws:
        found += [
            f"colour {name}" for name in COLOUR.findall(source) if not ALLOWED.fullmatch(name)
        ]
        found += [f"colour {name}" for name in re.findall(r"tab:\w+", source)]
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_notebook_draws_in_the_style(path):
    assert faults(nbformat.read(path, as_version=4)) == []


def test_what_leaves_the_style_is_found():
    notebook = nbformat.read(PATHS[0], as_version=4)
    for cell in code_cells(notebook):
        cell.source = cell.source.replace(STYLE, "").replace('color="C0"', 'color="red"')
    assert {*faults(notebook)} == {"the first cell that draws doesn't set the style", "colour red"}


def lightness(color):
    """CIE 1976 L*, from 0, black, to 100, white."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colors.to_rgb(color)
    ]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_the_first_three_colours_differ_in_grey():
    with plt.style.context("qhelpers.figures"):
        cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    first = sorted(map(lightness, cycle[:3]))
    assert min(b - a for a, b in zip(first, first[1:])) > 20
    assert first[-1] < 80  # and from the white behind them
