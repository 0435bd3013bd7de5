"""The methods that notebook 9's tables compare, by name: for weights, activations and the cache."""

from functools import cache, cached_property, partial

import torch
from tqdm import tqdm

from qhelpers.affine import symmetric_dequantize, symmetric_quantization
from qhelpers.formats import (
    E2M1,
    code_book_dequantize,
    code_book_quantize,
    mx_dequantize,
    mx_quantize,
    normal_float,
    nvfp4_dequantize,
    nvfp4_quantize,
)
from qhelpers.language.activations import (
    mixed_columns,
    per_channel,
    per_tensor,
    per_token,
    smooth_scales,
)
from qhelpers.language.awq import awq_scales
from qhelpers.language.inputs import input_name, record_inputs
from qhelpers.language.kv_cache import cache_per_channel, cache_per_token, kivi
from qhelpers.language.perplexity import token_losses
from qhelpers.language.quantized import asymmetric, symmetric
from qhelpers.language.rotation import signed_hadamard
from qhelpers.ptq.gptq import gptq

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)


class Setting:
    """A language model, the tokens on which it is measured, and those from which ranges come."""

    def __init__(self, model, test_ids, calibration_ids):
        self.model, self.test_ids, self.calibration_ids = model, test_ids, calibration_ids
        self.smoothing = {}

    @cached_property
    def losses(self):
        """Of the model before quantization, (tokens,)."""
        return token_losses(self.model, self.test_ids)

    @cached_property
    def inputs(self):
        return record_inputs(self.model, self.calibration_ids)

    @cached_property
    def turned_inputs(self):
        return record_inputs(self.model, self.calibration_ids, change=lambda name, x: turned(x))

    def sharing(self, name):
        """Return the matrices that multiply the same input as this one."""
        return [n for n in self.model.matrices if input_name(n) == input_name(name)]

    def largest(self, name):
        return self.inputs[input_name(name)].largest

    def smooth_scales(self, name, alpha):
        key = input_name(name), alpha
        if key not in self.smoothing:
            rows = torch.cat([self.model.weights[n] for n in self.sharing(name)])
            largest_w = rows.abs().amax(dim=0)
            self.smoothing[key] = smooth_scales(self.largest(name), largest_w, alpha)
        return self.smoothing[key]


@cache
def rotation(width):
    return signed_hadamard(width)


def turned(x):
    return x @ rotation(x.shape[-1])


def turned_back(x):
    return x @ rotation(x.shape[-1]).T


# Weights: a function from a Setting and bits to one from a matrix's name to what its codes stand
# for. It is called at each product: the codes of all matrices in float64 would take 0.85 GB.


def each(quantize):
    return lambda setting, bits: lambda name: quantize(setting.model.weights[name], bits)


def nf4(weight, bits):
    levels = normal_float(bits)
    return doubles(code_book_dequantize(*code_book_quantize(weight, levels, 64), levels))


def mxfp4(weight, bits):
    return doubles(mx_dequantize(*mx_quantize(weight, E2M1, 32), E2M1))


def nvfp4(weight, bits):
    return doubles(nvfp4_dequantize(*nvfp4_quantize(weight)))


def doubles(numbers):
    return torch.from_numpy(numbers).double()


def scaled(setting, bits, quantize, scales):
    """The matrices' columns are multiplied before they are quantized, and divided afterwards.

    scales: function from a matrix's name to what its columns are multiplied by.
    """

    def weight(name):
        s = scales(name)
        return quantize(setting.model.weights[name] * s, bits) / s

    return weight


def smooth_weights(setting, bits, alpha):
    return scaled(setting, bits, PER_CHANNEL, lambda name: setting.smooth_scales(name, alpha))


def awq_weights(setting, bits, quantize):
    weights, scales = setting.model.weights, {}
    inputs = record_inputs(setting.model, setting.calibration_ids, second_moments=True)
    for name in tqdm([*inputs], "AWQ", leave=False):
        seen = inputs.pop(name)  # so that its memory is free again
        matrices = [weights[n] for n in setting.sharing(name)]
        scales[name], _ = awq_scales(
            matrices, seen.mean_abs, seen.second_moment, partial(quantize, bits=bits)
        )
    return scaled(setting, bits, quantize, lambda name: scales[input_name(name)])


