"""ptq: weight_rounding, an option of quantize_model, on all kinds of layers and on networks."""

import numpy as np
import pytest
import torch
from torch import nn

from qhelpers import load_quantized, quantize_model
from qhelpers.ptq.float_target import ROUNDINGS, rounded_codes
from qhelpers.ptq.gptq import gptq
from qhelpers.ranges.output_error import InputMoments
from qhelpers.training import one_thread


@pytest.fixture(autouse=True)
def on_one_thread():
    """With several, matrices as small as these take longer, where other tests run beside."""
    with one_thread():
        yield


LAYERS = {  # a layer and a batch for it, whose inputs are correlated
    "Linear": lambda: (nn.Linear(12, 6), (400, 12)),
    "Conv1d": lambda: (nn.Conv1d(4, 6, 3, stride=2), (40, 4, 15)),
    "Conv2d": lambda: (nn.Conv2d(4, 6, (2, 3), padding=1, bias=False), (20, 4, 9, 9)),
    "grouped": lambda: (nn.Conv2d(4, 6, (2, 2), groups=2), (20, 4, 9, 9)),
    "depthwise": lambda: (nn.Conv2d(4, 4, (3, 4), groups=4, dilation=2), (20, 4, 11, 11)),
    "Conv3d": lambda: (nn.Conv3d(2, 3, 2), (10, 2, 5, 5, 5)),
}


@pytest.fixture(params=LAYERS)
def layer_and_batch(request):
    torch.manual_seed(0)
    layer, shape = LAYERS[request.param]()
    return layer.eval(), torch.randn(shape).cumsum(dim=-1) + 1


@pytest.mark.parametrize(
    "rounding, granularity",
    [("gptq", "per tensor"), ("gptq", "per channel"), ("gptq", 4), ("adaround", "per channel")],
)
def test_the_output_of_a_layer_changes_less(layer_and_batch, granularity, rounding):
    """Its squared error; where the bias is corrected, the variance of its error."""
    layer, x = layer_and_batch
    model = nn.Sequential(layer).eval()
    for corrected in (False, True):
        errors = {}
        for weight_rounding in ("nearest", rounding):
            quantized = quantize_model(
                model, [x[:7], x[7:]], 3, None, granularity=granularity,
                weight_rounding=weight_rounding, bias_correction=corrected,
            )  # fmt: skip
            with torch.no_grad():
                errors[weight_rounding] = (quantized(x) - model(x)).square().mean().item()
            part = quantized.graph.get_submodule("0")
            assert part.codes.dtype == torch.int8 and part.codes.shape == (
                len(layer.weight),
                layer.weight[0].numel(),
            )
            assert part.codes.min() >= -4 and part.codes.max() <= 3
        assert errors[rounding] < 0.96 * errors["nearest"]


