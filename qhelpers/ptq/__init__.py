"""Post-training quantization of your own model."""

from qhelpers.ptq.model import load_quantized, quantize_model

__all__ = ["load_quantized", "quantize_model"]
