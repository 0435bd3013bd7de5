"""language.activations: against torch's kernels and plain products, and in whole models."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qhelpers.language.activations import (
    mixed_columns,
    mixed_product,
    outlier_columns,
    per_channel,
    per_tensor,
    per_token,
    smooth_scales,
)
from qhelpers.language.inputs import input_name, record_inputs
from qhelpers.language.texts import calibration_text, test_text
from qhelpers.language.tiny import load_tiny

NUMBERS = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=st.floats(-99, 99)
)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_per_token_and_per_tensor_are_torch_s(bits):
    x, most = numbers(40, 24).float(), 2 ** (bits - 1) - 1
    scale = x.abs().amax(dim=1) / most
    theirs = torch.fake_quantize_per_channel_affine(
        x, scale, torch.zeros(40, dtype=torch.int32), 0, -most, most
    )
    assert torch.equal(per_token(x, bits), theirs)
    for top in (None, 1.5):
        scale = (float(x.abs().max()) if top is None else top) / most
        theirs = torch.fake_quantize_per_tensor_affine(x, scale, 0, -most, most)
        assert torch.allclose(per_tensor(x, bits, top), theirs, rtol=1e-6, atol=0)


@given(NUMBERS, st.integers(2, 8))
def test_a_token_has_its_own_scale(x, bits):
    """One at a time they come out as together, and none is off by more than half a step."""
    together = per_token(x, bits)
    for place in np.ndindex(x.shape[:-1]):
        assert torch.equal(together[place], per_tensor(x[place], bits))
    half_a_step = np.abs(x).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1) / 2
    assert (np.abs(together.numpy() - x) <= half_a_step * (1 + 1e-9)).all()


def test_a_channel_has_its_own_scale():
    x = numbers(30, 5) * torch.tensor([0.1, 1, 10, 100, 0])
    tops = torch.tensor([0.2, 1, 5, 90, 0])
    found = per_channel(x, 8, tops)
    for i in range(4):
        assert torch.equal(found[:, i], per_tensor(x[:, i], 8, tops[i]))
    assert (found[:, 4] == 0).all()


@pytest.mark.parametrize("alpha", [0, 0.5, 0.8, 1])
def test_smoothing_leaves_the_product(alpha):
    x, w = numbers(50, 12), numbers(7, 12, seed=1)
    x[:, 3] *= 1000
    x[:, 5] = 0
    s = smooth_scales(x.abs().amax(dim=0), w.abs().amax(dim=0), alpha)
    assert s.dtype == torch.float64 and s.shape == (12,)
    assert torch.allclose((x / s) @ (w * s).T, x @ w.T, rtol=1e-12, atol=1e-9)
    x_top, w_top = (x / s).abs().amax(dim=0), (w * s).abs().amax(dim=0)
    some = x_top > 0
    if alpha == 0.5:  # each channel weighs as much in both
        assert torch.allclose(x_top[some], w_top[some])
    if alpha == 1:
        assert torch.allclose(x_top[some], torch.ones(11, dtype=torch.float64))
    if alpha == 0:
        assert torch.allclose(w_top, torch.ones(12, dtype=torch.float64))


def test_mixed_products_are_sums_of_whole_numbers_and_floats():
    """Against a product computed one output at a time, with Python's whole numbers."""
    x, w = numbers(6, 10), numbers(4, 10, seed=1)
    x[2, 7], x[4, 1] = -6.0, 80.0
    outliers = outlier_columns(x)
    assert outliers.nonzero().flatten().tolist() == [1, 7]
    found = mixed_product(x, w)
    kept = [j for j in range(10) if j not in (1, 7)]
    for i, out in np.ndindex(6, 4):
        x_scale, w_scale = (row[kept].abs().max().item() / 127 for row in (x[i], w[out]))
        whole = sum(
            round(x[i, j].item() / x_scale) * round(w[out, j].item() / w_scale) for j in kept
        )
        floats = sum(x[i, j].item() * w[out, j].item() for j in (1, 7))
        assert found[i, out].item() == pytest.approx(whole * x_scale * w_scale + floats, rel=1e-9)
    assert torch.allclose(mixed_product(x[None], w), found[None])
    assert torch.allclose(mixed_product(x, w, threshold=0), x @ w.T)  # all columns


def test_mixed_columns_keep_outliers():
    x = numbers(6, 10)
    x[2, 7] = -6.0
    found = mixed_columns(x, 4)
    assert torch.equal(found[:, 7], x[:, 7])
    rest = [j for j in range(10) if j != 7]
    assert torch.equal(found[:, rest], per_token(x[:, rest], 4))
    assert torch.equal(mixed_columns(x, 4, threshold=7), per_token(x, 4))


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda: per_token(torch.tensor([[1.0, torch.nan]]), 8), "params holds nan"),
        (lambda: per_token(torch.ones(2, 2), 1), "bits is 1; it must be an integer from 2 to 16"),
        (lambda: per_tensor(torch.ones(2, 2), 8, torch.inf), "must be finite"),
        (lambda: per_channel(torch.ones(2, 2), 8, torch.ones(3)), "the 2 scales"),
        (lambda: smooth_scales(torch.ones(2), torch.ones(3)), r"largest_w has the shape \(3,\)"),
        (lambda: smooth_scales(torch.ones(2), torch.ones(2), 1.5), "alpha is 1.5; it must be"),
    ],
)
def test_errors_name_the_argument(function, message):
    with pytest.raises(ValueError, match=message):
        function()


def largest_change_by_smoothing(model, tokens):
    ids, test_ids = (
        model.tokenizer.encode(text)[:tokens] for text in (calibration_text(), test_text())
    )
    scales, inputs = {}, record_inputs(model, ids)
    for name in model.matrices:
        sharing = [n for n in model.matrices if input_name(n) == input_name(name)]
        tops = torch.stack([model.weights[n].abs().amax(dim=0) for n in sharing]).amax(dim=0)
        scales[name] = smooth_scales(inputs[input_name(name)].largest, tops, 0.8)
    exact = model.logits(test_ids)
    with model.hooked(
        linear=lambda name, x: (x / scales[name]) @ (model.weights[name] * scales[name]).T
    ):
        return (model.logits(test_ids) - exact).abs().max().item()


def test_smoothing_leaves_the_tiny_model_s_function():
    assert 0 < largest_change_by_smoothing(load_tiny(), 64) < 1e-9


@pytest.mark.slow
def test_smoothing_leaves_smollm_s_function(smollm):
    assert 0 < largest_change_by_smoothing(smollm, 256) < 1e-9
