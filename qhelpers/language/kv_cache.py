"""The cache of keys and values in few bits: along which axis numbers share a scale, and bytes.

Source: Liu et al. 2024 (KIVI), section 3: keys per channel, values per token, asymmetric codes.
"""

import torch

from qhelpers.checks import checked_integer
from qhelpers.language.quantized import asymmetric

FLOAT_BYTES = 2  # of a float16: a number that isn't quantized, a scale or a zero point


def cache_per_token(x, bits, group_size=32):
    """Return keys or values with a scale and a zero point for `group_size` numbers of a token.

    x: float64 tensor of shape (..., tokens, width); group_size must divide width.
    bits: integer from 1 to 16.
    Returns what the codes stand for, a tensor of x's shape and type.
    Raises TypeError or ValueError for arguments other than these.
    """
    return asymmetric(x, bits, group_size=group_size)


def cache_per_channel(x, bits, group_size=32):
    """Return keys or values with a scale and a zero point for `group_size` tokens of a channel.

    Tokens at the end that don't fill a group make a shorter one, so that all numbers have few
    bits. (KIVI keeps them in floats until there are enough.)
    Other arguments, errors and what is returned: as for `cache_per_token`.
    """
    tokens = x.shape[-2]
    whole = tokens // checked_integer("group_size", group_size, 1, 2**16) * group_size
    parts = [(x[..., :whole, :], group_size), (x[..., whole:, :], tokens - whole)]
    done = [cache_per_token(part.mT, bits, size).mT for part, size in parts if part.numel()]
    return torch.cat(done, dim=-2)


def kivi(keys, values, bits, group_size=32):
    """Return (keys per channel, values per token), both of shape (..., tokens, width)."""
    return cache_per_channel(keys, bits, group_size), cache_per_token(values, bits, group_size)


def cache_bytes(layers, heads, width, tokens, bits=None, group_size=32):
    """Return how many bytes the cache of a conversation takes.

    layers, heads, width: of the model, heads being those of keys and values.
    bits: of a code, from 1 to 16, as `kivi` stores them, and each group's scale and zero point
        in float16; None: all in float16.
    Raises TypeError or ValueError for other arguments.
    """
    numbers = 2 * layers * heads * tokens * width
    if bits is None:
        return numbers * FLOAT_BYTES
    checked_integer("bits", bits, 1, 16)
    checked_integer("group_size", group_size, 1, 2**16)
    groups_of_keys = layers * heads * width * -(-tokens // group_size)
    groups_of_values = layers * heads * tokens * -(-width // group_size)
    return -(-numbers * bits // 8) + 2 * (groups_of_keys + groups_of_values) * FLOAT_BYTES
