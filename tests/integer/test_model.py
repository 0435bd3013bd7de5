"""qhelpers.integer: the codes of torch's engines, fixed point, models that no notebook shows."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qhelpers import (
    build_model,
    choose_engine,
    has_torch_ao,
    integer_model,
    prepare_qat,
    quantize_model,
    test,
    train,
)
from qhelpers.experiments.ptq import KEPT_LOGITS, float_net
from qhelpers.integer.layers import WEIGHTED, Conv2d, Linear
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.moves import ReLU, Reshape
from qhelpers.integer.packing import packed_bytes
from qhelpers.integer.pools import MaxPool2d
from qhelpers.integer.products import pairs_that_can_saturate
from qhelpers.integer.qparams import QParams
from qhelpers.integer.requantize import ARITHMETICS
from qhelpers.torch_ao import codes_of_torch, engine_arithmetic, engine_saturates, quantize_by_torch
from tests.models import BATCH, Branched
from tests.models import ConvNet as AveragingConvNet

ENGINES = ["fbgemm", "x86", "qnnpack", "onednn"]


@pytest.fixture(scope="module")
def net(data):
    return float_net(data, seed=0)


def needs(engine):
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"not tested: this machine has no {engine}")


def codes_of(model, images):
    """The codes at the input and after each layer that doesn't only reshape."""
    codes = model.quantize(images)
    names = {layer.name for layer in model.layers if isinstance(layer, Reshape)}
    return [codes, *(new for name, new in model.each(codes) if name not in names)]


def different(ours, theirs):
    """How many codes differ, and how many there are."""
    assert [codes.shape for codes in ours] == [codes.shape for codes in theirs]
    off = sum(int((a != b).sum()) for a, b in zip(ours, theirs))
    return off, sum(codes.size for codes in theirs)


@pytest.mark.skipif(not has_torch_ao(), reason="this PyTorch has no torch.ao.quantization")
@pytest.mark.parametrize("reduce_range", [True, False], ids=["7 bits", "8 bits"])
@pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_code_is_torch_s(net, few, engine, granularity, reduce_range):
    """A network, fused and not, every layer, 1,000 test images.

    Where the engine saturates on this CPU, torch is off, and an emulation has its codes.
    """
    needs(engine)
    saturated = total = 0
    for fused in (True, False):
        options = {"granularity": granularity, "reduce_range": reduce_range, "fused": fused}
        theirs = quantize_by_torch(net, few.train_images[:1000], engine, **options)
        model = integer_model(theirs, engine_arithmetic(engine))
        codes = codes_of_torch(theirs, few.test_images)
        off, count = different(codes_of(model, few.test_images), codes)
        total += count
        if off and engine_saturates(engine):
            emulated = model.computing(model.arithmetic, "saturating")
            assert different(codes_of(emulated, few.test_images), codes)[0] == 0
            saturated, off = saturated + off, 0
        assert off == 0
    assert total == len(few.test_images) * (994 + 1194)
    if saturated:
        pytest.skip(
            f"not tested exactly: on this CPU {engine} saturates, which puts {saturated:,} of "
            f"{total:,} codes off, {granularity}; the emulation has all of them"
        )


@pytest.mark.skipif(not has_torch_ao(), reason="this PyTorch has no torch.ao.quantization")
def test_an_engine_that_saturates_is_recognised_by_its_codes(net, data):
    """The emulation differs from the exact sums, and an engine has one or the other."""
    needs("fbgemm")
    theirs = quantize_by_torch(net, data.train_images[:1000], reduce_range=False)
    model = integer_model(theirs)
    assert any(pairs_that_can_saturate(layer.matrix, 255).any() for layer in model.layers[1:])
    exact = codes_of(model, data.test_images)
    emulated = codes_of(model.computing("fbgemm", "saturating"), data.test_images)
    assert different(exact, emulated)[0] > 1000
    codes = codes_of_torch(theirs, data.test_images)
    assert different(emulated if engine_saturates("fbgemm") else exact, codes)[0] == 0


@pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
def test_fixed_point_is_at_most_one_unit_off(net, data, granularity):
    """From fbgemm: at most one code in a thousand, and the same answers."""
    quantized = quantize_model(net, [data.train_images[:1000]], granularity=granularity)
    model = integer_model(quantized)
    fixed = model.computing("fixed-point")
    ours, theirs = codes_of(fixed, data.test_images), codes_of(model, data.test_images)
    off, count = different(ours, theirs)
    assert 0 < off <= 0.001 * count
    assert max(abs(a.astype(int) - b).max() for a, b in zip(ours, theirs)) == 1
    same = (ours[-1].argmax(1) == theirs[-1].argmax(1)).mean()
    assert same >= 0.9995


