"""BatchNorm is folded into the layer before it."""

from collections import Counter

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qhelpers.ptq.rules import TRANSPOSED, is_one_of, module_of

# The BatchNorm that may follow a layer, and how many axes its input has with a batch.
BATCH_NORMS = {
    nn.Linear: (nn.BatchNorm1d, 2),
    nn.Conv1d: (nn.BatchNorm1d, 3), nn.ConvTranspose1d: (nn.BatchNorm1d, 3),
    nn.Conv2d: (nn.BatchNorm2d, 4), nn.ConvTranspose2d: (nn.BatchNorm2d, 4),
    nn.Conv3d: (nn.BatchNorm3d, 5), nn.ConvTranspose3d: (nn.BatchNorm3d, 5),
}  # fmt: skip


def fold_batch_norms(graph, kinds):
    """Fold each BatchNorm into the layer before it; return the names of its nodes.

    A pair is folded only if both are called once, nothing else takes the layer's output, and
    BatchNorm is over the layer's output channels, by its running statistics.
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
        channels = getattr(layer, "out_features", None) or layer.out_channels
        known = kinds.get(before.name, axes if type(layer) is not nn.Linear else None)
        if (
            type(norm) is norm_class
            and norm.running_mean is not None
            and norm.num_features == channels
            and known == axes
            and len(before.users) == 1
            and calls[before.target] == calls[node.target] == 1
        ):
            graph.set_submodule(before.target, fused(layer, norm))
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
            folded.append(node.name)
    return folded


def fused(layer, norm):
    """Return the layer with BatchNorm folded in; its bias is trained if BatchNorm was."""
    if isinstance(layer, nn.Linear):
        new = fuse_linear_bn_eval(layer, norm)
    else:
        new = fuse_conv_bn_eval(layer, norm, isinstance(layer, TRANSPOSED))
    trained = norm.bias if norm.bias is not None else layer.weight
    new.bias.requires_grad_(trained.requires_grad)
    return new
