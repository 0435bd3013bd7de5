"""A layer's rounding is chosen for the inputs that it takes once those before it are quantized.

Its target is W x, what it returned in floats: W is its weight, and x an input in floats. What it
takes now is z in the place of x. The weight that comes nearest to the target from z is that of
least squares,

    V = W E[x z'] E[z z']^-1.

A rounded weight Q adds (Q - V) E[z z'] (Q - V)' to the error that V itself has. So V is rounded in
the place of W, with the second moment of z.
Source: Nagel et al. 2020 (AdaRound), section 3.3, and Li et al. 2025 (GPTAQ), for this target.
"""

import warnings

import torch
from tqdm import tqdm

from qhelpers.ptq.adaround import adaround
from qhelpers.ptq.gptq import gptq
from qhelpers.ptq.rounding import damped

ROUNDINGS = {"nearest": None, "gptq": gptq, "adaround": adaround}
DAMPING = 0.01  # as GPTQ's


def warn_of_few(name, moments):
    if moments.count < moments.size:
        warnings.warn(
            f"{name} was rounded for {moments.count} inputs, fewer than its channels have weights, "
            f"{moments.size}: it fits them better than others; give more calibration batches",
            stacklevel=7,
        )


def rounded_codes(method, weight, scale, bits, before, now, bias_corrected):
    """Return the codes of a layer's weight, of shape (channels, weights of a channel).

    method: called with (weight, second moment, scale, bits) for each of a convolution's groups.
    weight, scale: as in `weight_codes.quantized_weight`.
    before, now: InputMoments of the layer in floats, and after quantizing those before it. If
        `now` has not seen float inputs, the target is what the layer itself makes of its inputs.
    bias_corrected: whether the bias will correct the error's mean, so that only its variance
        counts.
    """
    rows = weight.double().reshape(now.groups, -1, now.size)
    moments = now.covariance if bias_corrected else now.second_moment
    if torch.is_tensor(now.float_products):
        mixed = now.float_products / now.count
        if bias_corrected:
            mixed = mixed - before.mean[:, :, None] * now.mean[:, None, :]
        # V, written so that the damping holds it near W.
        rows = rows + rows @ (mixed - moments) @ torch.linalg.inv(damped(moments, DAMPING))
    scales = scale.expand(len(weight), -1) if scale.ndim else scale.expand(len(weight), 1)
    scales = scales.reshape(now.groups, -1, scales.shape[-1])
    problems = zip(rows, moments, scales)
    if now.groups > 1:
        problems = tqdm(problems, "groups", now.groups, delay=5, leave=False)
    return torch.cat([method(*problem, bits) for problem in problems])
