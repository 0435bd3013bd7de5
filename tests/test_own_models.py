"""quantize_model and prepare_qat on what people's own models have, and what must not go wrong."""

import copy
import io
import pickle  # noqa: S403 - only what the test has written

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from qhelpers import integer_model, load_quantized, prepare_qat, quantize_model
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.qat.model import METHODS
from tests.small_models import LABELS, Net, X, mlp, sqnr, train


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


REPARAMETRIZED = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "parametrized": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": pruned,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_weights_made_anew_at_each_call_are_quantized_and_trained(name):
    change = REPARAMETRIZED[name]
    model = nn.Sequential(change(nn.Linear(12, 16)), nn.ReLU(), change(nn.Linear(16, 4)))
    model(X)  # leaves a weight that deepcopy refuses
    model.eval()
    before = copy.deepcopy(model.state_dict())
    exact = model(X).detach()
    assert torch.allclose(quantize_model(model, [X], 16, None)(X), exact, atol=1e-3)
    two_bits = quantize_model(model, [X], 2, None)
    two_bits(X)
    assert all(len(row.unique()) <= 4 for row in two_bits.graph.get_submodule("0").layer.weight)
    trained = train(prepare_qat(model, 8, 8, "ste", calibration_batches=[X]))
    assert torch.equal(trained(X), trained.convert()(X))
    assert functional.cross_entropy(trained(X), LABELS) < functional.cross_entropy(exact, LABELS)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "names", [("input", "output"), ("x", "quantize_x"), ("relu", "before_relu"), ("add", "input")]
)
def test_names_of_layers_change_nothing(names):
    plain, named = Net(), Net(*names)
    quantized = quantize_model(named, [X], 8, 4)
    assert torch.equal(quantize_model(plain, [X], 8, 4)(X), quantized(X))
    places = [m.name for m in quantized.graph.modules() if isinstance(m, QuantizedActivation)]
    assert len(places) == len({*places}) == 3
    finer = quantize_model(named, [X], 8, 4, per_layer={names[0]: {"weight_bits": 3}})
    bits = {n: m.bits for n, m in finer.graph.named_modules() if isinstance(m, QuantizedLayer)}
    assert bits == {names[0]: 3, names[1]: 8}


