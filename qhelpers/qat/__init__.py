"""Quantization-aware training: fake quantization, and how your own model is prepared for it."""

from qhelpers.qat.fake_quant import FakeQuantize, LearnedStepSize, fake_quantize
from qhelpers.qat.model import prepare_qat

__all__ = ["FakeQuantize", "LearnedStepSize", "fake_quantize", "prepare_qat"]
