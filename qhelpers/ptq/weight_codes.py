"""The codes of a layer's weight, each rounded to the nearest, and their scale."""

import torch

from qhelpers.affine import symmetric_quantization
from qhelpers.checks import checked_integer
from qhelpers.ranges.output_error import output_mse_range
from qhelpers.ranges.squared_error import mse_range_of_rows

WEIGHT_STRATEGIES = ("min-max", "mse", "output-mse")
GRANULARITIES = ("per tensor", "per channel")


def quantized_weight(weight, bits, strategy, granularity, moments=None):
    """Return (codes, scale) of a weight tensor, symmetric, full range as torch's qint8.

    granularity: "per tensor", "per channel" (the first axis), or how many neighbours in a row
        make a group; a row is all the weights of a channel.
    moments: InputMoments of the layer, for the strategy "output-mse".
    scale has the shape (), (channels, 1) or (channels, groups).
    """
    rows = weight.detach().numpy().reshape(len(weight), -1)
    if granularity == "per tensor":
        options, sharing = {}, rows.reshape(1, -1)
    elif granularity == "per channel":
        options, sharing = {"axis": 0}, rows
    else:
        size = checked_integer("granularity", granularity, 1, rows.shape[1])
        if rows.shape[1] % size:
            raise ValueError(
                f"granularity is {size}; it must divide the {rows.shape[1]} weights of a channel"
            )
        options, sharing = {"group_size": size}, rows.reshape(-1, size)
    if strategy == "mse":
        high = mse_range_of_rows(sharing, bits)
        options["range"] = (-high, high)
    if strategy == "output-mse":
        size, per_tensor = options.get("group_size"), granularity == "per tensor"
        high = output_mse_range(weight.detach(), bits, moments, size, per_tensor)
        options["range"] = (-high, high)
    codes, scale = symmetric_quantization(rows, bits, narrow_range=False, **options)
    return torch.tensor(codes), torch.tensor(scale)
