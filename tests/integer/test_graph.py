"""Integer models that are graphs: every code of torch's kernels for sums, pools and networks."""

import copy
import functools
import operator
import pickle  # noqa: S403
import warnings

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from qhelpers import ResidualNet, build_model, has_torch_ao, integer_model, quantize_model
from qhelpers.integer.add import Add
from qhelpers.integer.layers import Conv2d, Linear
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.moves import ReLU
from qhelpers.integer.pools import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from qhelpers.integer.qparams import QParams
from qhelpers.integer.requantize import ARITHMETICS
from qhelpers.ptq.trace import traced
from qhelpers.torch_ao import engine_arithmetic
from tests.integer.test_model import Watched, linear, needs, types_used

engines = pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
with_torch_ao = pytest.mark.skipif(not has_torch_ao(), reason="this PyTorch has no torch.ao")
PAIRS = [codes.ravel() for codes in np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2)]


def as_torch(codes, qparams):
    """A quantized tensor; that of images has its channels last, as torch's convolutions return."""
    scale, codes = qparams.scale.item(), torch.tensor(codes)
    if codes.ndim == 4:
        codes = codes.contiguous(memory_format=torch.channels_last)
    return torch._make_per_tensor_quantized_tensor(codes, scale, qparams.zero_point)


def random_qparams(random, ties):
    """Scales are fractions of small integers, which put many sums between two codes, or any."""
    one, other = random.integers(1, 60, 2)
    scale = one / other if ties else random.uniform(0.001, 0.1)
    return QParams(scale, int(random.integers(256)), 255)


def random_add(seed):
    random = np.random.default_rng(seed)
    qparams = [random_qparams(random, ties=seed % 2) for _ in range(3)]
    return Add("add", *qparams, relu=seed % 4 > 1)


@engines
def test_sums_of_all_pairs_of_codes_have_torch_s_codes(engine):
    """65,536 pairs for each of 40 triples of scales and zero points, with a ReLU and without."""
    needs(engine)
    torch.backends.quantized.engine = engine
    without_fma = 0
    for seed in range(40):
        layer = random_add(seed)
        kernel = torch.ops.quantized.add_relu if layer.relu else torch.ops.quantized.add
        x, y = (as_torch(c, q) for c, q in zip(PAIRS, (layer.before, layer.other)))
        theirs = kernel(x, y, layer.after.scale.item(), layer.after.zero_point).int_repr().numpy()
        ours = layer.prepared(engine_arithmetic(engine), "blas")(*PAIRS)
        assert np.array_equal(ours, theirs), layer
        total = x.dequantize() + y.dequantize()
        steps = torch.round(total * (1 / torch.tensor(layer.after.scale)))
        low = layer.after.zero_point if layer.relu else 0
        codes = (steps + layer.after.zero_point).clip(low, 255).numpy()
        without_fma += int((codes != theirs).sum())
    assert without_fma > 0  # s q - s z with one rounding less decides about some codes


def test_sums_in_fixed_point_are_the_real_numbers_rounded():
    """Halves up; the multipliers' own errors can decide only where the sum is next to a tie."""
    for seed in range(8):
        layer = random_add(seed)
        ours = layer.prepared("fixed-point", "integers")(*PAIRS)
        exact = layer.after.zero_point + sum(
            (codes.astype(np.float64) - q.zero_point) * (q.scale / np.float64(layer.after.scale))
            for codes, q in zip(PAIRS, (layer.before, layer.other))
        )
        low = layer.after.zero_point if layer.relu else 0
        expected = np.floor(exact + 0.5).clip(low, 255)
        near_a_tie = abs(exact % 1 - 0.5) < 1e-6
        assert np.array_equal(ours[~near_a_tie], expected[~near_a_tie])
        assert near_a_tie.mean() < 0.1


