"""How fast PT2E's graph is once torch.compile has made integer kernels of it.

Run as `python -m tests.bench_pt2e`: on one thread, the contestants in turn. Needs the packages of
notebook 6, and a C++ compiler; says so where one is missing.
"""

import os
import shutil
import time
import warnings

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

from qhelpers import load_data, require_deployment_packages  # noqa: E402
from qhelpers.ptq_experiments import float_net  # noqa: E402
from qhelpers.timing import median_times  # noqa: E402

BATCHES = {1: 200, 64: 60, 10_000: 11}  # images at a time, and how often


def quantized(net, images):
    """Return the graph that PT2E converts, with 7 bits of activations, for CPUs without VNNI."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (images[:2].clone(),), dynamic_shapes=sizes)
    config = x86.get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(program.module(), x86.X86InductorQuantizer().set_global(config))
    prepared(images)
    return convert_pt2e(prepared)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    require_deployment_packages()
    if shutil.which("g++") is None:
        print("PT2E compiled: not measured, there is no g++ here")
        return
    warnings.filterwarnings("ignore", "To copy construct from a tensor")  # inside torch.compile
    data = load_data()
    net = float_net(data, 0)
    graph = quantized(net, data.train_images[:1000])
    torch._inductor.config.freezing = True  # without it the weights stay floats
    compiled = torch.compile(graph)
    started = time.perf_counter()
    compiled(data.test_images[:64])
    compiled(data.test_images)
    print(f"\ntorch.compile took {time.perf_counter() - started:.0f} s (less where it has a cache)")
    functions = {"torch, float32": net, "PT2E": graph, "PT2E, compiled": compiled}
    for batch, rounds in BATCHES.items():
        times = median_times(functions, data.test_images[:batch], rounds)
        print(f"\n{batch:,} images at a time: median of {rounds}")
        for name, seconds in times.items():
            ratio = seconds / times["torch, float32"]
            print(f"{name:<16}{1e3 * seconds:>9.3f} ms {ratio:>6.2f} times float32")


if __name__ == "__main__":
    main()
