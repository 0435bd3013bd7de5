"""integer/products and integer/requantize: against sums and fractions computed one by one."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qhelpers.integer.layers import Conv2d, Linear
from qhelpers.integer.products import PRODUCTS, by_blas, largest_sum, pairs_that_can_saturate
from qhelpers.integer.qparams import QParams
from qhelpers.integer.requantize import ARITHMETICS, fixed_point, fixed_point_multiplier
from qhelpers.integer.without_vnni import layer_without_vnni
from qhelpers.torch_ao import engine_arithmetic
from tests.integer.test_model import needs

CODE, WEIGHT = st.integers(0, 255), st.integers(-128, 127)
ROUNDED_BIAS = ("qnnpack", "onnxruntime", "fixed-point")
engines = pytest.mark.parametrize("engine", ["fbgemm", "qnnpack", "onednn"])
granularities = pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
EXTREME = st.sampled_from([0, 1, 127, 128, 254, 255])


@st.composite
def codes_and_weights(draw):
    """Rows of codes up to quant_max, a weight, a zero point."""
    length, quant_max = draw(st.integers(1, 9)), draw(st.integers(1, 255))
    code = st.one_of(CODE, EXTREME).map(lambda q: min(q, quant_max))
    weight = st.one_of(WEIGHT, st.sampled_from([-128, -127, 126, 127]))
    row = lambda kind: st.lists(kind, min_size=length, max_size=length)  # noqa: E731
    codes = np.array(draw(st.lists(row(code), min_size=1, max_size=3)), np.uint8)
    weights = np.array(draw(st.lists(row(weight), min_size=1, max_size=3)), np.int8)
    return codes, weights, draw(st.integers(0, quant_max)), quant_max


def in_int16(number):
    return max(-32768, min(32767, number))


def one_by_one(codes, weights, zero_point, saturate):
    """The sums in Python's integers; where `saturate`, pair by pair in 16 bits."""
    result = []
    for row in codes.tolist():
        for weight in weights.tolist():
            products = [q * w for q, w in zip(row, weight)]
            pairs = [sum(products[i : i + 2]) for i in range(0, len(products), 2)]
            total = sum(map(in_int16, pairs)) if saturate else sum(pairs)
            result.append(total - zero_point * sum(weight))
    return np.array(result).reshape(len(codes), len(weights))


@given(codes_and_weights())
def test_each_product_is_the_sum_computed_one_by_one(given):
    codes, weights, zero_point, quant_max = given
    for name, product in PRODUCTS.items():
        sums = product(weights, zero_point, quant_max)(codes)
        expected = one_by_one(codes, weights, zero_point, name == "saturating")
        assert np.array_equal(sums, expected), name
        assert (sums.dtype == np.int32) == (name == "integers")


@given(codes_and_weights())
def test_no_sum_is_larger_than_the_bound(given):
    codes, weights, zero_point, quant_max = given
    bound = largest_sum(weights, quant_max)
    assert np.abs(one_by_one(codes, weights, zero_point, False)).max() <= bound
    partial = np.abs(np.cumsum(codes[:, None].astype(int) * weights, axis=2))
    assert partial.max() <= bound
    worst = [np.where(weights > 0, quant_max, 0), np.where(weights < 0, quant_max, 0)]
    reached = [abs((codes * weights.astype(int)).sum(axis=1)).max() for codes in worst]
    assert max(reached) == bound  # it is no larger than it must be


