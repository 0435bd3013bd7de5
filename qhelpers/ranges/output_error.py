"""Weight ranges that change a layer's output least, on its calibration inputs."""

import copy

import torch
from torch import nn

from qhelpers.checks import checked_finite

COARSE, FINE = 50, 9  # candidates for the end of a range, in the first pass and in the second


class InputMoments:
    """The mean and the covariance of a layer's inputs, in float64, summed up over batches.

    For a convolution an input is a patch, the numbers from which one output is computed. `mean`
    has the shape (groups, size) and `covariance` (groups, size, size), where groups is the
    convolution's, 1 for Linear, and size the number of weights of an output channel.
    """

    def __init__(self, layer):
        self.groups, self.size = getattr(layer, "groups", 1), layer.weight[0].numel()
        self.channel_axis = 1 - layer.weight.ndim if layer.weight.ndim > 2 else -1
        # With an identity for its weight, a layer returns its inputs themselves.
        weight = torch.eye(self.size, dtype=torch.float32).repeat(self.groups, 1)
        self.inputs_of = copy.deepcopy(layer)
        self.inputs_of.weight = nn.Parameter(weight.reshape(-1, *layer.weight.shape[1:]))
        self.inputs_of.bias = None
        self.count, self.total, self.products, self.float_products = 0, 0, 0, 0

    def update(self, batch, in_floats=None):
        """Add a batch; in_floats: the same one as it is while the network computes in floats."""
        checked_finite(batch.numpy(), "batch")
        inputs = self.by_group(batch)
        self.count += inputs.shape[1]
        self.total = self.total + inputs.sum(dim=1)
        self.products = self.products + inputs.mT @ inputs
        if in_floats is not None:
            self.float_products = self.float_products + self.by_group(in_floats).mT @ inputs

    def by_group(self, batch):
        """Return a batch's inputs in float64, of shape (groups, inputs, size)."""
        inputs = self.inputs_of(batch).movedim(self.channel_axis, -1)
        return inputs.reshape(-1, self.groups, self.size).transpose(0, 1).double()

    @property
    def mean(self):
        return self.total / self.count

    @property
    def second_moment(self):
        return self.products / self.count

    @property
    def covariance(self):
        return self.second_moment - self.mean[:, :, None] * self.mean[:, None, :]

    def mean_output(self, weight):
        """Return the mean of each output channel with this weight and no bias, (channels,)."""
        rows = weight.double().reshape(self.groups, -1, self.size)
        return (rows * self.mean[:, None]).sum(dim=-1).flatten()


def output_mse_range(weight, bits, moments, group_size=None, per_tensor=False):
    """Return the high ends of the symmetric ranges whose output error has the least variance.

    With w the weights of a channel, v the same weights quantized and dequantized, and C the
    covariance of the inputs, the error of the output has the variance (w - v)' C (w - v). Its
    mean doesn't count, because the bias can correct it.

    weight: float32 tensor, its first axis the output channels.
    moments: InputMoments of the layer.
    group_size: how many weights of a channel share a range; all by default.
    per_tensor: one range for all weights.
    Returns a float32 array of shape (channels, groups), or () where `per_tensor`.
    Source: Nagel et al. 2020 (AdaRound), section 3, where the same error decides how to round.
    """
    group = group_size or moments.size
    rows = weight.reshape(moments.groups, -1, moments.size // group, group)
    rows = rows.transpose(1, 2)  # (Conv2d's groups, groups of weights, channels, weights)
    covariance, starts = moments.covariance, range(0, moments.size, group)
    blocks = [covariance[:, i : i + group, i : i + group] for i in starts]
    covariance = torch.stack(blocks, dim=1)
    largest = rows.abs().amax() if per_tensor else rows.abs().amax(dim=-1, keepdim=True)
    half = 2 ** (bits - 1)

    def error(fraction):
        # float32, as when quantizing: a range that ends at a weight puts it on a tie
        scale = (fraction * largest / (half - 0.5)).clamp(min=torch.finfo(torch.float32).tiny)
        codes = (rows * (1 / scale)).round().clamp(-half, half - 1)
        off = (codes * scale - rows).double()
        errors = (off @ covariance * off).sum(dim=-1, keepdim=True)
        return errors.sum() if per_tensor else errors

    best = least(error, torch.linspace(1, 1 / COARSE, COARSE), torch.zeros_like(largest))
    best = least(error, torch.linspace(1, -1, FINE) / COARSE, best)
    ends = best * largest
    return ends.numpy() if per_tensor else ends.transpose(1, 2).reshape(len(weight), -1).numpy()


def least(error, steps, start):
    """Return the start + step with the least error, chosen for each number separately."""
    best, least_error = start, torch.inf
    for step in steps:
        tried = error(start + step)
        best = torch.where(tried < least_error, start + step, best)
        least_error = torch.where(tried < least_error, tried, least_error)
    return best
