"""GPTQ: round a layer's weights column by column, and let later columns make up for each.

Source: Frantar et al. 2023 (GPTQ), section 4, without its batches of columns, which give the same
codes; the update is that of Frantar and Alistarh 2022 (Optimal Brain Compression), section 4.
"""

import torch
from tqdm import tqdm

from qhelpers.ptq.rounding import code_type, damped, rounding_problem


def gptq(weight, second_moment, scale, bits, *, damping=0.01, act_order=False):
    """Return the codes of a layer's weights, an int8 or int16 tensor of shape (out, in).

    weight: array or tensor of finite real numbers, of shape (out, in).
    second_moment: of the layer's inputs, (in, in): the mean of x x', or the covariance.
    scale: as `symmetric_quantization` returns it, with one number, one for each row, or one for
        each group of neighbours in a row.
    bits: integer from 2 to 16; the codes are -2**(bits-1)..2**(bits-1)-1.
    damping: this part of the diagonal's mean is added to the diagonal of second_moment, so that
        the codes fit the calibration inputs less closely. At least 0.
    act_order: begin with the inputs that are largest, rather than with the first.
    Raises TypeError or ValueError for arguments other than these, and ValueError if second_moment
    with its damping is singular.
    """
    weight, second_moment, scale, ends = rounding_problem(weight, second_moment, scale, bits)
    if not 0 <= damping < float("inf"):
        raise ValueError(f"damping is {damping!r}; it must be a finite number, at least 0")
    size = weight.shape[1]
    order = torch.arange(size)
    if act_order:
        order = torch.argsort(second_moment.diagonal(), descending=True, stable=True)
    rest, scale = weight[:, order], scale[:, order]  # what is still to be rounded
    spread = spreading(damped(second_moment, damping)[order][:, order])
    codes = torch.empty_like(weight)
    for j in tqdm(range(size), "GPTQ", delay=5, leave=False):
        codes[:, order[j]] = torch.round(rest[:, j] / scale[:, j]).clamp(*ends)
        error = rest[:, j] - codes[:, order[j]] * scale[:, j]
        rest[:, j + 1 :] -= error[:, None] * spread[j, j + 1 :]
    return codes.to(code_type(bits))


def spreading(second_moment):
    """Return in row j what is subtracted from the columns after j for an error of 1 in column j.

    With H the second moment of the columns from j on, the best that those after j can do is
    -H[after, after]^-1 H[after, j], which is the first row of H^-1 divided by its first number.
    Row j of the upper Cholesky factor of the whole inverse is in the same proportions.
    """
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(second_moment))
        factor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError:
        raise ValueError(
            "second_moment is singular: inputs are always 0, or there were fewer of them than "
            "columns; give more damping"
        ) from None
    return factor / factor.diagonal()[:, None]