class Dotted(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.fc_0 = nn.Linear(16, 4)
        self.fc_0.weight.data *= 100

    def forward(self, x):
        return self.fc_0(self.fc(x))


def test_a_dot_and_an_underscore_are_two_names():
    model = Dotted().eval()
    other = nn.Sequential(model.fc, model.fc_0).eval()
    assert torch.equal(quantize_model(model, [X])(X), quantize_model(other, [X])(X))


class OverTokens(nn.Module):
    """BatchNorm1d over the 16 tokens, which have 16 numbers each."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.norm.running_var.uniform_(0.1, 9)
        self.norm.running_mean.normal_()

    def forward(self, x):
        return self.norm(self.fc(x))


@pytest.mark.filterwarnings("ignore:these are not quantized")
@pytest.mark.parametrize(
    "model, x",
    [
        (OverTokens(), torch.randn(8, 16, 6)),
        (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(16)), torch.randn(8, 16, 6)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
         torch.randn(4, 3, 8, 8)),
    ],
)  # fmt: skip
def test_a_batch_norm_that_can_not_be_folded_stays_in_floats(model, x, tmp_path):
    model.eval()
    quantized = quantize_model(model, [x], 16, None)
    assert len(quantized.kept_in_float) == 1 and "norm" in quantized.kept_in_float[0] + "norm"
    assert sqnr(model(x), quantized(x)) > 80
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_quantized(model, tmp_path / "model.pt")(x), quantized(x))


@pytest.mark.parametrize("method", METHODS)
def test_training_trains_what_would_train(method):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)
    ).eval()  # fmt: skip
    model[4].requires_grad_(False)
    model[8].weight = model[6].weight
    x = torch.randn(16, 1, 8, 8)
    quantized = prepare_qat(model, 8, 8, method, calibration_batches=[x])
    layer = quantized.graph.get_submodule
    assert layer("0").layer.bias.requires_grad  # made by folding
    assert layer("8").layer.weight is layer("6").layer.weight
    frozen = layer("4").layer.weight.clone()
    train(quantized, x, torch.arange(16) % 8)
    assert torch.equal(layer("4").layer.weight, frozen)
    assert not torch.equal(layer("6").layer.weight, model[6].weight)
    assert torch.equal(quantized(x), quantized.convert()(x))


class Dropping(Net):
    def forward(self, x):
        x = functional.dropout(torch.relu(self.first(x)), 0.5, self.training)
        return self.second(functional.dropout(x, p=0.1, training=self.training))


class Branching(Net):
    def forward(self, x):
        x = self.first(x)
        return self.second(x + torch.randn_like(x)) if self.training else self.second(x)


def test_dropout_acts_in_training_only():
    model = prepare_qat(Dropping(), 8, 8, "frozen", calibration_batches=[X])
    assert torch.equal(model(X), model(X))
    model.train()
    assert not torch.equal(model(X), model(X))
    quantized = model.convert().train()
    assert torch.equal(quantized.eval()(X), model.eval()(X))
    with pytest.raises(ValueError, match="^model takes other steps in training mode"):
        prepare_qat(Branching(), 8, 8, "frozen", calibration_batches=[X])


@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_goes_on_as_without_a_break(method):
    batches = [X * (1 + i) for i in range(6)]

    def new():
        return prepare_qat(mlp(), 8, 8, method, calibration_batches=batches[:1])

    whole, half, resumed = new(), new(), new()
    for batch in batches:
        train(whole, batch, steps=1)
    for batch in batches[:3]:
        train(half, batch, steps=1)
    resumed.load_state_dict(half.state_dict())
    for batch in batches[3:]:
        train(resumed, batch, steps=1)
    assert torch.equal(whole(X), resumed(X))


def test_the_caller_s_dict_and_batch_stay_the_caller_s(tmp_path):
    per_layer = {"0": {"activation_bits": 8}}
    quantized = quantize_model(mlp(), [X], per_layer=per_layer)
    per_layer["0"]["activation_bits"] = 2
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_quantized(mlp(), tmp_path / "model.pt")(X), quantized(X))
    in_place = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 4)).eval()
    mine = X.clone()
    quantize_model(in_place, [mine], activation_bits=None)(mine)
    assert torch.equal(mine, X)


def test_options_from_numpy_are_saved_and_loaded(tmp_path):
    import numpy as np

    bits = np.arange(4, 9)
    options = {"per_layer": {"2": {"granularity": bits[0], "weight_bits": bits[1]}}}
    quantized = quantize_model(mlp(), [X], bits[0], bits[2], **options)
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_quantized(mlp(), tmp_path / "model.pt")(X), quantized(X))


class Untraced(Net):
    def forward(self, x):
        if x.sum() > 0:
            return self.second(torch.relu(self.first(x)))
        return x


class WithUntraced(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.part = nn.Linear(12, 12), Untraced()

    def forward(self, x):
        return self.part(self.first(x))


def test_what_can_not_be_traced_is_refused_with_its_line_or_left_out():
    model = WithUntraced().eval()
    with pytest.raises(RuntimeError, match=r"if x.sum\(\) > 0.*torch.fx.wrap.*leaf_modules"):
        quantize_model(model, [X])
    with pytest.warns(UserWarning, match="compute in floats: part$"):
        quantized = quantize_model(model, [X], leaf_modules=[Untraced])
    assert sqnr(model(X), quantized(X)) > 30


def test_hooks_of_the_model_itself_are_left_out_with_a_warning():
    model = mlp()
    model.register_forward_hook(lambda module, args, result: result + 1)
    with pytest.warns(UserWarning, match="^hooks of the model itself don't run"):
        quantize_model(model, [X])
    stubborn = mlp()
    stubborn[0].register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", layer.w))
    stubborn[0].w = nn.Parameter(torch.ones(16, 12))
    with pytest.raises(RuntimeError, match="^a hook of Linear.* sets its weight anew"):
        quantize_model(stubborn, [X])


def test_models_are_pickled_saved_whole_and_exported():
    quantized = quantize_model(mlp(), [X])
    again = pickle.loads(pickle.dumps(quantized))  # noqa: S301
    assert torch.equal(again(X), quantized(X))
    file = io.BytesIO()
    torch.save(quantized, file)
    integers = integer_model(quantized)
    assert (pickle.loads(pickle.dumps(integers))(X) == integers(X)).all()  # noqa: S301
    torch.export.export(quantized, (X,))
