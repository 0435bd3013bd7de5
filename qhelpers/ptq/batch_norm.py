"""BatchNorm is folded into the layer before it."""

import copy
from collections import Counter

import torch
from torch import nn

from qhelpers.ptq.hooks import has_hooks
from qhelpers.ptq.layers import swapped_if_transposed
from qhelpers.ptq.rules import is_one_of, module_of

# The BatchNorm that may follow a layer, and how many axes its input has with a batch.
BATCH_NORMS = {
    nn.Linear: (nn.BatchNorm1d, 2),
    nn.Conv1d: (nn.BatchNorm1d, 3), nn.ConvTranspose1d: (nn.BatchNorm1d, 3),
    nn.Conv2d: (nn.BatchNorm2d, 4), nn.ConvTranspose2d: (nn.BatchNorm2d, 4),
    nn.Conv3d: (nn.BatchNorm3d, 5), nn.ConvTranspose3d: (nn.BatchNorm3d, 5),
}  # fmt: skip


def fold_batch_norms(graph, kinds):
    """Fold each BatchNorm into the layer before it; return the names of its nodes.

    A pair is folded only if both are called once, nothing else takes the layer's output, no hook
    is between them, and BatchNorm is over the layer's output channels, by its running statistics.
    kinds: what the nodes return, as Kinds finds it, or the names that were folded before.
    """
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    folded = []
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not node.args:
            continue
        before, norm = node.args[0], module_of(graph, node)
        if not is_one_of(graph, before, tuple(BATCH_NORMS)):
            continue
        layer = module_of(graph, before)
        norm_class, axes = BATCH_NORMS[type(layer)]
        channels = len(swapped_if_transposed(layer, layer.weight))
        known = kinds.get(before.name, axes if type(layer) is not nn.Linear else None)
        if (
            type(norm) is norm_class
            and norm.running_mean is not None
            and norm.num_features == channels
            and known == axes
            and len(before.users) == 1
            and calls[before.target] == calls[node.target] == 1
            and not (layer._forward_hooks or has_hooks(norm))
        ):
            graph.set_submodule(before.target, fused(layer, norm))
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
            folded.append(node.name)
    return folded


@torch.no_grad()
def fused(layer, norm):
    """Return the layer with BatchNorm folded in; its bias is trained if BatchNorm was.

    Source: torch.nn.utils.fusion, which doesn't take groups of transposed convolutions.
    """
    mean, factor = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
    gain = 1 if norm.weight is None else norm.weight
    bias = (0 if layer.bias is None else layer.bias) - mean
    bias = bias * factor * gain + (0 if norm.bias is None else norm.bias)
    rows = swapped_if_transposed(layer, layer.weight)
    rows = rows * (gain * factor).reshape(-1, *[1] * (rows.ndim - 1))
    trained = norm.bias if norm.bias is not None else layer.weight
    new = copy.deepcopy(layer)
    new.weight = nn.Parameter(swapped_if_transposed(layer, rows), layer.weight.requires_grad)
    new.bias = nn.Parameter(bias, trained.requires_grad)
    return new
