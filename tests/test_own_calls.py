"""How people call their own models: arguments, batches, types of numbers."""

import pytest
import torch

from qhelpers import load_quantized, quantize_model
from tests.small_models import LABELS, Net, X, mlp, sqnr


class Two(Net):
    def forward(self, x, y):
        return self.second(torch.relu(self.first(x) + self.first(y)))


class Defaults(Net):
    def forward(self, x, mask=None, temperature=2.0, double=False):
        x = torch.relu(self.first(x))
        x = x if mask is None else x * mask
        return self.second(x + x if double else x) / temperature


class KeywordsAndDicts(Net):
    def forward(self, x, *, scale=1.0):
        hidden = self.first(input=x)
        return {"hidden": hidden, "logits": (self.second(torch.relu(input=hidden)) * scale,)}


class Unnamed(Net):
    def forward(self, x, *args, **kwargs):
        return self.second(torch.relu(self.first(x)))


MASK = (torch.arange(16) % 2).float()


@pytest.mark.filterwarnings("ignore:these are not quantized")
@pytest.mark.parametrize(
    "model, batch, args, kwargs",
    [
        (Two(), (X, 2 * X), (X, 2 * X), {}),
        (Two(), (X, 2 * X, LABELS), (X,), {"y": 2 * X}),
        (Two(), {"x": X, "y": 2 * X, "labels": LABELS}, (), {"y": 2 * X, "x": X}),
        (Unnamed(), {"x": X, "labels": LABELS}, (X,), {}),
        (Defaults(), X, (X,), {}),
        (Defaults(), (X, LABELS), (X, None), {}),
        (Defaults(), {"x": X, "mask": MASK}, (X,), {"mask": MASK}),
        (Defaults(), {"x": X, "double": True}, (X,), {"double": True}),
    ],
)
def test_a_model_is_called_as_before(model, batch, args, kwargs, tmp_path):
    quantized = quantize_model(model, [batch])
    assert sqnr(model(*args, **kwargs), quantized(*args, **kwargs)) > 30
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    again = load_quantized(model, tmp_path / "model.pt")
    assert torch.equal(again(*args, **kwargs), quantized(*args, **kwargs))


def test_dicts_and_tuples_may_come_out():
    model = KeywordsAndDicts()
    exact, quantized = model(X), quantize_model(model, [X])(X)
    assert {*quantized} == {"hidden", "logits"}
    assert sqnr(exact["hidden"], quantized["hidden"]) > 30
    assert sqnr(exact["logits"][0], quantized["logits"][0]) > 30


def test_a_generator_is_read_once():
    read = []

    def batches():
        for i in range(3):
            read.append(i)
            yield X[i::3]

    quantized = quantize_model(mlp(), batches())
    assert read == [0, 1, 2]
    assert torch.equal(quantized(X), quantize_model(mlp(), [X])(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_computed_in_float32(dtype):
    quantized = quantize_model(mlp().to(dtype), [X.to(dtype)], weight_strategy="output-mse")
    result = quantized(X.to(dtype))
    assert result.dtype == torch.float32 and sqnr(mlp()(X), result) > 30


def test_another_default_type_and_inference_mode():
    expected = quantize_model(mlp(), [X], bias_correction=True)(X)
    torch.set_default_dtype(torch.float64)
    try:
        model = mlp().float()
        model.load_state_dict(mlp().state_dict())
        assert quantize_model(model, [X], weight_strategy="output-mse")(X).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        quantized = quantize_model(mlp(), [X], bias_correction=True)
    assert torch.equal(quantized(X), expected)
    assert quantized(X[:0]).shape == (0, 4)
