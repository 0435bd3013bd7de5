"""Number formats: small floats, code books, and blocks that share a scale."""

from qhelpers.formats.blocks import (
    code_book_dequantize,
    code_book_quantize,
    dequantize_scales,
    mx_dequantize,
    mx_quantize,
    nvfp4_dequantize,
    nvfp4_quantize,
    pack_pairs,
    pad_to_blocks,
    quantize_scales,
    unpack_pairs,
)
from qhelpers.formats.floats import (
    BFLOAT16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FLOAT16,
    FloatFormat,
)
from qhelpers.formats.levels import lloyd, nearest_level, normal_float, ternary

__all__ = [
    "BFLOAT16",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "FLOAT16",
    "FloatFormat",
    "code_book_dequantize",
    "code_book_quantize",
    "dequantize_scales",
    "lloyd",
    "mx_dequantize",
    "mx_quantize",
    "nearest_level",
    "normal_float",
    "nvfp4_dequantize",
    "nvfp4_quantize",
    "pack_pairs",
    "pad_to_blocks",
    "quantize_scales",
    "ternary",
    "unpack_pairs",
]
