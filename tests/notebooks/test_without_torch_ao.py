"""The day torch.ao is gone: its cells say so, and all others print what they print today.

The packages of the extra "deploy" are gone, too. The notebook that needs them is left out: today's
torch.export imports torch.ao.quantization itself, so it can't be taken away from under it.
"""

import nbformat
import pytest

from qhelpers import has_torch_ao
from tests.nbval_compare import data_name, tags
from tests.notebooks.test_cells_again import printed
from tools.files import ROOT
from tools.notebooks import client_of, code_cells

TEXTS = {path: path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")}
PATHS = [
    path
    for path, text in sorted(TEXTS.items())
    if "has_torch_ao" in text and "require_deployment_packages()" not in text
]
# What a PyTorch without it does: importing fails, and torch.ao has no such attribute.
TAKE_IT_AWAY = """
import sys
import torch
import torchvision  # the torchvision of that day won't need it either

for name in [name for name in sys.modules if name.startswith("torch.ao.quantization")]:
    del sys.modules[name]
sys.modules["torch.ao.quantization"] = None
vars(torch.ao).pop("quantization", None)
"""
NOTE = "Skipped: this PyTorch has no torch.ao.quantization"


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_notebook_runs_without_it(path, without_them):
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(TAKE_IT_AWAY))
    client_of(notebook).execute(env=without_them)  # a cell that raises ends it
    said = 0
    for before, after in zip(code_cells(committed), code_cells(notebook)[1:]):
        assert before.source == after.source
        if "if has_torch_ao():" in before.source:
            assert NOTE in printed(after)[0], before.source
            said += 1
        elif "timing" not in tags(before) and (
            "mnist" not in tags(before) or data_name() == "mnist"
        ):
            assert printed(before) == printed(after), before.source
    assert said == TEXTS[path].count("if has_torch_ao():") >= 1


def test_it_is_there_today(capsys):
    assert has_torch_ao()
    assert capsys.readouterr().out == ""