def random_window(random, most=4):
    size = random.integers(1, most, 2)
    padding = random.integers(0, size // 2 + 1)
    stride = random.integers(1, most, 2)
    return [tuple(int(n) for n in pair) for pair in (size, stride, padding)]


def random_images(random, channels):
    shape = (2, channels, *random.integers(3, 15, 2))
    return random.integers(0, 256, shape).astype(np.uint8)


@engines
@pytest.mark.parametrize("channels", [5, 32])
def test_average_pools_have_torch_s_codes(engine, channels):
    """Of random sizes; their codes have one scale before and after, as torch's must."""
    needs(engine)
    torch.backends.quantized.engine = engine
    random, contiguous = np.random.default_rng(channels), 0
    for _ in range(60):
        codes, q = random_images(random, channels), random_qparams(random, ties=False)
        window, (ceil, counted) = random_window(random), random.integers(0, 2, 2).astype(bool)
        size = tuple(int(n) for n in random.integers(1, 6, 2))
        for layer, pool in [
            (AvgPool2d("pool", q, q, *window, bool(ceil), bool(counted)),
             nn.AvgPool2d(*window, bool(ceil), bool(counted))),
            (AdaptiveAvgPool2d("pool", q, q, size), nn.AdaptiveAvgPool2d(size)),
            (AdaptiveAvgPool2d("pool", q, q, (1, 1)), nn.AdaptiveAvgPool2d(1)),
        ]:  # fmt: skip
            theirs = pool(as_torch(codes, q)).int_repr().numpy()
            ours = layer.prepared(engine_arithmetic(engine), "blas")(codes)
            assert np.array_equal(ours, theirs), layer
            other = pool(as_torch(codes, q).contiguous()).int_repr().numpy()
            contiguous += int((other != theirs).sum())
    assert contiguous > 0  # with the channels second torch rounds ties in another way


def test_averages_with_another_scale_are_the_real_numbers_rounded():
    random = np.random.default_rng(0)
    for arithmetic in ARITHMETICS:
        codes = random_images(random, 3)
        before, after = QParams(0.0371, 13, 255), QParams(0.0233, 57, 200)
        layer = AdaptiveAvgPool2d("pool", before, after, (2, 3))
        reals = torch.tensor((codes.astype(np.float64) - 13) * before.scale)
        means = functional.adaptive_avg_pool2d(reals, (2, 3)).numpy()
        exact = (means / after.scale + 57).clip(0, 200)
        assert abs(layer.prepared(arithmetic, "blas")(codes) - exact).max() < 0.5 + 1e-4


def test_max_pools_have_torch_s_codes():
    random = np.random.default_rng(0)
    for _ in range(60):
        codes, ceil = random_images(random, 3), bool(random.integers(2))
        size, stride, padding = random_window(random)
        dilation = tuple(int(n) for n in random.integers(1, 3, 2))
        pool = nn.MaxPool2d(size, stride, padding, dilation, ceil_mode=ceil)
        layer = MaxPool2d("pool", size, stride, padding, dilation, ceil)
        try:
            theirs = pool(torch.tensor(codes).float()).numpy()
        except RuntimeError:  # the window is larger than the images
            continue
        assert np.array_equal(layer.prepared("fbgemm", "blas")(codes), theirs), layer


def warmed(model, images):
    """The model in evaluation mode, after its BatchNorms have seen the images."""
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(images)
    return model.eval()


class AsFXTakesIt(ResidualNet):
    """The same network; torch.ao's FX mode leaves torch.relu in floats."""

    def forward(self, img):
        x = functional.relu(self.norm(self.conv(img.reshape(-1, 1, 28, 28))))
        x = x + self.block(x)
        return self.linear(torch.flatten(self.pool(x), 1))


@functools.cache
def residual_net():
    torch.manual_seed(0)
    images = torch.randn(100, 1, 28, 28)
    return warmed(build_model(AsFXTakesIt, 0), images), images


@functools.cache
def resnet18():
    models = pytest.importorskip("torchvision", reason="not installed: torchvision").models
    torch.manual_seed(0)
    images = torch.randn(4, 3, 96, 96)
    return warmed(models.resnet18(), images), images


class Record(fx.Interpreter):
    """Runs a graph, and notes the codes that each node returns, by its name in an integer model."""

    def __init__(self, graph):
        super().__init__(graph)
        self.codes = {}

    def run_node(self, node):
        value = super().run_node(node)
        if isinstance(value, torch.Tensor) and value.is_quantized:
            name = node.target if node.op == "call_module" else node.name
            self.codes["input" if node.target is torch.quantize_per_tensor else name] = (
                value.int_repr().numpy()
            )
        return value


def arithmetic_of(layer, engine):
    """x86 hands convolutions of up to 100 groups to oneDNN, on CPUs with VNNI."""
    if engine == "x86" and isinstance(layer, Conv2d) and layer.groups <= 100:
        return engine_arithmetic("onednn")
    return engine_arithmetic(engine)


@with_torch_ao
@engines
@pytest.mark.parametrize("network", [residual_net, pytest.param(resnet18, marks=pytest.mark.slow)])
@torch.no_grad()
def test_networks_have_torch_s_codes(network, engine):
    """Quantized and run by torch.ao; 7 bits, so that nothing saturates. Each layer of ours gets
    torch's codes, then the whole network its own."""
    needs(engine)
    from torch.ao import quantization as ao
    from torch.ao.quantization import quantize_fx

    torch.backends.quantized.engine = engine
    model, images = network()
    qconfig = ao.QConfig(
        activation=ao.MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=True),
        weight=ao.default_per_channel_weight_observer,
    )
    mapping = ao.QConfigMapping().set_global(qconfig)
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), mapping, (images,))
    prepared(images)
    theirs = quantize_fx.convert_fx(prepared)
    recorded = Record(traced(theirs))
    logits = recorded.run(images)
    ours = integer_model(theirs, engine_arithmetic(engine))
    assert sum(isinstance(layer, Add) for layer in ours.layers) in (1, 8)
    seen = 0
    for layer, names in zip(ours.layers, ours.inputs):
        inputs = [recorded.codes[name] for name in names]
        arithmetic = arithmetic_of(layer, engine)
        codes = layer.prepared(arithmetic, "blas")(*inputs)
        assert np.array_equal(codes, recorded.codes[layer.name]), layer.name
        seen += codes.size
    assert seen > 200_000
    if engine != "x86":
        assert np.array_equal(ours(images), logits.numpy())


