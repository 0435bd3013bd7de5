"""qhelpers.experiments: the tables that ship are whole, and their rows come out again."""

import itertools

import numpy as np
import pytest
import torch

from qhelpers import has_torch_ao
from qhelpers import test as accuracy_of
from qhelpers.experiments.ptq import (
    BEST,
    BITS,
    CALIBRATIONS,
    GRANULARITIES,
    MIN_MAX,
    MSE,
    RECIPES,
    SEEDS,
    calibration_images,
    float_net,
    ptq_accuracy,
)
from qhelpers.experiments.qat import (
    QAT_BITS,
    QAT_METHODS,
    QAT_TRAPS,
    batch_norm_rows,
    images_kept_apart,
    qat_net,
    recipe_rows,
)
from qhelpers.experiments.tables import TABLES, load_table, select, write_tables

REST = [recipe for recipe in RECIPES if recipe not in (MIN_MAX, MSE, BEST)]
IMAGES = 10  # of 10,000, by which a row may differ on another CPU
TRAINED = 0.002  # by which the accuracy of a network may, that was trained with 2 bits


@pytest.fixture(scope="module")
def nets(mnist):
    return [float_net(mnist, seed) for seed in (0, 1)]


def rows_of(recipe, **values):
    """The rows of the table "ptq", a seed each."""
    columns = ("weight_strategy", "activation_strategy", "procedure")
    return select(load_table("ptq"), **dict(zip(columns, recipe)), **values)


def mean_loss(recipe, granularity, bits):
    """By how many points the accuracy is below float's, mean of the seeds."""
    float_rows = select(load_table("ptq"), procedure="float")
    rows = rows_of(recipe, granularity=granularity, weight_bits=bits, activation_bits=bits)
    return 100 * np.mean(float_rows["accuracy"] - rows["accuracy"])


def test_every_row_is_there_once():
    found = [tuple(row)[:-1] for row in load_table("ptq")]
    expected = [
        (*recipe, granularity, *bits, seed)
        for recipe, granularity, seed in itertools.product(RECIPES, GRANULARITIES, SEEDS)
        for bits in itertools.product(BITS, BITS)
        if recipe in (MIN_MAX, MSE, BEST) or bits[0] == bits[1]
    ]
    expected += [("", "", "float", "", 32, 32, seed) for seed in SEEDS]
    assert len(found) == len(expected) == 663 and set(found) == set(expected)
    found = [tuple(row)[:-1] for row in load_table("recipes")]
    expected = [
        (*recipe, granularity, bits, seed)
        for recipe, granularity, bits, seed in itertools.product(
            RECIPES, GRANULARITIES, QAT_BITS, SEEDS
        )
    ] + [("", "", "float", "", 32, seed) for seed in SEEDS]
    assert len(found) == len(expected) == 243 and set(found) == set(expected)
    counts = {1: 10, 10: 10, 100: 10, 1000: 30, 10_000: 6}  # of draws, from all sources
    for images, draws in counts.items():
        assert len(select(load_table("calibration"), images=images)) == draws * len(CALIBRATIONS)


@pytest.mark.parametrize("bits, most", [(8, 0.1), (4, 0.3), (3, 1.0), (2, 6.0)])
def test_the_best_recipe_loses_little(bits, most):
    best = mean_loss(BEST, "per channel", bits)
    assert best <= most
    assert bits == 8 or best < mean_loss(MIN_MAX, "per tensor", bits)


@pytest.mark.parametrize("bits", [3, 2])
def test_the_best_recipe_is_the_best_on_images_kept_apart(bits):
    rows = select(load_table("recipes"), bits=bits)
    kinds = itertools.product(RECIPES, GRANULARITIES)
    means = {kind: select(rows, **columns(*kind))["accuracy"].mean() for kind in kinds}
    assert max(means, key=means.get) == (BEST, "per channel")


def columns(recipe, granularity):
    names = ("weight_strategy", "activation_strategy", "procedure", "granularity")
    return dict(zip(names, (*recipe, granularity)))


def test_images_kept_apart_are_in_neither_other_set(mnist):
    apart = images_kept_apart(mnist)
    assert torch.equal(torch.cat([apart.train_images, apart.test_images]), mnist.train_images)
    assert torch.equal(torch.cat([apart.train_labels, apart.test_labels]), mnist.train_labels)
    assert len(apart.test_images) == len(apart.test_labels) == 5000


def test_a_recipe_comes_out_again(mnist):
    """The first rows: the float network, and min-max with 8 and 4 bits."""
    found = list(itertools.islice(recipe_rows(mnist), 3))
    for row, expected in zip(found, load_table("recipes")):
        assert row[:-1] == tuple(expected)[:-1]
        assert row[-1] == pytest.approx(expected["accuracy"], abs=IMAGES / 10_000)


def test_float_rows_are_the_networks_accuracy(mnist, nets):
    for row in select(load_table("ptq"), procedure="float")[: len(nets)]:
        accuracy = accuracy_of(nets[row["seed"]], mnist)
        assert accuracy == pytest.approx(row["accuracy"], abs=IMAGES / 10_000)


