"""The long experiments behind the notebooks' tables: `make tables` runs them, `load_table` reads.

The tables are MNIST's. They lie in qhelpers/tables, and come with the package.
"""

import csv
import itertools
import os
from importlib.resources import as_file, files

import numpy as np
import torch
from tqdm import tqdm

from qhelpers.data import load_data
from qhelpers.files import whole_file
from qhelpers.models import VerySimpleNet, build_model
from qhelpers.ptq import quantize_model
from qhelpers.training import test, train_or_load

SEEDS = (0, 1, 2)
BITS = (8, 6, 4, 3, 2)
CALIBRATION_IMAGES = 1000
PTQ_RECIPES = {
    "min-max": {},
    "mse": {"weight_strategy": "mse", "activation_strategy": "mse"},
    "mse, layer after layer": {
        "weight_strategy": "mse",
        "activation_strategy": "mse",
        "layer_after_layer": True,
    },
    "output-mse, layer after layer": {
        "weight_strategy": "output-mse",
        "activation_strategy": "mse",
        "layer_after_layer": True,
    },
}
GRANULARITIES = ("per tensor", "per channel")
KEPT_LOGITS = {"linear3": {"activation_bits": 8}}  # whatever the other activations have


def float_net(data, seed):
    """Return VerySimpleNet as notebook 3 trains it, from this seed."""
    net = build_model(VerySimpleNet, seed)
    train_or_load(net, data, epochs=1, seed=seed)
    return net.eval()


def ptq_accuracy(net, data, weight_bits, activation_bits, recipe, granularity):
    """Return the test accuracy, from 0 to 1, after quantizing `net` by one of PTQ_RECIPES.

    The logits keep 8 bits. Calibrates on the first CALIBRATION_IMAGES training images.
    """
    quantized = quantize_model(
        net,
        [data.train_images[:CALIBRATION_IMAGES]],
        weight_bits,
        activation_bits,
        granularity=granularity,
        per_layer=KEPT_LOGITS,
        **PTQ_RECIPES[recipe],
    )
    return test(quantized, data)


def ptq_rows(data):
    """Yield the rows of the table "ptq": each pair of bits, by each recipe, from each seed.

    Rows whose recipe is "float" hold the networks before quantization, with 32 bits.
    """
    choices = list(itertools.product(PTQ_RECIPES, GRANULARITIES, BITS, BITS))
    for seed in SEEDS:
        net = float_net(data, seed)
        yield "float", "", 32, 32, seed, test(net, data)
        for recipe, granularity, weights, activations in tqdm(choices, desc=f"ptq, seed {seed}"):
            accuracy = ptq_accuracy(net, data, weights, activations, recipe, granularity)
            yield recipe, granularity, weights, activations, seed, accuracy


TABLES = {  # name: columns, and what yields the rows
    "ptq": (
        ("recipe", "granularity", "weight_bits", "activation_bits", "seed", "accuracy"),
        ptq_rows,
    ),
}


def load_table(name):
    """Return one of TABLES as a NumPy array, whose columns are called by name.

    `table["accuracy"]` is a column, `table[table["seed"] == 0]` the rows with a condition.
    Raises ValueError where there is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"name is {name!r}; it must be one of {[*TABLES]}")
    with as_file(files("qhelpers") / "tables" / f"{name}.csv") as path:
        return np.genfromtxt(
            path, delimiter=";", names=True, dtype=None, encoding="utf-8", comments=None
        )


def write_tables(folder):
    """Run all experiments, and write the tables to `folder`."""
    data = load_data()
    for name, (columns, rows) in TABLES.items():
        lines = [columns, *rows(data)]
        path = folder / f"{name}.csv"
        with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=";", lineterminator="\n").writerows(lines)


def main():
    """Write the tables of this checkout, from MNIST and on one thread."""
    os.environ["QHELPERS_DATASET"] = "mnist"
    torch.set_num_threads(1)
    with as_file(files("qhelpers") / "tables") as folder:
        write_tables(folder)
