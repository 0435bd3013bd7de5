"""qhelpers.torch_ao: the engine, the hidden warnings, and the same int8 weights everywhere."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from qhelpers import choose_engine, silence_known_warnings
from qhelpers.torch_ao import ENGINES, KNOWN_WARNINGS, engine_arithmetic, engine_saturates


@pytest.mark.parametrize(
    "available, chosen",
    [
        (["none", "qnnpack"], "qnnpack"),  # an Apple-silicon Mac
        (["none", "onednn", "x86", "fbgemm", "qnnpack"], "fbgemm"),
        (["onednn", "none"], "onednn"),
    ],
)
def test_the_first_engine_that_is_there_is_chosen(monkeypatch, available, chosen):
    class Backend:
        supported_engines = available
        engine = "none"

    monkeypatch.setattr(torch.backends, "quantized", Backend)
    assert choose_engine() == chosen == Backend.engine
    Backend.supported_engines = ["none"]
    with pytest.raises(RuntimeError, match=r"\['none'\]"):
        choose_engine()


def test_this_machine_s_choice_is_torch_s_engine():
    assert choose_engine() in ENGINES
    assert torch.backends.quantized.engine == choose_engine()


def test_asking_about_an_engine_leaves_the_current_one():
    current = choose_engine()
    for engine in torch.backends.quantized.supported_engines:
        if engine != "none":
            engine_saturates(engine), engine_arithmetic(engine)
            assert torch.backends.quantized.engine == current


def test_only_the_known_warnings_are_hidden():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_known_warnings()
        for message in KNOWN_WARNINGS:
            warnings.warn(f"{message} and more", stacklevel=1)
        assert seen == []
        warnings.warn("must run observer before calling calculate_qparams", stacklevel=1)
        warnings.warn("something new", stacklevel=1)
    assert len(seen) == 2


# Notebook 3 without its words: for each layer the sum of its int8 weights and their scales, and
# the scales and zero points of its activations.
NOTEBOOK_3 = """
import hashlib, torch, qhelpers
from qhelpers.torch_ao import quantize_by_torch

qhelpers.silence_known_warnings()
data = qhelpers.load_data()
net = qhelpers.build_model(qhelpers.VerySimpleNet, seed=0)
qhelpers.train(net, data)
quantized = quantize_by_torch(net, data.train_images[:1000], qhelpers.choose_engine())
for layer in qhelpers.integer_model(quantized).layers:
    if hasattr(layer, "weight"):
        weight = layer.weight.tobytes() + layer.weight_scale.tobytes()
        print(layer.weight.size, hashlib.sha256(weight).hexdigest(), layer.before, layer.after)
print(torch.get_num_threads())
"""


def notebook_3(capability, threads):
    """What it prints with these vector instructions and threads, a line for each layer."""
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    if capability:
        environment["ATEN_CPU_CAPABILITY"] = capability
    command = [sys.executable, "-c", NOTEBOOK_3]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    _, *layers, seen = run.stdout.splitlines()  # the first names the data
    assert seen == threads
    return layers


@pytest.mark.slow
def test_int8_weights_are_the_same_on_other_machines():
    """All 89,400 int8 weights of notebook 3, their scales and zero points, to the last bit."""
    here = notebook_3("", "1")
    assert sum(int(layer.split()[0]) for layer in here) == 89_400
    for capability, threads in [("", "2"), ("avx2", "1"), ("default", "2")]:
        assert notebook_3(capability, threads) == here
