"""Cross-layer equalization: channels get ranges of one size, and the network computes the same.

Source: Nagel et al. 2019, section 4.1.
"""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

ROUNDS = 20  # of going through all pairs of layers; a pair changes the one before it


class ChannelClip(nn.Module):
    """ReLU6 whose upper end may differ from channel to channel; `top` holds the ends.

    ReLU6(x) / s is this, with the end 6 / s, of x / s.
    """

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("top", torch.full((channels, 1, 1), 6.0))

    def forward(self, x):
        return x.relu().clamp(max=self.top)


def folded(net):
    """Return a DepthwiseNet as a float64 Sequential whose BatchNorms are folded.

    A ChannelClip takes the place of each ReLU6. `net` stays as it is.
    """
    net, layers = copy.deepcopy(net).double().eval(), []
    for convolution, norm in zip(net.features[::3], net.features[1::3]):
        layers += [fuse_conv_bn_eval(convolution, norm), ChannelClip(convolution.out_channels)]
    return nn.Sequential(*layers, net.pool, nn.Flatten(), net.linear).double().eval()


def by_input(layer):
    """Return a view of a layer's weight whose first axis is that of its input channels."""
    return layer.weight if getattr(layer, "groups", 1) > 1 else layer.weight.transpose(0, 1)


def ranges(weight):
    """Return the largest magnitude in each channel, the first axis."""
    return weight.flatten(1).abs().amax(1)


@torch.no_grad()
def equalize(net, rounds=ROUNDS):
    """Scale the channels of what `folded` returns, in place, until each has one range.

    Between two layers a channel is divided by a factor where it is made and multiplied by it
    where it is used; then its largest weight is the same in both. A channel without any weights
    but 0 in one of them stays as it is. A convolution with groups must be depthwise.
    """
    layers = [layer for layer in net if hasattr(layer, "weight")]
    clips = [layer for layer in net if isinstance(layer, ChannelClip)]
    for _ in range(rounds):
        for first, clip, second in zip(layers, clips, layers[1:]):
            used = by_input(second)
            factor = (ranges(first.weight) / ranges(used)).sqrt()
            factor[~(factor.isfinite() & (factor > 0))] = 1
            for made in (first.weight, first.bias, clip.top):
                made /= factor.reshape(-1, *[1] * (made.ndim - 1))
            used *= factor.reshape(-1, *[1] * (used.ndim - 1))
