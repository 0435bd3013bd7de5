"""What quantize_model and prepare_qat refuse names the argument, the layer or the batch."""

import pytest
import torch
from torch import nn

from qhelpers import load_quantized, prepare_qat, quantize_model
from tests.small_models import LABELS, Net, X, mlp


def several(self, *xs):
    return self.second(torch.relu(self.first(xs[0])))


def noisy(self, x):
    return self.second(torch.relu(self.first(x) + torch.randn(1)))


def own(forward):
    return type("Own", (Net,), {"forward": forward})().eval()


def with_nan():
    model = mlp()
    model[2].weight.data[0, 0] = torch.nan
    return model


def scripted(model):
    return torch.jit.trace(model, X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "model, error, message",
    [
        (torch.relu, TypeError, "model is a builtin_function_or_method; it must be an nn.Module"),
        (mlp().state_dict(), TypeError, "model is a OrderedDict; it must be an nn.Module"),
        (nn.DataParallel(mlp()), TypeError, "model is a DataParallel; .* model.module"),
        (torch.compile(mlp()), TypeError, "model is a OptimizedModule; .* model._orig_mod"),
        (nn.Sequential(nn.LazyLinear(4)), ValueError, "model has 0.weight without a shape yet"),
        (mlp().to("meta"), ValueError, "model has 0.weight on meta"),
        (Net("graph", "code"), ValueError, "model has a part 'graph', a name that"),
        (nn.Sequential(Net("global", "a")), ValueError, "model has a part '0.global', a name"),
        (with_nan(), ValueError, "2 has a weight that holds nan or inf"),
        (own(several), ValueError, r"Own.forward computes with \*xs"),
        (
            own(noisy),
            ValueError,
            "Own.forward draws random numbers that don't depend on",
        ),
    ],
)
def test_models_that_can_not_be_quantized(model, error, message):
    with pytest.raises(error, match=f"^{message}"):
        quantize_model(model, [X])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripts_are_refused_by_name():
    script = scripted(mlp())
    with pytest.raises(TypeError, match="^model is a TopLevelTracedModule; give the nn.Module"):
        quantize_model(script, [X])
    with pytest.raises(TypeError, match="^0 is a TopLevelTracedModule; give the nn.Module"):
        prepare_qat(nn.Sequential(script), 8, 8, "ste", calibration_batches=[X])


def test_quantized_models_are_not_quantized_again():
    with pytest.raises(TypeError, match="^model is a QuantizedModel; give the float model"):
        quantize_model(quantize_model(mlp(), [X]), [X])


@pytest.mark.parametrize(
    "batches, error, message",
    [
        (X, TypeError, "calibration_batches is a Tensor; .* put it in a list"),
        ({"input": X}, TypeError, "calibration_batches is a dict; .* put it in a list"),
        (None, TypeError, "calibration_batches is a NoneType; it must be a list"),
        ((X, LABELS), RuntimeError, "batch 2 of calibration_batches can't be computed: .*dtype"),
        ([X[:, :7]], RuntimeError, "0 can't compute what the first of calibration_batches gives"),
        ([X[:0]], ValueError, "calibration_batches shows no numbers to input"),
        ([X / 0], ValueError, "input activation: batch holds .*inf"),
    ],
)
def test_batches_that_a_model_does_not_take(batches, error, message):
    with pytest.raises(error, match=f"^{message}"):
        quantize_model(mlp(), batches)


def test_a_dict_without_the_arguments_names_is_one_argument():
    model = own(lambda self, batch: self.second(torch.relu(self.first(batch["x"]))))
    batch = {"x": X, "labels": LABELS}
    assert torch.equal(quantize_model(model, [batch])(batch), quantize_model(Net(), [X])(X))


@pytest.mark.parametrize("per_layer", [["0"], {"0": None}])
def test_per_layer_is_a_dict_of_dicts(per_layer):
    with pytest.raises(TypeError, match="^per_layer is .*; it must be a dict of options"):
        quantize_model(mlp(), [X], per_layer=per_layer)
    with pytest.raises(TypeError, match="^per_layer is .*; it must be a dict of options"):
        prepare_qat(mlp(), 8, 8, "ste", calibration_batches=[X], per_layer=per_layer)


def test_what_is_part_of_the_graph_can_not_vary(tmp_path):
    def forward(self, x, scale=1.0, mask=None):
        x = torch.relu(self.first(x))
        return self.second(x if mask is None else x * mask) * scale

    quantized = quantize_model(own(forward), [{"x": X, "scale": 2.0}])
    assert torch.equal(quantized(X, 2), quantized(x=X, scale=2.0))
    with pytest.raises(ValueError, match="^scale is 1.0, but was 2.0 when the model was quantized"):
        quantized(X)
    with pytest.raises(ValueError, match="^mask is a tensor, but was None when the model was"):
        quantized(X, 2.0, mask=X)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save(mlp().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt holds no state_dict of a QuantizedModel"):
        load_quantized(mlp(), tmp_path / "model.pt")


def test_training_with_an_empty_batch():
    for method in ("ste", "lsq"):
        model = prepare_qat(mlp(), 8, 8, method, calibration_batches=[X]).train()
        assert model(X[:0]).shape == (0, 4)
