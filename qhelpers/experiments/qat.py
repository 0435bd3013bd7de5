"""The experiments of notebook 4: quantization-aware training by method and bits, and its traps."""

import copy
import dataclasses
import itertools

import torch
from torch import nn
from tqdm import tqdm

from qhelpers.experiments.ptq import (
    BEST,
    GRANULARITIES,
    KEPT_LOGITS,
    MIN_MAX,
    RECIPES,
    SEEDS,
    float_net,
    ptq_accuracy,
)
from qhelpers.models import ConvNet, VerySimpleNet, build_model
from qhelpers.qat.model import prepare_qat
from qhelpers.torch_ao import silence_known_warnings
from qhelpers.training import test, train, train_or_load

PTQ_METHODS = [
    ("ptq, min-max", MIN_MAX, "per tensor"),
    ("ptq, best", BEST, "per channel"),
]
QAT_METHODS = [
    ("ste", "per tensor"),
    ("ste", "per channel"),
    ("frozen", "per channel"),
    ("lsq", "per channel"),
]
QAT_BITS = (8, 4, 3, 2)  # of the weights and of the activations
KEPT_APART = 5000  # training images that judge the recipes of post-training quantization
BATCH_NORM_BATCHES = [(64, 300), (2, 600)]  # how large, how many
QAT_TRAPS = {  # what is changed
    "as above": {},
    "from random weights": {},
    "logits at 2 bits, too": {"per_layer": None},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "learning rate 3e-5": {"learning_rate": 3e-5},
}


def control_net(net, data, seed, epochs=2, learning_rate=3e-4):
    """Return a copy of `net` that was trained in floats as long as `qat_net` trains."""
    control = copy.deepcopy(net)
    train_or_load(control, data, epochs, learning_rate=learning_rate, seed=seed + 1)
    return control


def qat_net(
    net, data, bits, method, granularity, seed, epochs=2, learning_rate=3e-4, per_layer=KEPT_LOGITS
):
    """Return the QATModel of `net` after training, with `bits` bits and the logits at 8."""
    images = data.train_images[:1000]
    model = prepare_qat(
        net,
        bits,
        bits,
        method,
        calibration_batches=[images],
        granularity=granularity,
        per_layer=per_layer,
    )
    train_or_load(model, data, epochs, learning_rate=learning_rate, seed=seed + 1)
    return model


def qat_rows(data):
    """Yield the rows of the table "qat": accuracies by method and bits, from each seed.

    Trained for two epochs, and with 2 bits for one, too. Rows whose method is "float" hold the
    control, with 32 bits; those whose method begins with "ptq" hold post-training quantization
    of the control.
    """
    images = data.train_images[:1000]
    for seed, (epochs, all_bits) in itertools.product(SEEDS, [(2, QAT_BITS), (1, (2,))]):
        net = float_net(data, seed)
        control = control_net(net, data, seed, epochs)
        yield "float", "", epochs, 32, seed, test(control, data)
        for (method, recipe, granularity), bits in itertools.product(PTQ_METHODS, all_bits):
            accuracy = ptq_accuracy(control, data, images, bits, bits, recipe, granularity)
            yield method, granularity, epochs, bits, seed, accuracy
        choices = list(itertools.product(QAT_METHODS, all_bits))
        for (method, granularity), bits in tqdm(choices, desc=f"qat, seed {seed}"):
            model = qat_net(net, data, bits, method, granularity, seed, epochs)
            yield method, granularity, epochs, bits, seed, test(model.convert(), data)


def images_kept_apart(data):
    """Return `data` without its last KEPT_APART training images, which are its test images now."""
    images, labels = data.train_images, data.train_labels
    return dataclasses.replace(
        data,
        train_images=images[:-KEPT_APART],
        train_labels=labels[:-KEPT_APART],
        test_images=images[-KEPT_APART:],
        test_labels=labels[-KEPT_APART:],
    )


def recipe_rows(data):
    """Yield the rows of the table "recipes": how each of RECIPES does on images kept apart.

    The networks are trained as the controls of "qat" are, but not on these images. Rows whose
    procedure is "float" hold them before quantization, with 32 bits. BEST is chosen by this table.
    """
    data = images_kept_apart(data)
    images = data.train_images[:1000]
    for seed in SEEDS:
        net = control_net(float_net(data, seed), data, seed)
        yield "", "", "float", "", 32, seed, test(net, data)
        choices = list(itertools.product(RECIPES, GRANULARITIES, QAT_BITS))
        for recipe, granularity, bits in tqdm(choices, desc=f"recipes, seed {seed}"):
            accuracy = ptq_accuracy(net, data, images, bits, bits, recipe, granularity)
            yield *recipe, granularity, bits, seed, accuracy


def trap_rows(data):
    """Yield the rows of the table "qat_traps": LSQ with 2 bits, per channel, one thing changed."""
    for seed in SEEDS:
        trained, untrained = float_net(data, seed), build_model(VerySimpleNet, seed).eval()
        for trap, changed in tqdm(QAT_TRAPS.items(), desc=f"qat_traps, seed {seed}"):
            net = untrained if trap == "from random weights" else trained
            model = qat_net(net, data, 2, "lsq", "per channel", seed, **changed)
            rate = {key: changed[key] for key in changed if key == "learning_rate"}
            control = control_net(net, data, seed, **rate)
            yield trap, seed, test(model.convert(), data), test(control, data)


def batch_norm_rows(data):
    """Yield the rows of the table "batch_norm": torch.ao's QAT of ConvNet, with 4 bits.

    Its BatchNorm keeps using the statistics of each batch, or is frozen.
    """
    from torch.ao.nn.intrinsic.qat import freeze_bn_stats
    from torch.ao.quantization import disable_observer

    silence_known_warnings()
    for seed in tqdm(SEEDS, desc="batch_norm"):
        net = build_model(ConvNet, seed)
        train_or_load(net, data, seed=seed)
        for (batch_size, steps), statistics in itertools.product(
            BATCH_NORM_BATCHES, ("of each batch", "frozen")
        ):
            model = conv_net_for_qat(net)
            if statistics == "frozen":
                model.apply(freeze_bn_stats)
            options = {"total_iterations_limit": steps, "batch_size": batch_size}
            train(model, data, learning_rate=3e-4, seed=seed + 1, **options)
            model.apply(disable_observer)
            yield batch_size, statistics, seed, test(model, data), test(net, data)


def conv_net_for_qat(net):
    """Return a ConvNet as torch.ao's QAT wants it: a sequence, fused, with fake quantizers."""
    from torch.ao import quantization as ao

    net = copy.deepcopy(net)
    layers = [net.conv1, net.norm1, nn.ReLU(), net.conv2, net.norm2, nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(ao.QuantStub(), *layers, net.linear, ao.DeQuantStub()).train()
    model = ao.fuse_modules_qat(model, [["1", "2", "3"], ["4", "5", "6"]])
    model.qconfig = ao.QConfig(
        activation=ao.FakeQuantize.with_args(
            observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=15
        ),
        weight=ao.FakeQuantize.with_args(
            observer=ao.MovingAverageMinMaxObserver,
            averaging_constant=1.0,
            quant_min=-8,
            quant_max=7,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        ),
    )
    return ao.prepare_qat(model)
