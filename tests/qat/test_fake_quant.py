"""qat/fake_quant: forward and backward beside torch's kernels, and steps that are learned."""

import pytest
import torch
from torch import nn

from qhelpers import (
    FakeQuantize,
    LearnedStepSize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    fake_quantize,
)

COUNT = 200_000


def numbers(scale, seed):
    """Random numbers, half of them on ties or next to one, inside and outside the range."""
    random = torch.Generator().manual_seed(seed)
    steps = torch.randn(COUNT, generator=random) * 100
    ties = (steps[::2].round() + 0.5) * scale
    nudged = torch.nextafter(ties, torch.randn(len(ties), generator=random) * scale * 300)
    steps = steps * scale
    steps[::2] = torch.where(torch.rand(len(ties), generator=random) < 0.5, ties, nudged)
    return steps


def forward_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    return y.detach(), x.grad


@pytest.mark.parametrize("scale", [1e-6, 0.0123, 1 / 3, 1.0, 7.7e4])
@pytest.mark.parametrize(
    "zero_point, quant_min, quant_max", [(0, -128, 127), (17, 0, 255), (3, 0, 3), (0, -2, 1)]
)
def test_per_tensor_is_torch_s(scale, zero_point, quant_min, quant_max):
    x = numbers(scale, quant_max)
    scale, zero_point = torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)
    ends = quant_min, quant_max
    ours = forward_and_gradient(lambda x: fake_quantize(x, scale, zero_point, *ends), x)
    theirs = forward_and_gradient(
        lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *ends), x
    )
    assert all(map(torch.equal, ours, theirs))
    assert 0 < (ours[1] == 0).sum() < COUNT  # some are clipped, not all


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("quant_min, quant_max", [(-128, 127), (0, 15), (-2, 1)])
def test_per_channel_is_torch_s(axis, quant_min, quant_max):
    x = numbers(0.1, axis).reshape(10, 40, -1)
    channels = x.shape[axis]
    scale = torch.linspace(0.01, 1, channels)
    zero_point = torch.arange(channels, dtype=torch.int32) % (quant_max + 1)
    ends = quant_min, quant_max
    ours = forward_and_gradient(lambda x: fake_quantize(x, scale, zero_point, *ends, axis), x)
    theirs = forward_and_gradient(
        lambda x: torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis % 3, *ends), x
    )
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("zero_point, quant_min, quant_max", [(0, -128, 127), (3, 0, 7)])
def test_the_scale_s_gradient_is_torch_s(zero_point, quant_min, quant_max):
    """torch has a kernel that learns the scale, which it keeps to itself.

    It counts a number as clipped only where it would be rounded to a code that there isn't; the
    paper, where it lies beyond the last. So those between the two are left out.
    """
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(0)) * 10
    exact = x / 0.1 + zero_point
    x = x[
        ((exact > quant_min) & (exact < quant_max))
        | (exact < quant_min - 0.5)
        | (exact > quant_max + 0.5)
    ]
    ends = quant_min, quant_max
    ours, theirs = (torch.tensor([0.1], requires_grad=True) for _ in range(2))
    upstream = torch.randn(len(x), generator=torch.Generator().manual_seed(1))
    fake_quantize(x, ours.squeeze(), torch.tensor(zero_point), *ends).backward(upstream)
    torch._fake_quantize_learnable_per_tensor_affine(
        x, theirs, torch.tensor([float(zero_point)]), *ends, 1.0
    ).backward(upstream)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3)


