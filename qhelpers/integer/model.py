"""Integer-only inference in NumPy: a graph of layers that turn codes into codes."""

import math

import numpy as np

from qhelpers.affine import asymmetric_dequantize, quantize
from qhelpers.checks import checked_params
from qhelpers.integer.layers import WEIGHTED
from qhelpers.integer.packing import packed_bytes
from qhelpers.integer.products import PRODUCTS
from qhelpers.integer.requantize import ARITHMETICS

BLOCK = 784_000  # numbers computed at a time: few enough to stay in the processor's cache
MOST_KEPT = 2**25  # codes of an image that later layers may take: a file could ask for any number


class IntegerModel:
    """A graph of layers on uint8 codes; `integer_model` makes it from a quantized model.

    layers: those of qhelpers.integer, in the order in which they compute, each with a name of its
        own; at least one is a Linear or Conv2d. The last one returns the logits.
    arithmetic: how sums become codes, one of "fbgemm", "qnnpack", "onednn", "onednn-brgemm"
        and "onednn-brgemm-division", which compute what torch's engines do
        (qhelpers.torch_ao.engine_arithmetic tells which of them, on this CPU), "onnxruntime",
        and "fixed-point", which has no floats.
    products: how the sums are computed: "blas", "integers" or "saturating", see products.py. By
        default "integers" for fixed point, and else "blas", which gives the same and is faster.
    inputs: for each layer, the names of the layers whose codes it takes, or "input". By default
        the layers are a chain.

    Call it with images to get logits. Raises ValueError, which names the layer, if one takes codes
    that aren't there yet, codes with another scale or zero point than they have, or if nothing
    takes the codes that one returns.
    """

    def __init__(self, layers, arithmetic="fbgemm", products=None, inputs=None):
        products = products or ("integers" if arithmetic == "fixed-point" else "blas")
        for name, value, allowed in [
            ("arithmetic", arithmetic, ARITHMETICS),
            ("products", products, PRODUCTS),
        ]:
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {[*allowed]}")
        self.layers, self.arithmetic, self.products = tuple(layers), arithmetic, products
        if not any(isinstance(layer, WEIGHTED) for layer in self.layers):
            raise ValueError("layers has no Linear or Conv2d; it must have one")
        if inputs is None:
            inputs = [(name,) for name in ("input", *(layer.name for layer in self.layers[:-1]))]
        self.inputs = tuple(tuple(names) for names in inputs)
        # All layers before the first that computes only move codes, and keep their scale.
        self.before = next(layer.before for layer in self.layers if hasattr(layer, "before"))
        self.after = checked_graph(self.layers, self.inputs, self.before)
        self.last_uses = last_uses(self.inputs)
        self.functions = [layer.prepared(arithmetic, products) for layer in self.layers]

    def __reduce__(self):  # for pickle and copy, which can't take `functions`
        return IntegerModel, (self.layers, self.arithmetic, self.products, self.inputs)

    def computing(self, arithmetic, products=None):
        """Return the same model with another arithmetic, and other products."""
        return IntegerModel(self.layers, arithmetic, products, self.inputs)

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
        known = {"input": codes}
        for layer, names, function, done in zip(
            self.layers, self.inputs, self.functions, self.last_uses
        ):
            new = function(*(known[name] for name in names))
            for name in done:  # nothing takes these codes any more
                del known[name]
            known[layer.name] = new
            kept = sum(math.prod(each.shape[1:]) for each in known.values())
            if kept > MOST_KEPT:
                raise ValueError(f"layer {layer.name!r}: {kept:,} codes of each image are needed "
                                 f"later; {MOST_KEPT:,} are allowed")  # fmt: skip
            yield layer.name, new

    def dequantize(self, codes):
        """Return the logits, float32, that the codes of the last layer stand for."""
        return asymmetric_dequantize(codes, self.after.scale, self.after.zero_point)

    def __call__(self, images):
        """Return the logits, float32, of images, a float array or tensor, in blocks."""
        numbers = math.prod(images.shape[1:])
        count = max(1, BLOCK // max(1, numbers))  # images in a block
        blocks = [images[i : i + count] for i in range(0, max(1, len(images)), count)]
        return self.dequantize(np.concatenate([self.forward(self.quantize(b)) for b in blocks]))

    def weight_bytes(self):
        """Return how many bytes the packed weights take."""
        weighted = [layer for layer in self.layers if isinstance(layer, WEIGHTED)]
        return sum(packed_bytes(layer.weight.size, layer.weight_bits) for layer in weighted)


def checked_graph(layers, inputs, before):
    """Return the QParams of what the last layer returns; raise ValueError if layers don't fit.

    inputs: for each layer, the names of what it takes. before: the QParams of the model's input.
    """
    if len(inputs) != len(layers):
        raise ValueError(f"inputs has {len(inputs)} entries; it must have one for each of the "
                         f"{len(layers)} layers")  # fmt: skip
    known = {"input": before}
    for layer, names in zip(layers, inputs):
        if layer.name in known:
            raise ValueError(f"layers has the name {layer.name!r} twice; each must have its own")
        if len(names) != layer.takes:
            raise ValueError(f"layer {layer.name!r} is given {names}; it takes {layer.takes} of "
                             "them")  # fmt: skip
        for name in names:
            if name not in known:
                raise ValueError(f"layer {layer.name!r} takes {name!r}, which no layer before it "
                                 f"is named")  # fmt: skip
        known[layer.name] = layer.returns(*(known[name] for name in names))
    taken = {name for names in inputs for name in names} | {layers[-1].name}
    for name in known:
        if name not in taken:
            raise ValueError(f"nothing takes the codes of {name!r}; only the last layer may return "
                             "codes that no other takes")  # fmt: skip
    return known[layers[-1].name]


def last_uses(inputs):
    """Return for each layer which of the names in `inputs` no later layer takes."""
    seen, found = set(), []
    for names in reversed(inputs):
        found.append(set(names) - seen)
        seen.update(names)
    return found[::-1]
