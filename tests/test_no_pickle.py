"""Nothing in the course is unpickled: a scan of all its code, notebooks and scripts in strings too.

To unpickle a file is to run whatever code is in it. So torch.load is called with
weights_only=True, NumPy's readers with allow_pickle=False, and arrays have no object dtype.
"""

import ast
import textwrap
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import code_cells

ROOT = Path(__file__).parent.parent
FOLDERS = ["qhelpers", "tools", "tests"]
# Modules that unpickle, or read what is as dangerous: none of the code needs to import one.
MODULES = ("pickle", "_pickle", "joblib", "shelve", "marshal", "dill", "cloudpickle")
# What a call must say. For the others, a call that says nothing of pickles is right.
NEEDED = {name: ("weights_only", True) for name in ("torch.load", "torch.serialization.load")}
NEEDED |= {
    name: ("allow_pickle", False)
    for name in ("numpy.load", "numpy.lib.npyio.load", "numpy.lib.format.read_array")
}
ASK = {"isinstance", "issubclass", "getattr", "hasattr", "setattr"}  # with `object` as a class

# What the scan finds and may stay: the file, the line, and why.
ALLOWED = {
    # The test writes a hostile file, which the reader of integer models must refuse.
    ("test_integer_file.py", "np.array([Alarm()], object)"),
    (
        "test_integer_file.py",
        "np.lib.format.write_array(pickled, np.array([Alarm()], object), allow_pickle=True)",
    ),
}


def sources():
    """Yield the name and the code of each Python file and notebook."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.name, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = code_cells(nbformat.read(path, as_version=4))
        yield path.name, "\n".join(without_magic(cell.source) for cell in cells)


def without_magic(source):
    """Return a cell's code, with `pass` for lines that only IPython understands."""
    lines = []
    for line in source.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines.append(f"{indent}pass" if line.lstrip().startswith(("%", "!")) else line)
    return "\n".join(lines)


