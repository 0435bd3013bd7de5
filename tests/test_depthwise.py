"""DepthwiseNet: 8 bits break it, equalization changes nothing but its ranges, and its table."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qhelpers import DepthwiseNet, build_model, integer_model, quantize_model
from qhelpers.experiments.depthwise import CURES, cured_accuracy, depthwise_net
from qhelpers.experiments.ptq import SEEDS
from qhelpers.experiments.tables import load_table, select
from qhelpers.ptq.equalization import ChannelClip, equalize, folded
from qhelpers.ptq.layers import QuantizedActivation
from tests.test_experiments import IMAGES

BROKEN = 0.02  # by which the accuracy of a network may, that guesses


def rows_of(cure, rate=0.05):
    return select(load_table("depthwise"), cure=cure, learning_rate=rate)["accuracy"]


@pytest.fixture(scope="module")
def net(mnist):
    return depthwise_net(mnist, seed=0)


@pytest.fixture
def untrained():
    """A network as if trained: BatchNorms scale the channels far apart, one of them by 300."""
    model = build_model(DepthwiseNet, 0)
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.bias, -1, 1)
            norm.running_var.copy_(torch.rand(len(norm.bias)) + 0.1)
            norm.running_var[3] = 0
    return model.eval()


def test_min_max_per_tensor_loses_five_points_on_each_seed():
    lost = 100 * (rows_of("float") - rows_of("min-max per tensor"))
    assert len(lost) == len(SEEDS) and (lost >= 5).all()


@pytest.mark.parametrize(
    "cure", ["a scale per channel", "output-mse for the weights", "equalization", "all together"]
)
def test_a_cure_brings_back_all_but_a_point(cure):
    assert (100 * (rows_of("float") - rows_of(cure)) < 1).all()


def test_with_the_usual_learning_rate_there_is_nothing_to_cure():
    assert (100 * (rows_of("float", 0.001) - rows_of("min-max per tensor", 0.001)) < 1).all()


def test_every_row_is_there_once():
    found = [tuple(row)[:-1] for row in load_table("depthwise")]
    expected = list(itertools.product(["float", *CURES], [0.05], SEEDS))
    expected += itertools.product(["float", "min-max per tensor"], [0.001], SEEDS)
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "cure",
    ["equalization", *(pytest.param(c, marks=pytest.mark.slow) for c in CURES if c[0] != "e")],
)
def test_rows_come_out_again(mnist, net, cure):
    row = rows_of(cure)[0]
    most = IMAGES / 10_000 if row > 0.5 else BROKEN
    assert cured_accuracy(net, mnist, cure) == pytest.approx(row, abs=most)


@torch.no_grad()
def test_equalization_leaves_the_logits(untrained, data):
    images = data.test_images[:200].double()
    before = folded(untrained)
    equalized = copy.deepcopy(before)
    equalize(equalized)
    expected = copy.deepcopy(untrained).double()(images)
    assert torch.allclose(before(images), expected, atol=1e-5)
    assert (equalized(images) - expected).abs().max() < 1e-5
    assert not torch.allclose(before[0].weight, equalized[0].weight)


def test_after_equalization_the_ranges_of_each_pair_are_equal(untrained):
    """Said once more, with NumPy, and loops over the channels."""
    net = folded(untrained)
    equalize(net, rounds=200)
    layers = [layer for layer in net if hasattr(layer, "weight")]
    for first, second in itertools.pairwise(layers):
        made, used = [layer.weight.detach().numpy() for layer in (first, second)]
        depthwise = isinstance(second, nn.Conv2d) and second.groups > 1
        for channel in range(len(made)):
            taken = used[channel] if depthwise else used[:, channel]
            assert np.abs(made[channel]).max() == pytest.approx(np.abs(taken).max(), rel=1e-6)


def test_a_channel_without_weights_stays(untrained):
    untrained.features[0].weight.data[5] = 0
    net = folded(untrained)
    equalize(net)
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())


def test_a_clip_is_relu6_scaled():
    clip, x = ChannelClip(3), torch.linspace(-9, 9, 60).reshape(4, 3, 5, 1)
    assert torch.equal(clip(x), functional.relu6(x))
    s = torch.tensor([0.5, 2, 4]).reshape(3, 1, 1)
    clip.top /= s
    assert torch.equal(clip(x / s), functional.relu6(x) / s)


@pytest.mark.parametrize(
    "clip", [nn.ReLU6(), ChannelClip(4), nn.Hardtanh(0, 6)], ids=["module", "channels", "hardtanh"]
)
@torch.no_grad()
def test_a_clip_is_fused_with_the_layer_before_it(clip):
    """The range after it, and no rounding before it; the result is what torch computes by hand."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(1, 4, 3), 5 * torch.randn(8, 1, 6, 6)
    conv.weight *= 5
    quantized = quantize_model(nn.Sequential(conv, clip).eval(), [x], 16, 8)
    assert quantized.kept_in_float == []
    activations = [m for m in quantized.graph.modules() if isinstance(m, QuantizedActivation)]
    assert len(activations) == 2  # the input and the output
    step = 6 / 255
    assert activations[1].scale.item() == pytest.approx(step) and activations[1].zero_point == 0
    low, high = [activations[0].scale, activations[0].zero_point]
    inputs = torch.fake_quantize_per_tensor_affine(x, low.item(), int(high), 0, 255)
    codes = torch.round(functional.relu6(conv(inputs)) / step)
    assert (quantized(x) / step - codes).abs().max() <= 1.001
    assert ((quantized(x) / step - codes).abs() > 0.5).double().mean() < 0.01


@torch.no_grad()
def test_a_clip_after_codes_makes_new_codes():
    """ReLU6 that is not fused: its end need not be one of the numbers that codes stand for."""
    x = torch.linspace(-10, 10, 40).reshape(-1, 1, 2, 2)
    model = nn.Sequential(nn.ReLU6(), nn.Conv2d(1, 1, 1)).eval()
    quantized = quantize_model(model, [x])
    assert quantized.kept_in_float == []
    activations = [m for m in quantized.graph.modules() if isinstance(m, QuantizedActivation)]
    assert len(activations) == 3
    assert (quantized(x) - model(x)).abs().max() < 0.2


@torch.no_grad()
def test_integers_compute_it(untrained, data):
    """Its logits are those of the quantized model, but for sums near the middle of two codes."""
    quantized = quantize_model(untrained, [data.train_images[:10]])
    model = integer_model(quantized)
    steps = model(data.test_images[:100]) - quantized(data.test_images[:100]).numpy()
    steps = np.abs(steps / model.after.scale)
    assert steps.max() <= 2.001 and (steps > 0.5).mean() < 0.15
