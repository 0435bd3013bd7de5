"""language.awq: against the same search written with the outputs themselves."""

from functools import partial

import pytest
import torch

from qhelpers.language.awq import awq_scales
from qhelpers.language.quantized import symmetric

GROUPS_OF_4 = partial(symmetric, bits=3, group_size=4)


def case(seed):
    """Inputs whose channels differ, and two matrices that multiply them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(8, generator=generator, dtype=torch.float64) * 6 - 3
    x = torch.randn(100, 8, generator=generator, dtype=torch.float64) @ torch.diag(sizes.exp())
    matrices = [torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (5, 3)]
    return x, matrices


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_the_grid(seed):
    x, matrices = case(seed)
    mean = x.abs().mean(dim=0)
    errors = []
    for i in range(10):
        s = mean ** (i / 10)
        s = s / (s.max() * s.min()) ** 0.5
        outputs = [x @ (GROUPS_OF_4(w * s) / s).T for w in matrices]
        errors.append(sum(((y - x @ w.T) ** 2).mean(0).sum() for y, w in zip(outputs, matrices)))
    best = min(range(10), key=errors.__getitem__)
    scales, alpha = awq_scales(matrices, mean, x.T @ x / 100, GROUPS_OF_4, grid=10)
    assert alpha == best / 10 and errors[best] < errors[0]
    assert torch.allclose(
        scales.log() - scales.log().mean(), (alpha * mean.log()) - (alpha * mean.log()).mean()
    )
    assert scales.max() * scales.min() == pytest.approx(1)


def test_a_grid_of_one_changes_nothing():
    x, matrices = case(0)
    scales, alpha = awq_scales(matrices, x.abs().mean(0), x.T @ x / 100, GROUPS_OF_4, grid=1)
    assert alpha == 0 and torch.equal(scales, torch.ones(8, dtype=torch.float64))


def test_channels_that_are_always_0_are_allowed():
    x, matrices = case(0)
    x[:, 2] = 0
    scales, _ = awq_scales(matrices, x.abs().mean(0), x.T @ x / 100, GROUPS_OF_4)
    assert scales.isfinite().all() and (scales > 0).all()


def test_a_grid_of_none_is_named():
    x, matrices = case(0)
    with pytest.raises(ValueError, match="grid is 0; it must be an integer from 1"):
        awq_scales(matrices, x.abs().mean(0), x.T @ x, GROUPS_OF_4, grid=0)
