"""An environment without the packages that are optional, for the tests that need one."""

import os

import pytest

from qhelpers.optional_packages import LANGUAGE_MODEL, REFERENCES
from tools.notebooks import KERNEL_ENVIRONMENT

HIDDEN = (*REFERENCES, LANGUAGE_MODEL)
# Python runs this before all else: for its finders, the packages are nowhere.
SITE = f"""
import sys

for finder in sys.meta_path:
    if getattr(finder, "__name__", "") == "PathFinder":
        find_spec = finder.find_spec
        finder.find_spec = lambda name, *rest: (
            None if name.partition(".")[0] in {HIDDEN} else find_spec(name, *rest)
        )
"""


@pytest.fixture
def without_them(tmp_path):
    """The environment of a process in which the optional packages aren't installed."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    return os.environ | KERNEL_ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
