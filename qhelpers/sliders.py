"""Sliders above a figure where somebody can move them, and the figure alone elsewhere."""

import os


def sliders(draw, **ranges):
    """Call `draw`, and call it again whenever a slider is moved.

    draw: draws and shows a figure; the defaults of its arguments are where the sliders start.
    ranges: (smallest, largest, step) for each of these arguments, as `ipywidgets.interact` reads
        them.

    Without ipywidgets, or where the environment variable QHELPERS_STILL is set, `draw` is called
    once, with its defaults.
    """
    try:
        import ipywidgets
    except ImportError:
        ipywidgets = None
    if ipywidgets is None or os.environ.get("QHELPERS_STILL"):
        draw()
    else:
        ipywidgets.interact(draw, **ranges)
