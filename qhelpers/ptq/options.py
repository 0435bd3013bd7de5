"""The options of `quantize_model`, checked, and what they choose for each layer and place."""

import numpy as np

from qhelpers.checks import checked_bits
from qhelpers.observers import STRATEGIES
from qhelpers.ptq.float_target import ROUNDINGS
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.rules import named
from qhelpers.ptq.weight_codes import GRANULARITIES, WEIGHT_STRATEGIES

OF_ACTIVATIONS = ("activation_bits", "activation_strategy", "reduce_range")  # others: of weights


def plain(options):
    """Return a copy of a dict of options, without NumPy's types, which can't be saved safely."""
    if isinstance(options, dict):
        return {key: plain(value) for key, value in options.items()}
    return options.item() if isinstance(options, np.generic) else options


def check_per_layer(per_layer, allowed):
    """Raise TypeError unless per_layer is a dict of dicts, ValueError for options not allowed."""
    if not isinstance(per_layer, dict) or not all(isinstance(o, dict) for o in per_layer.values()):
        raise TypeError(f"per_layer is {per_layer!r}; it must be a dict of options for each name")
    for name, changed in per_layer.items():
        for option in set(changed) - set(allowed):
            raise ValueError(f"per_layer has the option {option!r} for {name!r}; it may have "
                             f"{allowed}")  # fmt: skip


class Choices:
    """The checked options of each layer and place: those for all, overridden by its own."""

    def __init__(self, plan, options, per_layer):
        self.options, self.per_layer = options, per_layer
        if not plan.layers:
            floats = ", ".join(named(node) for node in plan.kept_in_float)
            raise ValueError(
                "model has no Linear or Conv2d layer, or another with weights, that "
                "could be quantized" + (f"; these compute in floats: {floats}" if floats else "")
            )
        places = [name for place in plan.places for name in (place.name, place.owner)]
        names = list(dict.fromkeys(places + plan.layers))
        check_per_layer(per_layer, [*options])
        for name, changed in per_layer.items():
            if name not in names:
                raise ValueError(f"per_layer names {name!r}; the layers are {names}")
            for option in changed:
                where = places if option in OF_ACTIVATIONS else plan.layers
                if name not in where:
                    raise ValueError(f"per_layer has the option {option!r} for {name!r}, where it "
                                     f"changes nothing; it may be for {where}")  # fmt: skip

    def of(self, *names):
        chosen = self.options
        for name in names:
            chosen = chosen | self.per_layer.get(name, {})
        for option, allowed in [
            ("weight_strategy", WEIGHT_STRATEGIES),
            ("weight_rounding", tuple(ROUNDINGS)),
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
        names = ("weight_strategy", "granularity", "bias_correction", "weight_rounding")
        return QuantizedLayer(name, layer, bits, *(chosen[name] for name in names))

    def activation(self, place):
        chosen = self.of(place.owner, place.name)
        if chosen["activation_bits"] is None:
            return None
        bits = checked_bits(chosen["activation_bits"], fewest=1 + bool(chosen["reduce_range"]))
        return QuantizedActivation(
            place.name, bits, chosen["activation_strategy"], bool(chosen["reduce_range"])
        )
