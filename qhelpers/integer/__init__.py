"""Integer-only inference: a network that computes with codes alone, in NumPy."""

from qhelpers.integer.convert import integer_model
from qhelpers.integer.file import load_integer_model, save_integer_model
from qhelpers.integer.model import IntegerModel
from qhelpers.integer.onnx import integer_model_from_onnx

__all__ = [
    "IntegerModel",
    "integer_model",
    "integer_model_from_onnx",
    "load_integer_model",
    "save_integer_model",
]