class Watched(np.ndarray):
    """An array that notes the types of all that it is computed with, and of all that comes out."""

    types: set = set()

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        plain = [x.view(np.ndarray) if isinstance(x, Watched) else x for x in inputs]
        targets = tuple(x.view(np.ndarray) if isinstance(x, Watched) else x for x in out)
        result = getattr(ufunc, method)(*plain, **options, **({"out": targets} if out else {}))
        for x in (*plain, result, *targets):
            Watched.types.add(np.asarray(x).dtype.kind)
        return out[0] if out else np.asarray(result).view(Watched)

    def __array_function__(self, function, types, arguments, options):
        result = super().__array_function__(function, types, arguments, options)
        arrays = result if isinstance(result, list) else [result]
        Watched.types.update(array.dtype.kind for array in arrays)
        arrays = [array.view(Watched) for array in arrays]
        return arrays if isinstance(result, list) else arrays[0]

    def astype(self, dtype, **options):
        Watched.types.add(np.dtype(dtype).kind)
        return self.view(np.ndarray).astype(dtype, **options).view(Watched)


def types_used(model, images):
    Watched.types = set()
    codes = model.quantize(images).view(Watched)
    out = model.forward(codes)
    assert isinstance(out, Watched) and out.dtype == np.uint8
    return Watched.types