def gptq_weights(setting, bits, **shared):
    weights, codes = setting.model.weights, {}
    inputs = record_inputs(setting.model, setting.calibration_ids, second_moments=True)
    for name in tqdm([*inputs], "GPTQ", leave=False):
        moment = inputs.pop(name).second_moment
        for n in setting.sharing(name):
            _, scale = symmetric_quantization(weights[n], bits, **shared)
            codes[n] = gptq(weights[n], moment, scale, bits, act_order=True), scale
    return lambda name: torch.from_numpy(symmetric_dequantize(*codes[name]))


PER_CHANNEL, GROUPS = partial(symmetric, axis=0), partial(symmetric, group_size=32)
ASYMMETRIC = partial(asymmetric, group_size=32)
WEIGHTS = {
    "per tensor": each(symmetric),
    "per channel": each(PER_CHANNEL),
    "groups of 64": each(partial(symmetric, group_size=64)),
    "groups of 32": each(GROUPS),
    "groups of 16": each(partial(symmetric, group_size=16)),
    "groups of 32, asymmetric": each(ASYMMETRIC),
    "NF4, blocks of 64": each(nf4),
    "MXFP4, blocks of 32": each(mxfp4),
    "NVFP4, blocks of 16": each(nvfp4),
    "rotated, groups of 32": each(lambda w, bits: turned_back(GROUPS(turned(w), bits))),
    **{f"SmoothQuant {a}, per channel": partial(smooth_weights, alpha=a) for a in ALPHAS},
    "AWQ, groups of 32": partial(awq_weights, quantize=GROUPS),
    "AWQ, groups of 32, asymmetric": partial(awq_weights, quantize=ASYMMETRIC),
    "GPTQ, per channel": partial(gptq_weights, axis=0),
    "GPTQ, groups of 32": partial(gptq_weights, group_size=32),
}

# Activations: a function from a Setting, bits, a matrix's name and its input to what the input's
# codes stand for.


def static(setting, bits, name, x):
    return per_tensor(x, bits, setting.largest(name).max())


def static_only(setting, bits, name, x, part):
    return static(setting, bits, name, x) if part in input_name(name) else x


def smooth_static(setting, bits, name, x, alpha):
    s = setting.smooth_scales(name, alpha)
    return per_tensor(x / s, bits, (setting.largest(name) / s).max()) * s


def smooth_token(setting, bits, name, x, alpha):
    s = setting.smooth_scales(name, alpha)
    return per_token(x / s, bits) * s


def turned_static(setting, bits, name, x):
    top = setting.turned_inputs[input_name(name)].largest.max()
    return turned_back(per_tensor(turned(x), bits, top))


ACTIVATIONS = {
    "per tensor, static": static,
    "per tensor": lambda setting, bits, name, x: per_tensor(x, bits),
    "per token": lambda setting, bits, name, x: per_token(x, bits),
    "per channel": lambda setting, bits, name, x: per_channel(x, bits, setting.largest(name)),
    **{f"SmoothQuant {a}, static": partial(smooth_static, alpha=a) for a in ALPHAS},
    **{f"SmoothQuant {a}, per token": partial(smooth_token, alpha=a) for a in (0.5, 0.8)},
    "LLM.int8()": lambda setting, bits, name, x: mixed_columns(x, bits),
    "rotated, static": turned_static,
    "rotated, per tensor": lambda setting, bits, name, x: turned_back(per_tensor(turned(x), bits)),
    "rotated, per token": lambda setting, bits, name, x: turned_back(per_token(turned(x), bits)),
}

# The cache: a function from keys, values and bits to what their codes stand for.


def by_token(x, bits):
    return cache_per_token(x, bits, group_size(x))


def by_channel(x, bits):
    return cache_per_channel(x, bits, group_size(x))


def group_size(x):
    """32, or the heads' width if they are smaller."""
    return min(32, x.shape[-1])


CACHE = {
    "per token": lambda k, v, bits: (by_token(k, bits), by_token(v, bits)),
    "per channel": lambda k, v, bits: (by_channel(k, bits), by_channel(v, bits)),
    "K per channel, V per token": lambda k, v, bits: kivi(k, v, bits, group_size(k)),
    "only K, per token": lambda k, v, bits: (by_token(k, bits), v),
    "only K, per channel": lambda k, v, bits: (by_channel(k, bits), v),
    "only V, per token": lambda k, v, bits: (k, by_token(v, bits)),
    "only V, per channel": lambda k, v, bits: (k, by_channel(v, bits)),
}
