"""What makes the answers to the exercises of notebook 3 right, with a hint for each mistake."""

import torch

from qhelpers.exercises.answers import mistake, near, real, reals, require, rounded
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.model import quantize_model
from qhelpers.training import test


def moving_average(low, high):
    ends = real(low, "low"), real(high, "high")
    mistake(near(ends, (-3, 4)), "These are the farthest numbers: a min-max observer's.")
    mistake(near(ends, (-2, 3)), "This is the plain mean of both batches: c would be 0.5.")
    mistake(near(ends, (-2.8, 3.8)), "The other way round: c is the weight of what is new.")
    mistake(near(ends, (-1.3, 2.4)), "You add c times the new end: it is c times the distance.")
    mistake(near(ends, (-0.8, 1.8)), "The distance has the wrong sign: the range gets narrower.")
    require(rounded(ends, (-1.2, 2.2)), "Each end moves by c times its distance from the new end.")


def folded_batch_norm(fold):
    layer, norm = random_layer_and_batch_norm()
    weight_before, bias_before = layer.weight.clone(), layer.bias.clone()
    try:
        answer = fold(layer, norm)
    except RuntimeError as error:  # of torch, where shapes don't fit
        mistake("must match the size" in str(error),
                "The weight has the shape (4, 5), and there is a factor for each of its 4 rows: "
                "write factor[:, None].")  # fmt: skip
        raise
    require(isinstance(answer, tuple) and len(answer) == 2, "Return the weight and the bias.")
    weight, bias = (torch.as_tensor(reals(numbers)).float() for numbers in answer)
    require(torch.equal(weight_before, layer.weight), "Your function changes the layer's weight.")
    require(torch.equal(bias_before, layer.bias), "Your function changes the layer's bias.")
    require(weight.shape == (4, 5), f"The weight has the shape {tuple(weight.shape)}.")
    require(bias.shape == (4,), f"The bias has the shape {tuple(bias.shape)}.")

    def scaled_by(factor):
        return torch.allclose(weight, factor[:, None] * layer.weight, atol=1e-5)

    variance = norm.running_var + norm.eps
    factor = norm.weight / variance.sqrt()
    mistake(scaled_by(norm.weight / norm.running_var.sqrt()), "Add eps to the variance.")
    mistake(scaled_by(norm.weight / variance),
            "Divide by the standard deviation, which is the root of the variance.")  # fmt: skip
    require(scaled_by(factor), "The weight is not right.")
    without_bias = norm.bias - factor * norm.running_mean
    mistake(torch.allclose(bias, without_bias + layer.bias, atol=1e-5),
            "The weight is right. BatchNorm scales the layer's own bias, too.")  # fmt: skip
    mistake(torch.allclose(bias, without_bias, atol=1e-5),
            "The weight is right. The layer has a bias of its own.")  # fmt: skip
    right = without_bias + factor * layer.bias
    mistake(torch.allclose(bias, right + 2 * factor * norm.running_mean, atol=1e-5),
            "The weight is right. BatchNorm subtracts the running mean.")  # fmt: skip
    mistake(torch.allclose(bias, right - norm.bias, atol=1e-5),
            "The weight is right. BatchNorm ends by adding a bias.")  # fmt: skip
    x = torch.randn(100, 5)
    folded = torch.nn.functional.linear(x, weight, bias)
    require(torch.allclose(folded, norm(layer(x)), atol=1e-4),
            "The weight is right, the bias isn't.")  # fmt: skip


def random_layer_and_batch_norm():
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 4).requires_grad_(False)
    norm = torch.nn.BatchNorm1d(4, eps=0.1).eval().requires_grad_(False)
    for numbers, low in [(norm.running_mean, -2), (norm.running_var, 0.1), (norm.weight, -1)]:
        torch.nn.init.uniform_(numbers, low, 2)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    return layer, norm


def three_bits(quantized, net, data):
    require(hasattr(quantized, "graph"), "It should be what quantize_model returns.")
    bits_of = bits_by_name(quantized)
    for name in bits_by_name(quantize_model(net, [data.train_images[:10]])):
        require(name in bits_of, f"{name} leaves its numbers in floats.")
        bits, allowed = bits_of[name], 8 if name == "quantize_linear3" else 3
        require(bits <= allowed, f"{name} has {bits} bits; {allowed} are allowed.")
    lost = 100 * (test(net, data) - test(quantized, data))
    require(lost <= 0.5, f"It loses {lost:.2f} points; 0.5 are allowed.")


def bits_by_name(quantized):
    """Return the bits of each layer's weights and of each activation, by its name in the graph."""
    modules, kinds = quantized.graph.named_modules(), (QuantizedLayer, QuantizedActivation)
    return {name: module.bits for name, module in modules if isinstance(module, kinds)}


CHECKS = {"3.1": moving_average, "3.2": folded_batch_norm, "3.3": three_bits}
