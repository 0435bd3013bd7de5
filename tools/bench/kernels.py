"""Quantizing and dequantizing compared with torch's kernels, which give the same numbers."""

import numpy as np
import torch

from qhelpers import asymmetric_dequantize, asymmetric_quantization
from qhelpers.timing import times_in_turn
from tools.bench.comparison import OURS, Comparison, peak_of

RANGE = (-3.8, 3.8)
ROUNDS = {10**6: 21, 10**7: 9, 10**8: 5}
TORCH = "torch's kernel"


def comparisons(rounds=ROUNDS):
    for size, count in rounds.items():
        params = normal_numbers(size)
        if not np.array_equal(ours(params), by_torch(params)):
            raise AssertionError(f"some of {size:,} values are not torch's")
        times = times_in_turn({OURS: ours, TORCH: by_torch}, params, count)
        peak = peak_of(ours, params, output_bytes=5 * size)  # a code and a float32 each
        yield Comparison("quantize and dequantize", size, "values", times, {TORCH: 1 / 1.2}, peak)


def normal_numbers(size):
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def ours(params):
    codes, scale, zero = asymmetric_quantization(params, 8, range=RANGE)
    return asymmetric_dequantize(codes, scale, zero)


def by_torch(params):
    _, scale, zero = asymmetric_quantization(params[:1], 8, range=RANGE)
    tensor = torch.from_numpy(params)
    return torch.quantize_per_tensor(tensor, scale.item(), zero, torch.quint8).dequantize().numpy()