class Recorded:
    """A way to round that keeps what it is given."""

    def __init__(self):
        self.given = []

    def __call__(self, weight, second_moment, scale, bits):
        self.given.append((weight.numpy(), second_moment.numpy()))
        return gptq(weight, second_moment, scale, bits)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_target_is_the_float_layers_output(groups, corrected):
    """The weights that are rounded are those of least squares, found on the patches themselves."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 2, groups=groups)
    x = torch.randn(20, 4, 7, 7).cumsum(dim=-1) + 1
    now = torch.round(x * 0.5) * 2 + 0.3
    before, after, seen = InputMoments(layer), InputMoments(layer), Recorded()
    scale = layer.weight.detach().flatten(1).abs().amax(dim=1, keepdim=True) / 3.5
    with torch.no_grad():
        for part in (slice(5), slice(5, None)):
            before.update(x[part])
            after.update(now[part], x[part])
        codes = rounded_codes(seen, layer.weight, scale, 3, before, after, corrected)
    assert codes.shape == (6, 16 // groups)
    for group, (aim, moment) in enumerate(seen.given):
        old, new = (
            nn.functional.unfold(images, 2).reshape(20, groups, -1, 36)[:, group]
            .movedim(1, 2).flatten(0, 1).double().numpy()
            for images in (x, now)
        )  # fmt: skip
        if corrected:
            old, new = old - old.mean(axis=0), new - new.mean(axis=0)
        weight = layer.weight.detach().flatten(1).double().numpy().reshape(groups, -1, 16 // groups)
        weight = weight[group]
        assert np.allclose(moment, new.T @ new / len(new))
        # A hundredth of the mean diagonal holds the weights near those of the layer.
        hold = np.sqrt(0.01 * np.diag(moment).mean() * len(new)) * np.eye(len(moment))
        wanted = np.vstack([old @ weight.T, hold @ weight.T])
        best, *_ = np.linalg.lstsq(np.vstack([new, hold]), wanted, rcond=None)
        assert np.allclose(aim, best.T)


class Chain(nn.Module):
    """A layer called twice, once by name, and what changes its inputs in place after it."""

    def __init__(self):
        super().__init__()
        self.first, self.same, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu_(self.same(torch.relu_(self.first(x))))
        x = torch.relu_(self.same(input=x))
        result = self.last(x)
        x.mul_(2)
        return result + x[:, :3]


def chain():
    torch.manual_seed(0)
    return Chain().eval(), torch.randn(200, 6) @ torch.randn(6, 6) + 1


def test_layers_make_up_for_those_before_them(monkeypatch):
    """The layer's target is what it returned in floats, whatever the layers before it do now."""
    model, x = chain()
    inputs, seen = {"float": [], "now": []}, Recorded()
    monkeypatch.setitem(ROUNDINGS, "gptq", seen)
    quantized = quantize_model(
        model, [x[:90], x[90:]], 2, 3, weight_rounding="gptq", layer_after_layer=True,
        bias_correction=True,
    )  # fmt: skip
    for name, net in (("float", model), ("now", quantized.graph)):
        net.last.register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].clone())
        )
        with torch.no_grad():
            net(x)
    old, new = (inputs[name][0].double().numpy() for name in ("float", "now"))
    old, new = old - old.mean(axis=0), new - new.mean(axis=0)
    aim, moment = seen.given[-1]
    assert np.allclose(moment, new.T @ new / len(new), rtol=1e-4)
    weight = model.last.weight.detach().double().numpy()
    hold = 0.01 * np.diag(moment).mean() * np.eye(len(moment))
    best = np.linalg.solve(moment + hold, (new.T @ old / len(new) + hold) @ weight.T)
    assert np.allclose(aim, best.T, atol=1e-5) and not np.allclose(aim, weight, atol=0.01)
    assert len(seen.given) == 3
    layers = [quantized.graph.get_submodule(name) for name in ("first", "same", "last")]
    assert not any(layer.float_inputs for layer in layers)  # nothing is kept


