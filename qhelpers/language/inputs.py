"""What the matrix products of a language model are given: calibration."""

import torch

from qhelpers.language.perplexity import token_losses

SHARED = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}  # they share an input


class Inputs:
    """The activations that a product is given, added up over tokens; all tensors in float64.

    largest: the largest |x| of each channel, (width,).
    total: the sum of |x| of each channel, (width,).
    products: the sum of x x', (width, width), or None where it was not asked for.
    tokens: how many there were.
    """

    def __init__(self, width, with_products):
        self.largest, self.total = torch.zeros(2, width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64) if with_products else None
        self.tokens = 0

    def update(self, x):
        rows = x.reshape(-1, x.shape[-1])
        self.largest.copy_(torch.maximum(self.largest, rows.abs().amax(dim=0)))
        self.total += rows.abs().sum(dim=0)
        self.tokens += len(rows)
        if self.products is not None:
            self.products += rows.T @ rows

    @property
    def mean_abs(self):
        return self.total / self.tokens

    @property
    def second_moment(self):
        return self.products / self.tokens


def record_inputs(model, ids, chunk=512, *, second_moments=False, change=None):
    """Return the Inputs of the products of a LanguageModel, a dict by `input_name`.

    ids: calibration tokens, which the model reads in parts of `chunk` tokens.
    second_moments: whether to sum up x x' too, which takes 8 * width**2 bytes for each input.
    change: function from a product's name and its input to what is recorded instead, of the
        same shape.
    """
    # All made before the model runs: small tensors made in between would keep the memory of the
    # large ones around them from being used again.
    widths = {input_name(name): model.weights[name].shape[1] for name in model.matrices}
    inputs = {name: Inputs(width, second_moments) for name, width in widths.items()}

    def linear(name, x):
        if name in inputs:
            inputs[name].update(x if change is None else change(name, x))
        return x @ model.weights[name].T

    with model.hooked(linear=linear):
        token_losses(model, ids, chunk)
    return inputs


def input_name(name):
    """Return the product under whose name the input of this one is kept: attn_q for attn_k."""
    for other, first in SHARED.items():
        name = name.replace(other, first)
    return name
