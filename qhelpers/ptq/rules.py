"""What happens to the codes at each operation of a model: one table.

layer    its weights become codes, and so does what it takes and what it returns
weights  only its weights become codes
new      it computes new numbers from one tensor; what it takes and what it returns become codes
norm     the same, and a ReLU after it is fused with it; it stays in floats right behind a layer
join     the same, from several tensors, each with a scale of its own
share    it puts tensors together; those that go nowhere else share the scale of what it returns
move     it moves or chooses numbers, so codes stay codes
shape    it returns no numbers of the network, but shapes and the like

Any other operation computes in floats, and is named.
"""

import operator
import re
import textwrap

import torch
from torch import nn
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
RELUS = (nn.ReLU, functional.relu, torch.relu, torch.relu_, "relu", "relu_")
# These clip: behind a layer or a sum they are fused with it, and only their result becomes codes.
CLIPS = (*RELUS, nn.ReLU6, nn.Hardtanh, functional.relu6, functional.hardtanh, torch.clamp, "clamp")
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
             functional.max_pool1d, functional.max_pool2d, functional.max_pool3d,
             torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)  # fmt: skip
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d, functional.avg_pool1d, functional.avg_pool2d,
            functional.avg_pool3d, functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d,
            functional.adaptive_avg_pool3d, torch.mean, "mean")  # fmt: skip
ACTIVATIONS = (nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.PReLU,
               nn.Sigmoid, nn.Tanh, nn.Softmax, functional.relu6, functional.hardtanh,
               functional.hardswish, functional.hardsigmoid, functional.leaky_relu, functional.elu,
               functional.sigmoid, functional.tanh, torch.sigmoid, torch.tanh, "sigmoid", "tanh",
               torch.clamp, "clamp")  # fmt: skip
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
         functional.layer_norm, functional.group_norm, functional.instance_norm)  # fmt: skip
# Those behind a layer are folded into it; that of one axis computes in floats elsewhere.
BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, functional.dropout,
            functional.dropout1d, functional.dropout2d, functional.dropout3d)  # fmt: skip
PICKS = (operator.getitem, torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind")
RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle,
            nn.ChannelShuffle, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze,
            torch.permute, torch.transpose, torch.movedim, torch.flip, torch.roll, torch.narrow,
            torch.repeat_interleave, torch.swapaxes, functional.pixel_shuffle,
            functional.pixel_unshuffle, functional.channel_shuffle,
            "flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose",
            "movedim", "flip", "roll", "narrow", "repeat", "repeat_interleave", "expand",
            "expand_as", "contiguous", "clone", "detach", "t", "view_as", "unflatten", "swapaxes",
            "float", "to", "cpu", "type", "type_as", "requires_grad_")  # fmt: skip

TABLE = {
    "layer": LAYERS,
    "weights": (nn.Embedding, nn.EmbeddingBag),
    "new": (*AVERAGES, *ACTIVATIONS, *NORMS),
    "norm": BATCH_NORMS,
    "join": (
        operator.add,
        operator.iadd,
        operator.mul,
        operator.imul,
        torch.add,
        torch.mul,
        torch.matmul,
        operator.matmul,
        "add",
        "add_",
        "mul",
        "mul_",
        "matmul",
    ),  # fmt: skip
    "share": (torch.cat, torch.stack),
    "move": (*RELUS, *MAX_POOLS, *DROPOUTS, *PICKS, *RESHAPES),
    "shape": ("size", "dim", "numel", getattr, len),
}
COMPUTING = ("layer", "new", "norm", "join", "share")  # what they return becomes codes
RULES = {operation: rule for rule, operations in TABLE.items() for operation in operations}


def module_of(graph, node):
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def is_one_of(graph, node, kinds):
    """Whether a node is one of these modules (by class), functions, or methods (by name)."""
    if node.op == "call_module":
        return type(module_of(graph, node)) in kinds
    return node.op in ("call_function", "call_method") and node.target in kinds


def rule_of(graph, node):
    """Return the rule for a node's operation, or None: it computes in floats."""
    if node.op == "call_module":
        rule = RULES.get(type(module_of(graph, node)))
        unfolded = rule == "norm" and is_one_of(graph, node.all_input_nodes[0], LAYERS)
        return None if unfolded else rule
    if node.op in ("call_function", "call_method"):
        return RULES.get(node.target)
    return None


def named(node):
    """Return a name by which a reader finds a node in the model."""
    if node.op == "call_module":
        return node.target
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"


def described():
    """Return TABLE as text: the rules, as the text above has them, and their operations."""
    lines = []
    for rule, operations in TABLE.items():
        meaning = re.search(rf"^{rule} .*", __doc__, re.MULTILINE).group()
        names = dict.fromkeys(getattr(each, "__name__", each) for each in operations)
        listed = textwrap.fill(
            ", ".join(names), 90, initial_indent=9 * " ", subsequent_indent=9 * " "
        )
        lines += [meaning, listed]
    return "\n".join(lines)
