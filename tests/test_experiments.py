"""qhelpers.experiments: the tables that ship are whole, and what running their rows again gives."""

import itertools

import numpy as np
import pytest

from qhelpers import load_data
from qhelpers.experiments import (
    BITS,
    GRANULARITIES,
    PTQ_RECIPES,
    SEEDS,
    TABLES,
    float_net,
    load_table,
    ptq_accuracy,
    write_tables,
)

MOST_IMAGES = 10  # of 10,000, by which a row may differ on another CPU
BEST = "output-mse, layer after layer"


@pytest.fixture(scope="module")
def mnist():
    data = load_data()
    if data.name != "mnist":
        pytest.skip("the tables are MNIST's, and this machine has the digits")
    return data


@pytest.fixture(scope="module")
def nets(mnist):
    return [float_net(mnist, seed) for seed in SEEDS]


def rows_of(recipe, granularity, weight_bits, activation_bits):
    """The rows of the table "ptq", a seed each."""
    table = load_table("ptq")
    return table[
        (table["recipe"] == recipe)
        & (table["granularity"] == granularity)
        & (table["weight_bits"] == weight_bits)
        & (table["activation_bits"] == activation_bits)
    ]


def mean_loss(*row):
    """By how many points the accuracy is below float's, mean of the seeds."""
    return 100 * np.mean(rows_of("float", "", 32, 32)["accuracy"] - rows_of(*row)["accuracy"])


def test_every_row_is_there_once():
    found = [tuple(row)[:5] for row in load_table("ptq")]
    expected = itertools.product(PTQ_RECIPES, GRANULARITIES, BITS, BITS, SEEDS)
    expected = [*expected, *(("float", "", 32, 32, seed) for seed in SEEDS)]
    assert len(found) == len(expected) and set(found) == set(expected)


@pytest.mark.parametrize("bits, most", [(8, 0.1), (4, 0.3), (3, 1.0), (2, 6.0)])
def test_the_best_recipe_loses_little(bits, most):
    best = mean_loss(BEST, "per channel", bits, bits)
    assert best <= most
    assert bits == 8 or best < mean_loss("min-max", "per tensor", bits, bits)


def test_float_rows_are_the_networks_accuracy(mnist, nets):
    from qhelpers import test

    for row in rows_of("float", "", 32, 32):
        accuracy = test(nets[row["seed"]], mnist)
        assert accuracy == pytest.approx(row["accuracy"], abs=MOST_IMAGES / 10_000)


@pytest.mark.parametrize(
    "recipe, granularity, weight_bits, activation_bits, seed",
    [
        *((recipe, "per channel", 2, 2, 0) for recipe in PTQ_RECIPES),
        *((BEST, "per channel", 2, 2, seed) for seed in SEEDS[1:]),
        ("min-max", "per tensor", 2, 2, 1),
        ("min-max", "per tensor", 8, 8, 2),
        ("mse", "per tensor", 2, 8, 1),
        (BEST, "per tensor", 3, 3, 2),
        ("mse, layer after layer", "per tensor", 4, 6, 0),
    ],
)
def test_rows_come_out_again(mnist, nets, recipe, granularity, weight_bits, activation_bits, seed):
    (row,) = [
        row
        for row in rows_of(recipe, granularity, weight_bits, activation_bits)
        if row["seed"] == seed
    ]
    accuracy = ptq_accuracy(nets[seed], mnist, weight_bits, activation_bits, recipe, granularity)
    assert accuracy == pytest.approx(row["accuracy"], abs=MOST_IMAGES / 10_000)


def test_tables_are_written_whole(monkeypatch, tmp_path):
    """What is written is read again; where an experiment breaks off, the old table stays."""
    rows = [("float", "", 32, 32, 0, 0.96), ("mse", "per tensor", 2, 8, 1, 0.125)]
    monkeypatch.setattr("qhelpers.experiments.load_data", lambda: rows)
    monkeypatch.setattr("qhelpers.experiments.files", lambda package: tmp_path)
    monkeypatch.setitem(TABLES, "ptq", (TABLES["ptq"][0], iter))
    write_tables(tmp_path / "tables")
    assert [tuple(row) for row in load_table("ptq")] == rows
    before = (tmp_path / "tables" / "ptq.csv").read_bytes()

    def broken(data):
        yield rows[0]
        raise KeyboardInterrupt

    monkeypatch.setitem(TABLES, "ptq", (TABLES["ptq"][0], broken))
    with pytest.raises(KeyboardInterrupt):
        write_tables(tmp_path / "tables")
    assert (tmp_path / "tables" / "ptq.csv").read_bytes() == before
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["ptq.csv"]


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"^name is 'qat2'; it must be one of \['ptq'\]"):
        load_table("qat2")
