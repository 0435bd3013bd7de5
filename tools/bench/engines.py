"""The integer model compared with torch's float32 network, its int8 kernels, and PT2E compiled."""

import shutil
import time
import warnings

import torch

from qhelpers import integer_model, quantize_model
from qhelpers.experiments.ptq import float_net
from qhelpers.optional_packages import missing_packages, require_deployment_packages
from qhelpers.timing import times_in_turn
from qhelpers.torch_ao import choose_engine, has_torch_ao, quantize_by_torch
from tools.bench.comparison import OURS, Comparison

ROUNDS = {100: 60, 1_000: 30, 10_000: 11}
FLOAT = "torch, float32"


def comparisons(data, rounds=ROUNDS):
    functions = contestants(float_net(data, 0), data.train_images[:1000])
    for size, count in rounds.items():
        with torch.no_grad():
            times = times_in_turn(functions, data.test_images[:size], count)
        goals = {FLOAT: 1 / 1.5} if size == 10_000 else {}
        yield Comparison("integer engine", size, "images", times, goals)


def contestants(net, calibration):
    """Return functions from images to logits, by name."""
    model = integer_model(quantize_model(net, [calibration]))
    by_name = {OURS: model, "ours, int32 without BLAS": model.computing("fbgemm", "integers")}
    by_name[FLOAT] = net
    if has_torch_ao():
        name = f"torch, int8 ({choose_engine()})"
        by_name[name] = quantize_by_torch(net, calibration, choose_engine())
    if missing_packages():
        print(f"PT2E compiled: not measured, without {', '.join(missing_packages())}")
    elif shutil.which("g++") is None:
        print("PT2E compiled: not measured, there is no g++ here")
    else:
        require_deployment_packages()  # hides a line that torchao logs
        by_name["torchao, PT2E compiled"] = compiled(net, calibration)
    return by_name


def compiled(net, images):
    """Return what torch.compile makes of the graph that PT2E converts.

    Its activations have 7 bits, for CPUs without VNNI.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    warnings.filterwarnings("ignore", "To copy construct from a tensor")  # inside torch.compile
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (images[:2].clone(),), dynamic_shapes=sizes)
    config = x86.get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(program.module(), x86.X86InductorQuantizer().set_global(config))
    prepared(images)
    torch._inductor.config.freezing = True  # without it the weights stay floats
    function = torch.compile(convert_pt2e(prepared))
    started = time.perf_counter()
    with torch.no_grad():
        function(images[:64])
        function(images)
    print(f"torch.compile took {time.perf_counter() - started:.0f} s, less where it has a cache")
    return function
