"""The long experiments behind the notebooks' tables: `make tables` runs them, `load_table` reads.

Those of images were made with MNIST. They are in this file's folder, and are installed with the
package.
"""

import csv
import os
from importlib.resources import as_file, files

import numpy as np
import torch

from qhelpers.data import load_data
from qhelpers.experiments.depthwise import depthwise_rows
from qhelpers.experiments.formats import formats_rows
from qhelpers.experiments.language import LANGUAGE_COLUMNS, language_rows
from qhelpers.experiments.ptq import calibration_rows, ptq_rows
from qhelpers.experiments.qat import batch_norm_rows, qat_rows, recipe_rows, trap_rows
from qhelpers.experiments.rounding import rounding_rows
from qhelpers.experiments.tiny_language_model import tiny_rows
from qhelpers.files import whole_file

RECIPE_COLUMNS = ("weight_strategy", "activation_strategy", "procedure")
TABLES = {  # name: columns, and what yields the rows
    "ptq": (
        (*RECIPE_COLUMNS, "granularity", "weight_bits", "activation_bits", "seed", "accuracy"),
        ptq_rows,
    ),
    "qat": (("method", "granularity", "epochs", "bits", "seed", "accuracy"), qat_rows),
    "recipes": ((*RECIPE_COLUMNS, "granularity", "bits", "seed", "accuracy"), recipe_rows),
    "qat_traps": (("trap", "seed", "accuracy", "control"), trap_rows),
    "batch_norm": (("batch", "statistics", "seed", "accuracy", "float"), batch_norm_rows),
    "depthwise": (("cure", "learning_rate", "seed", "accuracy"), depthwise_rows),
    "rounding": (
        ("network", "recipe", "granularity", "weight_bits", "activation_bits", "seed", "accuracy"),
        rounding_rows,
    ),
    "formats": (("network", "format", "bits", "seed", "sqnr", "accuracy"), formats_rows),
    "calibration": (("source", "images", "draw", "recipe", "accuracy"), calibration_rows),
    "language": (LANGUAGE_COLUMNS, language_rows),
    "tiny": (("step", "training_loss", "test_loss"), tiny_rows),
}


def load_table(name):
    """Return one of TABLES as a NumPy array; columns are accessed by name: table["accuracy"].

    Raises ValueError if there is no such table.
    """
    with as_file(files("qhelpers.experiments") / f"{checked(name)}.csv") as path:
        return np.genfromtxt(
            path, delimiter=";", names=True, dtype=None, encoding="utf-8", comments=None
        )


def checked(name):
    if name not in TABLES:
        raise ValueError(f"name is {name!r}; it must be one of {[*TABLES]}")
    return name


def select(table, **values):
    """Return the rows of a table whose columns hold these values: select(table, seed=0)."""
    keep = np.ones(len(table), bool)
    for column, value in values.items():
        keep &= table[column] == value
    return table[keep]


def write_tables(folder, names=tuple(TABLES)):
    """Run the experiments, and write the tables with these names to `folder`."""
    data = load_data()
    for name in names:
        columns, rows = TABLES[checked(name)]
        lines = [columns, *rows(data)]
        path = folder / f"{name}.csv"
        with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=";", lineterminator="\n").writerows(lines)


def main(names):
    """Write these tables, or all, into this checkout; experiments use MNIST and one thread."""
    os.environ["QHELPERS_DATASET"] = "mnist"
    torch.set_num_threads(1)
    with as_file(files("qhelpers.experiments")) as folder:
        write_tables(folder, names or tuple(TABLES))
