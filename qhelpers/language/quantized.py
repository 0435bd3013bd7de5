"""A language model's weights and activations in few bits: functions for `LanguageModel.hooked`."""

import torch

from qhelpers.affine import (
    asymmetric_dequantize,
    asymmetric_quantization,
    symmetric_dequantize,
    symmetric_quantization,
)


def symmetric(x, bits, **shared):
    """Return what the codes of `symmetric_quantization` stand for, as a tensor."""
    return torch.from_numpy(symmetric_dequantize(*symmetric_quantization(x, bits, **shared)))


def asymmetric(x, bits, **shared):
    """Return what the codes of `asymmetric_quantization` stand for, as a tensor."""
    return torch.from_numpy(asymmetric_dequantize(*asymmetric_quantization(x, bits, **shared)))


def quantized_products(model, weights=None, activations=None):
    """Return a function to be the `linear` of a LanguageModel.

    weights: function from a matrix's name to what its codes stand for, a tensor (out, width). It
        is called at each product, so that only one matrix at a time is in memory twice.
    activations: function from a matrix's name and its input, (..., width), to what the input's
        codes stand for.
    By default both stay as they are.
    """

    def linear(name, x):
        weight = model.weights[name] if weights is None else weights(name)
        x = x if activations is None else activations(name, x)
        return x @ weight.T

    return linear
