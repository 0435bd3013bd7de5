"""What notebook 6 needs: its packages, a PyTorch new enough for them, and one log line hidden."""

import importlib.util
import logging
from importlib.metadata import requires

import torch

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torchao")
# As in the extra. With an older one torchao's PT2E finds nothing to quantize, silently.
OLDEST_TORCH = "2.12"
KNOWN_LOG = "<enum 'KernelPreference'> is an Enum subclass"  # logged when torchao is imported


def require_deployment_packages():
    """Raise ModuleNotFoundError if one of PACKAGES is missing; it says what installs them.

    Raise RuntimeError if PyTorch is older than OLDEST_TORCH. Otherwise hide the log line
    KNOWN_LOG, which is about torchao's own code.
    """
    missing = missing_packages()
    if missing:
        command = f"pip install {install_arguments()}"
        raise ModuleNotFoundError(
            f"not installed: {', '.join(missing)}. This notebook needs them: {command} "
            f"(in a cell: %{command}), and then restart the kernel."
        )
    if torch.__version__ < OLDEST_TORCH:  # compares versions, not text
        raise RuntimeError(
            f"PyTorch is {torch.__version__}; this notebook needs {OLDEST_TORCH} or newer: "
            "with an older one torchao quantizes nothing, and doesn't say so."
        )
    logging.getLogger("torch.utils._pytree").addFilter(is_unknown)


def missing_packages():
    """Return those of PACKAGES that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def install_arguments():
    """Return the requirements of the extra "deploy", each in quotes, for pip."""
    extra = [need.split(";")[0].strip() for need in requires("qhelpers") if '"deploy"' in need]
    return " ".join(f'"{need}"' for need in extra)


def is_unknown(record):
    return not record.getMessage().startswith(KNOWN_LOG)
