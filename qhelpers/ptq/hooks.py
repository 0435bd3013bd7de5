"""Hooks of a model's parts, and which of them a traced network doesn't run."""

from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qhelpers.ptq.layers import QuantizedLayer

# Hooks that make a weight anew at each call; `plain_copy` has applied and removed them.
REPARAMETRIZATIONS = (BasePruningMethod, WeightNorm, SpectralNorm)


def has_hooks(module):
    """Whether a module has hooks that run before or after its forward."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not isinstance(hook, REPARAMETRIZATIONS) for hook in hooks)


def lost_hooks(model, network):
    """Return the names of the modules of a model whose hooks its network doesn't run.

    Tracing goes through containers, so their hooks run once, while it does, and never again.
    """
    parts = {
        name: part.layer if isinstance(part, QuantizedLayer) else part
        for name, part in network.named_modules()
    }
    return [
        name or "the model itself"
        for name, module in model.named_modules()
        if has_hooks(module) and not (name in parts and has_hooks(parts[name]))
    ]
