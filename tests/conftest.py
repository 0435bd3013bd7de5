"""What the tests share: data, and a network that is trained once for all who need it."""

import dataclasses

import hypothesis
import pytest
import torch
from torch import nn

from qhelpers import build_model, load_data, train_or_load
from tests.models import ConvNet

# The files that take longest, in order: they start first, so that no worker waits for the other.
LONG = (
    "test_known_models.py",  # with the slow tests
    "09_language_models.ipynb",
    "06_deployment.ipynb",
    "08_number_formats.ipynb",
    "07_rounding.ipynb",
    "02_range_strategies.ipynb",
    "03_post_training_quantization.ipynb",
    "05_integer_only_inference.ipynb",
    "04_quantization_aware_training.ipynb",
    "01_math_basics.ipynb",
    "test_strategies.py",
    "test_model.py",
    "test_onnx.py",
    "test_experiments.py",
    "test_comparison.py",
)


def pytest_configure(config):
    """The same examples in each run, however slow the machine; fewer in a short run."""
    count = 25 if config.option.markexpr == "not slow" else 100
    hypothesis.settings.register_profile(
        "same", deadline=None, derandomize=True, max_examples=count
    )
    hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def data():
    return load_data()


@pytest.fixture(scope="session")
def mnist(data):
    """The data, for what is compared with a table of experiments."""
    if data.name != "mnist":
        pytest.skip("the tables are MNIST's, and this machine has the digits")
    return data


@pytest.fixture(scope="session")
def few(data):
    """The data with 1,000 test images, for what tells as much with fewer."""
    return dataclasses.replace(
        data, test_images=data.test_images[:1000], test_labels=data.test_labels[:1000]
    )


@pytest.fixture(scope="session")
def conv_net(data):
    model = build_model(ConvNet, 0)
    train_or_load(model, data)
    return model.eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
