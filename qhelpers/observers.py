"""Observers: they watch batches of numbers, and compute a scale and a zero point from them.

The names and the arithmetic are those of torch.ao.quantization; `calculate_qparams` returns the
same scale and zero point, to the last bit.
"""

import numpy as np
import torch

from qhelpers.checks import checked_bits, checked_params, finite_ends
from qhelpers.ranges import cross_entropy_range, histogram, kl_range, mse_range, percentile_range

EPS = torch.finfo(torch.float32).eps  # torch's smallest scale
STRATEGIES = ("min-max", "percentile", "mse", "kl", "cross-entropy")
FINENESS = 12  # near the largest number, bins are at least as narrow as those of `kl_range`
MOST_ROWS = 1000  # of logits, kept for cross-entropy


class MinMaxObserver:
    """Keeps the smallest and the largest number of all batches.

    bits: integer from 1 to 16, from 2 where `symmetric`.
    symmetric: signed codes -2**(bits-1)..2**(bits-1)-1 and zero point 0, torch's qint8;
        otherwise codes 0..2**bits-1, torch's quint8.
    reduce_range: use one bit less of the codes.

    Call it with a batch, a float tensor: it returns the batch. Raises ValueError if the
    batch is empty or holds NaN or infinity; such a batch doesn't change the range.
    Source: Krishnamoorthi 2018, section 2; torch.ao.quantization.MinMaxObserver.
    """

    def __init__(self, bits=8, *, symmetric=False, reduce_range=False):
        fewest = 1 + bool(symmetric) + bool(reduce_range)
        self.bits, self.symmetric = checked_bits(bits, fewest), bool(symmetric)
        codes = 2 ** (self.bits - bool(reduce_range))
        self.quant_min = -codes // 2 if symmetric else 0
        self.quant_max = self.quant_min + codes - 1
        self.low = self.high = None  # tensors, once there is data

    def __call__(self, batch):
        finite_ends(checked_params(batch, "batch"), "batch")
        numbers = batch.detach()
        if numbers.dtype != torch.float32:  # float64 may hold larger ones
            largest = torch.finfo(torch.float32).max
            numbers = numbers.float().clamp(-largest, largest)
        self.update(numbers)
        return batch

    def update(self, batch):
        low, high = self.ends_of(batch)
        if self.low is not None:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low, self.high = low, high

    def ends_of(self, batch):
        return torch.aminmax(batch)

    def range(self):
        """Return (low, high), the ends of the range to cover, as tensors."""
        if self.low is None:
            raise RuntimeError(
                f"{type(self).__name__} has seen no data; call it with a batch before you ask it"
            )
        return self.low, self.high

    def calculate_qparams(self):
        """Return (scale, zero_point), a float32 and an int32 tensor.

        Raises RuntimeError if no batch was seen.
        """
        return qparams(*self.range(), self.quant_min, self.quant_max, self.symmetric)


def qparams(low, high, quant_min, quant_max, symmetric):
    """Return the scale and the zero point for a range, as torch's observers compute them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / ((quant_max - quant_min) / 2)
        return scale.clamp(min=EPS), torch.zeros_like(scale, dtype=torch.int32)
    scale = (high - low) / (quant_max - quant_min)
    if scale.isinf().any():  # the width overflows
        scale = high / (quant_max - quant_min) - low / (quant_max - quant_min)
    scale = scale.clamp(min=EPS)
    zero_point = quant_min - torch.round(low / scale)
    return scale, zero_point.clamp(quant_min, quant_max).int()


class MovingAverageMinMaxObserver(MinMaxObserver):
    """Moves its ends towards those of each batch, by `averaging_constant` times the distance.

    All else is as in MinMaxObserver. Source: Jacob et al. 2018, section 3.1.
    """

    def __init__(self, bits=8, *, averaging_constant=0.01, **options):
        super().__init__(bits, **options)
        self.averaging_constant = averaging_constant

    def update(self, batch):
        low, high = self.ends_of(batch)
        if self.low is not None:
            low = self.low + self.averaging_constant * (low - self.low)
            high = self.high + self.averaging_constant * (high - self.high)
        self.low, self.high = low, high


class PerChannelMinMaxObserver(MinMaxObserver):
    """Keeps the smallest and the largest number of each index along the axis `ch_axis`.

    All else is as in MinMaxObserver; scale and zero_point have the shape (channels,).
    """

    def __init__(self, bits=8, *, ch_axis=0, **options):
        super().__init__(bits, **options)
        self.ch_axis = ch_axis

    def ends_of(self, batch):
        channels = batch.movedim(self.ch_axis, 0)
        return torch.aminmax(channels.reshape(len(channels), -1), dim=1)


class MovingAveragePerChannelMinMaxObserver(MovingAverageMinMaxObserver, PerChannelMinMaxObserver):
    """Keeps moving averages as MovingAverageMinMaxObserver does, for each index along `ch_axis`."""


class HistogramObserver(MinMaxObserver):
    """Counts the numbers of all batches in a histogram, and lets a range strategy find the ends.

    strategy: one of STRATEGIES. For "cross-entropy" it keeps a random sample of MOST_ROWS rows
        of logits instead of a histogram; all rows are equally likely to be in it.
    The memory it takes doesn't grow with the data: 16 megabytes, or the sample.
    All else is as in MinMaxObserver.
    """

    def __init__(self, bits=8, *, strategy="mse", **options):
        super().__init__(bits, **options)
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is {strategy!r}; it must be one of {STRATEGIES}")
        self.strategy = strategy
        # "mse" needs fewer bins, and is faster with them.
        self.fineness = histogram.FINENESS if strategy == "mse" else FINENESS
        self.counts, self.rows = 0, []
        self.rows_seen, self.random = 0, np.random.default_rng(0)

    def update(self, batch):
        super().update(batch)
        numbers = batch.cpu().numpy()
        if self.strategy == "cross-entropy":
            self.sample(numbers.reshape(-1, numbers.shape[-1]) if numbers.ndim else numbers)
        elif self.strategy != "min-max":
            self.counts = self.counts + histogram.bin_counts(numbers, self.fineness)

    def sample(self, rows):
        """Reservoir sampling: Vitter 1985, algorithm R."""
        for row in rows:
            self.rows_seen += 1
            if len(self.rows) < MOST_ROWS:
                self.rows.append(row.copy())
            elif (place := self.random.integers(self.rows_seen)) < MOST_ROWS:
                self.rows[place] = row.copy()

    def range_of_histogram(self, bits, low, high):
        values, counts = histogram.middles(self.counts, np.float32, self.fineness)
        values = values.clip(low, high)  # the middle of the last bin may lie beyond
        if self.strategy == "percentile":
            return percentile_range(values, counts=counts)
        if self.strategy == "kl":
            return kl_range(values, bits, counts=counts)
        options = {"symmetric": self.symmetric, "narrow_range": False}
        return mse_range(values, bits, counts=counts, **options)

    def range(self):
        low, high = super().range()
        bits = int(self.quant_max - self.quant_min + 1).bit_length() - 1
        if self.strategy == "cross-entropy":
            ends = cross_entropy_range(np.array(self.rows), bits)
        elif self.strategy == "min-max":
            return low, high
        else:
            ends = self.range_of_histogram(bits, low.item(), high.item())
        return tuple(torch.tensor(end, dtype=torch.float32) for end in ends)
