"""qhelpers.torch_ao: the engine, the hidden warnings, and the same int8 weights everywhere."""

import json
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


# Notebook 3 without its words: prints the sums of the int8 weights, scales and zero points.
NOTEBOOK_3 = """
import contextlib, hashlib, io, json
import torch, qhelpers
from torch.ao.quantization import convert, default_qconfig, prepare

with contextlib.redirect_stdout(io.StringIO()):
    data = qhelpers.load_data()
net = qhelpers.build_model(qhelpers.VerySimpleNet, seed=0)
qhelpers.train(net, data)
qhelpers.choose_engine()
qhelpers.silence_known_warnings()
quantized = qhelpers.QuantizedVerySimpleNet().eval()
quantized.load_state_dict(net.state_dict())
quantized.qconfig = default_qconfig
quantized = prepare(quantized)
quantized(data.train_images[:1000])
quantized = convert(quantized)
weights = [getattr(quantized, name).weight() for name in ("linear1", "linear2", "linear3")]
codes = [weight.int_repr().numpy() for weight in weights]
print(json.dumps({
    "codes": sum(code.size for code in codes),
    "sum of codes": hashlib.sha256(b"".join(code.tobytes() for code in codes)).hexdigest(),
    "scales": [weight.q_scale() for weight in weights],
    "zero points": [weight.q_zero_point() for weight in weights],
    "first activation": [quantized.quant.scale.item(), quantized.quant.zero_point.item()],
    "threads": torch.get_num_threads(),
}))
"""


def notebook_3(capability, threads):
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    if capability:
        environment["ATEN_CPU_CAPABILITY"] = capability
    run = subprocess.run(
        [sys.executable, "-c", NOTEBOOK_3], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def here():
    return notebook_3("", "1")


@pytest.mark.slow
@pytest.mark.parametrize("capability, threads", [("", "2"), ("avx2", "1"), ("default", "2")])
def test_int8_weights_are_the_same_on_other_machines(here, capability, threads):
    """All 89,400 int8 weights of notebook 3, their scales and zero points, to the last bit."""
    there = notebook_3(capability, threads)
    assert there.pop("threads") == int(threads)
    assert there == {name: here[name] for name in there}
    assert there["codes"] == 89_400
