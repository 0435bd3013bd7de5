"""The experiment of notebook 8: weights in each number format, and the bits that they take.

For formats with blocks, the weights of a layer are laid end to end, row after row, and cut into
blocks; the last one is filled up with zeros, which count. So rows needn't be whole blocks, as they
must be in llama.cpp's files.
"""

import copy
import itertools
import math
from functools import partial

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from qhelpers.experiments.ptq import SEEDS
from qhelpers.experiments.rounding import NETWORKS, network
from qhelpers.formats.blocks import (
    code_book_dequantize,
    code_book_quantize,
    dequantize_scales,
    mx_dequantize,
    mx_quantize,
    nvfp4_dequantize,
    nvfp4_quantize,
    pad_to_blocks,
    quantize_scales,
)
from qhelpers.formats.floats import E2M1, E2M3, E3M2, E4M3, E5M2
from qhelpers.formats.ggml_blocks import pack_blocks, unpack_blocks
from qhelpers.formats.levels import lloyd, nearest_level, normal_float, ternary
from qhelpers.ptq.batch_norm import fused
from qhelpers.training import test

GROUP = 32  # of integers that share a scale, as in MX and in llama.cpp's files


def cut(weight, size):
    """Return the weights in blocks of `size`, a row each, the last one filled up with zeros."""
    return pad_to_blocks(weight.reshape(-1), size).reshape(-1, size)


def uncut(blocks, shape):
    """Return what `cut` has cut, in this shape again, as float64."""
    return blocks.reshape(-1)[: math.prod(shape)].reshape(shape).astype(float)


# Each of the next functions takes weights, (channels, ...), and returns two things: the weights as
# the format has them, float64 of the same shape, and how many bits it takes to store them all.


def scaled(weight, sharing, bits, top, rounded):
    """Numbers of a few bits times a scale, a float16, that brings the largest number to `top`.

    sharing: who shares a scale, "per tensor", "per channel", or "groups" of 32.
    rounded: a function that rounds numbers to those that the bits can hold.
    """
    if sharing == "groups":
        rows = cut(weight, GROUP)
    else:
        rows = weight.reshape(1 if sharing == "per tensor" else len(weight), -1)
    scale = (np.abs(rows).max(axis=1, keepdims=True) / top).astype(np.float16).astype(float)
    scale[scale == 0] = 1  # all are zero: any scale will do
    return uncut(rounded(rows / scale) * scale, weight.shape), bits * rows.size + 16 * scale.size