@pytest.mark.parametrize("network", [residual_net, pytest.param(resnet18, marks=pytest.mark.slow)])
def test_networks_compute_what_the_quantized_model_computes(network):
    """Each layer, given the codes of the layers before it: rounding apart, the same codes."""
    model, images = network()
    quantized = quantize_model(model, [images])
    ours = integer_model(quantized)
    places = {}

    def note(module, inputs, output):
        places[module.name] = output.detach().numpy()

    for name, module in quantized.graph.named_modules():
        if name.startswith("quantize_"):
            module.register_forward_hook(note)
    theirs = quantized(images).detach().numpy()
    known, off, seen = {"input": codes_at(places["input"], ours.before)}, 0, 0
    for layer, names in zip(ours.layers, ours.inputs):
        codes = layer.prepared("fbgemm", "blas")(*(known[name] for name in names))
        known[layer.name] = codes
        if layer.name in places:
            known[layer.name] = codes_at(places[layer.name], layer.after)
            off, seen = off + int((codes != known[layer.name]).sum()), seen + codes.size
    assert len(places) > 5 and off < 0.001 * seen
    error = ours(images) - theirs
    assert (error**2).mean() < 0.01 * theirs.var()


def codes_at(numbers, qparams):
    return (np.rint(numbers / qparams.scale) + qparams.zero_point).astype(np.uint8)


def test_no_float_enters_a_graph_in_fixed_point(monkeypatch):
    take = np.take  # doesn't ask the class of the codes that it is given

    def watched_take(table, codes):
        Watched.types.add(table.dtype.kind)
        return take(table, codes).view(Watched)

    monkeypatch.setattr(np, "take", watched_take)
    model, images = residual_net()
    model = integer_model(quantize_model(model, [images]), "fixed-point")
    assert types_used(model, images[:5]) <= set("iub")
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert again.inputs == model.inputs
    assert np.array_equal(copy.deepcopy(model)(images[:5]), again(images[:5]))


class Joined(nn.Module):
    """Two convolutions whose codes `join` joins, before a linear layer."""

    def __init__(self, join):
        super().__init__()
        self.one, self.other = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.join, self.linear = join, nn.LazyLinear(10)

    def forward(self, x):
        x = functional.relu(self.one(x))
        return self.linear(torch.flatten(self.join(x, self.other(x)), 1))


def integers_of(join):
    torch.manual_seed(0)
    images = torch.randn(20, 1, 9, 9)
    model = Joined(join)
    model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = quantize_model(model.eval(), [images])
    return integer_model(quantized), quantized, images


def changed_in_place(x, y):
    x += y
    return x


def used_after_a_change(x, y):
    z = functional.max_pool2d(x, 3, 1, 1)
    return z.add_(y) + z


