"""What makes the answers to the exercises of notebook 9 right, with a hint for each mistake."""

import torch

from qhelpers.exercises.answers import mistake, near, real, reals, require, require_result, rounded
from qhelpers.language.activations import per_tensor, per_token
from qhelpers.language.perplexity import perplexity
from qhelpers.language.rotation import signed_hadamard
from qhelpers.language.texts import test_text
from qhelpers.language.tiny import load_tiny
from qhelpers.language.transformer import LanguageModel

LAYERS, HEADS, SIZE, TOKENS = 80, 8, 128, 8192  # of exercise 9.1
NUMBERS = TOKENS * LAYERS * 2 * HEADS * SIZE
RUINED, LOUD = "blk.0.ffn_down.weight", ("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")


def cache_sizes(sixteen, four):
    sixteen, four = real(sixteen, "bytes_in_16_bits"), real(four, "bytes_in_4_bits")
    mistake(rounded(sixteen, 16 * NUMBERS), "That is eight times too much. Count the heads of "
            "keys and values, not those of queries, and bytes, not bits.")  # fmt: skip
    mistake(rounded(sixteen, NUMBERS), "That is half of it. Are both in it, keys and values, and "
            "are 16 bits two bytes?")  # fmt: skip
    mistake(rounded(sixteen, 2 * NUMBERS / LAYERS), "That is one layer; there are 80.")
    for unit in (1e3, 1e6, 1e9):
        mistake(rounded(sixteen, 2 * NUMBERS / unit), "Right, but give it in bytes.")
    require(rounded(sixteen, 2 * NUMBERS), "With 16 bits: tokens times layers times 2, for keys "
            "and values, times heads times size times bytes.")  # fmt: skip
    mistake(rounded(four, NUMBERS / 2), "16 bits are right. With 4 bits, count the scales and zero "
            "points, too.")  # fmt: skip
    mistake(rounded(four, 4.5 * NUMBERS / 8), "16 bits are right. Each group has a scale and a "
            "zero point: 2 times 16 bits for 32 numbers.")  # fmt: skip
    mistake(rounded(four, 5 * NUMBERS), "16 bits are right. The others are bits; a byte has 8.")
    require(rounded(four, 5 * NUMBERS / 8), "16 bits are right. How many bits does a number take, "
            "with its part of a scale and a zero point?")  # fmt: skip


def scales(scales_of):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([1.0, 2, 30, 1, 0.5, 4]) - 1
    first, second = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) - 0.5
                     for rows in (4, 8))  # fmt: skip
    second = second * torch.tensor([3.0, 0.1, 1, 2, 1, 5])
    for a in (0.8, 0.3):
        answer = scales_of(x, [first, second], a)
        require_result(answer)
        answer = torch.from_numpy(reals(answer))
        require(answer.shape == (6,), f"It returns the shape {tuple(answer.shape)}, not (6,): one "
                "scale for each dimension of the input.")  # fmt: skip
        right_scales(answer, x, first, second, a)


def right_scales(answer, x, first, second, a):
    """Raise Wrong unless these are SmoothQuant's scales for two matrices with the input x."""
    both = torch.cat([first, second])
    top_x, top_w = x.abs().amax(dim=0), both.abs().amax(dim=0)
    right = top_x**a / top_w ** (1 - a)
    for other, hint in [
        (1 / right, "These are the inverse: activations are divided by the scales."),
        (top_x ** (1 - a) / top_w**a, "The exponents are the wrong way round."),
        (top_x**a * top_w ** (1 - a), "Divide by what comes from the weights."),
        (top_x**a / top_w**a, "The weights' exponent is 1 - a."),
        (top_x**a, "The weights have no say yet."),
        (top_x**a / first.abs().amax(dim=0) ** (1 - a), "Both matrices share the input, so take "
         "the largest |w| of both."),
        (top_x**a / second.abs().amax(dim=0) ** (1 - a), "Both matrices share the input, so take "
         "the largest |w| of both."),
        (x.amax(dim=0).abs() ** a / both.amax(dim=0).abs() ** (1 - a), "Take the absolute values "
         "first: a large negative number is large."),
        (x.abs().mean(dim=0) ** a / both.abs().mean(dim=0) ** (1 - a), "Take the largest, not the "
         "mean: the largest number dictates the step."),
    ]:  # fmt: skip
        mistake(near(answer, other), hint)
    require(near(answer, right), f"With a = {a} it isn't max|x|**a / max|w|**(1 - a). Over which "
            "axis do you take the largest?")  # fmt: skip


def ruined_product(name):
    model = outlier_model()
    require(name in model.matrices, f"{name!r} is no matrix of the model; its names are those in "
            "exercise_model.matrices.")  # fmt: skip
    ids = model.tokenizer.encode(test_text()[:2000])
    plain = perplexity(model, ids)

    def linear(here, x):
        return (per_tensor(x, 8) if here == name else x) @ model.weights[here].T

    with model.hooked(linear=linear):
        cost = f"with its input in 8 bits per tensor the perplexity is {perplexity(model, ids):.2f}"
    cost += f" instead of {plain:.2f}"
    mistake(name in LOUD, f"Its numbers are the largest of all, but {cost}: all of its dimensions "
            "are large. Which input has one that is much larger than its others?")  # fmt: skip
    require(name == RUINED, f"It is another one: {cost}.")


def outlier_model():
    """Return the tiny model with an outlier in one place, and in another all numbers larger.

    Its function is the same: what multiplies a dimension divides the weights behind it.
    """
    tiny = load_tiny()
    weights = {name: weight.clone() for name, weight in tiny.weights.items()}
    weights["blk.0.ffn_up.weight"][100] *= 60
    weights["blk.0.ffn_down.weight"][:, 100] /= 60
    weights["blk.1.ffn_norm.weight"] *= 500
    for name in LOUD:
        weights[name] /= 500
    return LanguageModel(tiny.config, weights, tiny.tokenizer)


def bad_input(x):
    x = torch.from_numpy(reals(x, 64)).reshape(64)
    require(bool(torch.isfinite(x).all()) and bool(x.any()), "It should hold finite numbers, not "
            "all of them 0.")  # fmt: skip
    turned = x @ signed_hadamard(64)
    plain, rotated = ((per_token(each[None], 4)[0] - each).square().sum() for each in (x, turned))
    told = f"The squared error is {plain:.3g} as it is and {rotated:.3g} rotated"
    mistake(near(rotated, 0) and near(plain, 0), f"{told}: both are as good as 0. Add some small "
            "noise, which gets lost if one number is large.")  # fmt: skip
    mistake(plain < rotated <= 10 * plain, f"{told}. It should be more than ten times as large: "
            "not only spread more evenly before than after.")  # fmt: skip
    require(rotated > 10 * plain, f"{told}. Which input does it gather in one dimension?")


CHECKS = {"9.1": cache_sizes, "9.2": scales, "9.3": ruined_product, "9.4": bad_input}
