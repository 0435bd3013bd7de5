"""What makes the answers to the exercises of notebook 4 right, with a hint for each mistake."""

import numpy as np
import torch

from qhelpers.exercises.answers import mistake, near, reals, require, require_result, rounded


def straight_through_gradient(gradient):
    gradient = reals(gradient, 5)
    mistake(near(gradient, (-2, -2, 0, 1, 1)), "These are the quantized numbers. Their gradient "
            "is asked for: how much of it does the estimator let through?")  # fmt: skip
    require(set(gradient) <= {0, 1}, "Each is 0 or 1: the number is clipped, or it is not.")
    require(gradient.any(), "The estimator leaves out the rounding, whose slope is 0.")
    mistake(gradient.all(), "Nothing passes where the code is clipped. Round each number to the "
            "nearest integer: which are not among -2, ..., 1?")  # fmt: skip
    mistake(near(gradient, (1, 0, 0, 0, 1)), "It is the other way round: 1 where the gradient "
            "passes, 0 where the number is clipped.")  # fmt: skip
    mistake(near(gradient, (0, 0, 1, 0, 0)), "The clamp cuts off codes, after rounding: which "
            "code has -2.4, and which code has 1.4?")  # fmt: skip
    require(near(gradient, (0, 1, 1, 1, 0)), "Round each number. Is its code one of -2, ..., 1?")


def gradient_of_the_scale(gradient):
    gradient = reals(gradient, 4)
    mistake(rounded(gradient, (-2, 0.3, -0.4, 1)), "Mind the sign within the range: it is the "
            "rounded number minus the number.")  # fmt: skip
    mistake(rounded(gradient, (0, -0.3, 0.4, 0)), "Beyond the range the result is s times the "
            "last code, so it moves with s.")  # fmt: skip
    mistake(rounded(gradient, (3, -0.3, 0.4, -6)), "Beyond the range the result is s times the "
            "last code: x is not in it.")  # fmt: skip
    mistake(near(gradient, (-2, 0, 1, 1)), "These are the codes, the gradient if the rounding has "
            "slope 0. With the estimator its slope is 1, so x / s counts as well.")  # fmt: skip
    mistake(near(gradient, (-2, 0, 0, 1)), "Only the backward pass leaves out the rounding. The "
            "code in the formula is rounded: x / s is not.")  # fmt: skip
    right = (-2, -0.3, 0.4, 1)
    require(rounded(gradient, right), "Within: round(x/s) - x/s. Beyond: the last code.")


def straight_through_by_detach(fake_quantize):
    scale, zero_point, ends = 0.3, 5, (0, 15)
    x, values, gradient = values_and_gradient(fake_quantize, scale, zero_point, *ends)
    kernel = torch.fake_quantize_per_tensor_affine
    _, their_values, their_gradient = values_and_gradient(kernel, scale, zero_point, *ends)
    without_zero_point = kernel(x, scale, 0, *ends)
    mistake(same_values(values, their_values / scale + zero_point, scale), "These are the codes. "
            "Subtract the zero point, and multiply by the scale.")  # fmt: skip
    mistake(same_values(values, without_zero_point, scale), "The values are those of zero point "
            "0. Add it before the clamp, and subtract it after.")  # fmt: skip
    unclipped = (torch.round(x / scale) * scale).detach()
    mistake(same_values(values, unclipped, scale), "The values are not clipped: clamp the codes "
            "to quant_min and quant_max.")  # fmt: skip
    off = share_that_differs(values, their_values, scale)
    require(off < 0.001, f"{off:.1%} of the values are not those of PyTorch's kernel.")
    require(gradient.any(), "The gradient is 0: it goes through round. Detach what round changes.")
    clipped = their_gradient == 0
    mistake(gradient[clipped].all(), "The gradient passes where the number is clipped: clamp "
            "outside of what you detach.")  # fmt: skip
    inside = gradient[~clipped].median().item()
    mistake(abs(inside - 1) > 0.01, f"Within the range the gradient is {inside:.3g}, and should be "
            "1: multiply by the scale all that you divided by it.")  # fmt: skip
    last = (x / scale + zero_point).clamp(*ends) == x / scale + zero_point
    mistake(torch.equal(gradient != 0, last), "The values are right, and the gradient ends at the "
            "last code. PyTorch's passes for half a step more.")  # fmt: skip
    off = share((gradient - their_gradient).abs() > 0.01)
    require(off < 0.001, f"{off:.1%} of the gradients are not those of PyTorch's kernel.")


def values_and_gradient(fake_quantize, scale, zero_point, *ends):
    """Return 10,000 numbers, what a function makes of them, and the gradient of their sum."""
    numbers = np.random.default_rng(7).normal(0, 1.5, 10_000)
    x = torch.tensor(numbers, dtype=torch.float32, requires_grad=True)
    y = fake_quantize(x, scale, zero_point, *ends)
    require_result(y)
    require(isinstance(y, torch.Tensor), f"It should return a tensor, and returned {y!r}.")
    require(y.requires_grad, "The result has lost its gradient: detach a part of it only.")
    y.sum().backward()
    return x.detach(), y.detach(), x.grad


def same_values(values, wanted, scale):
    return share_that_differs(values, wanted, scale) < 0.001


def share_that_differs(values, wanted, scale):
    """Return the share of values that are not the wanted ones.

    Where x / scale is close to a tie, the code may be off by one, since x + (result - x) is
    rounded once more.
    """
    return share((values - wanted).abs() > scale / 100)


def share(condition):
    return condition.double().mean().item()


CHECKS = {
    "4.1": straight_through_gradient,
    "4.2": gradient_of_the_scale,
    "4.3": straight_through_by_detach,
}