@pytest.mark.parametrize(
    "join",
    [
        operator.add, torch.add, operator.iadd, changed_in_place, used_after_a_change,
        lambda x, y: x.add(y),
        lambda x, y: x + x,
        lambda x, y: x + y + x,
        lambda x, y: torch.relu(x + y),
        lambda x, y: functional.relu6(x + y),
        lambda x, y: torch.clamp(x + y, 0, 0.5),
        lambda x, y: functional.hardtanh(y, 0, 0.2) + x,
        lambda x, y: torch.relu(functional.max_pool2d(y, 2, ceil_mode=True)),
        lambda x, y: functional.max_pool2d(x + y, 3, 2, ceil_mode=True),
        lambda x, y: functional.avg_pool2d(x, 3, 2, 1) + functional.max_pool2d(y, 3, 2, 1),
        lambda x, y: functional.avg_pool2d(x, 2, 2, ceil_mode=True),
        lambda x, y: functional.avg_pool2d(x + y, (3, 2), count_include_pad=False, padding=(1, 0)),
        lambda x, y: functional.adaptive_avg_pool2d(x + y, (2, 3)),
        lambda x, y: (x + y).mean((2, 3)),
        lambda x, y: torch.mean(x + y, dim=[-1, -2], keepdim=True),
        lambda x, y: torch.relu(functional.adaptive_avg_pool2d(y, 1)),
    ],
)  # fmt: skip
def test_what_may_join_and_average(join):
    ours, quantized, images = integers_of(join)
    theirs = quantized(images).detach().numpy()
    close = np.isclose(ours(images), theirs, atol=ours.after.scale / 2)
    assert close.mean() > 0.97
    assert abs(ours(images) - theirs).max() < 3 * ours.after.scale


def test_relu6_clips_where_its_codes_reach_beyond_it():
    """As they do once training has changed a scale."""
    join = lambda x, y: torch.clamp(x + y, 0, 0.1)  # noqa: E731
    _, quantized, images = integers_of(join)
    place = next(m for m in quantized.graph.modules() if getattr(m, "name", "") == "add")
    place.scale *= 2
    model = integer_model(quantized)
    codes = dict(model.each(model.quantize(images)))["add"]
    assert codes.max() == round(0.1 / place.scale.item()) < 200


def viewed_before(x, y):
    z = functional.max_pool2d(x, 3, 1, 1)
    flat = z.flatten(1)
    z.add_(y)
    return flat


@pytest.mark.parametrize(
    "join, message",
    [
        (lambda x, y: x + 1, r"^add \(add\) must add two tensors of codes"),
        (lambda x, y: torch.add(x, y, alpha=2), r"^add \(add\) must add two tensors of codes"),
        (lambda x, y: x * y, r"^mul \(mul\) can't be computed in integers; the model's parts may "
         "be Linear, Conv2d, ReLU, ReLU6, add, MaxPool2d, average pools and reshapes"),
        (lambda x, y: torch.clamp(x + y, -1, 1), r"^clamp \(clamp\) clips from -1 to 1"),
        (lambda x, y: functional.hardtanh(x + y), "clips from -1.* to 1"),
        (lambda x, y: y.mean((1, 2)), r"^mean \(mean\) is over the axes \(1, 2\); it must be"),
        (lambda x, y: functional.avg_pool2d(y, 2, divisor_override=3), "has divisor_override"),
        (viewed_before, r"^add_ \(add_\) changes max_pool2d .max_pool2d. in place, and a view"),
        (lambda x, y: torch.cat([x, y], 1), r"^cat \(cat\) can't be computed"),
        (lambda x, y: functional.avg_pool1d(x.flatten(1), 2), "averages may be those of images"),
    ],
)  # fmt: skip
def test_what_is_not_supported_in_a_graph_is_named(join, message):
    with pytest.raises(ValueError, match=message):
        integers_of(join)


class TwoInputs(nn.Linear):
    def forward(self, x, y):
        return super().forward(x) + y


class TwoOutputs(nn.Linear):
    def forward(self, x):
        x = super().forward(x)
        return x, x + x


def test_two_inputs_and_two_outputs_are_refused():
    two, one = TwoInputs(4, 4), TwoOutputs(4, 4)
    with pytest.raises(ValueError, match="^y .y. is a second input; the model may have one"):
        integer_model(quantize_model(two.eval(), [(torch.ones(2, 4), torch.ones(2, 4))]))
    with pytest.raises(ValueError, match="^the model returns .*; it must return one tensor"):
        integer_model(quantize_model(one.eval(), [torch.ones(2, 4)]))


def add(name="add", **changed):
    q = QParams(0.2, 5, 15)
    fields = {"before": q, "other": q, "after": q, "relu": False} | changed
    return Add(name, **fields)


