"""The experiments of notebook 7: ways to round the weights, on two networks and with few bits."""

import itertools
from functools import partial

from tqdm import tqdm

from qhelpers.experiments.ptq import SEEDS
from qhelpers.experiments.qat import control_net, qat_net
from qhelpers.models import ConvNet, VerySimpleNet, build_model
from qhelpers.ptq.calibration import calibrate, quantizing_modules, read
from qhelpers.ptq.gptq import gptq
from qhelpers.ptq.layers import QuantizedLayer
from qhelpers.ptq.model import quantize_model, unfrozen
from qhelpers.training import test, train_or_load

NETWORKS = {"VerySimpleNet": VerySimpleNet, "ConvNet": ConvNet}
GROUPS = {  # the size of a group in each layer; the last layer returns the logits
    "VerySimpleNet": {"linear1": 28, "linear2": 25, "linear3": 25},
    "ConvNet": {"conv1": 9, "conv2": 24, "linear": 28},
}
IN_TURN = {"layer_after_layer": True}
CORRECTED = IN_TURN | {"bias_correction": True}
OUTPUT_MSE = {"weight_strategy": "output-mse"}
GPTQ, ADAROUND = {"weight_rounding": "gptq"}, {"weight_rounding": "adaround"}
ROUNDING_RECIPES = {  # options of quantize_model, beside min-max for the weights
    "nearest, min-max": {},
    "nearest, mse": {"weight_strategy": "mse"},
    "nearest, corrected": CORRECTED,
    "best of notebook 3": CORRECTED | OUTPUT_MSE,
    "GPTQ as published": IN_TURN | GPTQ,
    "GPTQ as published, act-order": IN_TURN | GPTQ,
    "GPTQ, corrected": CORRECTED | GPTQ,
    "GPTQ, float target": CORRECTED | GPTQ,
    "GPTQ, float target, act-order": CORRECTED | GPTQ,
    "GPTQ, float target, output-mse": CORRECTED | GPTQ | OUTPUT_MSE,
    "AdaRound, float target": CORRECTED | ADAROUND,
    "AdaRound, float target, output-mse": CORRECTED | ADAROUND | OUTPUT_MSE,
}
OWN_TARGET = ("GPTQ as published", "GPTQ as published, act-order", "GPTQ, corrected")
ACT_ORDER = ("GPTQ as published, act-order", "GPTQ, float target, act-order")
WEIGHT_BITS, BOTH_BITS = (4, 3, 2), (3, 2)
ROUNDING_CHOICES = [  # (recipe, granularity, weight bits, activation bits or None: in floats)
    *itertools.product(ROUNDING_RECIPES, ["per channel", "groups"], WEIGHT_BITS, [None]),
    *((recipe, "per channel", bits, bits) for recipe in ROUNDING_RECIPES for bits in BOTH_BITS),
]


def network(name, data, seed):
    """Return one of NETWORKS, trained for an epoch from this seed."""
    net = build_model(NETWORKS[name], seed)
    train_or_load(net, data, epochs=1, seed=seed)
    return net.eval()


def rounded_net(net, images, recipe, granularity, weight_bits, activation_bits):
    """Return `net`, one of NETWORKS, quantized by one of ROUNDING_RECIPES.

    images: the calibration images. The activations' ranges are those of mse; logits keep 8 bits.
    """
    groups = GROUPS[type(net).__name__]
    per_layer = {name: {"granularity": size} for name, size in groups.items()}
    per_layer = per_layer if granularity == "groups" else {}
    if activation_bits is not None:
        per_layer[[*groups][-1]] = {"activation_bits": 8}
    options = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "activation_strategy": "mse",
        "per_layer": per_layer,
    } | ROUNDING_RECIPES[recipe]
    if recipe in (*OWN_TARGET, *ACT_ORDER):
        return other_gptq(net, images, options, recipe not in OWN_TARGET, recipe in ACT_ORDER)
    return quantize_model(net, [images], **options)


def other_gptq(net, images, options, float_target, act_order):
    """Return what quantize_model doesn't offer, because it is no better.

    float_target: where False, the target is what a layer makes of its quantized inputs.
    """
    others = {"weight_strategy": "min-max", "granularity": "per channel",
              "bias_correction": False, "reduce_range": False}  # fmt: skip
    options = others | options
    per_layer, in_turn = options.pop("per_layer"), options.pop("layer_after_layer")
    batches, first = read(net, [images])
    quantized = unfrozen(net, options, per_layer, first)
    for module in quantizing_modules(quantized.graph):
        if isinstance(module, QuantizedLayer):
            module.round = partial(gptq, act_order=act_order)
    calibrate(quantized, batches, in_turn, float_target)
    return quantized


def rounding_rows(data):
    """Yield the rows of the table "rounding": accuracies by network, recipe and bits.

    Calibrated on the first 1,000 training images. Where activations, or all, stay in floats, they
    have 32 bits. Rows whose recipe is "float" hold the networks before quantization; "QAT" is
    LSQ of notebook 4 after two more epochs, "float, trained as long" what it starts from after
    two more epochs in floats.
    """
    images = data.train_images[:1000]
    for name, seed in itertools.product(NETWORKS, SEEDS):
        net = network(name, data, seed)
        yield name, "float", "", 32, 32, seed, test(net, data)
        for choice in tqdm(ROUNDING_CHOICES, desc=f"rounding, {name}, seed {seed}"):
            recipe, granularity, bits, activation_bits = choice
            accuracy = test(rounded_net(net, images, *choice), data)
            yield name, recipe, granularity, bits, activation_bits or 32, seed, accuracy
        control = control_net(net, data, seed)
        yield name, "float, trained as long", "", 32, 32, seed, test(control, data)
        logits = {[*GROUPS[name]][-1]: {"activation_bits": 8}}
        for bits in BOTH_BITS:
            model = qat_net(net, data, bits, "lsq", "per channel", seed, per_layer=logits)
            yield name, "QAT", "per channel", bits, bits, seed, test(model.convert(), data)
