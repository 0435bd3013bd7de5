"""The options of `quantize_model`, checked, and what they choose for each layer."""

from qhelpers.checks import checked_bits
from qhelpers.observers import STRATEGIES
from qhelpers.ptq.graph import LAYERS, is_one_of
from qhelpers.ptq.layers import (
    GRANULARITIES,
    WEIGHT_STRATEGIES,
    QuantizedActivation,
    QuantizedLayer,
)


class Choices:
    """The checked options of each layer: those for all layers, overridden by its own."""

    def __init__(self, graph, options, per_layer):
        self.options, self.per_layer = options, per_layer
        layers = [n.target for n in graph.graph.nodes if is_one_of(graph, n, LAYERS)]
        if not layers:
            raise ValueError("model has no Linear or Conv2d layer that could be quantized")
        for name, changed in per_layer.items():
            if name not in ("input", *layers):
                raise ValueError(f"per_layer names {name!r}; the layers are {['input', *layers]}")
            for option in set(changed) - set(options):
                raise ValueError(f"per_layer has the option {option!r}; it may have {[*options]}")

    def of(self, name):
        chosen = self.options | self.per_layer.get(name.removeprefix("before_"), {})
        for option, allowed in [
            ("weight_strategy", WEIGHT_STRATEGIES),
            ("activation_strategy", (*STRATEGIES, "dynamic")),
        ]:
            if chosen[option] not in allowed:
                raise ValueError(f"{option} is {chosen[option]!r}; it must be one of {allowed}")
        if isinstance(chosen["granularity"], str) and chosen["granularity"] not in GRANULARITIES:
            raise ValueError(f"granularity is {chosen['granularity']!r}; it must be one of "
                             f"{GRANULARITIES}, or the size of a group")  # fmt: skip
        return chosen

    def layer(self, name, layer):
        chosen = self.of(name)
        bits = checked_bits(chosen["weight_bits"], fewest=2)
        options = [chosen[o] for o in ("weight_strategy", "granularity", "bias_correction")]
        return QuantizedLayer(layer, bits, *options)

    def activation(self, name):
        chosen = self.of(name)
        if chosen["activation_bits"] is None:
            return None
        bits = checked_bits(chosen["activation_bits"], fewest=1 + bool(chosen["reduce_range"]))
        return QuantizedActivation(
            bits, chosen["activation_strategy"], bool(chosen["reduce_range"])
        )
