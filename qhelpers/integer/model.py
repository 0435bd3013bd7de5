"""Integer-only inference in NumPy: a model whose layers turn codes into codes."""

import numpy as np

from qhelpers.affine import asymmetric_dequantize, quantize
from qhelpers.checks import checked_params
from qhelpers.integer.layers import WEIGHTED, ReLU
from qhelpers.integer.packing import packed_bytes
from qhelpers.integer.products import PRODUCTS
from qhelpers.integer.requantize import ARITHMETICS

BLOCK = 1000  # images computed at a time: few enough to stay in the processor's cache


class IntegerModel:
    """A chain of layers on uint8 codes; `integer_model` makes it from a quantized model.

    layers: those of qhelpers.integer.layers, in order; at least one is a Linear or Conv2d.
    arithmetic: how sums become codes, one of "fbgemm", "qnnpack", "onednn", "onednn-brgemm"
        and "onednn-brgemm-division", which compute what torch's engines do
        (qhelpers.torch_ao.engine_arithmetic tells which of them, on this CPU), "onnxruntime",
        and "fixed-point", which has no floats.
    products: how the sums are computed: "blas", "integers" or "saturating", see products.py. By
        default "integers" for fixed point, and else "blas", which gives the same and is faster.

    Call it with images to get logits. Raises ValueError if a layer returns codes with another
    scale or zero point than the next one takes.
    """

    def __init__(self, layers, arithmetic="fbgemm", products=None):
        products = products or ("integers" if arithmetic == "fixed-point" else "blas")
        for name, value, allowed in [
            ("arithmetic", arithmetic, ARITHMETICS),
            ("products", products, PRODUCTS),
        ]:
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {[*allowed]}")
        self.layers, self.arithmetic, self.products = tuple(layers), arithmetic, products
        weighted = [layer for layer in self.layers if isinstance(layer, WEIGHTED)]
        if not weighted:
            raise ValueError("layers has no Linear or Conv2d; it must have one")
        self.before, self.after = weighted[0].before, weighted[-1].after
        qparams = self.before
        for layer in self.layers:
            if isinstance(layer, WEIGHTED):
                if layer.before != qparams:
                    raise ValueError(
                        f"layer {layer.name!r} takes {layer.before}, and gets {qparams}"
                    )
                qparams = layer.after
            elif isinstance(layer, ReLU) and layer.zero_point != qparams.zero_point:
                raise ValueError(f"layer {layer.name!r} has the zero point {layer.zero_point}, and "
                                 f"gets {qparams}")  # fmt: skip
        self.functions = [layer.prepared(arithmetic, products) for layer in self.layers]

    def __reduce__(self):  # for pickle and copy, which can't take `functions`
        return IntegerModel, (self.layers, self.arithmetic, self.products)

    def computing(self, arithmetic, products=None):
        """Return the same model with another arithmetic, and other products."""
        return IntegerModel(self.layers, arithmetic, products)

    def quantize(self, images):
        """Return the codes of images, an array or tensor of floats: uint8 of the same shape.

        Raises TypeError or ValueError if they are not finite real numbers.
        """
        images = checked_params(images, "images")
        numbers = self.before.scale, self.before.zero_point
        scale, zero_point = (np.full((1, 1, 1), number, np.float32) for number in numbers)
        view = images.astype(np.float32, copy=False).reshape(1, 1, -1)
        ends = 0, self.before.quant_max
        codes = quantize(view, scale, zero_point, *ends, np.uint8, name="images")
        return codes.reshape(images.shape)

    def forward(self, codes):
        """Return the codes of the logits for the codes of images, both uint8."""
        *_, (_, last) = self.each(codes)
        return last

    def each(self, codes):
        """Yield the name of each layer and the codes it returns.

        Raises TypeError if `codes` aren't uint8, ValueError if their shape doesn't fit.
        """
        if codes.dtype != np.uint8:
            raise TypeError(f"codes has the type {codes.dtype}; it must be uint8, see quantize")
        for layer, function in zip(self.layers, self.functions):
            codes = function(codes)
            yield layer.name, codes

    def dequantize(self, codes):
        """Return the logits, float32, that the codes of the last layer stand for."""
        return asymmetric_dequantize(codes, self.after.scale, self.after.zero_point)

    def __call__(self, images):
        """Return the logits, float32, of images, a float array or tensor, in blocks of BLOCK."""
        blocks = [images[i : i + BLOCK] for i in range(0, max(1, len(images)), BLOCK)]
        return self.dequantize(np.concatenate([self.forward(self.quantize(b)) for b in blocks]))

    def weight_bytes(self):
        """Return how many bytes the packed weights take."""
        weighted = [layer for layer in self.layers if isinstance(layer, WEIGHTED)]
        return sum(packed_bytes(layer.weight.size, layer.weight_bits) for layer in weighted)
