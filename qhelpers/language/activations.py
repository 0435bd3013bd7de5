"""Activations in few bits: who shares a scale, and three ways to live with outliers.

Each function returns numbers rather than codes: what the codes stand for. So that a method can be
tried in any model, before any product.
"""

import numpy as np
import torch

from qhelpers.affine import symmetric_quantization
from qhelpers.checks import checked_params
from qhelpers.language.quantized import symmetric


def per_token(x, bits):
    """Return x with a scale for each token, found while the model runs: max|x| / (2**(bits-1) - 1).

    x: array or tensor of finite real numbers, (..., tokens, width).
    bits: integer from 2 to 16.
    Returns a tensor of x's shape, float64 where x is. Raises TypeError or ValueError for
    arguments other than these. Source: Dettmers et al. 2022 (LLM.int8()), section 3.1.
    """
    return symmetric(x, bits, group_size=np.shape(x)[-1], narrow_range=True)


def per_tensor(x, bits, top=None):
    """Return x with one scale, top / (2**(bits-1) - 1); what lies beyond -top..top is clipped.

    top: number, found by calibration (static); by default max|x| (dynamic).
    Other arguments, errors and what is returned: as for `per_token`.
    """
    given = None if top is None else (-top, top)
    return symmetric(x, bits, range=given, narrow_range=True)


def per_channel(x, bits, tops):
    """Return x with a scale for each channel, tops / (2**(bits-1) - 1).

    No product of integers can use such scales: they would have to be taken out of a sum, each
    term of which has another one. It is what the other methods are compared with.

    tops: (width,), found by calibration. The rest: as for `per_tensor`.
    """
    tops = np.asarray(tops)
    return symmetric(x, bits, range=(-tops, tops), axis=-1, narrow_range=True)


def smooth_scales(largest_x, largest_w, alpha=0.5):
    """Return SmoothQuant's scales, float64 of shape (width,): max|x|**alpha / max|w|**(1 - alpha).

    Activations are divided by them and the weights multiplied, channel by channel:
    (x / s) @ (w * s).T is x @ w.T.

    largest_x, largest_w: (width,), the largest |x| and |w| of each channel; all matrices that
        multiply the same activations count. Numbers below 1e-5 count as 1e-5.
    alpha: from 0 to 1, how much of the range the weights take over. 1 gives all channels of the
        activations the same range, 0 all columns of the weights.
    Raises ValueError for other arguments.
    Source: Xiao et al. 2023 (SmoothQuant), equation 4.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha!r}; it must be a number from 0 to 1")
    x, w = (
        torch.from_numpy(checked_params(values, name)).double().clamp(min=1e-5)
        for values, name in ((largest_x, "largest_x"), (largest_w, "largest_w"))
    )
    if x.shape != w.shape:
        raise ValueError(
            f"largest_w has the shape {tuple(w.shape)}; it must be that of largest_x, "
            f"{tuple(x.shape)}"
        )
    return x**alpha / w ** (1 - alpha)


def outlier_columns(x, threshold=6.0):
    """Return which channels hold a number of this size or above, a bool tensor of shape (width,).

    x: tensor (..., tokens, width), all of it, so that the columns differ from batch to batch.
    Source: Dettmers et al. 2022 (LLM.int8()), section 3.2, which takes 6.
    """
    return (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(dim=0)


def mixed_columns(x, bits, threshold=6.0):
    """Return x with its outlier columns as they are, and the rest per token.

    x: float tensor (..., tokens, width). The rest: as for `per_token` and `outlier_columns`.
    """
    outliers = outlier_columns(x, threshold)
    return torch.where(outliers, x, per_token(torch.where(outliers, 0.0, x), bits))


def mixed_product(x, weight, bits=8, threshold=6.0):
    """Return LLM.int8()'s x @ weight.T: the outlier columns in floats, the rest in integers.

    x: float64 tensor (..., tokens, width), with a scale for each token.
    weight: float64 tensor (out, width), with a scale for each row.
    Returns a tensor (..., tokens, out). Raises TypeError or ValueError for other arguments.
    Source: Dettmers et al. 2022 (LLM.int8()), equation 8.
    """
    outliers = outlier_columns(x, threshold)
    result = x[..., outliers] @ weight[:, outliers].T
    if outliers.all():
        return result
    rest, w = x[..., ~outliers], weight[:, ~outliers]
    x_codes, x_scale = symmetric_quantization(
        rest, bits, group_size=rest.shape[-1], narrow_range=True
    )
    w_codes, w_scale = symmetric_quantization(w, bits, axis=0, narrow_range=True)
    # Whole numbers below 2**53: float64 adds them up without an error, and faster than integers.
    integers = x_codes.astype(np.float64) @ w_codes.T.astype(np.float64)
    return result + torch.from_numpy(integers * x_scale * w_scale.T)
