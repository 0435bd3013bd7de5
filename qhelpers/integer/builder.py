"""Collects the layers of an integer model while a graph of another kind is read, node by node.

A node of that graph returns Codes; or Floats, which become codes where the graph quantizes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from qhelpers.integer.moves import ReLU
from qhelpers.integer.qparams import QParams


@dataclass(frozen=True)
class Codes:
    """What the layer `name` returns, or the model's "input"."""

    name: str
    qparams: QParams


@dataclass(frozen=True)
class Floats:
    """What a layer computes before it becomes codes; the images, if `layer` is None.

    layer: the function from QParams, whether a ReLU follows and the last code to the layer.
    inputs: the names of what it takes. moves: the layers that move its codes afterwards.
    relu, most: whether the numbers are clipped at 0, and at which end.
    """

    source: str
    layer: Callable | None = None
    inputs: tuple = ()
    moves: tuple = ()
    relu: bool = False
    most: float = math.inf


class Builder:
    """Collects layers, and the names of what each takes."""

    def __init__(self):
        self.layers, self.inputs, self.names = [], [], {"input"}

    def new_name(self, *names):
        """Return the first of these names that no layer has, or the last with a _ behind it."""
        name = next((name for name in names if name not in self.names), names[-1])
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def put(self, layer, *inputs):
        self.layers.append(layer)
        self.inputs.append(inputs)
        return layer.name

    def quantized(self, value, qparams, where):
        """Return the Codes of a value that the graph quantizes; ValueError if to other codes."""
        if isinstance(value, Floats):
            return self.codes_of(value, qparams)
        if value.qparams != qparams:
            raise ValueError(f"{where} quantizes codes again, from {value.qparams} to {qparams}")
        return value

    def codes_of(self, value, qparams):
        """Return the Codes that Floats become."""
        name = "input"
        if value.layer is not None:
            top = 255 if value.most == math.inf else qparams.code_of(value.most)
            name = self.put(value.layer(qparams, value.relu, top), *value.inputs)
        for move in value.moves:
            name = self.put(move, name)
        return Codes(name, qparams)

    def needed_for(self, output):
        """Return the layers that these Codes are computed with, and what each takes."""
        needed, kept = {output.name}, []
        for layer, names in zip(reversed(self.layers), reversed(self.inputs)):
            if layer.name in needed:
                needed.update(names)
                kept.append((layer, names))
        return [layer for layer, _ in kept[::-1]], [names for _, names in kept[::-1]]

    def moved(self, value, layer):
        """Return the value that a layer makes of another when it only moves its numbers."""
        if isinstance(value, Floats):
            return replace(value, moves=(*value.moves, layer))
        return Codes(self.put(layer, value.name), value.qparams)

    def clipped(self, value, most, where, *names):
        """Return a value clipped at 0 and at `most`: Floats by their layer, Codes by a ReLU."""
        if isinstance(value, Codes):
            top = 255 if most == math.inf else value.qparams.code_of(most)
            return self.moved(value, ReLU(self.new_name(*names), value.qparams.zero_point, top))
        if value.layer is None:
            raise ValueError(f"{where} gets images in floats; they must be quantized first")
        return replace(value, relu=True, most=min(value.most, most))