def found(source):
    """Return the pieces of the code that unpickle, or could, as `ast.unparse` writes them."""
    tree = ast.parse(source)
    names, pieces, called = imported(tree), [], set()
    for node in ast.walk(tree):  # a call comes before the function that it calls
        # A function that is passed on could be called in any way.
        wrong = dotted(node, names) in NEEDED and node not in called
        if isinstance(node, ast.Call):
            called.add(node.func)
            wrong |= wrong_call(node, dotted(node.func, names))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            wrong |= wrong_import(node)
        elif isinstance(node, ast.Attribute):
            wrong |= node.attr in ("read_pickle", "object_")
        if wrong:
            pieces.append(ast.unparse(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            pieces += found_in_script(node.value)
    return pieces


def imported(tree):
    """Return what each imported name stands for: {"np": "numpy", "loads": "pickle.loads"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node, names):
    """Return the full name of `np.load`, `getattr(np, "load")` and the like, or None."""
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case (
            ast.Attribute(value=value, attr=name)
            | ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=name), *_])
        ):
            start = dotted(value, names)
            return start and f"{start}.{name}"
    return None


def wrong_import(node):
    """Whether an import is of MODULES, of pandas.read_pickle, or of all that torch or NumPy has."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return any(name.partition(".")[0] in MODULES for name in names)
    first = (node.module or "").partition(".")[0]
    everything = "*" in names and node.module in ("torch", "numpy")
    return everything or first in MODULES or "read_pickle" in names


def wrong_call(node, name):
    """Whether a call of the function with this full name unpickles, or has the object dtype."""
    given = {each.arg: each.value for each in node.keywords}
    keyword, value = NEEDED.get(name, ("allow_pickle", False))
    if name in NEEDED or keyword in given:
        said = given.get(keyword)
        return not (isinstance(said, ast.Constant) and said.value is value)
    arguments = [*node.args, *given.values()]
    function = ast.unparse(node.func)
    if function in ("__import__", "importlib.import_module", "import_module"):
        return any(isinstance(each, ast.Constant) and each.value in MODULES for each in arguments)
    return function not in ASK and any(map(is_object, arguments))


def is_object(node):
    """Whether an argument is the object dtype."""
    if isinstance(node, ast.Name):
        return node.id == "object"
    return isinstance(node, ast.Constant) and node.value in ("O", "|O", "object")


def found_in_script(text):
    """Return what is found in a string of several lines that is a Python program."""
    if "import" not in text or "\n" not in text:
        return []
    try:
        return found(textwrap.dedent(text))
    except SyntaxError:  # prose
        return []


def test_nothing_is_unpickled():
    here = Path(__file__).name
    pieces = [(name, piece) for name, code in sources() if name != here for piece in found(code)]
    allowed = {(name, ast.unparse(ast.parse(piece))) for name, piece in ALLOWED}
    assert {*pieces} - allowed == set()
    assert allowed - {*pieces} == set(), "these exceptions aren't needed any more"


SPOILED = [
    "import pickle",
    "import pickle as p; read = p; read.loads(b)",
    "from pickle import loads",
    "from pickle import Unpickler as U",
    "from pickle import *",
    "def f():\n    import pickle\n    return pickle.loads(b)",
    "import joblib; joblib.load(f)",
    "import shelve as s; s.open(f)",
    "import marshal; marshal.loads(b)",
    "from dill import load",
    "__import__('pickle').loads(b)",
    "import importlib; importlib.import_module('dill')",
    "import pandas as pd; pd.read_pickle(f)",
    "from pandas import read_pickle",
    "import torch; torch.load(f)",
    "import torch; torch.load(f, weights_only=False)",
    "import torch; torch.load(f, weights_only=flag)",
    "import torch as t; t.load(f)",
    "from torch import load\nload(f)",
    "from torch import load as read; files = map(read, paths)",
    "from torch import *",
    "import torch; getattr(torch, 'load')(f)",
    "import torch; getattr(torch.serialization, 'load', None)(f)",
    "import torch; files = map(getattr(torch, 'load'), paths)",
    "import torch; read = torch.load",
    "from torch import serialization; serialization.load(f)",
    "import numpy as np; np.load(f)",
    "import numpy; numpy.load(f, allow_pickle=True)",
    "from numpy import load\nload(f)",
    "import numpy as np; map(np.load, files)",
    "import numpy as np; np.lib.format.read_array(f)",
    "from numpy.lib.format import read_array\nread_array(f)",
    "from numpy.lib import format as g; g.read_array(f)",
    "import numpy as np; np.save(f, a, allow_pickle=True)",
    "import numpy as np; np.array(a, object)",
    "import numpy as np; np.zeros(3, dtype=object)",
    "import numpy as np; np.zeros(3, dtype='O')",
    "a.astype(object)",
    "import numpy as np; np.dtype(np.object_)",
    'SCRIPT = """\nimport numpy as np\nnp.load(f)\n"""',
]
RIGHT = [
    "import torch; torch.load(f, weights_only=True)",
    "from torch import load\nload(f, weights_only=True)",
    "import numpy as np; np.load(f, allow_pickle=False)",
    "import numpy as np; np.lib.format.read_array(f, allow_pickle=False)",
    "import torch; getattr(torch, 'load')(f, weights_only=True)",
    "import json; json.load(f); model.load(f)",
    "isinstance(a, object)",
    "'''Say\\nimport np.load(f)\\nand read on.'''",
]


@pytest.mark.parametrize("source", SPOILED)
def test_the_scan_finds(source):
    assert found(source)


@pytest.mark.parametrize("source", RIGHT)
def test_the_scan_lets_pass(source):
    assert found(source) == []


def test_lines_of_ipython_are_passed_over():
    cell = "%matplotlib inline\nif colab:\n    !pip install x\nimport torch; torch.load(f)"
    assert found(without_magic(cell)) == ["torch.load(f)"]