@given(codes_and_weights())
def test_pairs_that_can_saturate_are_those_for_which_some_codes_do(given):
    _, weights, _, quant_max = given
    found = pairs_that_can_saturate(weights, quant_max)
    for i, weight in enumerate(weights.tolist()):
        for j in range(0, len(weight), 2):
            pair = weight[j : j + 2]
            ends = [sum(w * q for w, q in zip(pair, codes) if w * sign > 0)
                    for sign in (1, -1) for codes in [(quant_max, quant_max)]]  # fmt: skip
            assert found[i, j // 2] == any(in_int16(end) != end for end in ends)


def test_sums_of_products_leave_float32_exact_only_where_it_is():
    """One more than float32 can hold: float64 takes over, and the sum is right."""
    few, many = np.full((1, 518), 127, np.int8), np.full((1, 519), 127, np.int8)
    assert largest_sum(few, 255) <= 2**24 < largest_sum(many, 255)
    for weights, dtype in [(few, np.float32), (many, np.float64)]:
        codes = np.full((1, weights.shape[1]), 255, np.uint8)
        sums = by_blas(weights, 0, 255)(codes)
        assert sums.dtype == dtype and sums.item() == 255 * 127 * weights.shape[1]


@given(st.floats(1e-30, 2**29, exclude_max=True))
def test_the_multiplier_is_exact_to_one_part_in_two_to_the_31st(multiplier):
    fixed, shift = (int(n) for n in fixed_point_multiplier(multiplier))
    value = Fraction(fixed, 2**shift)
    if multiplier >= 2**-32:
        assert abs(value - Fraction(multiplier)) <= Fraction(multiplier) / 2**31
        assert 2**30 <= fixed < 2**31
    assert abs(value - Fraction(multiplier)) <= Fraction(1, 2**62) + Fraction(multiplier) / 2**31
    assert 1 <= shift <= 62


@pytest.mark.parametrize("multiplier", [0.0, -1.0, 2.0**29, np.inf, np.nan])
def test_multipliers_that_do_not_fit_are_refused(multiplier):
    with pytest.raises(ValueError, match="^multiplier is .*must be positive and below 2"):
        fixed_point_multiplier(multiplier)


def layer(multiplier, bias=0.0, zero_point=0):
    """A layer of one weight whose s_x s_w / s_y is `multiplier`."""
    weight, scale = np.ones((1, 1), np.int8), np.float32([1])
    before, after = QParams(1.0, 0, 255), QParams(1 / multiplier, zero_point, 255)
    return Linear("fc", weight, 8, scale, np.float32([bias]), before, after, False)


@given(st.integers(-(2**30), 2**30), st.floats(2**-20, 2**3), st.integers(-1000, 1000))
def test_fixed_point_rounds_once_halves_up(acc, multiplier, bias):
    part = layer(multiplier, bias, 7)
    fixed, shift = fixed_point_multiplier(1 / np.float64(part.after.scale))
    exact = (acc + bias) * Fraction(int(fixed), 2 ** int(shift))
    expected = (exact + Fraction(1, 2)).__floor__() + 7
    assert fixed_point(part)(np.array([[acc]], np.int32)).item() == expected


@given(st.integers(-(2**23), 2**23), st.floats(2**-20, 2**-3), st.floats(-1000, 1000))
def test_each_arithmetic_is_near_the_real_number(acc, multiplier, bias):
    """Half a unit for rounding, what a rounded bias is worth, and float32's own error."""
    part = layer(multiplier, bias, 7)
    exact = (acc + float(part.bias[0])) / float(part.after.scale) + 7
    for name, arithmetic in ARITHMETICS.items():
        code = arithmetic(part)(np.array([[acc]], np.float32)).item()
        assert code == int(code)
        slack = 0.5 + (0.5 / float(part.after.scale)) * (name in ROUNDED_BIAS)
        assert abs(code - exact) <= slack + 4e-7 * abs(exact), name


def test_the_bias_is_a_fused_multiply_add_per_tensor():
    """fbgemm: b * (1 / s) is not rounded before it is added. Here that decides about a code."""
    random = np.random.default_rng(0)
    scale, bias = np.float32(0.0123), random.normal(0, 3, size=(1, 1000)).astype(np.float32)
    acc = random.integers(-5000, 5000, size=(500, 1000)).astype(np.float32)
    reciprocal, multiplier = np.float32(1) / scale, scale / np.float32(0.05)
    part = SimpleNamespace(
        before=QParams(scale, 0, 255), weight_scale=np.array(1, np.float32), bias=bias,
        after=QParams(0.05, 0, 255),
    )  # fmt: skip
    ours = ARITHMETICS["fbgemm"](part)(acc.copy())
    fused = (acc.astype(np.longdouble) + bias.astype(np.longdouble) * reciprocal).astype(np.float32)
    assert np.array_equal(ours, np.rint(fused * multiplier))
    assert not np.array_equal(fused, acc + bias * reciprocal)


def random_layer(seed, granularity, relu):
    """A layer of 60 inputs and 40 outputs whose sums can't saturate, and codes for it.

    Half of the biases are on ties of the accumulator's steps.
    """
    random = np.random.default_rng(seed)
    channels = (40,) if granularity == "per channel" else ()
    scales = random.uniform(0.001, 0.01, size=channels).astype(np.float32)
    before = QParams(random.uniform(0.001, 0.05), int(random.integers(128)), 127)
    after = QParams(random.uniform(0.1, 0.4), int(random.integers(128)), 255)
    ties = (random.integers(-3000, 3000, size=40) + 0.5) * (before.scale * scales)
    bias = np.where(np.arange(40) % 2, ties, random.normal(0, 3, size=40)).astype(np.float32)
    weight = random.integers(-60, 61, size=(40, 60)).astype(np.int8)
    codes = random.integers(0, 128, size=(25_000, 60)).astype(np.uint8)
    return Linear("fc", weight, 8, scales, bias, before, after, relu), codes


def by_torch(layer, codes, engine):
    """What an engine of torch makes of the codes."""
    torch.backends.quantized.engine = engine
    before, after, weight = layer.before, layer.after, torch.tensor(layer.weight)
    x = torch._make_per_tensor_quantized_tensor(
        torch.tensor(codes), before.scale.item(), before.zero_point
    )
    if layer.weight_scale.ndim:
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        scales = torch.tensor(layer.weight_scale).double()
        w = torch._make_per_channel_quantized_tensor(weight, scales, zeros, 0)
    else:
        w = torch._make_per_tensor_quantized_tensor(weight, layer.weight_scale.item(), 0)
    name, geometry = "linear", ()
    if isinstance(layer, Conv2d):
        name, geometry = "conv2d", (layer.stride, layer.padding, layer.dilation, layer.groups)
    kernels = torch.ops.quantized
    packed = getattr(kernels, f"{name}_prepack")(w, torch.tensor(layer.bias), *geometry)
    kernel = getattr(kernels, f"{name}_relu" if layer.relu else name)
    return kernel(x, packed, after.scale.item(), after.zero_point).int_repr().numpy()


@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@granularities
@engines
def test_random_layers_have_torch_s_codes(engine, granularity, relu):
    """Eight million codes for each engine, from scales and biases that no network has."""
    needs(engine)
    for seed in range(2):
        layer, codes = random_layer(seed, granularity, relu)
        ours = layer.prepared(engine_arithmetic(engine), "blas")(codes)
        assert np.array_equal(ours, by_torch(layer, codes, engine))


def layer_on_ties(seed, granularity):
    """A layer of one input, and the 256 codes for it; many outputs lie between two codes.

    Scales are fractions of small integers, and half of the layers have no zero points.
    """
    random = np.random.default_rng(seed)

    def fractions(*shape):
        return (random.integers(1, 60, shape) / random.integers(1, 60, shape)).astype(np.float32)

    outputs = 4 if granularity == "per channel" else 1
    input_scale, weight_scale = fractions(), fractions(outputs)
    bias = input_scale * weight_scale * random.integers(-20, 20, outputs) * (seed % 4 < 2)
    zero_points = random.integers(1, 200, 2) * (seed % 2)
    before = QParams(input_scale, int(zero_points[0]), 255)
    output_scale = input_scale * weight_scale[0] * fractions()
    after = QParams(output_scale, int(zero_points[1]), 255)
    weight = random.integers(1, 8, size=(outputs, 1)).astype(np.int8)
    weight_scale = weight_scale if granularity == "per channel" else weight_scale[0]
    layer = Linear("fc", weight, 8, weight_scale, bias.astype(np.float32), before, after, False)
    return layer, np.arange(256, dtype=np.uint8).reshape(-1, 1)


@granularities
@engines
def test_layers_on_ties_have_torch_s_codes(engine, granularity):
    """There, each arithmetic of another engine, version or CPU is wrong."""
    needs(engine)
    off = dict.fromkeys(ARITHMETICS, 0)
    for seed in range(500):
        layer, codes = layer_on_ties(seed, granularity)
        theirs = by_torch(layer, codes, engine)
        for name in ARITHMETICS:
            off[name] += int((layer.prepared(name, "integers")(codes) != theirs).sum())
    assert off.pop(engine_arithmetic(engine)) == 0
    assert min(off.values()) > 0


@granularities
@engines
def test_convolutions_on_ties_have_torch_s_codes(engine, granularity):
    """The same layers as convolutions of single pixels, which some engines compute otherwise."""
    needs(engine)
    arithmetic = engine_arithmetic(engine)
    for seed in range(500):
        linear, codes = layer_on_ties(seed, granularity)
        fields = vars(linear) | {"weight": linear.weight[:, :, None, None]}
        pairs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
        conv, codes = Conv2d(**fields, **pairs, groups=1), codes[:, :, None, None]
        theirs = by_torch(conv, codes, engine)
        assert np.array_equal(conv.prepared(arithmetic, "integers")(codes), theirs)


def code_of(arithmetic, code, input_scale, weight_scale, output_scale, zero_point=0):
    """What a layer with the weight 1 makes of a code."""
    before, after = QParams(input_scale, zero_point, 255), QParams(output_scale, 0, 255)
    weight, scale, bias = np.int8([[1]]), np.float32(weight_scale), np.float32([0])
    layer = Linear("fc", weight, 8, scale, bias, before, after, False)
    return layer.prepared(arithmetic, "integers")(np.uint8([[code]])).item()


@pytest.mark.parametrize(
    "arithmetic, codes",
    [("onednn", (0, 19)), ("onednn-brgemm", (1, 19)), ("onednn-brgemm-division", (1, 20))],
)
def test_two_codes_tell_the_arithmetics_of_onednn_apart(arithmetic, codes):
    """They are the codes that `engine_arithmetic` asks the engine for."""
    order = code_of(arithmetic, 3, 1 / 15, 2.5, 1)
    assert (order, code_of(arithmetic, 4, 1, 1, 2 / 13, 1)) == codes


def layer_of_large_weights(**changes):
    """A layer most of whose pairs of weights can saturate, and codes for it."""
    rng = np.random.default_rng(0)
    fields = {
        "name": "layer",
        "weight": rng.integers(60, 128, (5, 8)).astype(np.int8),
        "weight_bits": 8,
        "weight_scale": np.linspace(0.5, 1, 5, dtype=np.float32),
        "bias": np.linspace(-9, 9, 5, dtype=np.float32),
        "before": QParams(np.float32(0.1), 3, 255),
        "after": QParams(np.float32(70), 2, 255),
        "relu": True,
    }
    return Linear(**fields | changes), rng.integers(0, 256, (50, 8)).astype(np.uint8)


def test_without_vnni_each_pair_saturates_in_int16():
    """Whatever this CPU has; against sums in Python's integers."""
    needs("fbgemm")
    layer, codes = layer_of_large_weights()
    found = layer_without_vnni(layer, codes)
    for saturate in (True, False):
        acc = one_by_one(codes, layer.weight, 3, saturate).astype(np.float32)
        expected = np.clip(ARITHMETICS["fbgemm"](layer)(acc), 2, 255)
        assert np.array_equal(found, expected) == saturate


def test_without_vnni_says_what_it_refuses_and_what_failed(monkeypatch):
    without_relu, codes = layer_of_large_weights(relu=False)
    per_tensor, _ = layer_of_large_weights(weight_scale=np.float32(1).reshape(()))
    for layer in (without_relu, per_tensor):
        with pytest.raises(ValueError, match="^layer 'layer' must have a ReLU, and a scale"):
            layer_without_vnni(layer, codes)
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(RuntimeError, match="the process without VNNI failed: .+"):
        layer_without_vnni(layer_of_large_weights()[0], codes)
