"""The experiments of notebook 3: post-training quantization by bits, recipe and calibration set."""

import itertools

import numpy as np
import torch
from tqdm import tqdm

from qhelpers.models import VerySimpleNet, build_model
from qhelpers.ptq.model import quantize_model
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
# (weight strategy, activation strategy, procedure); the first three run with all pairs of bits.
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
KEPT_LOGITS = {"linear3": {"activation_bits": 8}}  # whatever the other bits are


def float_net(data, seed):
    """Return VerySimpleNet as notebook 3 trains it, from this seed."""
    net = build_model(VerySimpleNet, seed)
    train_or_load(net, data, epochs=1, seed=seed)
    return net.eval()


def ptq_accuracy(net, data, images, weight_bits, activation_bits, recipe, granularity):
    """Return the test accuracy, from 0 to 1, of `net` quantized by one of RECIPES.

    images: the calibration images. The logits keep 8 bits.
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
    """Yield the rows of the table "calibration": accuracies by calibration set.

    For the network of seed 0, per channel. A draw is another set of images of that size.
    """
    net = float_net(data, seed=0)
    for source, count in tqdm(CALIBRATION_SETS, desc="calibration"):
        for draw in range(min(MOST_DRAWS, len(data.train_images) // count)):
            images = calibration_images(data, source, count, draw)
            for name, (*bits, recipe) in CALIBRATIONS.items():
                accuracy = ptq_accuracy(net, data, images, *bits, recipe, "per channel")
                yield source, count, draw, name, accuracy
