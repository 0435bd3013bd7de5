"""ptq: GPTQ and AdaRound on one layer, beside elimination and brute force, and their table."""

import itertools

import numpy as np
import pytest
import torch

from qhelpers import test as accuracy_of
from qhelpers.affine import symmetric_dequantize, symmetric_quantization
from qhelpers.experiments.ptq import SEEDS
from qhelpers.experiments.rounding import (
    BOTH_BITS,
    NETWORKS,
    ROUNDING_CHOICES,
    network,
    rounded_net,
)
from qhelpers.experiments.tables import load_table, select
from qhelpers.ptq.adaround import adaround
from qhelpers.ptq.gptq import gptq
from qhelpers.training import one_thread


@pytest.fixture(autouse=True)
def on_one_thread():
    """With several, matrices as small as these take longer, where other tests run beside."""
    with one_thread():
        yield


IMAGES = 10  # of 10,000, by which a row may differ on another CPU
GRANULARITIES = {"per tensor": {}, "per channel": {"axis": 0}, "groups": {"group_size": 4}}


def problem(seed, bits=3, channels=5, size=12, granularity="per channel"):
    """A random layer: weight, second moment of correlated inputs, nearest codes and scale."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(300, size)) @ random.normal(size=(size, size)) + 1
    weight = random.normal(size=(channels, size))
    options = GRANULARITIES[granularity]
    codes, scale = symmetric_quantization(weight, bits, narrow_range=False, **options)
    return weight, inputs.T @ inputs / len(inputs), codes, scale


def error(weight, second_moment, codes, scale):
    """The mean squared error of each channel's output."""
    off = symmetric_dequantize(codes, scale) - weight
    return np.einsum("ci,ij,cj->c", off, second_moment, off)


def spread(scale, shape):
    """The scale of each weight."""
    return symmetric_dequantize(np.ones(shape, np.int8), scale)


def eliminated(weight, second_moment, scale, bits, damping=0.0, order=None):
    """GPTQ as one derives it: the columns that were rounded are eliminated from the inverse."""
    weight, scale, half = weight.copy(), spread(scale, weight.shape), 2 ** (bits - 1)
    diagonal = damping * np.diag(second_moment).mean() * np.eye(len(second_moment))
    inverse = np.linalg.inv(second_moment + diagonal)
    order = range(len(inverse)) if order is None else order
    codes = np.zeros(weight.shape)
    for place, j in enumerate(order):
        codes[:, j] = np.clip(np.rint(weight[:, j] / scale[:, j]), -half, half - 1)
        off = (weight[:, j] - codes[:, j] * scale[:, j]) / inverse[j, j]
        rest = list(order[place + 1 :])
        weight[:, rest] -= np.outer(off, inverse[j, rest])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def solved(weight, second_moment, scale, bits):
    """The same again: each column is rounded from the best that it could be, found by solving."""
    scale, half, size = spread(scale, weight.shape), 2 ** (bits - 1), weight.shape[1]
    codes = np.zeros(weight.shape)
    for j in range(size):
        done, rest = slice(j), slice(j, size)
        off = codes[:, done] * scale[:, done] - weight[:, done]
        best = (
            weight[:, rest]
            - off @ np.linalg.solve(second_moment[rest, rest], second_moment[rest, done]).T
        )
        codes[:, j] = np.clip(np.rint(best[:, 0] / scale[:, j]), -half, half - 1)
    return codes


@pytest.mark.parametrize("bits", [2, 3, 4, 9])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gptq_has_the_codes_of_elimination(granularity, bits):
    for seed in range(20):
        weight, moment, _, scale = problem(seed, bits, granularity=granularity)
        codes = gptq(weight, moment, scale, bits, damping=0)
        assert np.array_equal(codes, eliminated(weight, moment, scale, bits))
        assert np.array_equal(codes, solved(weight, moment, scale, bits))
        damped = gptq(weight, moment, scale, bits, damping=0.3)
        assert np.array_equal(damped, eliminated(weight, moment, scale, bits, 0.3))
        largest_first = np.argsort(-np.diag(moment))
        assert np.array_equal(
            gptq(weight, moment, scale, bits, act_order=True),
            eliminated(weight, moment, scale, bits, 0.01, largest_first),
        )


