"""What makes the answers to the exercises of notebook 4 right, with a hint for each mistake."""

import numpy as np
import torch

from qhelpers.exercises.answers import mistake, near, reals, require


def straight_through_gradient(gradient):
    gradient = reals(gradient, 5)
    require(set(gradient) <= {0, 1}, "Each is 0 or 1: the number is clipped, or it is not.")
    mistake(near(gradient, (0, 0, 1, 0, 0)), "The clamp cuts off codes, after rounding: what "
            "code has -2.4, and what code has 1.4?")  # fmt: skip
    require(gradient.any(), "The estimator leaves out the rounding, whose slope is 0.")
    require(near(gradient, (0, 1, 1, 1, 0)), "Round each number. Is its code one of -2, ..., 1?")


def gradient_of_the_scale(gradient):
    gradient = reals(gradient, 4)
    mistake(near(gradient, (-2, 0.3, -0.4, 1)), "Mind the sign within the range: it is the "
            "rounded number less the number.")  # fmt: skip
    mistake(near(gradient, (0, -0.3, 0.4, 0)), "Beyond the range the result is s times the "
            "last code, so it moves with s.")  # fmt: skip
    require(near(gradient, (-2, -0.3, 0.4, 1)), "Within: round(x/s) - x/s. Beyond: the last code.")


def straight_through_by_detach(fake_quantize):
    scale = 0.3
    values, gradient = values_and_gradient(fake_quantize, scale)
    kernel = torch.fake_quantize_per_tensor_affine
    their_values, their_gradient = values_and_gradient(kernel, scale)
    # Where x / scale is close to a tie, the code may be off by one, since x + (result - x) is
    # rounded once more.
    off = share((values - their_values).abs() > scale / 100)
    require(off < 0.001, f"{off:.1%} of the values are not those of PyTorch's kernel.")
    require(gradient.any(), "The gradient is 0: it goes through round. Detach what round changes.")
    clipped = their_gradient == 0
    mistake(clipped.any() and gradient[clipped].all(), "The gradient passes where the number "
            "is clipped: clamp outside of what you detach.")  # fmt: skip
    off = share((gradient - their_gradient).abs() > 0.01)
    require(off < 0.001, f"{off:.1%} of the gradients are not those of PyTorch's kernel.")


def values_and_gradient(fake_quantize, scale):
    """Return what a function makes of 10,000 numbers, and the gradient of their sum."""
    numbers = np.random.default_rng(7).normal(0, 1.5, 10_000)
    x = torch.tensor(numbers, dtype=torch.float32, requires_grad=True)
    y = fake_quantize(x, scale, 5, 0, 15)
    require(isinstance(y, torch.Tensor), f"It should return a tensor, and returned {y!r}.")
    require(y.requires_grad, "The result has lost its gradient: detach a part of it only.")
    y.sum().backward()
    return y.detach(), x.grad


def share(condition):
    return condition.double().mean().item()


CHECKS = {
    "4.1": straight_through_gradient,
    "4.2": gradient_of_the_scale,
    "4.3": straight_through_by_detach,
}