class Chain(nn.Module):
    """A convolutional net of parts that all have an integer layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, (3, 5), stride=(2, 1), padding=(1, 2), groups=4)
        self.conv3 = nn.Conv2d(8, 16, 3, dilation=(1, 2), padding="valid")
        self.pool = nn.MaxPool2d(2, padding=1)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(352, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.conv1(x.view(x.size(0), 1, 28, 28)))))
        x = functional.relu(functional.max_pool2d(self.conv2(x), (2, 1)))
        return self.head(torch.flatten(self.conv3(x), 1))


@pytest.fixture(scope="module")
def chain(data):
    model = build_model(Chain, 0)
    train(model, data, total_iterations_limit=30)
    return model.eval()


def test_no_float_enters_between_the_codes(net, chain, data):
    images = data.train_images[:300]
    for network in (net, chain):
        model = integer_model(quantize_model(network, [images]))
        assert types_used(model.computing("fixed-point"), images) <= set("iub")
        for arithmetic, products in [("fbgemm", "integers"), ("fixed-point", "blas")]:
            assert "f" in types_used(model.computing(arithmetic, products), images)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_ways_to_compute_the_sums_agree(chain, data, arithmetic):
    images = data.test_images[:200]
    model = integer_model(quantize_model(chain, [images], reduce_range=True), arithmetic, "blas")
    integers = model.computing(arithmetic, "integers")
    assert different(codes_of(model, images), codes_of(integers, images))[0] == 0


@pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
@pytest.mark.parametrize("weight_bits, activation_bits", [(8, 8), (4, 6), (2, 3)])
def test_it_computes_what_the_quantized_model_computes(
    chain, data, granularity, weight_bits, activation_bits
):
    """Floats that hold what codes stand for and integers differ where rounding is close."""
    options = {"granularity": granularity, "per_layer": {"head.3": {"activation_bits": 8}}}
    quantized = quantize_model(
        chain, [data.train_images[:300]], weight_bits, activation_bits, **options
    )
    model = integer_model(quantized)
    images = data.test_images[:1000]
    theirs = quantized(images).detach().numpy()
    ours = model(images)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    assert np.isclose(ours, theirs, atol=1e-4).mean() > 0.998
    names = [layer.name for layer in model.layers if isinstance(layer, WEIGHTED)]
    assert names == ["conv1", "conv2", "conv3", "head.1", "head.3"]
    assert model.weight_bytes() == sum(
        packed_bytes(layer.weight.size, weight_bits)
        for layer in model.layers
        if isinstance(layer, WEIGHTED)
    )


def conv_sequence():
    """Convolutions with stride, padding, dilation and groups, and a pool between them."""
    torch.manual_seed(0)
    return nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.MaxPool2d(3, stride=2, padding=1), nn.Conv2d(8, 16, 5, groups=2), nn.ReLU(),
        nn.Conv2d(16, 5, (1, 2), stride=(2, 1)), nn.Flatten(), nn.Linear(225, 10),
        torch.ao.quantization.DeQuantStub(),
    ).eval()  # fmt: skip


@pytest.mark.skipif(not has_torch_ao(), reason="this PyTorch has no torch.ao.quantization")
@pytest.mark.parametrize("granularity", ["per tensor", "per channel"])
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack", "onednn"])
def test_convolutions_have_torch_s_codes(data, engine, granularity):
    """Activations have 7 bits, so that nothing saturates."""
    needs(engine)
    from torch.ao import quantization as ao

    torch.backends.quantized.engine = engine
    per = "per_channel_" if granularity == "per channel" else ""
    weight = getattr(ao, f"default_{per}weight_observer")
    model = ao.fuse_modules(conv_sequence(), [["1", "2"], ["5", "6"]])
    model.qconfig = ao.QConfig(
        activation=ao.MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=True), weight=weight
    )
    model = ao.prepare(model)
    with torch.no_grad():
        model(data.train_images[:100])
    theirs = ao.convert(model)
    images = data.test_images[:200]
    ours = codes_of(integer_model(theirs, engine_arithmetic(engine)), images)
    assert different(ours, codes_of_torch(theirs, images))[0] == 0


@pytest.mark.skipif(not has_torch_ao(), reason="this PyTorch has no torch.ao.quantization")
def test_weights_with_a_zero_point_are_refused(small):
    from torch.ao import quantization as ao

    torch.backends.quantized.engine = choose_engine()
    model = nn.Sequential(ao.QuantStub(), *small, ao.DeQuantStub()).eval()
    affine = ao.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    model.qconfig = ao.QConfig(activation=ao.default_observer, weight=affine)
    model = ao.prepare(model)
    model(BATCH)
    with pytest.raises(ValueError, match="^1 has weights with a zero point; it must be 0"):
        integer_model(ao.convert(model))


@pytest.mark.parametrize("bits", [pytest.param(4, marks=pytest.mark.slow), 2])
def test_a_trained_model_of_few_bits_keeps_its_accuracy(net, data, bits):
    batches = [data.train_images[:1000]]
    model = prepare_qat(net, bits, bits, "lsq", calibration_batches=batches, per_layer=KEPT_LOGITS)
    train(model, data, learning_rate=3e-4, total_iterations_limit=100)
    integers = integer_model(model.convert())
    right = integers(data.test_images).argmax(1) == data.test_labels.numpy()
    assert abs(right.mean() - test(model, data)) <= 0.001
    fixed = integers.computing("fixed-point")(data.test_images).argmax(1)
    assert (fixed == data.test_labels.numpy()).mean() > test(model, data) - 0.003
    assert integers.weight_bytes() == 89_400 * bits // 8
    assert {layer.after.quant_max for layer in integers.layers[1:]} == {2**bits - 1, 255}


def test_the_original_is_left_alone_and_shares_nothing(small):
    quantized = quantize_model(small, [BATCH])
    before = copy.deepcopy(quantized.state_dict())
    model = integer_model(quantized)
    model.layers[0].weight[:] = 0
    model.layers[0].bias[:] = 0
    images = BATCH.numpy()
    kept = images.copy()
    model(images)
    assert np.array_equal(images, kept)
    for name, tensor in quantized.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, before[name]), name


def test_images_may_be_tensors_or_arrays_and_many(small):
    model = integer_model(quantize_model(small, [BATCH]))
    many = BATCH.repeat(400, 1)
    assert np.array_equal(model(many), np.tile(model(BATCH.double().numpy()), (400, 1)))


def quantized(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_model(model.eval(), [torch.ones(2, 784)], **options)


def sequence(*parts):
    return nn.Sequential(*parts, nn.Linear(784, 3))


UNSUPPORTED_PADDING = "padding mode 'reflect'; it must be zeros|average can't be computed"
KEPT = {"0": {"activation_bits": None}}
UNFLATTENED = nn.Flatten(0), nn.Unflatten(0, (2, 784))


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: nn.Linear(784, 3), "^linear .linear. can't be computed"),
        (lambda: quantized(Branched()), "^gelu .gelu. can't be computed"),
        (lambda: quantized(AveragingConvNet()), UNSUPPORTED_PADDING),
        (lambda: quantized(sequence(), activation_bits=None), "^0 gets floats"),
        (lambda: quantized(sequence(), per_layer=KEPT), "^0 returns floats"),
        (lambda: quantized(sequence(), activation_bits=9), "^quantize_input has 9 bits"),
        (lambda: quantized(sequence(), weight_bits=9), "^0 has weights of 9 bits"),
        (lambda: quantized(sequence(), granularity=56), "^0 has scales of groups"),
        (lambda: quantized(sequence(), activation_strategy="dynamic"), "has dynamic ranges"),
        (lambda: quantized(nn.Sequential(*UNFLATTENED)), "has no Linear"),
    ],
)
@pytest.mark.filterwarnings("ignore:these are not quantized")
def test_what_is_not_supported_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        integer_model(model())


def test_a_model_in_training_must_be_converted_first(small):
    model = prepare_qat(small, 4, 4, "lsq", calibration_batches=[BATCH])
    with pytest.raises(ValueError, match="^model is still in training; take its convert"):
        integer_model(model)


def linear(**changed):
    arguments = {
        "name": "fc", "weight": np.array([[3, -4], [7, 0]], np.int8), "weight_bits": 4,
        "weight_scale": np.float32([0.5, 0.25]), "bias": np.float32([1, 2]),
        "before": QParams(0.1, 3, 255), "after": QParams(0.2, 5, 15), "relu": False,
    }  # fmt: skip
    return Linear(**arguments | changed)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"weight": np.ones((2, 2, 1, 1), np.int8)}, "it must be int8 with 2 axes"),
        ({"weight": np.full((2, 2), 8, np.int8)}, "codes from 8 to 8; 4 bits are -8 to 7"),
        ({"weight_bits": 9}, "weight_bits is 9; it must be an integer from 2 to 8"),
        ({"weight_scale": np.float32([1])}, "weight_scale is float32 of shape"),
        ({"weight_scale": np.float32(0)}, "weight_scale must be positive and finite"),
        ({"bias": np.float32([1, np.nan])}, "bias is float32 of shape"),
        ({"weight_scale": np.float32(1e-38)}, "float32 would .* 0.1.* of inputs, 9.*e-39"),
        ({"bias": np.float32([0, 3e38])}, "float32 would .* and its bias"),
        ({"weight": np.full((2, 2**24), 7, np.int8)}, "its sums reach .*; 32 bits hold up to 2147"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=f"^layer 'fc': .*{message}"):
        linear(**changed)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1e-40, 3, 255), "^scale is 9.99.*e-41; it must be positive, at least 1.17"),
        ((np.inf, 3, 255), "^scale is inf; it must be"),
        ((0.1, 3, 256), "^quant_max is 256; it must be an integer from 1 to 255"),
        ((0.1, 16, 15), "^zero_point is 16; it must be an integer from 0 to 15"),
    ],
)
def test_qparams_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        QParams(*arguments)


@pytest.mark.parametrize(
    "layers, options, message",
    [
        ([linear()], {"arithmetic": "x86"}, "arithmetic is 'x86'; it must be one of"),
        ([linear()], {"products": "int8"}, "products is 'int8'; it must be one of"),
        ([ReLU("relu", 0)], {}, "layers has no Linear or Conv2d"),
        ([linear(), linear(name="again")], {}, "layer 'again' takes .*, and gets"),
        ([linear(), linear()], {}, "layers has the name 'fc' twice; each must"),
        ([linear(), ReLU("relu", 4)], {}, "layer 'relu' has the zero point 4, and gets"),
        ([linear(bias=np.float32([1e9, 0]))], {"arithmetic": "fixed-point"},
         "fc doesn't fit in 32 bits: its bias is up to 1e"),
    ],
)  # fmt: skip
def test_layers_that_make_no_model_are_refused(layers, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        IntegerModel(layers, **options)


def test_inputs_that_do_not_fit_are_refused():
    model = IntegerModel([linear()])
    with pytest.raises(TypeError, match="^codes has the type int64; it must be uint8"):
        model.forward(np.ones((2, 2), int))
    with pytest.raises(ValueError, match="^layer 'fc' gets codes of shape .*the second 2 long"):
        model.forward(np.ones((2, 3), np.uint8))
    with pytest.raises(ValueError, match="^images holds nan"):
        model(np.array([[1, np.nan]], np.float32))


def test_windows_and_shapes_that_do_not_fit_are_refused():
    window = {"kernel_size": (2, 2), "stride": (0, 1), "padding": (0, 0), "dilation": (1, 1)}
    with pytest.raises(ValueError, match="^layer 'pool': stride is .*at least 1"):
        MaxPool2d("pool", **window)
    for shape in [(-1, -1), (0,), (2.0,), ("2",), (10**30,)]:
        with pytest.raises(ValueError, match="^layer 'flat': shape is .*at most one -1"):
            Reshape("flat", shape)
    pool = MaxPool2d("pool", **window | {"stride": (1, 1), "padding": (10**9, 0)}).prepared(0, 0)
    with pytest.raises(ValueError, match="^layer 'pool' computes .* numbers for each image; 8"):
        pool(np.ones((1, 1, 4, 4), np.uint8))
    pool = MaxPool2d("pool", **window | {"stride": (1, 1), "dilation": (4, 1)}).prepared(0, 0)
    with pytest.raises(ValueError, match="^layer 'pool' gets images 4 long.* than its window, 5"):
        pool(np.ones((1, 1, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="^layer 'pool' gets codes of shape .*must have 4 axes"):
        pool(np.ones((1, 4), np.uint8))
    conv = vars(linear()) | {"weight": np.ones((2, 1, 1, 1), np.int8), **window}
    del conv["kernel_size"]
    with pytest.raises(ValueError, match="^layer 'fc': groups is 3; it must divide"):
        Conv2d(**conv | {"stride": (1, 1), "groups": 3})
