"""qhelpers.ptq: how often it traces, runs and searches, and when it shows a progress bar."""

import itertools
from functools import partial

import pytest
import torch
import tqdm

from qhelpers import load_quantized, quantize_model
from qhelpers.ptq import calibration, model, weight_codes
from tests.models import BATCH

BATCHES = [BATCH, BATCH + 1, BATCH - 1]


@pytest.fixture
def calls(monkeypatch):
    """How often the functions that `counted` was called with are called, by name."""
    counts = {}

    def counted(owner, name):
        function, counts[name] = getattr(owner, name), 0

        def counting(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    counted(model, "traced")
    counted(model.QuantizedModel, "__call__")
    counted(weight_codes, "mse_range_of_rows")
    counted(weight_codes, "output_mse_range")
    return counts


@pytest.mark.parametrize("strategy", ["min-max", "mse", "output-mse"])
@pytest.mark.parametrize("options", [{}, {"bias_correction": True}], ids=str)
def test_a_model_is_traced_once_run_once_for_each_batch_and_searched_once(
    small, calls, tmp_path, strategy, options
):
    quantized = quantize_model(small, iter(BATCHES), weight_strategy=strategy, **options)
    searches = {"mse_range_of_rows": 2 * (strategy == "mse"),
                "output_mse_range": 2 * (strategy == "output-mse")}  # fmt: skip
    assert calls == {"traced": 1, "__call__": len(BATCHES)} | searches
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    loaded = load_quantized(small, tmp_path / "model.pt")
    assert calls == {"traced": 2, "__call__": len(BATCHES)} | searches  # loading searches nothing
    assert torch.equal(loaded(BATCH), quantized(BATCH))


def test_layer_after_layer_runs_the_batches_once_more_for_each_place(small, calls):
    quantize_model(small, BATCHES, layer_after_layer=True)
    assert calls["__call__"] == (1 + 3) * len(BATCHES)  # the input and two layers


@pytest.mark.parametrize("seconds", [0.1, 2])
def test_a_progress_bar_shows_after_5_seconds(small, monkeypatch, capsys, seconds):
    """By a clock on which each look takes that long."""
    clock = itertools.count(0, seconds)
    monkeypatch.setattr(tqdm.std, "time", lambda: next(clock))
    monkeypatch.setattr(calibration, "tqdm", partial(tqdm.tqdm, disable=False))
    quantize_model(small, BATCHES)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert ("Quantizing" in shown.err, "Calibrating" in shown.err) == (seconds == 2,) * 2