def learned(weight, moment, scale, bits, steps):
    """AdaRound once more: its gradient and Adam by hand, from the paper's equations 22 to 24."""
    half, scale = 2 ** (bits - 1), spread(scale, weight.shape)
    below = np.floor(weight / scale)
    nearest = np.rint(weight / scale).clip(-half, half - 1) * scale - weight
    unit = np.einsum("ci,ij,cj->c", nearest, moment, nearest).mean()
    v = -np.log(1.2 / ((weight / scale - below).clip(0.001, 0.999) + 0.1) - 1)
    mean, square = np.zeros_like(v), np.zeros_like(v)
    for t in range(steps):
        sigmoid = 1 / (1 + np.exp(-v))
        stretched = 1.2 * sigmoid - 0.1
        h = stretched.clip(0, 1)
        soft = below + h
        off = soft.clip(-half, half - 1) * scale - weight
        gradient = 2 * (off @ moment) * scale / unit * ((soft > -half) & (soft < half - 1))
        beta = 2 + 9 * (1 + np.cos(np.pi * t / steps))  # from 20 to 2
        u = 2 * h - 1
        gradient -= 0.05 * beta * np.abs(u) ** (beta - 1) * np.sign(u) * 2
        gradient *= 1.2 * sigmoid * (1 - sigmoid) * ((stretched > 0) & (stretched < 1))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - 0.9 ** (t + 1)), square / (1 - 0.999 ** (t + 1))
        v -= 0.05 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return (below + (v > 0)).clip(-half, half - 1)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_adaround_has_the_codes_of_its_equations(granularity, bits):
    for seed in range(4):
        weight, moment, _, scale = problem(seed, bits, granularity=granularity)
        expected = learned(weight, moment, scale, bits, 200)
        assert np.array_equal(adaround(weight, moment, scale, bits, steps=200), expected)


@pytest.mark.parametrize("bits, size", [(2, 8), (3, 6)])
def test_with_few_weights_none_is_better_than_brute_force(bits, size):
    """AdaRound rounds down or up, in one of 2**size ways; GPTQ may choose any code."""
    half = 2 ** (bits - 1)
    every = np.array([*itertools.product(range(-half, half), repeat=size)], np.int8)
    found = []
    for seed in range(10):
        weight, moment, nearest, scale = problem(seed, bits, channels=1, size=size)
        below = np.floor(weight / scale)[0]
        pairs = np.array([*itertools.product(*zip(below, below + 1))]).clip(-half, half - 1)
        least_pair, least = (error(weight, moment, c, scale[0]).min() for c in (pairs, every))
        for codes in (nearest, adaround(weight, moment, scale, bits)):
            assert error(weight, moment, codes, scale) >= least_pair * (1 - 1e-9)
        for options in ({"damping": 0}, {}, {"act_order": True}):
            codes = gptq(weight, moment, scale, bits, **options)
            found.append(error(weight, moment, codes, scale) / least)
    assert np.min(found) == pytest.approx(1)  # the best of all, at times


@pytest.mark.slow
def test_with_eight_weights_and_three_bits_either():
    """The best of all 8**8 codes: of the last weight's only the best is tried, by rounding."""
    others = np.array([*itertools.product(range(-4, 4), repeat=7)], np.int8)
    for seed in range(3):
        weight, moment, _, scale = problem(seed, channels=1, size=8)
        off = others * scale - weight[:, :-1]
        best = weight[0, -1] - off @ moment[:-1, -1] / moment[-1, -1]
        last = np.clip(np.rint(best / scale[0]), -4, 3)
        codes = np.column_stack([others, last])
        least = error(weight, moment, codes, scale[0]).min()
        for round_weights in (gptq, adaround):
            codes = round_weights(weight, moment, scale, 3)
            assert error(weight, moment, codes, scale) >= least * (1 - 1e-9)


@pytest.mark.parametrize("round_weights", [gptq, adaround])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_nearest_is_best_where_inputs_are_uncorrelated(round_weights, granularity):
    """Except for a weight in the middle between two levels, where both are as good."""
    weight, moment, nearest, scale = problem(0, granularity=granularity)
    tie = np.isclose(np.abs(weight / spread(scale, weight.shape)) % 1, 0.5)
    for uncorrelated in (np.diag(np.diag(moment)), 0 * moment):  # and no inputs at all
        codes = round_weights(weight, uncorrelated, scale, 3)
        assert np.array_equal(np.where(tie, nearest, codes), nearest)
    assert tie.mean() < 0.3


def test_adaround_is_seldom_worse_than_nearest():
    """By its own objective, with 12 weights a channel: in 1 layer of 24, 1 channel of 12."""
    layers, channels = [], []
    for seed, bits in itertools.product(range(8), (2, 3, 4)):
        weight, moment, nearest, scale = problem(seed, bits)
        codes = adaround(weight, moment, scale, bits)
        before, after = (error(weight, moment, c, scale) for c in (nearest, codes))
        layers.append(after.sum() > before.sum())
        channels.extend(after > before)
    assert np.sum(layers) <= 1 and np.mean(channels) <= 1 / 12, (np.sum(layers), np.mean(channels))


WEIGHT, MOMENT, _, SCALE = problem(0)


