"""qhelpers.ptq and qhelpers.qat on models that nobody here wrote, beside torch.ao's FX mode."""

import hypothesis
import pytest
import torch

pytest.importorskip("torch.ao.quantization", reason="this PyTorch has no torch.ao.quantization")

from qhelpers import prepare_qat, quantize_model
from qhelpers.qat.model import METHODS
from tests.known_models import TORCH, TORCHVISION, known
from tests.torch_ao_fx import fx_reference

NO_LAYER = "^model has no Linear or Conv2d layer, or another with weights, that could be quantized"
RECURRENT = [name for name in TORCH if name.startswith(("RNN", "LSTM"))]
REFUSED = {
    **dict.fromkeys(
        ["ActivationsTestModel", "AddInplaceAdd", "AddMulScalar", "DummyObserver",
         "ModelWithFunctionals", "MulInplaceMul", "ThreeAdd"],
        NO_LAYER + "$",
    ),
    **dict.fromkeys(RECURRENT, NO_LAYER + "; these compute in floats: (mod|lstm)$"),
    "ControlFlow": "^torch.fx can't trace ControlFlow: .*may be given in leaf_modules",
}  # fmt: skip
SHORT = ("Conv2dWithCat", "Conv2dWithObsSharingOps", "ConvBnReLUModel",
         "EmbeddingWithStaticLinear", "FunctionalConv2d", "LinearTanhModel")  # fmt: skip


def taken(*short):
    """Return the names of the models that are not refused; all but these are slow."""
    return [
        name if name in short else pytest.param(name, marks=pytest.mark.slow)
        for name in (*TORCH, *TORCHVISION)
        if name not in REFUSED
    ]


pytestmark = pytest.mark.filterwarnings("ignore:these are not quantized and compute in floats")


def sqnr(exact, other):
    """Signal to quantization noise, in dB."""
    noise = (exact - other).double().square().sum()
    return 10 * torch.log10(exact.double().square().sum() / noise).item()


def step(model, inputs):
    """One step of SGD towards other outputs, by all parameters that train."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    result = model(*inputs)
    if weights:  # some test models hold theirs as plain tensors
        result.sub(torch.randn_like(result)).square().mean().backward()
        torch.optim.SGD(weights, 0.1).step()
        assert not all(torch.equal(*pair) for pair in zip(before, weights))


@pytest.mark.parametrize("name", taken(*SHORT, "squeezenet1_1"))
def test_it_is_as_good_as_fx_and_leaves_no_more_in_floats(name):
    model, inputs = known(name)
    quantized = quantize_model(model, [inputs])
    reference, floats_of_fx = fx_reference(model, inputs)
    with torch.no_grad():
        exact = model(*inputs)
        ours, theirs = sqnr(exact, quantized(*inputs)), sqnr(exact, reference(*inputs))
    floats = {named.partition(" ")[0] for named in quantized.kept_in_float}
    print(f"{name}: {ours:.1f} dB, FX {theirs:.1f} dB; in floats {sorted(floats)}")
    assert ours > theirs - 0.5
    assert not floats - floats_of_fx


@pytest.mark.parametrize("name", taken(*SHORT))
def test_after_a_step_of_training_it_converts_to_the_same(name):
    model, inputs = known(name)
    inputs = inputs if name not in TORCHVISION else (inputs[0][:4],)
    for method in METHODS:
        trained = prepare_qat(model, 8, 8, method, calibration_batches=[inputs])
        step(trained.train(), inputs)
        with torch.no_grad():
            expected = trained.eval()(*inputs)
            assert expected.isfinite().all(), method
            assert torch.equal(trained.convert()(*inputs), expected), method


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_why(name):
    model, inputs = known(name)
    with pytest.raises((RuntimeError, ValueError), match=REFUSED[name]) as caught:
        quantize_model(model, [inputs])
    print(f"{name}: {caught.value}")


def test_importing_them_leaves_other_tests_their_settings():
    assert hypothesis.settings.default == hypothesis.settings.get_profile("same")
