"""Measure how long each notebook takes; write it into the notebook's opening and README's table."""

import argparse
import math
import os
import re
import tempfile
import time

import nbformat

from tools.notebooks import KERNEL_ENVIRONMENT, ROOT, client_of, notebooks_of, replace

README = ROOT / "README.md"
IN_OPENING = r"(\*\*Running it takes\*\* )\d+( seconds)"
IN_README = r"(\| \[[^\n]*\(notebooks/{name}\)[^\n]*\| )\d+( s \|\n)"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="?", default="", help="how the file's name begins: 03")
    for path in notebooks_of(parser.parse_args().notebook):
        measured = seconds_of(path)
        write(path, README, rounded_up(measured))
        print(f"{path.name:<36}{measured:>7.1f} seconds, written as {rounded_up(measured)}")


def seconds_of(path):
    """Run all cells in a kernel of their own, as for the first time, with MNIST at hand.

    The folder is empty, so that networks which an earlier run has trained are not found.
    """
    environment = os.environ | KERNEL_ENVIRONMENT | {"QHELPERS_DATASET": "mnist"}
    environment.setdefault("QHELPERS_DATA", str(ROOT / "data"))
    with tempfile.TemporaryDirectory() as folder:
        client = client_of(nbformat.read(path, as_version=4), folder)
        started = time.perf_counter()
        client.execute(env=environment)
        return time.perf_counter() - started


def rounded_up(seconds):
    """To the next 10 seconds."""
    return 10 * math.ceil(seconds / 10)


def write(path, readme, seconds):
    """Write a notebook's time to both places, or to none where one of them is missing."""
    notebook = nbformat.read(path, as_version=4)
    opening = notebook.cells[0]
    opening.source = with_time(opening.source, IN_OPENING, seconds)
    in_readme = IN_README.format(name=re.escape(path.name))
    text = with_time(readme.read_text(encoding="utf-8"), in_readme, seconds)
    replace(path, nbformat.writes(notebook) + "\n")
    replace(readme, text)


def with_time(text, pattern, seconds):
    """Return the text with these seconds for those it has; raise ValueError if it has none."""
    new, count = re.subn(pattern, rf"\g<1>{seconds}\g<2>", text)
    if count != 1:
        raise ValueError(f"the pattern {pattern!r} should be found once, and was {count} times")
    return new


if __name__ == "__main__":
    main()
