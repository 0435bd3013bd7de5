"""tools/times.py: the times on the page, the same in a notebook's opening and in README's table."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.test_stored import PATHS
from tools.times import IN_OPENING, README, rounded_up, write

ROW = re.compile(r"\(notebooks/(.+?)\).*\| (\d+) s \|$", re.MULTILINE)


def test_the_openings_have_the_times_of_the_table_in_tens():
    rows = dict(ROW.findall(README.read_text(encoding="utf-8")))
    openings = {path.name: nbformat.read(path, as_version=4).cells[0].source for path in PATHS}
    assert rows == {name: re.search(r"(\d+) seconds", text)[1] for name, text in openings.items()}
    assert all(seconds.endswith("0") for seconds in rows.values())
    assert [*map(rounded_up, (0.1, 10, 10.01, 99.9))] == [10, 10, 20, 100]


@pytest.fixture
def copies(tmp_path):
    """Copies of a notebook and of the README."""
    return [Path(shutil.copy(path, tmp_path)) for path in (PATHS[2], README)]


def test_a_time_is_written_to_both_places_and_nothing_else_changes(copies):
    before = [path.read_text(encoding="utf-8") for path in copies]
    old = re.search(IN_OPENING, before[0])[0]
    write(*copies, 770)
    notebook, readme = (path.read_text(encoding="utf-8") for path in copies)
    assert notebook == before[0].replace(old, "**Running it takes** 770 seconds")
    assert dict(ROW.findall(readme)) == dict(ROW.findall(before[1])) | {PATHS[2].name: "770"}
    assert len(readme.splitlines()) == len(before[1].splitlines())


def test_nothing_is_written_where_a_place_is_missing(copies):
    notebook, readme = copies
    readme.write_text("# Quantization\n")
    before = notebook.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="was 0 times"):
        write(notebook, readme, 770)
    assert notebook.read_text(encoding="utf-8") == before