def integers(weight, sharing, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def rounded(steps):
        return np.rint(steps).clip(low, high)

    return scaled(weight, sharing, bits, high + 0.5, rounded)


def floats(weight, sharing, element):
    top = element.largest

    def rounded(steps):
        return element.decode(element.encode(steps.clip(-top, top)))

    return scaled(weight, sharing, element.bits, top, rounded)


def nf4(weight, double):
    blocks, levels = cut(weight, 64), normal_float(4)
    codes, scales = code_book_quantize(blocks, levels)
    bits = 4 * blocks.size + 32 * scales.size
    if double:
        scale_codes, steps, mean = quantize_scales(scales)
        scales = dequantize_scales(scale_codes, steps, mean)
        bits = 4 * blocks.size + 8 * scales.size + 32 * (steps.size + 1)
    return uncut(code_book_dequantize(codes, scales, levels), weight.shape), bits


def mx(weight, element):
    blocks = cut(weight, 32)
    codes, scales = mx_quantize(blocks, element)
    restored = uncut(mx_dequantize(codes, scales, element), weight.shape)
    return restored, element.bits * codes.size + 8 * scales.size


def nvfp4(weight):
    blocks = cut(weight, 16)
    codes, scales, whole = nvfp4_quantize(blocks)
    restored = uncut(nvfp4_dequantize(codes, scales, whole), weight.shape)
    return restored, 4 * codes.size + 8 * scales.size + 32


def k_means(weight, bits):
    """A code book of float16 numbers for the whole tensor."""
    levels = lloyd(weight, bits).astype(np.float16).astype(float)
    codes = nearest_level(weight, levels)
    return levels[codes], bits * weight.size + 16 * levels.size


def by_ternary(weight):
    """-1, 0 and 1, times one float16. Five of them have 3**5 = 243 patterns: they fit a byte."""
    codes, scale = ternary(weight)
    return codes * float(np.float16(scale)), 8 * math.ceil(weight.size / 5) + 16


def ggml(weight, kind, block):
    blocks = cut(weight, block)
    raw = pack_blocks(blocks, kind)
    return uncut(unpack_blocks(raw, kind, blocks.shape), weight.shape), 8 * raw.size


SHARINGS = ("per tensor", "per channel", "groups")
WEIGHT_FORMATS = {
    **{f"int{bits} {sharing}": partial(integers, sharing=sharing, bits=bits)
       for bits in (8, 4, 3, 2) for sharing in SHARINGS},
    **{f"{name} {sharing}": partial(floats, sharing=sharing, element=element)
       for name, element in {"E4M3": E4M3, "E5M2": E5M2, "E2M1": E2M1}.items()
       for sharing in SHARINGS},
    "NF4": partial(nf4, double=False),
    "NF4 double": partial(nf4, double=True),
    "MXFP8 E4M3": partial(mx, element=E4M3),
    "MXFP6 E3M2": partial(mx, element=E3M2),
    "MXFP6 E2M3": partial(mx, element=E2M3),
    "MXFP4": partial(mx, element=E2M1),
    "NVFP4": nvfp4,
    **{f"k-means {bits} bits": partial(k_means, bits=bits) for bits in (4, 3, 2)},
    "ternary": by_ternary,
    **{kind: partial(ggml, kind=kind, block=32) for kind in ("Q8_0", "Q4_0", "Q4_1")},
    "Q4_K": partial(ggml, kind="Q4_K", block=256),
}  # fmt: skip


def sqnr(exact, restored):
    """Return the signal-to-quantization-noise ratio in dB."""
    return 10 * np.log10(np.sum(exact**2) / np.sum((restored - exact) ** 2))


def folded(net):
    """Return a copy of one of NETWORKS whose BatchNorms are folded."""
    net = copy.deepcopy(net)
    for number in (1, 2) if hasattr(net, "norm1") else ():
        conv, norm = getattr(net, f"conv{number}"), getattr(net, f"norm{number}")
        setattr(net, f"conv{number}", fused(conv, norm))
        setattr(net, f"norm{number}", nn.Identity())
    return net


@torch.no_grad()
def stored_in(net, format):
    """Return a copy of `net`, one of NETWORKS, with its weights in one of WEIGHT_FORMATS.

    Returns (copy, bits per weight, SQNR of all weights in dB). BatchNorm is folded first; biases
    stay in floats.
    """
    net, all_bits, before, after = folded(net), 0, [], []
    for layer in net.children():
        if hasattr(layer, "weight"):
            weight = layer.weight.double().numpy()
            restored, bits = WEIGHT_FORMATS[format](weight)
            layer.weight.copy_(torch.from_numpy(restored))
            all_bits += bits
            before.append(weight.ravel())
            after.append(restored.ravel())
    before, after = np.concatenate(before), np.concatenate(after)
    return net, all_bits / before.size, sqnr(before, after)


def formats_rows(data):
    """Yield the rows of the table "formats": bits per weight, SQNR and accuracy, by network.

    Weights only: biases and activations stay in floats. Rows whose format is "float32" hold the
    networks as they were trained.
    """
    for name, seed in itertools.product(NETWORKS, SEEDS):
        net = network(name, data, seed)
        yield name, "float32", 32, seed, "inf", test(net, data)
        for format in tqdm(WEIGHT_FORMATS, desc=f"formats, {name}, seed {seed}"):
            changed, bits, ratio = stored_in(net, format)
            yield name, format, round(bits, 4), seed, round(ratio, 3), test(changed, data)