@pytest.mark.parametrize("round_weights", [gptq, adaround])
@pytest.mark.parametrize(
    "changed, message",
    [
        ({"weight": WEIGHT * np.nan}, "weight holds nan; all"),
        ({"second_moment": MOMENT * np.inf}, "second_moment holds .*inf; all"),
        ({"scale": SCALE * np.nan}, "scale holds nan; all"),
        ({"scale": SCALE * 0}, "scale holds 0.0; all its values must be above 0"),
        ({"scale": SCALE[:3]}, r"scale has the shape \(3, 1\); for codes"),
        ({"weight": WEIGHT[0]}, r"weight has the shape \(12,\); it must be \(out, in\)"),
        ({"second_moment": MOMENT[:3]}, r"second_moment has the shape \(3, 12\); for 12 inputs"),
        ({"bits": 1}, "bits is 1; it must be"),
    ],
)
def test_a_layer_that_can_not_be_rounded(round_weights, changed, message):
    given = {"weight": WEIGHT, "second_moment": MOMENT, "scale": SCALE, "bits": 3} | changed
    with pytest.raises(ValueError, match=f"^{message}"):
        round_weights(**given)


def test_a_singular_second_moment_needs_damping():
    few = np.random.default_rng(0).normal(size=(5, 12))  # inputs, for 12 columns
    dead = np.diag([1.0] * 11 + [0])
    for moment in (few.T @ few / 5, dead):
        assert gptq(WEIGHT, moment, SCALE, 3).shape == WEIGHT.shape
        with pytest.raises(ValueError, match="^second_moment is singular: .* give more damping"):
            gptq(WEIGHT, moment, SCALE, 3, damping=0)
    for damping in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"^damping is {damping}; it must be a finite number"):
            gptq(WEIGHT, MOMENT, SCALE, 3, damping=damping)
    for steps, kind in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(kind, match=f"^steps is {steps}; it must be an integer from 1"):
            adaround(WEIGHT, MOMENT, SCALE, 3, steps=steps)


def test_what_is_given_is_not_changed():
    given = [torch.tensor(values) for values in (WEIGHT, MOMENT, SCALE)]
    for round_weights in (gptq, adaround):
        codes = round_weights(*given, 3)
        assert codes.dtype == torch.int8 and round_weights(*given, 12).dtype == torch.int16
        for now, before in zip(given, (WEIGHT, MOMENT, SCALE)):
            assert np.array_equal(now, before)


@pytest.fixture(scope="module")
def nets(mnist):
    return {name: network(name, mnist, seed=0) for name in NETWORKS}


def test_every_row_is_there_once():
    found = [tuple(row)[:-1] for row in load_table("rounding")]
    choices = [(*choice[:3], choice[3] or 32) for choice in ROUNDING_CHOICES]
    choices += [("QAT", "per channel", bits, bits) for bits in BOTH_BITS]
    choices += [(recipe, "", 32, 32) for recipe in ("float", "float, trained as long")]
    expected = [(*each[0], each[1]) for each in itertools.product(choices, SEEDS)]
    expected = [(name, *row) for name in NETWORKS for row in expected]
    assert len(found) == len(expected) == 600 and set(found) == set(expected)


QUICK = [
    ("GPTQ as published", "per channel", 2, 2),
    ("GPTQ, corrected", "per channel", 2, 2),
    ("GPTQ, float target", "per channel", 2, 2),
    ("AdaRound, float target, output-mse", "per channel", 2, 2),
    ("GPTQ, float target", "groups", 2, None),
]
SLOW = [choice for choice in ROUNDING_CHOICES if choice[2] == 2 and choice not in QUICK]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "choice", [*QUICK, *(pytest.param(choice, marks=pytest.mark.slow) for choice in SLOW)], ids=str
)
def test_rows_come_out_again(mnist, nets, name, choice):
    recipe, granularity, weight_bits, activation_bits = choice
    (row,) = select(
        load_table("rounding"), network=name, recipe=recipe, granularity=granularity, seed=0,
        weight_bits=weight_bits, activation_bits=activation_bits or 32,
    )  # fmt: skip
    accuracy = accuracy_of(rounded_net(nets[name], mnist.train_images[:1000], *choice), mnist)
    assert accuracy == pytest.approx(row["accuracy"], abs=IMAGES / 10_000)


@pytest.mark.parametrize(
    "name, activation_bits, least",
    [("VerySimpleNet", 32, 95.7), ("VerySimpleNet", 2, 94.2), ("ConvNet", 32, 96.1),
     ("ConvNet", 2, 95.2)],
)  # fmt: skip
def test_two_bits_without_training(name, activation_bits, least):
    """Mean of the seeds, with AdaRound."""
    rows = select(
        load_table("rounding"), network=name, recipe="AdaRound, float target, output-mse",
        granularity="per channel", weight_bits=2, activation_bits=activation_bits,
    )  # fmt: skip
    assert len(rows) == len(SEEDS) and 100 * rows["accuracy"].mean() >= least - 0.3
