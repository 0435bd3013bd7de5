"""What the tests of language models share: the real model, for tests that change nothing in it."""

import pytest

from qhelpers.language.smollm import load_smollm, require_language_model


@pytest.fixture(scope="module")
def smollm():
    """SmolLM2 in float64: 1.1 GB, so no longer than a file's tests need it."""
    try:
        require_language_model()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return load_smollm()
