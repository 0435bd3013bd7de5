"""The network of notebook 3 that 8 bits break, and what mends it, each cure alone."""

from tqdm import tqdm

from qhelpers.experiments.ptq import SEEDS
from qhelpers.models import DepthwiseNet, build_model
from qhelpers.ptq.equalization import equalize, folded
from qhelpers.ptq.model import quantize_model
from qhelpers.training import test, train_or_load

HIGH_RATE, USUAL_RATE = 0.05, 0.001
# Options of quantize_model, beside those of min-max per tensor with 8 bits.
CURES = {
    "min-max per tensor": {},
    "16 bits for the weights": {"weight_bits": 16},
    "16 bits for the activations": {"activation_bits": 16},
    "a scale per channel": {"granularity": "per channel"},
    "mse for the activations": {"activation_strategy": "mse"},
    "mse for the weights": {"weight_strategy": "mse"},
    "output-mse for the weights": {"weight_strategy": "output-mse"},
    "bias correction": {"bias_correction": True},
    "equalization": {},
    "all together": {
        "granularity": "per channel",
        "activation_strategy": "mse",
        "weight_strategy": "output-mse",
        "bias_correction": True,
    },
}
EQUALIZED = ("equalization", "all together")


def depthwise_net(data, seed, learning_rate=HIGH_RATE):
    """Return DepthwiseNet as notebook 3 trains it, from this seed."""
    net = build_model(DepthwiseNet, seed)
    train_or_load(net, data, epochs=1, learning_rate=learning_rate, seed=seed)
    return net.eval()


def cured_accuracy(net, data, cure):
    """Return the test accuracy, from 0 to 1, of `net` quantized to 8 bits with one of CURES.

    Calibrated on the first 1,000 training images.
    """
    if cure in EQUALIZED:
        net = folded(net)
        equalize(net)
    options = {"granularity": "per tensor"} | CURES[cure]
    return test(quantize_model(net, data.train_images[:1000].split(250), **options), data)


def depthwise_rows(data):
    """Yield the rows of the table "depthwise": accuracies by cure, from each seed.

    Rows whose cure is "float" hold the networks before quantization. With the usual learning rate
    there is nothing to cure.
    """
    for rate, cures in [(HIGH_RATE, CURES), (USUAL_RATE, ["min-max per tensor"])]:
        for seed in SEEDS:
            net = depthwise_net(data, seed, rate)
            yield "float", rate, seed, test(net, data)
            for cure in tqdm(cures, desc=f"depthwise, rate {rate}, seed {seed}"):
                yield cure, rate, seed, cured_accuracy(net, data, cure)