def test_the_scale_s_gradient_is_equation_3():
    """Esser et al. 2020: -v/s + round(v/s) inside, -Q_N below and Q_P above."""
    x = torch.tensor([[0.3, 1.4], [-9.0, 9.0], [3.2, 2.9], [-4.4, -3.6]])
    scale = torch.ones(4, requires_grad=True)
    fake_quantize(x, scale, torch.zeros(4), -4, 3).sum().backward()
    expected = [-0.3 + 0 - 1.4 + 1, -4 + 3, 3 - 2.9 + 3, -4 + 3.6 - 4]
    assert scale.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_learned_step_s_gradient_is_scaled():
    """By 1 / sqrt(numbers of a channel * quant_max), and by the scale, whose log is trained."""
    x = torch.tensor([[0.3, 1.4], [-9.0, 9.0]]) / 2
    fake = LearnedStepSize(torch.tensor([0.5, 0.5]), torch.zeros(2), -4, 3)
    out = fake(x)
    assert torch.equal(out, fake_quantize(x, torch.tensor([0.5, 0.5]), torch.zeros(2), -4, 3))
    out.sum().backward()
    expected = torch.tensor([-0.7, -1.0]) * 0.5 / (2 * 3) ** 0.5
    assert torch.allclose(fake.log_scale.grad, expected)


def test_a_learned_step_nearly_finds_the_best_scale_and_stays_positive():
    """Of the squared error of numbers from a normal distribution, with 4 levels."""
    x = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))

    def error(scale):
        return (fake_quantize(x, scale, torch.tensor(0), -2, 1) - x).square().mean().item()

    best = min(map(error, torch.linspace(0.3, 2, 500)))
    for start in (0.05, 5.0):
        fake = LearnedStepSize(torch.tensor(start), torch.tensor(0), -2, 1)
        optimizer = torch.optim.Adam(fake.parameters(), lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            (fake(x) - x).square().sum().backward()
            optimizer.step()
        assert error(fake.step(x).detach()) < 1.02 * best
    nn.utils.vector_to_parameters(torch.tensor([-50.0]), fake.parameters())
    assert fake.step(x) > 0


def test_observing_and_quantizing_are_switches():
    fake = FakeQuantize(MinMaxObserver(8))
    batch = torch.tensor([-1.0, 0.3, 2.0])
    with pytest.raises(RuntimeError, match="^FakeQuantize has seen no data; call it in training"):
        fake.eval()(batch)
    fake.train()
    expected = torch.fake_quantize_per_tensor_affine(batch, 3 / 255, 85, 0, 255)
    assert torch.equal(fake(batch), expected) and not torch.equal(fake(batch), batch)
    scale = fake.scale.clone()
    fake.observing = False
    fake(batch * 10)
    assert torch.equal(fake.scale, scale)
    fake.observing = True
    fake.eval()(batch * 10)  # torch.ao's observers would watch
    assert torch.equal(fake.scale, scale)
    fake.train()(batch * 10)
    assert torch.equal(fake.scale, scale * 10)
    fake.quantizing = False
    assert torch.equal(fake(batch), batch)


def test_a_weight_s_scale_follows_the_weight():
    fake = FakeQuantize(MovingAverageMinMaxObserver(4, symmetric=True, averaging_constant=1))
    for factor in (1.0, 0.1, 3.0):
        fake(torch.tensor([-1.0, 0.5]) * factor)
        assert fake.scale.item() == pytest.approx(factor / 7.5)


def test_per_channel_with_an_observer():
    fake = FakeQuantize(PerChannelMinMaxObserver(8, symmetric=True))
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.fake_quantize_per_channel_affine(
        x, x.abs().amax(dim=1) / 127.5, torch.zeros(3, dtype=torch.int32), 0, -128, 127
    )
    assert torch.equal(fake(x), expected)


def test_a_fixed_scale_needs_no_observer():
    fake = FakeQuantize(scale=torch.tensor(0.5), quant_min=0, quant_max=3)
    assert fake(torch.tensor([-1.0, 0.7, 9.0])).tolist() == [0.0, 0.5, 1.5]
    again = FakeQuantize(scale=torch.tensor(1.0), quant_min=0, quant_max=3)
    again.load_state_dict(fake.state_dict())
    assert again(torch.tensor([0.7])).item() == 0.5


def test_gradients_in_float64_agree_with_those_in_float32():
    x = numbers(0.1, 5)
    scale, zero = torch.tensor(0.1), torch.tensor(0)
    double = forward_and_gradient(lambda x: fake_quantize(x, scale, zero, -8, 7), x.double())
    assert double[0].dtype == double[1].dtype == torch.float64
