"""What the ways to round a layer's weights have in common: the problem that they solve.

A channel's weights w become w' = codes * scale. On inputs whose second moment is H, the mean of
x x', the mean squared error of its output is (w' - w)' H (w' - w). H is the inputs' covariance
where the bias corrects the mean of that error.
Source: Nagel et al. 2020 (AdaRound), section 3.2.
"""

import numpy as np
import torch

from qhelpers.checks import checked_bits, checked_finite, checked_params
from qhelpers.granularity import align_with_scale


def rounding_problem(weight, second_moment, scale, bits):
    """Return the checked (weight, second_moment, scale of each weight, codes' two ends).

    weight: finite array or tensor of shape (out, in).
    second_moment: finite, of shape (in, in).
    scale: as `symmetric_quantization` returns it: one number, or shape (out, 1) or (out, groups).
    bits: integer from 2 to 16; the codes are -2**(bits-1)..2**(bits-1)-1.
    All but the ends are float64 tensors. Raises TypeError or ValueError for other arguments.
    """
    half = 2 ** (checked_bits(bits, fewest=2) - 1)
    given = {"weight": weight, "second_moment": second_moment, "scale": scale}
    weight, second_moment, scale = (
        checked_finite(checked_params(values, name), name) for name, values in given.items()
    )
    if weight.ndim != 2:
        raise ValueError(f"weight has the shape {weight.shape}; it must be (out, in)")
    size = weight.shape[1]
    if second_moment.shape != (size, size):
        raise ValueError(
            f"second_moment has the shape {second_moment.shape}; for {size} inputs it must be "
            f"{(size, size)}"
        )
    if not (scale > 0).all():
        raise ValueError(f"scale holds {scale.min()}; all its values must be above 0")
    view, inner = align_with_scale(weight, scale)
    scale = np.broadcast_to(scale.reshape(inner), view.shape).reshape(weight.shape)
    numbers = (torch.tensor(n, dtype=torch.float64) for n in (weight, second_moment, scale))
    return *numbers, (-half, half - 1)


def code_type(bits):
    return torch.int8 if bits <= 8 else torch.int16


def output_error(weight, rounded, second_moment):
    """Return the mean squared error of each channel's output, (out,), from tensors (out, in)."""
    error = rounded - weight
    return ((error @ second_moment) * error).sum(dim=-1)


def damped(second_moment, damping):
    """Return the second moment with a part of its diagonal's mean added to the diagonal.

    It can be inverted then, even where inputs are always 0, or fewer were seen than there are. If
    all are always 0, it is the identity: no rounding is better than another.
    second_moment: of shape (in, in), or several of them, (n, in, in).
    """
    mean = second_moment.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    added = torch.where(mean > 0, damping * mean, 1)
    return second_moment + added * torch.eye(second_moment.shape[-1], dtype=torch.float64)
