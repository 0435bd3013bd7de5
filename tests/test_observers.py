"""qhelpers.observers: torch's observers, number for number, and what histograms must keep."""

import numpy as np
import pytest
import torch

from qhelpers import asymmetric_dequantize, asymmetric_quantization, observers, quantization_error
from qhelpers.observers import (
    STRATEGIES,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
)
from qhelpers.ranges import cross_entropy_range, kl_range, mse_range, percentile_range

CASES = 250
ALL = [MinMaxObserver, MovingAverageMinMaxObserver, PerChannelMinMaxObserver, HistogramObserver]


def batches(case):
    """One to four batches, of a scale and an offset that differ from case to case."""
    rng = np.random.default_rng(case)
    shape = tuple(rng.integers(1, 6, rng.integers(2, 5)))
    scale, offset = 10.0 ** rng.integers(-9, 9), rng.choice([0, 0, 1, -3])
    for _ in range(rng.integers(1, 5)):
        numbers = scale * (rng.normal(size=shape) + offset)
        yield torch.tensor(np.maximum(numbers, 0) if case % 5 == 0 else numbers).float()


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("observer", ALL[:3], ids=lambda observer: observer.__name__)
def test_qparams_are_torch_s(observer, symmetric, reduce_range):
    """Zero differences in CASES cases each."""
    import torch.ao.quantization as reference

    per_channel = observer is PerChannelMinMaxObserver
    scheme = f"per_{'channel' if per_channel else 'tensor'}"
    scheme += "_symmetric" if symmetric else "_affine"
    for case in range(CASES):
        data = list(batches(case))
        axis = {"ch_axis": case % data[0].ndim} if per_channel else {}
        ours = observer(symmetric=symmetric, reduce_range=reduce_range, **axis)
        theirs = getattr(reference, observer.__name__)(
            dtype=torch.qint8 if symmetric else torch.quint8,
            qscheme=getattr(torch, scheme),
            reduce_range=reduce_range,
            **axis,
        )
        for batch in data:
            assert ours(batch) is batch
            theirs(batch)
        scale, zero_point = ours.calculate_qparams()
        their_scale, their_zero_point = theirs.calculate_qparams()
        assert torch.equal(scale.reshape(-1), their_scale)
        assert torch.equal(zero_point.reshape(-1), their_zero_point.int())
        assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32


@pytest.mark.parametrize("observer", ALL, ids=lambda observer: observer.__name__)
def test_no_data_is_an_error(observer):
    with pytest.raises(RuntimeError, match=f"^{observer.__name__} has seen no data; call it with"):
        observer().calculate_qparams()


@pytest.mark.parametrize("observer", ALL, ids=lambda observer: observer.__name__)
def test_a_bad_batch_is_an_error_and_changes_nothing(observer):
    watching = observer()
    watching(torch.tensor([[-1.0, 2.0]]))
    before = watching.calculate_qparams()
    with pytest.raises(ValueError, match="^batch holds nan; all its values must be finite"):
        watching(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="^batch is empty"):
        watching(torch.zeros(0))
    assert all(map(torch.equal, before, watching.calculate_qparams()))


def error(numbers, bits, range_):
    codes, scale, zero = asymmetric_quantization(numbers, bits, range=range_)
    return quantization_error(numbers, asymmetric_dequantize(codes, scale, zero))


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_histogram_gives_the_range_of_all_the_numbers(strategy, bits):
    rng = np.random.default_rng(0)
    data = [torch.tensor(rng.laplace(size=(500, 10))).float() for _ in range(20)]
    watching = HistogramObserver(bits, strategy=strategy)
    for batch in data:
        watching(batch)
    numbers = torch.cat(data).numpy()
    rows = np.array(watching.rows)
    expected = {
        "min-max": lambda: (numbers.min(), numbers.max()),
        "percentile": lambda: percentile_range(numbers),
        "mse": lambda: mse_range(numbers, bits),
        "kl": lambda: kl_range(numbers, bits),
        "cross-entropy": lambda: cross_entropy_range(rows, bits),
    }[strategy]()
    found = tuple(end.item() for end in watching.range())
    if strategy == "mse":  # the loss has many valleys of nearly the same depth
        assert error(numbers, bits, found) <= 1.01 * error(numbers, bits, expected)
    else:
        assert found == pytest.approx(expected, rel=0.03)


def test_memory_does_not_grow():
    for strategy in STRATEGIES:
        watching = HistogramObserver(4, strategy=strategy)
        for _ in range(3):
            watching(torch.randn(2000, 10))
        assert np.size(watching.counts) <= 2**21 and len(watching.rows) <= 1000
    assert watching.rows_seen == 6000


def test_every_row_has_the_same_chance():
    """Of 20 rows, 5 are kept; in 2,000 draws each is kept 500 times, give or take 5 deviations."""
    kept = np.zeros(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observers, "MOST_ROWS", 5)
        for seed in range(2000):
            watching = HistogramObserver(strategy="cross-entropy")
            watching.random = np.random.default_rng(seed)
            watching(torch.arange(20.0)[:, None])
            kept[np.array(watching.rows, int).ravel()] += 1
    assert np.abs(kept - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="^strategy is 'median'; it must be one of"):
        HistogramObserver(strategy="median")
    with pytest.raises(ValueError, match="^bits is 1; it must be an integer from 2 to 16"):
        MinMaxObserver(1, symmetric=True)
