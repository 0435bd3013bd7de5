"""language.kv_cache: groups one at a time, and bytes against arrays that hold a cache."""

import numpy as np
import pytest
import torch

from qhelpers import asymmetric_dequantize, asymmetric_quantization
from qhelpers.integer.packing import pack
from qhelpers.language.kv_cache import cache_bytes, cache_per_channel, cache_per_token, kivi


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def alone(group, bits):
    """A group quantized with nothing beside it."""
    return torch.from_numpy(asymmetric_dequantize(*asymmetric_quantization(group, bits)))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("shape", [(3, 70, 64), (2, 3, 64, 32)])
def test_each_group_alone(shape, bits):
    x = numbers(*shape)
    of_token, of_channel = cache_per_token(x, bits), cache_per_channel(x, bits)
    assert of_token.shape == of_channel.shape == shape
    for *head, token in np.ndindex(shape[:-1]):
        for start in range(0, shape[-1], 32):
            at = (*head, token, slice(start, start + 32))
            assert torch.equal(of_token[at], alone(x[at], bits))
    for *head, channel in np.ndindex(*shape[:-2], shape[-1]):
        for start in range(0, shape[-2], 32):
            at = (*head, slice(start, start + 32), channel)
            assert torch.equal(of_channel[at], alone(x[at], bits))


def test_kivi_is_keys_per_channel_and_values_per_token():
    k, v = numbers(3, 70, 64), numbers(3, 70, 64) * 2
    found = kivi(k, v, 2)
    assert torch.equal(found[0], cache_per_channel(k, 2))
    assert torch.equal(found[1], cache_per_token(v, 2))


def test_a_group_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="group_size is 24; it must divide"):
        cache_per_token(numbers(3, 70, 64), 4, 24)
    with pytest.raises(ValueError, match="group_size is 0; it must be an integer from 1"):
        cache_per_channel(numbers(3, 70, 64), 4, 0)
    with pytest.raises(ValueError, match="group_size is 0; it must be an integer from 1"):
        cache_bytes(1, 1, 64, 70, 4, 0)
    with pytest.raises(ValueError, match="bits is 17; it must be an integer from 1 to 16"):
        cache_bytes(1, 1, 64, 70, 17)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("tokens", [64, 70, 20])
def test_bytes_are_those_of_the_arrays(tokens, bits):
    layers, heads, width = 2, 3, 64
    stored = []
    for _ in range(layers):
        keys, values = numbers(heads, tokens, width), numbers(heads, tokens, width)
        for x in (*keys.mT.split(32, dim=-1), *values.split(32, dim=-1)):
            codes, scale, zero = asymmetric_quantization(x, bits, group_size=x.shape[-1])
            packed = pack(codes.astype(int) - 2 ** (bits - 1), bits)
            stored += [packed, scale.astype(np.float16), zero.astype(np.float16)]
    assert cache_bytes(layers, heads, width, tokens, bits) == sum(a.nbytes for a in stored)
    floats = 2 * layers * numbers(heads, tokens, width).half().nbytes
    assert cache_bytes(layers, heads, width, tokens) == floats
