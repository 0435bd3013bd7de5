"""tests/matrix.py: what it counts, what it can't run, and that its oldest torch is pyproject's."""

import sys
import xml.etree.ElementTree as ElementTree

import pytest

import tests.matrix as matrix
from tests.test_project import EXTRAS

REPORT = """<testsuites><testsuite>
<testcase name="a">
<properties><property name="notebook cell" value="compared"/></properties>
</testcase>
<testcase name="b">
<properties><property name="notebook cell" value="timing"/></properties>
</testcase>
<testcase name="c"><failure/></testcase>
<testcase name="d"><error/><failure/></testcase>
<testcase name="e"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_counts_of_a_report():
    counts = matrix.counts_of(ElementTree.ElementTree(ElementTree.fromstring(REPORT)))
    assert counts == {"passed": 2, "failed": 2, "skipped": 1, "compared": 1, "cells": 2}


def table(monkeypatch, capsys, settings, folder):
    """What `main` prints for these settings, without its first line, and the code it exits with."""
    monkeypatch.setattr(matrix, "SETTINGS", settings)
    monkeypatch.setattr(matrix, "FOLDER", folder)
    monkeypatch.setattr("sys.argv", ["matrix"])
    with pytest.raises(SystemExit) as stopped:
        matrix.main()
    return capsys.readouterr().out.splitlines()[1:], stopped.value.code


def test_a_setting_that_is_not_here_is_printed_and_no_failure(monkeypatch, capsys, tmp_path):
    settings = {"Python 9": matrix.Setting(python="python9")}
    lines, code = table(monkeypatch, capsys, settings, tmp_path)
    assert lines == ["Python 9                   not run: there is no python9 here"] and not code


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 127\n", "no program"])
def test_a_file_of_the_name_is_no_python(tmp_path, script):
    """As pyenv has them: for each Python that is installed somewhere, a file of its name."""
    path = tmp_path / "python3"
    path.write_text(script)
    assert not matrix.runs(path)
    path.chmod(0o700)
    assert not matrix.runs(path)
    assert matrix.runs(sys.executable)


def test_a_run_without_a_report_is_a_failure(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(matrix, "runs", lambda python: True)
    monkeypatch.setattr(matrix.subprocess, "run", lambda *arguments, **options: None)
    lines, code = table(monkeypatch, capsys, {"broken": matrix.Setting()}, tmp_path)
    assert lines[0].split()[:4] == ["broken", "0", "1", "0"] and code


def test_the_oldest_torch_is_the_oldest_that_runs_all_notebooks():
    for pin in matrix.SETTINGS["oldest torch"].packages:
        assert pin.removesuffix(".*").replace("==", ">=") in EXTRAS["deploy"]
