"""What the course needs to run torch.ao.quantization while it lasts: an engine, and silence."""

import warnings

import torch

# In order of preference. The outputs in the notebooks were made with the first one.
ENGINES = ("fbgemm", "qnnpack", "onednn")

KNOWN_WARNINGS = (
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max to specify the range",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other quantized",
    "TypedStorage is deprecated",
)


def has_torch_ao():
    """Return whether this PyTorch has torch.ao.quantization; where it hasn't, print that."""
    try:
        import torch.ao.quantization  # noqa: F401
    except ImportError:
        print("Skipped: this PyTorch has no torch.ao.quantization, which is the reference here.")
        return False
    return True


def choose_engine():
    """Make the first of ENGINES that this machine has torch's quantized engine; return its name.

    Raises RuntimeError where it has none of them.
    """
    available = torch.backends.quantized.supported_engines
    for engine in ENGINES:
        if engine in available:
            torch.backends.quantized.engine = engine
            return engine
    raise RuntimeError(f"torch has the quantized engines {available}; one of {ENGINES} is needed")


def silence_known_warnings():
    """Hide the warnings in KNOWN_WARNINGS, which are about torch.ao's age; show all others."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message)
