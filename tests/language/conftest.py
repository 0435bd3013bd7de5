"""What the tests of language models share: the real model, for tests that change nothing in it."""

import pytest

from qhelpers.language.smollm import load_smollm
from tests.language_model import skip_without_model


@pytest.fixture(scope="module")
def smollm():
    """SmolLM2 in float64: 1.1 GB, so no longer than a file's tests need it."""
    skip_without_model()
    return load_smollm()
