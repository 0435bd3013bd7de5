"""The weights and biases of layers, of qhelpers or of torch.ao, in integer layers."""

import numpy as np
import torch

from qhelpers.integer.layers import Conv2d, Linear
from qhelpers.integer.qparams import QParams


def quantized_layer(name, module, before):
    """Return the function from QParams, relu and top to the integer layer of a QuantizedLayer."""
    if module.bits > 8:
        raise ValueError(f"{name} has weights of {module.bits} bits; they may have up to 8")
    if module.scale.ndim and module.scale.shape[1] > 1:
        raise ValueError(f"{name} has scales of groups; it must be per tensor or per channel")
    if type(module.layer) not in (torch.nn.Linear, torch.nn.Conv2d):
        raise ValueError(f"{name} is a {type(module.layer).__name__}; layers may be Linear and "
                         "Conv2d")  # fmt: skip
    weight = module.codes.reshape(module.shape).numpy()
    scale = module.scale.flatten() if module.scale.ndim else module.scale
    arguments = name, module.layer, weight, int(module.bits), scale, module.layer.bias, before

    def make(after, relu, top):
        return weighted_layer(*arguments, after, relu, top)

    return make


def torch_ao_layer(name, module, before):
    """Return the integer layer for a Linear or Conv2d that torch.ao's `convert` made."""
    weight = module.weight()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        scale, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    else:
        scale, zeros = torch.tensor(weight.q_scale()), torch.tensor(weight.q_zero_point())
    if zeros.any():
        raise ValueError(f"{name} has weights with a zero point; it must be 0 (symmetric)")
    after = QParams(module.scale, int(module.zero_point), 255)
    relu = "ReLU" in type(module).__name__
    codes = weight.int_repr().numpy()
    return weighted_layer(name, module, codes, 8, scale, module.bias(), before, after, relu)


def weighted_layer(name, module, weight, bits, scale, bias, before, after, relu, top=255):
    """Return a Linear or Conv2d; `module` has the stride, padding, dilation and groups."""
    bias = np.zeros(len(weight), np.float32) if bias is None else bias.detach().numpy().copy()
    scale = scale.detach().float().numpy().copy()
    arguments = name, weight.copy(), bits, scale, bias, before, after, relu
    if weight.ndim == 2:
        return Linear(*arguments, top=top)
    if module.padding_mode != "zeros":
        raise ValueError(f"{name} has the padding mode {module.padding_mode!r}; it must be zeros")
    padding = same_padding(name, module) if module.padding == "same" else module.padding
    padding = (0, 0) if padding == "valid" else padding
    return Conv2d(*arguments, module.stride, padding, module.dilation, module.groups, top)


def same_padding(name, module):
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
    if any(n % 2 for n in total):
        raise ValueError(f"{name} has more padding on one side; it must be the same on both")
    return tuple(n // 2 for n in total)
