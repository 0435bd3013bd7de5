"""For tests that need SmolLM2, which may not be installed."""

import pytest

from qhelpers.language.smollm import require_language_model


def skip_without_model():
    """Skip the test, with the command that installs the model, where it is missing."""
    try:
        require_language_model()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