Q = QParams(0.2, 5, 15)
IN = ("input",)


@pytest.mark.parametrize(
    "layers, inputs, message",
    [
        ([linear()], [], "^inputs has 0 entries; it must have one for each of the 1 layers"),
        ([linear()], [("x",)], "^layer 'fc' takes 'x', which no layer before it is named"),
        ([linear()], [("fc",)], "^layer 'fc' takes 'fc', which no layer before it"),
        ([linear()], [("input", "input")], "^layer 'fc' is given .*; it takes 1 of them"),
        ([linear(), add()], [IN, ("fc",)], "^layer 'add' is given .*; it takes 2 of them"),
        ([linear(), add()], [IN, ("fc", "input")], "^layer 'add' takes .*, and gets"),
        ([linear(name="input")], [IN], "^layers has the name 'input' twice"),
        ([linear(), linear(name="b"), add()], [IN, IN, ("fc", "fc")], "^nothing takes .* of 'b'"),
        ([linear(), linear(name="b")], [IN, IN], "^nothing takes the codes of 'fc'"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_fit_are_refused(layers, inputs, message):
    with pytest.raises(ValueError, match=message):
        IntegerModel(layers, inputs=inputs)


@pytest.mark.parametrize(
    "layer, message",
    [
        (lambda: add(after=QParams(1e-30, 0, 255)), "^layer 'add': its scales, 0.2.* and 0.2"),
        (lambda: add(top=4), "^layer 'add': top is 4; it must be an integer from 5 to 255"),
        (lambda: linear(top=256), "^layer 'fc': top is 256"),
        (lambda: ReLU("relu", 6, 5), "^layer 'relu': zero_point is 6 and top is 5"),
        (lambda: AvgPool2d("pool", Q, Q, (2, 2), (1, 1), (2, 0), False, True), "at most half"),
        (lambda: AvgPool2d("pool", Q, Q, (512, 256), (1, 1), (0, 0), False, True), "may have 65"),
        (lambda: AdaptiveAvgPool2d("pool", Q, QParams(1e33, 0, 255), (1, 1)), "too far apart"),
        (lambda: AdaptiveAvgPool2d("pool", Q, Q, (0, 1)), "^layer 'pool': output_size is .0, 1"),
    ],
)  # fmt: skip
def test_layers_that_make_no_sense_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        layer()


def test_codes_that_do_not_fit_a_layer_are_refused():
    small, large = np.zeros((1, 1, 2, 2), np.uint8), np.zeros((1, 1, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="^layer 'add' gets codes of the shapes .*must be the sa"):
        add().prepared("fbgemm", "blas")(small, large)
    pool = AdaptiveAvgPool2d("pool", Q, Q, (2**12, 2**12))
    with pytest.raises(ValueError, match="^layer 'pool' computes 16,777,216 numbers"):
        pool.prepared("fbgemm", "blas")(small)
    with pytest.raises(ValueError, match="^layer 'pool' gets codes of shape .2, 2."):
        pool.prepared("fbgemm", "blas")(small[0, 0])


def test_a_graph_may_not_keep_any_number_of_codes(monkeypatch):
    monkeypatch.setattr("qhelpers.integer.model.MOST_KEPT", 3)
    model = IntegerModel(
        [linear(), linear(name="b", before=Q), add(other=Q)],
        inputs=[IN, ("fc",), ("b", "fc")],
    )
    with pytest.raises(ValueError, match="^layer 'b': 4 codes of each image are needed later; 3"):
        model.forward(np.zeros((1, 2), np.uint8))


def test_codes_are_dropped_after_their_last_use():
    model = integers_of(lambda x, y: x + y + x)[0]
    assert [layer.name for layer in model.layers] == [
        "one", "other", "add", "add_1", "flatten", "linear"
    ]  # fmt: skip
    assert model.inputs[2:4] == (("one", "other"), ("add", "one"))
    assert model.last_uses == [{"input"}, set(), {"other"}, {"add", "one"}, {"add_1"}, {"flatten"}]


def test_layers_of_a_graph_are_those_of_its_parts():
    model, images = residual_net()
    model = integer_model(quantize_model(model, [images]))
    kinds = [type(layer) for layer in model.layers]
    assert kinds.count(Conv2d) == 3 and kinds.count(Linear) == 1
    relu6 = next(layer for layer in model.layers if layer.name == "block.0")
    assert relu6.relu and relu6.top == relu6.after.code_of(6)
