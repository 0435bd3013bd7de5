"""How fast the integer model is beside torch's float32 network and its int8 kernels.

Run as `python -m tests.bench_integer`: on one thread, from images to logits, the contestants in
turn. OMP_NUM_THREADS=1 is set here before NumPy and torch are imported, for NumPy's BLAS.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics  # noqa: E402
import time  # noqa: E402

import torch  # noqa: E402

from qhelpers import integer_model, load_data, quantize_model, silence_known_warnings  # noqa: E402
from qhelpers.ptq_experiments import float_net  # noqa: E402
from qhelpers.torch_ao import choose_engine, has_torch_ao, quantize_by_torch  # noqa: E402

BATCHES = {1: 200, 64: 60, 10_000: 11}  # images at a time, and how often


def seconds(function, images):
    started = time.perf_counter()
    function(images)
    return time.perf_counter() - started


def contestants(net, calibration):
    """Return functions from images to logits, by name; torch's float32 comes first."""
    model = integer_model(quantize_model(net, [calibration]))
    by_name = {"torch, float32": torch.no_grad()(net)}
    if has_torch_ao():
        silence_known_warnings()
        by_torch = quantize_by_torch(net, calibration, choose_engine())
        by_name[f"torch, int8 ({choose_engine()})"] = torch.no_grad()(by_torch)
    return by_name | {
        "ours, by BLAS": model,
        "ours, int32 @": model.computing("fbgemm", "integers"),
        "ours, fixed point, int32 @": model.computing("fixed-point"),
        "ours, fixed point, by BLAS": model.computing("fixed-point", "blas"),
    }


def main():
    torch.set_num_threads(1)
    data = load_data()
    functions = contestants(float_net(data, 0), data.train_images[:1000])
    for batch, rounds in BATCHES.items():
        images = data.test_images[:batch]
        times = {name: [] for name in functions}
        for function in functions.values():
            function(images)
        for _ in range(rounds):
            for name, function in functions.items():
                times[name].append(1e3 * seconds(function, images))
        print(f"\n{len(images):,} images at a time: median of {rounds} (fastest to slowest)")
        base = statistics.median(times["torch, float32"])
        for name, taken in times.items():
            median = statistics.median(taken)
            spread = f"({min(taken):.3f} to {max(taken):.3f})"
            print(f"{name:<27}{median:9.3f} ms {median / base:6.2f} of float32   {spread}")


if __name__ == "__main__":
    main()
