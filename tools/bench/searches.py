"""`mse_range` compared with the same search over all values and with torch's observer."""

import numpy as np
import torch

from qhelpers import (
    asymmetric_dequantize,
    asymmetric_quantization,
    has_torch_ao,
    mse_range,
    quantization_error,
)
from qhelpers.ranges.search import search
from qhelpers.timing import times_in_turn
from tools.bench.comparison import OURS, Comparison, peak_of
from tools.bench.kernels import normal_numbers

BITS = 4
ROUNDS = {10**6: 15, 10**7: 9, 10**8: 5}
GOALS = {10**6: 20, 10**7: 50}  # the naive search runs with these sizes only
NAIVE, OBSERVER = "naive search", "torch's HistogramObserver"


def comparisons(rounds=ROUNDS, goals=GOALS):
    for size, count in rounds.items():
        params = normal_numbers(size)
        functions = {OURS: lambda params: mse_range(params, BITS)}
        if has_torch_ao():
            functions[OBSERVER] = by_observer
        times = times_in_turn(functions, params, count)
        wanted = {NAIVE: goals[size]} if size in goals else {}
        if wanted:
            found = []
            naive = {NAIVE: lambda params, found=found: found.append(naive_mse_range(params))}
            times |= times_in_turn(naive, params, 1, warm_up=False)
            if not same_answer(params, found[0]):
                raise AssertionError(f"for {size:,} values mse_range finds a worse range")
        peak = peak_of(functions[OURS], params, output_bytes=0)
        yield Comparison("range of least squared error", size, "values", times, wanted, peak)


def same_answer(params, naive):
    """Whether the error with `mse_range` is at most 1 % above that of the naive range."""
    return error_in(params, mse_range(params, BITS)) <= 1.01 * error_in(params, naive)


def naive_mse_range(params):
    """The search of `mse_range`, with each error computed from all the values."""

    def error(low, high):
        return error_in(params, (low, high))

    shortest = 0.1 * np.sqrt(np.square(params, dtype=np.float64).mean())
    return search(error, params.min(), params.max(), shortest)


def error_in(params, range_):
    codes, scale, zero = asymmetric_quantization(params, BITS, range=range_)
    return quantization_error(params, asymmetric_dequantize(codes, scale, zero))


def by_observer(params):
    observer = torch.ao.quantization.HistogramObserver(quant_min=0, quant_max=2**BITS - 1)
    observer(torch.from_numpy(params))
    return observer.calculate_qparams()
