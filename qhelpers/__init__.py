"""Support module of a course that teaches neural-network quantization from scratch."""

from qhelpers.affine import (
    asymmetric_dequantize,
    asymmetric_quantization,
    clamp,
    quantization_error,
    symmetric_dequantize,
    symmetric_quantization,
)
from qhelpers.data import load_data
from qhelpers.experiments import load_table
from qhelpers.integer import (
    IntegerModel,
    integer_model,
    integer_model_from_onnx,
    load_integer_model,
    save_integer_model,
)
from qhelpers.models import (
    ConvNet,
    DepthwiseNet,
    QuantizedVerySimpleNet,
    ResidualNet,
    VerySimpleNet,
    build_model,
)
from qhelpers.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from qhelpers.optional_packages import has_package, require_deployment_packages
from qhelpers.ptq import load_quantized, quantize_model
from qhelpers.qat import FakeQuantize, LearnedStepSize, fake_quantize, prepare_qat
from qhelpers.ranges import (
    cross_entropy_range,
    kl_range,
    min_max_range,
    mse_range,
    percentile_range,
)
from qhelpers.size import print_size_of_model
from qhelpers.sliders import sliders
from qhelpers.torch_ao import choose_engine, has_torch_ao, silence_known_warnings
from qhelpers.training import test, train, train_or_load

__all__ = [
    "ConvNet",
    "DepthwiseNet",
    "FakeQuantize",
    "HistogramObserver",
    "IntegerModel",
    "LearnedStepSize",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
    "QuantizedVerySimpleNet",
    "ResidualNet",
    "VerySimpleNet",
    "asymmetric_dequantize",
    "asymmetric_quantization",
    "build_model",
    "choose_engine",
    "clamp",
    "cross_entropy_range",
    "fake_quantize",
    "has_package",
    "has_torch_ao",
    "integer_model",
    "integer_model_from_onnx",
    "kl_range",
    "load_data",
    "load_integer_model",
    "load_quantized",
    "load_table",
    "min_max_range",
    "mse_range",
    "percentile_range",
    "prepare_qat",
    "print_size_of_model",
    "quantization_error",
    "quantize_model",
    "require_deployment_packages",
    "save_integer_model",
    "silence_known_warnings",
    "sliders",
    "symmetric_dequantize",
    "symmetric_quantization",
    "test",
    "train",
    "train_or_load",
]