class Counting(nn.Module):
    """Each call changes a buffer, and what the last layer takes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.last(self.first(x) * self.calls)


def test_a_pass_in_floats_is_as_the_first(monkeypatch):
    """With weights that lose nothing the target is the layer's own, in a model that counts, too."""
    torch.manual_seed(0)
    model, x, seen = Counting().eval(), torch.randn(200, 6), Recorded()
    monkeypatch.setitem(ROUNDINGS, "gptq", seen)
    options = {"weight_rounding": "gptq", "layer_after_layer": True}
    with pytest.warns(UserWarning, match="add_"):
        quantize_model(model, [x], 16, None, **options)
    weights = [model.first.weight, model.last.weight]
    for (aim, _), weight in zip(seen.given, weights):
        assert np.allclose(aim, weight.detach(), atol=1e-3)


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_a_network_comes_nearer_to_the_float_one(rounding):
    """On other inputs than those of the calibration; the float network stays as it is."""
    torch.manual_seed(0)
    layers = [nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 5)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(800, 20) @ torch.randn(20, 20) + 1
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    errors = []
    for weight_rounding in ("nearest", rounding):
        quantized = quantize_model(
            model, x[:400].split(90), 3, 8, weight_rounding=weight_rounding,
            layer_after_layer=True, bias_correction=True,
        )  # fmt: skip
        errors.append((quantized(x[400:]) - model(x[400:])).square().mean().item())
    assert errors[1] < 0.8 * errors[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_it_is_chosen_layer_by_layer_and_saved(tmp_path):
    model, x = chain()
    quantized = quantize_model(model, [x], 3, per_layer={"same": {"weight_rounding": "gptq"}})
    nearest, chosen = (
        quantize_model(model, [x], 3),
        quantize_model(model, [x], 3, weight_rounding="gptq"),
    )
    for name in ("first", "same", "last"):
        codes, rest = (q.graph.get_submodule(name).codes for q in (nearest, chosen))
        assert not torch.equal(codes, rest)
        expected = rest if name == "same" else codes
        assert torch.equal(quantized.graph.get_submodule(name).codes, expected)
    torch.save(quantized.state_dict(), tmp_path / "model.pt")
    assert torch.equal(load_quantized(model, tmp_path / "model.pt")(x), quantized(x))


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_fewer_inputs_than_weights_and_dead_ones(rounding):
    """It works, and warns that it fits what it has seen; dead inputs get the nearest codes."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 6)).eval(), torch.randn(30, 12)
    x[:, 3] = 0
    options = {"weight_rounding": rounding, "layer_after_layer": True}
    message = "^0 was rounded for 5 inputs, fewer than its channels have weights, 12: "
    with pytest.warns(UserWarning, match=message) as warned:
        quantized = quantize_model(model, [x[:5]], 4, None, **options)
    assert warned[0].filename == __file__
    assert quantized(x).isfinite().all()
    nearest = quantize_model(model, [x], 4, None).graph.get_submodule("0").codes
    codes = quantize_model(model, [x], 4, None, **options).graph.get_submodule("0").codes
    assert torch.equal(codes[:, 3], nearest[:, 3]) and not torch.equal(codes, nearest)
    for constant in (torch.zeros(20, 12), torch.ones(20, 12)):
        options["bias_correction"] = True  # so that only the variance counts, which is 0
        found = quantize_model(model, [constant], 4, None, **options).graph.get_submodule("0").codes
        assert torch.equal(found, nearest)


def test_mistakes_are_named():
    model, x = chain()
    with pytest.raises(ValueError, match="^weight_rounding is 'up'; it must be one of"):
        quantize_model(model, [x], weight_rounding="up")
    with pytest.raises(ValueError, match="^per_layer has the option 'rounding'"):
        quantize_model(model, [x], per_layer={"last": {"rounding": "gptq"}})
    with pytest.raises(ValueError, match="^calibration_batches is empty"):
        quantize_model(model, [], 4, None, weight_rounding="gptq")
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"^batch holds {bad}; all its values must be finite"):
            quantize_model(model, [x, torch.full_like(x, bad)], 4, None, weight_rounding="gptq")
    with torch.no_grad():
        model.same.weight[1, 2] = np.nan
    with pytest.raises(ValueError, match="^same has a weight that holds nan"):
        quantize_model(model, [x], 4, None, weight_rounding="gptq")


@pytest.mark.parametrize(
    "layer, batch",
    [(nn.Embedding(5, 4), torch.zeros(3, dtype=torch.int64)),
     (nn.ConvTranspose1d(2, 3, 2), torch.zeros(1, 2, 5))],
)  # fmt: skip
def test_layers_whose_inputs_are_not_known_are_refused_by_name(layer, batch):
    model = nn.Sequential(layer, nn.Linear(layer(batch).shape[-1], 2)).eval()
    refused = f"^0 is a {type(layer).__name__}; .*'gptq', 'adaround' and .* in per_layer"
    for rounding in ("gptq", "adaround"):
        with pytest.raises(ValueError, match=refused):
            quantize_model(model, [batch], weight_rounding=rounding)
    per_layer = {"0": {"weight_rounding": "nearest"}}
    with pytest.warns(UserWarning, match="fewer than its channels have weights"):
        quantize_model(model, [batch], weight_rounding="gptq", per_layer=per_layer)
