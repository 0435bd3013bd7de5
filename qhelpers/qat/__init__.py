"""Quantization-aware training: fake quantization, and preparing your own model for it."""

from qhelpers.qat.fake_quant import FakeQuantize, LearnedStepSize, fake_quantize
from qhelpers.qat.model import prepare_qat

__all__ = ["FakeQuantize", "LearnedStepSize", "fake_quantize", "prepare_qat"]
