"""The long experiments behind the notebooks' tables: `make tables` runs them, `load_table` reads.

The tables are MNIST's. They lie in qhelpers/tables, and come with the package.
"""

import copy
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
from qhelpers.qat import prepare_qat
from qhelpers.training import test, train_or_load

SEEDS = (0, 1, 2)
BITS = (8, 6, 4, 3, 2)
GRANULARITIES = ("per tensor", "per channel")
PROCEDURES = {
    "at once": {},
    "layer after layer": {"layer_after_layer": True},
    "bias corrected": {"layer_after_layer": True, "bias_correction": True},
}
MIN_MAX, MSE = ("min-max", "min-max", "at once"), ("mse", "mse", "at once")
BEST = ("output-mse", "mse", "bias corrected")
# Strategy of the weights, of the activations, procedure. The first three with all pairs of bits.
RECIPES = list(
    dict.fromkeys(
        [
            MIN_MAX,
            MSE,
            BEST,
            *itertools.product(["min-max", "mse", "output-mse"], ["mse"], PROCEDURES),
        ]
    )
)
CALIBRATIONS = {  # bits of the weights and activations, and a recipe
    "8 and 8 bits, min-max": (8, 8, MIN_MAX),
    "8 and 3 bits, min-max": (8, 3, MIN_MAX),
    "2 and 2 bits, best": (2, 2, BEST),
}
CALIBRATION_SETS = [("training", n) for n in (1, 10, 100, 1000, 10_000)]
CALIBRATION_SETS += [("test", 1000), ("noise", 1000)]
MOST_DRAWS = 10
QAT_METHODS = [
    ("ste", "per tensor"),
    ("ste", "per channel"),
    ("frozen", "per channel"),
    ("lsq", "per channel"),
]
QAT_BITS = (8, 4, 3, 2)  # of the weights and of the activations
QAT_TRAINING = {"epochs": 2, "learning_rate": 3e-4}  # after one epoch in floats at 1e-3
KEPT_LOGITS = {"linear3": {"activation_bits": 8}}  # they keep 8 bits, whatever the others have


def float_net(data, seed):
    """Return VerySimpleNet as notebook 3 trains it, from this seed."""
    net = build_model(VerySimpleNet, seed)
    train_or_load(net, data, epochs=1, seed=seed)
    return net.eval()


def ptq_accuracy(net, data, images, weight_bits, activation_bits, recipe, granularity):
    """Return the test accuracy, from 0 to 1, of `net` quantized by one of RECIPES.

    images: those to calibrate with. The logits keep 8 bits.
    """
    weight_strategy, activation_strategy, procedure = recipe
    quantized = quantize_model(
        net,
        images.split(1000),
        weight_bits,
        activation_bits,
        weight_strategy=weight_strategy,
        activation_strategy=activation_strategy,
        granularity=granularity,
        per_layer=KEPT_LOGITS,
        **PROCEDURES[procedure],
    )
    return test(quantized, data)


def ptq_rows(data):
    """Yield the rows of the table "ptq": accuracies by recipe and bits, from each seed.

    Calibrated on the first 1,000 training images. Rows whose procedure is "float" hold the
    networks before quantization, with 32 bits.
    """
    choices = [
        (recipe, granularity, weight_bits, activation_bits)
        for recipe, granularity in itertools.product(RECIPES, GRANULARITIES)
        for weight_bits, activation_bits in itertools.product(BITS, BITS)
        if recipe in (MIN_MAX, MSE, BEST) or weight_bits == activation_bits
    ]
    images = data.train_images[:1000]
    for seed in SEEDS:
        net = float_net(data, seed)
        yield "", "", "float", "", 32, 32, seed, test(net, data)
        for recipe, granularity, *bits in tqdm(choices, desc=f"ptq, seed {seed}"):
            accuracy = ptq_accuracy(net, data, images, *bits, recipe, granularity)
            yield *recipe, granularity, *bits, seed, accuracy


def calibration_images(data, source, count, draw):
    """Return `count` images of a source: the draw-th `count` of the data set, or Gaussian noise
    with mean 0 and variance 1, as normalised images have."""
    if source == "noise":
        noise = np.random.default_rng(draw).normal(size=(count, *data.train_images.shape[1:]))
        return torch.from_numpy(noise.astype(np.float32))
    images = {"training": data.train_images, "test": data.test_images}[source]
    return images[draw * count : (draw + 1) * count]


def calibration_rows(data):
    """Yield the rows of the table "calibration": accuracies by what was calibrated with.

    For the network of seed 0, per channel. A draw is another set of images of that size.
    """
    net = float_net(data, seed=0)
    for source, count in tqdm(CALIBRATION_SETS, desc="calibration"):
        for draw in range(min(MOST_DRAWS, len(data.train_images) // count)):
            images = calibration_images(data, source, count, draw)
            for name, (*bits, recipe) in CALIBRATIONS.items():
                accuracy = ptq_accuracy(net, data, images, *bits, recipe, "per channel")
                yield source, count, draw, name, accuracy


def control_net(net, data, seed):
    """Return a copy of `net` that was trained in floats as long as `qat_net` trains."""
    control = copy.deepcopy(net)
    train_or_load(control, data, seed=seed + 1, **QAT_TRAINING)
    return control


def qat_net(net, data, bits, method, granularity, seed):
    """Return the QATModel of `net` after training, with `bits` bits and the logits at 8."""
    images = data.train_images[:1000]
    model = prepare_qat(
        net,
        bits,
        bits,
        method,
        calibration_batches=[images],
        granularity=granularity,
        per_layer=KEPT_LOGITS,
    )
    train_or_load(model, data, seed=seed + 1, **QAT_TRAINING)
    return model


def qat_rows(data):
    """Yield the rows of the table "qat": accuracies by method and bits, from each seed.

    Rows whose method is "float" hold the control, with 32 bits.
    """
    for seed in SEEDS:
        net = float_net(data, seed)
        yield "float", "", 32, seed, test(control_net(net, data, seed), data)
        choices = list(itertools.product(QAT_METHODS, QAT_BITS))
        for (method, granularity), bits in tqdm(choices, desc=f"qat, seed {seed}"):
            model = qat_net(net, data, bits, method, granularity, seed)
            yield method, granularity, bits, seed, test(model.convert(), data)


RECIPE_COLUMNS = ("weight_strategy", "activation_strategy", "procedure")
TABLES = {  # name: columns, and what yields the rows
    "ptq": (
        (*RECIPE_COLUMNS, "granularity", "weight_bits", "activation_bits", "seed", "accuracy"),
        ptq_rows,
    ),
    "qat": (("method", "granularity", "bits", "seed", "accuracy"), qat_rows),
    "calibration": (("source", "images", "draw", "recipe", "accuracy"), calibration_rows),
}


def load_table(name):
    """Return one of TABLES as a NumPy array, whose columns are called by name: table["accuracy"].

    Raises ValueError where there is no such table.
    """
    with as_file(files("qhelpers") / "tables" / f"{checked(name)}.csv") as path:
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
    """Write the tables with these names, or all, of this checkout, from MNIST and on one thread."""
    os.environ["QHELPERS_DATASET"] = "mnist"
    torch.set_num_threads(1)
    with as_file(files("qhelpers") / "tables") as folder:
        write_tables(folder, names or tuple(TABLES))
