"""How fast `qhelpers.affine` is beside torch's kernels, and `mse_range` beside a naive search.

Run as `python -m tests.bench_affine`: on one thread, the two sides in turn. The naive search
tries the same ranges as `mse_range`, on all values instead of on their histogram.
"""

import statistics
import time
import warnings

import numpy as np
import torch

from qhelpers import (
    asymmetric_dequantize,
    asymmetric_quantization,
    mse_range,
    quantization_error,
)
from qhelpers.search import search

VALUES, SEARCHED = 10_000_000, 1_000_000
RANGE = (-3.8, 3.8)
ROUNDS = 9


def ours(params):
    codes, scale, zero = asymmetric_quantization(params, 8, range=RANGE)
    return asymmetric_dequantize(codes, scale, zero)


def by_torch(params):
    _, scale, zero = asymmetric_quantization(params[:1], 8, range=RANGE)
    tensor = torch.from_numpy(params)
    return torch.quantize_per_tensor(tensor, scale.item(), zero, torch.quint8).dequantize().numpy()


def naive_mse_range(params, bits):
    """The search of `mse_range`, each error from all the values; and how many there were."""
    tried = []

    def error(low, high):
        tried.append((low, high))
        codes, scale, zero = asymmetric_quantization(params, bits, range=(low, high))
        return quantization_error(params, asymmetric_dequantize(codes, scale, zero))

    shortest = 0.1 * np.sqrt(np.square(params, dtype=np.float64).mean())
    return search(error, params.min(), params.max(), shortest), len(tried)


def seconds(function, *arguments):
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel")
    params = np.random.default_rng(0).normal(size=VALUES).astype(np.float32)
    times = {ours: [], by_torch: []}
    for _ in range(ROUNDS):
        results = []
        for function, taken in times.items():
            taken_now, result = seconds(function, params)
            taken.append(taken_now)
            results.append(result)
        assert np.array_equal(*results)
    print(
        f"\n{VALUES:,} values, quantized and dequantized: median of {ROUNDS} (fastest to slowest)"
    )
    for function, taken in times.items():
        name, median = function.__name__, statistics.median(taken)
        print(
            f"{name:<9} {1e3 * median:6.1f} ms   ({1e3 * min(taken):.1f} to {1e3 * max(taken):.1f})"
        )
    ratio = statistics.median(times[ours]) / statistics.median(times[by_torch])
    print(f"ours takes {ratio:.2f} times torch's time")

    print(f"\nMSE search, {SEARCHED:,} values")
    for bits in (2, 4, 8):
        few = params[:SEARCHED]
        slow, (_, tried) = seconds(naive_mse_range, few, bits)
        fast = statistics.median(seconds(mse_range, few, bits)[0] for _ in range(ROUNDS))
        print(
            f"{bits} bits: naive, {tried} ranges {slow:6.2f} s; by histogram {1e3 * fast:5.1f} ms: "
            f"{slow / fast:.0f} times as fast"
        )


if __name__ == "__main__":
    main()
