"""AWQ: make the weights larger that meet large activations, before they are rounded.

Source: Lin et al. 2024 (AWQ: Activation-aware Weight Quantization), section 3.2; without its
search for ranges that clip.
"""

import torch

from qhelpers.checks import checked_integer
from qhelpers.ptq.rounding import output_error


def awq_scales(weights, mean_abs, second_moment, quantize, grid=20):
    """Return (scales, alpha): what to multiply the weights' columns by, and the exponent found.

    Weights w become quantize(w * scales) / scales. In a group of weights that share a step, those
    of a column that is multiplied by 2 keep half the error. The scales are mean|x|**alpha, where
    alpha of 0, 1/grid, 2/grid ... is the one for which the outputs change least.

    weights: list of the matrices that multiply the same activations, each (out, width), float64.
    mean_abs: (width,), the mean |x| of each channel on calibration data.
    second_moment: (width, width), the mean of x x' on calibration data.
    quantize: function from a matrix to the numbers that its codes stand for, a tensor.
    """
    checked_integer("grid", grid, 1, 1000)
    found = []
    for step in range(grid):
        scales = scales_at(mean_abs, step / grid)
        found.append(error_with(weights, scales, second_moment, quantize))
    alpha = found.index(min(found)) / grid
    return scales_at(mean_abs, alpha), alpha


def scales_at(mean_abs, alpha):
    scales = torch.as_tensor(mean_abs).clamp(min=1e-4) ** alpha
    return scales / (scales.max() * scales.min()).sqrt()


def error_with(weights, scales, second_moment, quantize):
    """Return the mean squared error of the outputs, summed over all outputs of all matrices."""
    rounded = (quantize(weight * scales) / scales for weight in weights)
    errors = [output_error(w, w_hat, second_moment).sum() for w, w_hat in zip(weights, rounded)]
    return sum(errors).item()
