"""What torch.export writes down for codes: quantize and dequantize nodes, as PT2E has them.

torch.onnx makes QuantizeLinear and DequantizeLinear of them.
"""

import contextlib

import torch

with contextlib.suppress(ImportError):  # a PyTorch without torch.ao has no such nodes
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 - importing makes them


def nodes(name, bits):
    """Return the namespace of the nodes, or raise ValueError if they can't take so many bits."""
    if bits > 8:
        raise ValueError(f"{name} has {bits} bits, and torch.export takes codes of at most 8: give "
                         "quantize_model other weight_bits or activation_bits")  # fmt: skip
    return torch.ops.quantized_decomposed


def exported_activation(x, name, scale, zero_point, top):
    """Return x quantized to the codes 0..top, at most 255, and dequantized.

    scale, zero_point: numbers, since the nodes of ONNX take no tensors that are computed.
    """
    ops = nodes(name, top.bit_length())
    if top < 255:  # ONNX clips at the ends of uint8 alone
        x = x.clamp(max=(top - zero_point) * scale)
    numbers = scale, zero_point, 0, top, torch.uint8
    return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *numbers), *numbers)


def exported_weight(codes, name, scale, bits, shape):
    """Return the weight of this shape that the codes stand for; scale as in `quantized_weight`."""
    ops, half = nodes(name, bits), 2 ** (bits - 1)
    scale = scale.flatten() if scale.ndim else scale.expand(shape[0])
    grouped = len(scale) != shape[0]
    codes = codes.reshape((len(scale), -1) if grouped else shape)
    # ONNX Runtime's integer kernel for Gemm asks for zero points.
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    weight = ops.dequantize_per_channel(codes, scale, zero_points, 0, -half, half - 1, torch.int8)
    return weight.reshape(shape) if grouped else weight
