"""language.rotation: Hadamard matrices against scipy's, and rotations in whole models."""

import pytest
import scipy.linalg
import torch

from qhelpers.language.rotation import hadamard, paley, signed_hadamard, sylvester
from qhelpers.language.texts import test_text
from qhelpers.language.tiny import load_tiny


def check_hadamard(matrix, n):
    assert matrix.dtype == torch.float64 and matrix.shape == (n, n)
    assert (matrix.abs() == 1).all()
    assert torch.equal(matrix @ matrix.T, n * torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 4, 64, 256])
def test_sylvester_s_are_scipy_s(n):
    check_hadamard(sylvester(n), n)
    assert torch.equal(sylvester(n), torch.from_numpy(scipy.linalg.hadamard(n)).double())


@pytest.mark.parametrize("q", [3, 7, 11, 19, 23, 31, 43, 47])
def test_paley_s_rows_are_orthogonal(q):
    check_hadamard(paley(q), q + 1)


@pytest.mark.parametrize("n", [1, 2, 12, 24, 64, 144, 192, 256, 576, 1536])
def test_products_of_orders(n):
    check_hadamard(hadamard(n), n)


def test_a_rotation_spreads_an_outlier():
    rotation = signed_hadamard(576)
    eye = torch.eye(576, dtype=torch.float64)
    assert torch.allclose(rotation @ rotation.T, eye, rtol=0, atol=1e-12)
    x = torch.zeros(576, dtype=torch.float64)
    x[507] = 23_459
    assert torch.allclose((x @ rotation).abs(), torch.tensor(23_459 / 24, dtype=torch.float64))
    assert torch.equal(signed_hadamard(576), rotation)
    assert not torch.equal(signed_hadamard(576, seed=1), rotation)


@pytest.mark.parametrize("n", [64, 576])
def test_signs_keep_equal_numbers_apart(n):
    """Without them a column of the matrix adds up all of them, or most."""
    x = torch.ones(n, dtype=torch.float64)
    assert (x @ hadamard(n) / n**0.5).abs().max() > n**0.5 / 2
    assert (x @ signed_hadamard(n)).abs().max() < 4


@pytest.mark.parametrize(
    "function, n, message",
    [
        (sylvester, 12, "n is 12; it must be a power of two"),
        (sylvester, 0, "n is 0; it must be an integer from 1"),
        (paley, 5, "q is 5; it must be a prime number with remainder 3"),
        (paley, 15, "q is 15; it must be a prime"),
        (hadamard, 20, "n is 20; it must be a product of twos and twelves"),
        (signed_hadamard, 3, "n is 3; it must be a product"),
    ],
)
def test_other_orders_are_named(function, n, message):
    with pytest.raises(ValueError, match=message):
        function(n)


def largest_change_by_rotation(model, tokens):
    ids = model.tokenizer.encode(test_text())[:tokens]
    widths = {model.weights[name].shape[1] for name in model.matrices}
    rotations = {width: signed_hadamard(width) for width in widths}
    exact = model.logits(ids)

    def linear(name, x):
        rotation = rotations[x.shape[-1]]
        return (x @ rotation) @ (model.weights[name] @ rotation).T

    with model.hooked(linear=linear):
        return (model.logits(ids) - exact).abs().max().item()


def test_rotations_leave_the_tiny_model_s_function():
    assert 0 < largest_change_by_rotation(load_tiny(), 64) < 1e-9


@pytest.mark.slow
def test_rotations_leave_smollm_s_function(smollm):
    assert 0 < largest_change_by_rotation(smollm, 256) < 1e-9