@pytest.mark.parametrize(
    "recipe, granularity, weight_bits, activation_bits, seed",
    [
        *((recipe, "per channel", 2, 2, 0) for recipe in (MIN_MAX, MSE, BEST)),
        *(pytest.param(recipe, "per channel", 2, 2, 0, marks=pytest.mark.slow) for recipe in REST),
        (MIN_MAX, "per tensor", 2, 2, 1),
        (MSE, "per tensor", 2, 8, 1),
        (BEST, "per tensor", 3, 6, 0),
    ],
)
def test_rows_come_out_again(mnist, nets, recipe, granularity, weight_bits, activation_bits, seed):
    values = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    (row,) = rows_of(recipe, granularity=granularity, seed=seed, **values)
    images = mnist.train_images[:1000]
    bits = weight_bits, activation_bits
    accuracy = ptq_accuracy(nets[seed], mnist, images, *bits, recipe, granularity)
    assert accuracy == pytest.approx(row["accuracy"], abs=IMAGES / 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALIBRATIONS)
@pytest.mark.parametrize(
    "source, count, draw", [("training", 1, 9), ("training", 100, 3), ("test", 1000, 1),
                            ("noise", 1000, 2)]
)  # fmt: skip
def test_calibrations_come_out_again(mnist, nets, source, count, draw, name):
    (row,) = select(load_table("calibration"), source=source, images=count, draw=draw, recipe=name)
    images = calibration_images(mnist, source, count, draw)
    *bits, recipe = CALIBRATIONS[name]
    accuracy = ptq_accuracy(nets[0], mnist, images, *bits, recipe, "per channel")
    assert accuracy == pytest.approx(row["accuracy"], abs=IMAGES / 10_000)


@pytest.mark.parametrize(
    "method, granularity, epochs",
    [
        ("lsq", "per channel", 1),
        *(pytest.param(*method, 1, marks=pytest.mark.slow) for method in QAT_METHODS[:-1]),
        pytest.param("lsq", "per channel", 2, marks=pytest.mark.slow),
    ],
)
def test_trained_rows_come_out_again(mnist, nets, method, granularity, epochs):
    """The row of 2 bits of each method; the notebook trains some of these networks, too."""
    rows = select(load_table("qat"), method=method, granularity=granularity, epochs=epochs)
    (row,) = select(rows, bits=2, seed=0)
    model = qat_net(nets[0], mnist, 2, method, granularity, 0, epochs)
    assert accuracy_of(model.convert(), mnist) == pytest.approx(row["accuracy"], abs=TRAINED)


@pytest.mark.slow
@pytest.mark.skipif(not has_torch_ao(), reason="the table batch_norm needs torch.ao")
def test_a_frozen_batch_norm_comes_out_again(mnist):
    (row,) = select(load_table("batch_norm"), batch=2, statistics="frozen", seed=0)
    found = next(found for found in batch_norm_rows(mnist) if found[:3] == (2, "frozen", 0))
    assert found[3:] == pytest.approx((row["accuracy"], row["float"]), abs=TRAINED)


@pytest.mark.slow
def test_a_trap_comes_out_again(mnist, nets):
    (row,) = select(load_table("qat_traps"), trap="logits at 2 bits, too", seed=0)
    model = qat_net(nets[0], mnist, 2, "lsq", "per channel", 0, **QAT_TRAPS[row["trap"]])
    assert accuracy_of(model.convert(), mnist) == pytest.approx(row["accuracy"], abs=TRAINED)


@pytest.mark.parametrize("bits, most", [(8, 0.1), (4, 0.2), (3, 0.5), (2, 1.8)])
def test_training_loses_little(bits, most):
    """Mean of the seeds, below the control that was trained as long."""
    qat = select(load_table("qat"), epochs=2)
    control = select(qat, method="float")["accuracy"]
    lsq = select(qat, method="lsq", bits=bits)["accuracy"]
    assert len(control) == len(lsq) == len(SEEDS)
    assert 100 * np.mean(control - lsq) <= most


def test_tables_are_written_whole(monkeypatch, tmp_path):
    """What is written is read again; where an experiment breaks off, the old table stays."""
    rows = [("training", 1, 0, "best", 0.96), ("test", 10, 1, "min-max", 0.125)]
    monkeypatch.setattr("qhelpers.experiments.tables.load_data", lambda: rows)
    monkeypatch.setattr("qhelpers.experiments.tables.files", lambda package: tmp_path)
    columns = TABLES["calibration"][0]
    monkeypatch.setitem(TABLES, "calibration", (columns, iter))
    write_tables(tmp_path, ["calibration"])
    assert [tuple(row) for row in load_table("calibration")] == rows
    before = (tmp_path / "calibration.csv").read_bytes()

    def broken(data):
        yield rows[0]
        raise KeyboardInterrupt

    monkeypatch.setitem(TABLES, "calibration", (columns, broken))
    with pytest.raises(KeyboardInterrupt):
        write_tables(tmp_path, ["calibration"])
    assert (tmp_path / "calibration.csv").read_bytes() == before
    assert [path.name for path in (tmp_path).iterdir()] == ["calibration.csv"]


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"^name is 'qat2'; it must be one of \["):
        load_table("qat2")
