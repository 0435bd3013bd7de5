"""Sliders: what they call, and when."""

import sys

import pytest

from qhelpers import sliders


@pytest.fixture
def drawn():
    return []


@pytest.fixture
def draw(drawn):
    return lambda bits=3, high=2.0: drawn.append((bits, high))


def test_a_figure_that_stands_still_is_drawn_once(draw, drawn, monkeypatch):
    monkeypatch.setenv("QHELPERS_STILL", "1")
    assert sliders(draw, bits=(1, 8), high=(0.0, 4.0)) is None
    assert drawn == [(3, 2.0)]


def test_without_ipywidgets_it_stands_still(draw, drawn, monkeypatch):
    monkeypatch.delenv("QHELPERS_STILL", raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    sliders(draw, bits=(1, 8))
    assert drawn == [(3, 2.0)]


def test_a_moved_slider_draws_again(draw, drawn, monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    monkeypatch.delenv("QHELPERS_STILL", raising=False)
    shown = []
    monkeypatch.setattr("ipywidgets.widgets.interaction.display", shown.append)
    sliders(draw, bits=(1, 8), high=(0.0, 4.0, 0.5))
    bits, high = shown[0].children[:2]
    assert isinstance(bits, ipywidgets.IntSlider) and (bits.min, bits.max) == (1, 8)
    bits.value = 5
    high.value = 2.5
    assert drawn[-1] == (5, 2.5)
