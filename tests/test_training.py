"""qhelpers.training, models and size: against plain loops, and what is never loaded."""

import copy
import dataclasses
import importlib
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import qhelpers
from qhelpers import VerySimpleNet, build_model, test, train, train_or_load, training
from qhelpers.data import load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory where checkpoints can be kept."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "build" / "checkpoints"


def net(seed=0):
    return build_model(VerySimpleNet, seed)


def same(model, other):
    return all(
        torch.equal(weight, other.state_dict()[name]) for name, weight in model.state_dict().items()
    )


def test_train_is_a_plain_loop_in_float64(digits):
    model, by_hand = net(), net().double()
    history = train(model, digits, batch_size=32, seed=5, total_iterations_limit=50)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-3)
    losses = []
    for images, labels in digits.batches(32, 50, seed=5):
        loss = nn.functional.cross_entropy(by_hand(images.double()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert history == pytest.approx(losses, rel=1e-9)
    assert model.linear1.weight.dtype == torch.float32
    for name, weight in by_hand.state_dict().items():
        assert torch.allclose(model.state_dict()[name].double(), weight, atol=1e-7)


def test_train_learns_and_counts_its_iterations(digits):
    model = net()
    history = train(model, digits, epochs=2, total_iterations_limit=300)
    assert len(history) == 300
    assert sum(history[-50:]) < sum(history[:50]) / 4
    assert test(model, digits) > 0.9
    assert len(train(net(), digits, batch_size=6000)) == 10  # as MNIST's 60,000


def test_an_interrupted_training_hands_back_float32(digits, monkeypatch):
    monkeypatch.setattr(training, "cross_entropy", lambda *_: 1 / 0)
    model = net()
    with pytest.raises(ZeroDivisionError):
        train(model, digits)
    assert model.linear1.weight.dtype == torch.float32


def test_test_counts_as_a_loop_does(digits):
    model = net()
    correct = [model(image).argmax() == label for image, label in
               zip(digits.test_images, digits.test_labels)]  # fmt: skip
    assert test(model, digits) == sum(correct).item() / 360
    assert test(model, digits, 2, batch_size=50) == sum(correct[:100]).item() / 100
    assert not model.training


def test_train_or_load_says_and_returns_the_same_either_way(digits, project, capsys, monkeypatch):
    trained, loaded = net(), net()
    history = train_or_load(trained, digits, batch_size=6000)
    said = capsys.readouterr()
    (path,) = project.iterdir()
    part = path.with_name(f"{path.name}.0123abcd.part")  # of a process that was killed long ago
    part.touch()
    os.utime(part, (0, 0))
    monkeypatch.setattr(training, "train", None)  # a call would raise
    assert train_or_load(loaded, digits, batch_size=6000) == history
    assert capsys.readouterr() == said
    assert said.out.startswith("VerySimpleNet: 10 iterations, loss ") and said.err == ""
    assert same(trained, loaded) and loaded.training == trained.training
    assert [*project.iterdir()] == [path]


class Doubled(VerySimpleNet):
    def forward(self, img):
        return super().forward(img) * 2


def key(model=None, data=None, **options):
    return training.checkpoint_key(model or net(), data or load_digits(), options)


def test_a_checkpoint_s_key_depends_on_all_that_decides(digits, monkeypatch, tmp_path):
    fewer = dataclasses.replace(digits, train_images=digits.train_images[:1000],
                                train_labels=digits.train_labels[:1000])  # fmt: skip
    other_labels = dataclasses.replace(digits, train_labels=digits.train_labels.flip(0))
    keys = [
        key(), key(seed=1), key(epochs=2), key(model=net(seed=1)),
        key(model=VerySimpleNet(50, 100)), key(model=build_model(Doubled, 0)),
        key(data=fewer), key(data=other_labels),
        key(model=fx.symbolic_trace(net())), key(model=fx.symbolic_trace(build_model(Doubled, 0))),
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        keys.append(key())
    sources = tmp_path / "qhelpers"
    shutil.copytree(Path(training.__file__).parent, sources)
    monkeypatch.setattr(training, "__file__", str(sources / "training.py"))
    assert key() == keys[0]
    (sources / "qat" / "fake_quant.py").write_text("# another gradient")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_checkpoint_s_key_depends_on_a_submodule_s_class(digits, tmp_path, monkeypatch):
    keys = []
    for number, factor in enumerate((1, 2)):
        source = "from torch import nn\nclass Mine(nn.Module):\n    def forward(self, x):\n"
        (tmp_path / f"mine{number}.py").write_text(f"{source}        return {factor} * x\n")
        monkeypatch.syspath_prepend(tmp_path)
        model = net()
        model.relu = importlib.import_module(f"mine{number}").Mine()
        keys.append(key(model))
    assert len(set(keys)) == 2


def test_training_and_testing_take_one_thread_and_put_the_number_back(digits):
    seen = []

    class Watched(VerySimpleNet):
        def forward(self, img):
            seen.append(torch.get_num_threads())
            return super().forward(img)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = build_model(Watched, 0)
        train(model, digits, total_iterations_limit=1)
        test(model, digits)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is damaged"),
        ("truncated", "is damaged"),
        ("renamed", "belongs to another training"),
        ("hostile", "is damaged"),
        ("a folder", r"can't be read .*"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_trained_again(digits, project, content, reason):
    model = net()
    train_or_load(model, digits, batch_size=6000)
    (path,) = project.iterdir()
    if content == "renamed":  # a whole checkpoint, of another training, under this name
        train_or_load(net(), digits, batch_size=6000, seed=1)
        content = next(other for other in project.iterdir() if other != path).read_bytes()
    elif content == "truncated":
        content = path.read_bytes()[:-100]
    if content == "hostile":
        torch.save({"key": Alarm()}, path)
    elif content == "a folder":  # which nobody can read as a file
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    again = net()
    with pytest.warns(UserWarning) as warned:
        train_or_load(again, digits, batch_size=6000)
    assert re.search(f"{path.name} {reason}; training again", str(warned[0].message))
    assert len(warned) == 1 + path.is_dir()  # which can't be replaced, either
    assert same(model, again)


class Alarm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it was unpickled')",))


@pytest.mark.filterwarnings("ignore:.*training again")
def test_a_checkpoint_with_one_changed_bit_is_refused_or_the_same(tmp_path):
    """torch.load doesn't look at the sums in the file, and raises a dozen kinds of errors."""
    path, model, before = tmp_path / "model.pt", net(), net(seed=1)
    training.save_checkpoint(path, "the key", model, [0.5, 0.25])
    whole, seeded, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(50):
        changed = bytearray(whole)
        changed[seeded.choice([seeded.randrange(3000), seeded.randrange(len(whole))])] ^= 1
        path.write_bytes(changed)
        loaded = copy.deepcopy(before)
        history = training.load_checkpoint(path, "the key", loaded)
        refused += history is None
        assert same(loaded, before if history is None else model)
        assert history in (None, [0.5, 0.25])
    assert refused > 15


def test_a_checkpoint_that_cannot_be_written_costs_a_warning(digits, project, monkeypatch):
    def full(part, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    model, expected = net(), net()
    message = r"the next run will train again: .*could not write the file \(No space left .*\.pt'"
    with pytest.warns(UserWarning, match=message):
        history = train_or_load(model, digits, batch_size=6000)
    assert history == train(expected, digits, batch_size=6000) and same(model, expected)


def test_build_model_depends_on_the_seed_alone():
    assert same(net(0), net(0)) and not same(net(0), net(1))
    assert torch.get_default_dtype() == torch.float32


def test_print_size_of_model(capsys):
    qhelpers.print_size_of_model(net())
    size = float(capsys.readouterr().out.removeprefix("Size (KB): "))
    assert 4 * 89.610 < size < 4 * 89.610 + 5  # four bytes a parameter, and the container
