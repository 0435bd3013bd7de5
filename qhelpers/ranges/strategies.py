"""Range strategies: which real numbers should the codes cover? Each returns (low, high)."""

from itertools import repeat

import numpy as np
import torch

from qhelpers.affine import asymmetric_dequantize, asymmetric_quantization
from qhelpers.checks import checked_bits, checked_params, checked_percentile, finite_ends
from qhelpers.ranges.histogram import chunks
from qhelpers.ranges.search import search

KL_BINS = 2048


def min_max_range(params):
    """Return (low, high), in `params`' type: the smallest and the largest of `params`.

    params: array or tensor of finite real numbers, any shape.
    Raises TypeError or ValueError for anything else.
    Source: Krishnamoorthi 2018, section 2.
    """
    return finite_ends(checked_params(params))


def percentile_range(params, percentile=99.99, *, counts=None):
    """Return (low, high), in `params`' type: its percentiles 100 - percentile and percentile.

    params: array or tensor of finite real numbers, any shape.
    percentile: over 50, at most 100, which is min-max.
    counts: how often each of `params` occurs, an array of its shape; once by default. With
        counts both ends are numbers of `params`; without, they may lie between two of them.
    Raises TypeError or ValueError for anything else.
    Source: Wu et al. 2020, section 3.
    """
    percentile = checked_percentile(percentile)
    params = checked_params(params)
    finite_ends(params)
    percentiles = [100 - percentile, percentile]
    if counts is None:
        low, high = np.percentile(params, percentiles)
    else:
        low, high = np.percentile(params, percentiles, weights=counts, method="inverted_cdf")
    return low.astype(params.dtype), high.astype(params.dtype)


def cross_entropy_range(logits, bits):
    """Return the (low, high), in `logits`' type, that changes their softmax the least.

    logits: array or tensor of finite real numbers; the classes are its last axis. The
        cross-entropy from the softmax before to the one after is averaged over the rest.
    bits: integer from 1 to 16.
    Raises TypeError or ValueError for anything else.
    Source: Nagel et al. 2021, section 3.1.
    """
    bits = checked_bits(bits)
    logits = np.atleast_1d(checked_params(logits, "logits"))
    low, high, unit = span(logits, "logits")
    if unit == 0:
        return min_max_range(logits)
    before = np.ascontiguousarray(logits, np.float64)
    probabilities = np.exp(log_softmax(before))

    def loss(low, high):
        range_ = (low * unit, high * unit)
        codes, scale, zero = asymmetric_quantization(before, bits, range=range_)
        after = log_softmax(asymmetric_dequantize(codes, scale, zero))
        return -np.sum(probabilities * after, axis=-1).mean()

    shortest = 0.1 * np.sqrt(np.mean((before / unit) ** 2))
    low, high = search(loss, low / unit, high / unit, shortest)
    return logits.dtype.type(low * unit), logits.dtype.type(high * unit)


def kl_range(params, bits, *, counts=None):
    """Return the (low, high), in `params`' type, whose histogram changes least in KL divergence.

    The histogram is that of |params|, in KL_BINS bins. The threshold t is the end of one of
    them; the range is the part of min-max within [-t, t]. Where there are fewer than 2 bins
    to a code (from 11 or 12 bits on) it is min-max.

    params: array or tensor of finite real numbers, any shape.
    bits: integer from 1 to 16; from 2 where params has both signs.
    counts: how often each of `params` occurs, an array of its shape; once by default.
    Raises TypeError or ValueError for anything else.
    Source: Migacz 2017, entropy calibration; there for 8 bits and signed codes.
    """
    params = checked_params(params)
    low, high, unit = span(params)
    signs = int(low < 0) + int(high > 0)
    levels = 2 ** checked_bits(bits, fewest=max(1, signs)) // max(1, signs)  # for |params|
    if unit == 0 or 2 * levels > KL_BINS:
        return min_max_range(params)
    counts = sum(
        np.histogram(np.abs(chunk, dtype=np.float64) / unit, KL_BINS, (0, 1), weights=weights)[0]
        for chunk, weights in zip(
            chunks(params), repeat(None) if counts is None else chunks(counts)
        )
    )
    kept = min(range(levels, KL_BINS + 1), key=lambda kept: kl_divergence(counts, kept, levels))
    threshold = kept / KL_BINS * unit
    return tuple(params.dtype.type(end) for end in np.clip([low, high], -threshold, threshold))


def kl_divergence(counts, kept, levels):
    """Return the KL divergence, in nats, between a histogram clipped to its first `kept` bins
    and the same bins merged into `levels` codes."""
    before = counts[:kept].astype(np.float64)
    before[-1] += counts[kept:].sum()  # what is clipped lands in the last bin
    filled = before > 0
    code = np.arange(kept) * levels // kept
    sums = np.bincount(code, counts[:kept])
    # The count of a code is spread evenly over its filled bins.
    after = (sums / np.maximum(np.bincount(code, filled), 1))[code]
    p, q = before[filled] / before.sum(), after[filled] / max(1, after[filled].sum())
    with np.errstate(divide="ignore"):  # infinite if the last bin has only clipped values
        return np.sum(p * np.log(p / q))


def span(params, name="params"):
    """Return (low, high, unit), float64: the ends, widened to include 0, and the larger |end|."""
    low, high = finite_ends(params, name)
    low, high = min(np.float64(low), 0.0), max(np.float64(high), 0.0)
    return low, high, max(-low, high)


def log_softmax(logits):
    return torch.log_softmax(torch.tensor(logits), dim=-1).numpy()
