"""AdaRound: learn for each weight whether it is rounded up or down.

Source: Nagel et al. 2020 (AdaRound), section 3.3. The paper takes the inputs in small batches;
here their second moment is all that the error of the output needs, so nothing is drawn at random.
Nor is there a warm-up without the penalty: learning starts at the weights themselves, where the
error is 0, and Adam would make whole steps of the last bits, which differ between CPUs.
"""

import math

import torch
from tqdm import tqdm

from qhelpers.checks import checked_integer
from qhelpers.ptq.rounding import code_type, output_error, rounding_problem

LOW, HIGH = -0.1, 1.1  # what the sigmoid is stretched to before it is clipped to 0..1
RATE, PENALTY = 0.05, 0.05
SHARPNESS = 20, 2  # the penalty's exponent at the start and at the end


def adaround(weight, second_moment, scale, bits, *, steps=500):
    """Return the codes of a layer's weights, an int8 or int16 tensor of shape (out, in).

    Each is floor(weight / scale) or one more, brought into the codes of `bits`.
    weight, second_moment, scale, bits: as for `gptq`.
    steps: how many steps Adam takes.
    Raises TypeError or ValueError for arguments other than these.
    """
    weight, second_moment, scale, ends = rounding_problem(weight, second_moment, scale, bits)
    steps = checked_integer("steps", steps, 1, 10**6)
    below = torch.floor(weight / scale)
    nearest = torch.round(weight / scale).clamp(*ends) * scale
    unit = output_error(weight, nearest, second_moment).mean() + 1e-12
    with torch.enable_grad():
        v = inverse_of_rectified_sigmoid(weight / scale - below).requires_grad_()
        optimizer = torch.optim.Adam([v], lr=RATE)
        for step in tqdm(range(steps), "AdaRound", delay=5, leave=False):
            up = rectified_sigmoid(v)
            error = (below + up).clamp(*ends) * scale - weight
            # Its gradient is that of error' H error; torch's own would multiply by H twice.
            loss = 2 * ((error.detach() @ second_moment) * error).sum() / unit
            loss = loss + PENALTY * indecision(up, step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (below + (v.detach() > 0)).clamp(*ends).to(code_type(bits))


def rectified_sigmoid(v):
    """Return numbers from 0 to 1, both included (equation 23)."""
    return (torch.sigmoid(v) * (HIGH - LOW) + LOW).clamp(0, 1)


def inverse_of_rectified_sigmoid(up):
    return torch.logit((up.clamp(0.001, 0.999) - LOW) / (HIGH - LOW))


def indecision(up, progress):
    """Return the sum of 1 - |2 up - 1|**beta: 0 where each number is 0 or 1 (equation 24).

    While beta is large, only numbers close to an end are drawn to it; as beta falls, all are.
    progress: from 0 to 1, where beta is SHARPNESS[1].
    """
    first, last = SHARPNESS
    beta = last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
    return (1 - (2 * up - 1).abs() ** beta).sum()
