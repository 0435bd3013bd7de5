"""Graphs as people's own models have them: each is quantized, saved, loaded and trained."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

from qhelpers import load_quantized, prepare_qat, quantize_model
from tests.small_models import Net, X, called, sqnr, tensors

SEQUENCES = torch.randn(8, 10, 12, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
IDS = torch.arange(80).reshape(8, 10) % 30


def net(forward, **parts):
    """Return a Net with these parts, too, which computes `forward`."""
    model = type("Own", (Net,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
            model.register_buffer(name, part)
        else:
            setattr(model, name, part)
    return model.eval()


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape) / 4)


class Block(nn.Module):
    """Two weights, a bias and a factor: more than one layer has."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1, self.w2 = parameter(16, 12), parameter(16), parameter(5, 16)
        self.factor = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        x = functional.relu(functional.linear(x, self.w1, bias=self.b1))
        return functional.linear(x, weight=self.w2) * self.factor


class Adapted(nn.Linear):
    """A Linear layer with a correction of low rank."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.a, self.b = parameter(2, inputs), parameter(outputs, 2)

    def forward(self, x):
        return super().forward(x) + functional.linear(functional.linear(x, self.a), self.b)


def with_batch_norm(*layers, x=IMAGES):
    """Return a model whose BatchNorms have seen data."""
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    for _ in range(5):
        model(x)
    return model.eval()


def hooked(place):
    model = with_batch_norm(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model[place].register_forward_hook(lambda module, args, result: result * 2)
    return model


def several_weights(self, x):
    for weight in self.weights:
        x = torch.relu(functional.linear(x, weight))
    return x


def tied(self, ids):
    return torch.relu(self.middle(self.words(ids))) @ self.words.weight.T


def alias(self, x):
    hidden = self.first(x)
    same = hidden
    same += 1
    view = hidden.view(-1, 4, 4)
    view *= 3
    hidden.mul_(0.5)  # nothing takes its result
    return self.second(torch.relu(hidden) + same)


def sizes(self, x):
    size = x.shape[1]
    before = size
    size += 2
    return self.second(torch.relu(self.first(x))) * before / size


def asserted(self, x):
    assert x.dim() == 2 and x.shape[1] == 12, "the features of a batch"
    return self.second(torch.relu(self.first(x)))


def masked(value):
    def attention(self, x):
        scores = x @ x.transpose(1, 2) / math.sqrt(12)
        scores = scores + torch.triu(torch.full((10, 10), value), 1)
        return self.second(torch.relu(self.first(self.softmax(scores) @ x)))

    return net(attention, softmax=nn.Softmax(-1))


def spectrum(self, x):
    x = torch.fft.irfft(torch.fft.rfft(x) * self.w, 12)
    return self.second(torch.relu(self.first(x)))


def hidden_state(self, x):
    out, (hidden, cell) = self.lstm(x)
    return self.second(torch.relu(hidden[-1])), out


def moving_mean(self, x):
    self.mean.mul_(0.9).add_(0.1 * x.mean(0))
    return self.second(torch.relu(self.first(x - self.mean)))


def in_double(self, x):
    return self.second(torch.relu(self.first(x.double())).to(torch.float64)).double()


TIED = net(tied, words=nn.Embedding(30, 16), middle=nn.Linear(16, 16))
GRAPHS = {
    "tied to a transposed weight": (TIED, IDS),
    "tied autoencoder": (
        net(lambda s, x: functional.linear(torch.relu(s.first(x)), s.first.weight.t())), X),
    "dtype of a weight": (
        net(lambda s, x: s.second(torch.relu(s.first(x.to(s.first.weight.dtype))))), X),
    "a bias beside its layer": (net(lambda s, x: s.second(s.first(x) - s.first.bias)), X),
    "several weights": (nn.Sequential(Block(), nn.ReLU(), nn.Linear(5, 3)), X),
    "a list of weights": (
        net(several_weights, weights=nn.ParameterList([parameter(12, 12) for _ in "ab"])), X),
    "adapted": (nn.Sequential(Adapted(12, 16), nn.ReLU(), Adapted(16, 4)), X),
    "a vector": (
        net(lambda s, x: functional.linear(torch.relu(s.first(x)), s.w), w=parameter(16)), X),
    "matmul": (net(lambda s, x: s.second(torch.relu(x @ s.w)), w=parameter(12, 16)), X),
    "BatchNorm without weights": (
        with_batch_norm(nn.Linear(12, 8), nn.BatchNorm1d(8, affine=False), x=X), X),
    "BatchNorm after groups": (
        with_batch_norm(nn.ConvTranspose2d(3, 6, 2, groups=3), nn.BatchNorm2d(6)), IMAGES),
    "a hook before BatchNorm": (hooked(0), IMAGES),
    "a hook of BatchNorm": (hooked(1), IMAGES),
    "old spectral_norm": (nn.Sequential(spectral_norm(nn.Linear(12, 16)), nn.ReLU()), X),
    "aliases": (net(alias), X),
    "inplace": (
        net(lambda s, x: s.second((h := s.first(x)) + s.relu(h)), relu=nn.ReLU(True)), X),
    "sizes": (net(sizes), X),
    "asserted": (net(asserted), X),
    "masked with -inf": (masked(-math.inf), SEQUENCES),
    "masked with -1e9": (masked(-1e9), SEQUENCES),
    "complex": (
        net(spectrum, w=nn.Parameter(torch.ones(7, dtype=torch.cfloat))), X),
    "sparse": (
        net(lambda s, x: s.second(torch.relu(s.edges @ s.first(x))),
            edges=torch.eye(64).roll(1, 0).to_sparse()), X),
    "a slice of a buffer": (
        net(lambda s, x: s.second(torch.relu(s.first(x + s.places[: x.size(1)]))),
            places=torch.randn(20, 12)), SEQUENCES),
    "hidden state": (net(hidden_state, lstm=nn.LSTM(12, 16, batch_first=True)), SEQUENCES),
    "casts": (net(in_double).double(), X.double()),
    "NumPy": (net(lambda s, x: s.second(torch.relu(s.first(x) * s.k)), k=np.float32(2)), X),
    "constant": (net(lambda s, x: s.second(torch.relu(s.first(x)) + torch.ones(16))), X),
}  # fmt: skip


def close(exact, got, decibels):
    return all(sqnr(a, b) > decibels for a, b in zip(exact, got, strict=True))


@pytest.mark.filterwarnings("ignore:these are not quantized", "ignore:Validating sparse tensor")
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_quantized_saved_and_trained(name, tmp_path):
    model, batch = GRAPHS[name][0].eval(), GRAPHS[name][1]
    exact, mine = called(model, batch), batch.clone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert close(exact, called(quantize_model(model, [batch], 16, None), batch), 60)
    quantized = quantize_model(model, [batch])
    assert close(exact, called(quantized, batch), 25)
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    again = load_quantized(model, tmp_path / "model.pt")
    assert all(map(torch.equal, called(quantized, batch), called(again, batch)))
    for method in ("ste", "lsq"):
        trained = prepare_qat(model, 8, 8, method, calibration_batches=[batch]).train()
        optimizer = torch.optim.SGD(trained.parameters(), 0.01)
        sum(result.square().mean() for result in tensors(trained(batch))).backward()
        optimizer.step()
        trained.eval()
        assert all(map(torch.equal, called(trained, batch), called(trained.convert(), batch)))
    assert torch.equal(batch, mine)
    same = (torch.equal(before[k].to_dense(), v.to_dense()) for k, v in model.state_dict().items())
    assert all(same)


@pytest.mark.parametrize(
    "name, kept",
    [
        ("masked with -inf", r"truediv \(truediv\), add \(add\), softmax"),
        ("masked with -1e9", r"truediv \(truediv\), add \(add\), softmax"),
        ("complex", r"fft_rfft \(fft_rfft\), mul \(mul\), fft_irfft \(fft_irfft\)"),
        ("sparse", r"matmul \(matmul\)"),
        ("hidden state", "lstm"),
    ],
)
def test_what_codes_can_not_hold_is_named(name, kept):
    with pytest.warns(UserWarning, match=f"compute in floats: {kept}$"):
        quantize_model(GRAPHS[name][0], [GRAPHS[name][1]])


def test_tied_weights_stay_tied_in_training():
    assert "matmul weight" in str(quantize_model(TIED, [IDS], 2, None))
    trained = prepare_qat(TIED, 8, 8, "ste", calibration_batches=[IDS])
    assert len([*trained.parameters()]) == len([*TIED.parameters()]) - 4  # first and second


def test_a_matrix_product_with_a_weight_is_a_layer():
    model = GRAPHS["matmul"][0]
    same = nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), model.second).eval()
    same[0].weight.data = model.w.detach().t()
    first, second = (quantize_model(each, [X], 2, 4) for each in (model, same))
    assert torch.equal(first(X), second(X))
    assert len([*first.parameters()]) == 1  # the bias: no weight is left in floats


def test_buffers_that_change_are_as_before_after_calibration():
    model = net(moving_mean, mean=torch.zeros(12))
    with pytest.warns(UserWarning, match=r"floats: mul_ \(mul_\), add_ \(add_\), sub"):
        quantized = quantize_model(model, [X] * 5)
    for _ in range(3):
        assert sqnr(model(X), quantized(X)) > 25


def test_a_python_number_that_changes_is_named():
    def count(self, x):
        self.calls += 1
        return self.second(torch.relu(self.first(x))) * self.calls

    with pytest.warns(UserWarning, match="^model changes calls when it is called"):
        quantize_model(net(count, calls=0), [X])
