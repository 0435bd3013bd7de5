"""language.quantized: a hooked model beside one that was built of the quantized weights."""

from functools import partial

import pytest
import torch

from qhelpers.language.activations import per_token
from qhelpers.language.quantized import asymmetric, quantized_products, symmetric
from qhelpers.language.texts import test_text
from qhelpers.language.tiny import load_tiny
from qhelpers.language.transformer import LanguageModel


@pytest.mark.parametrize(
    "quantize",
    [symmetric, partial(symmetric, axis=0), partial(asymmetric, group_size=32)],
    ids=["per tensor", "per channel", "groups, asymmetric"],
)
def test_a_hooked_model_is_one_of_other_weights(quantize):
    model = load_tiny()
    ids = model.tokenizer.encode(test_text())[:40]
    exact = model.logits(ids)
    hats = {name: quantize(model.weights[name], 3) for name in model.matrices}
    assert all(hat.dtype == torch.float64 for hat in hats.values())
    other = LanguageModel(model.config, model.weights | hats, model.tokenizer)
    with model.hooked(linear=quantized_products(model, hats.__getitem__)):
        assert torch.equal(model.logits(ids), other.logits(ids))
    assert not torch.equal(exact, other.logits(ids))
    assert torch.equal(exact, model.logits(ids))


def test_activations_go_through_the_function():
    model, seen = load_tiny(), []
    ids = model.tokenizer.encode(test_text())[:40]

    def activations(name, x):
        seen.append(name)
        return per_token(x, 4)

    with model.hooked(linear=quantized_products(model, activations=activations)):
        found = model.logits(ids)
    assert sorted(seen) == sorted(model.matrices)

    def plain(name, x):
        return per_token(x, 4) @ model.weights[name].T

    with model.hooked(linear=plain):
        assert torch.equal(found, model.logits(ids))
    with model.hooked(linear=quantized_products(model)):
        assert torch.equal(model.logits(ids), load_tiny().logits(ids))
