"""The graph of a model: tracing it, folding BatchNorm, and inserting quantized modules."""

from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qhelpers.ptq.layers import QuantizedLayer

LAYERS = (nn.Linear, nn.Conv2d)
BATCH_NORMS = {nn.Linear: (nn.BatchNorm1d, fuse_linear_bn_eval),
               nn.Conv2d: (nn.BatchNorm2d, fuse_conv_bn_eval)}  # fmt: skip
RELUS = (nn.ReLU, functional.relu, torch.relu, torch.relu_, "relu", "relu_")
# These cut numbers off, and make a new one: the end, such as 6.
CLIPS = (nn.ReLU6, nn.Hardtanh, functional.relu6, functional.hardtanh, torch.clamp, "clamp")
# These make no new numbers, so codes stay codes.
KEEP_CODES = RELUS + (
    (nn.MaxPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity)
    + (functional.max_pool2d, torch.max_pool2d, torch.flatten, functional.dropout)
    + ("flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous")
)
# These make new numbers, which are quantized again.
AVERAGE = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, functional.avg_pool2d,
           functional.adaptive_avg_pool2d)  # fmt: skip
NO_NUMBERS = ("size", "dim", getattr)  # these return shapes, which reshape needs


def traced(model):
    """Return the torch.fx.GraphModule of a model; raise RuntimeError if tracing fails."""
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # whatever the model's own code raises when it is traced
        raise RuntimeError(f"torch.fx can't trace {type(model).__name__}: {error}") from error


def module_of(graph, node):
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def is_one_of(graph, node, kinds):
    """Whether a node is one of these modules (by class), functions, or methods (by name)."""
    if node.op == "call_module":
        return type(module_of(graph, node)) in kinds
    return node.op in ("call_function", "call_method") and node.target in kinds


def fold_batch_norms(graph):
    """Fold each BatchNorm into the layer before it.

    A pair is folded only if both are called once and nothing else takes the layer's output.
    """
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node in list(graph.graph.nodes):
        for layer_class, (norm_class, fuse) in BATCH_NORMS.items():
            if not is_one_of(graph, node, (norm_class,)):
                continue
            before = node.args[0]
            alone = len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
            if is_one_of(graph, before, (layer_class,)) and alone:
                layer, norm = module_of(graph, before), module_of(graph, node)
                graph.set_submodule(before.target, fuse(layer, norm))
                node.replace_all_uses_with(before)
                graph.graph.erase_node(node)


class Inserter:
    """Walks through a graph, and inserts quantized layers and activations.

    in_codes: the nodes whose output is quantized. kept_in_float: the nodes that can't be.
    """

    def __init__(self, graph, choices):
        self.graph, self.choices = graph, choices
        self.in_codes, self.kept_in_float = set(), []

    def insert(self):
        for node in list(self.graph.graph.nodes):
            if node.op == "placeholder":
                self.quantize_after(node, "input")
            elif is_one_of(self.graph, node, (*LAYERS, QuantizedLayer)):
                self.quantize_layer(node)
            elif node in self.in_codes:  # fused with the layer before it
                continue
            elif is_one_of(self.graph, node, (*AVERAGE, *CLIPS)):
                name = node.target if node.op == "call_module" else node.name
                self.quantize_after(node, name)
            elif is_one_of(self.graph, node, KEEP_CODES):
                if node.args[0] in self.in_codes:
                    self.in_codes.add(node)
            elif node.op not in ("output", "get_attr") and node.target not in NO_NUMBERS:
                self.kept_in_float.append(node)

    def quantize_layer(self, node):
        """Quantize a layer, its input, and its output, or that of the ReLU or clip after it."""
        again = is_one_of(self.graph, node, (QuantizedLayer,))  # a layer that is called twice
        name = node.name if again else node.target
        if node.args[0] not in self.in_codes:
            self.quantize_after(node.args[0], "before_" + name)
        if not again:
            layer = self.choices.layer(name, module_of(self.graph, node))
            self.graph.set_submodule(node.target, layer)
        last = node
        while len(users := list(last.users)) == 1 and is_one_of(
            self.graph, users[0], (*RELUS, *CLIPS)
        ):
            self.in_codes.add(last)
            last = users[0]
        self.quantize_after(last, name)

    def quantize_after(self, node, name):
        """Quantize the output of a node."""
        activation = self.choices.activation(name)
        self.in_codes.add(node)
        if activation is None:  # left in floats on purpose
            return
        target = "quantize_" + name.replace(".", "_")
        self.graph.add_submodule(target, activation)
        with self.graph.graph.inserting_after(node):
            new = self.graph.graph.call_module(target, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.in_codes.add(new)


def named(node):
    """Return a name by which a reader finds a node in the model."""
    if node.op == "call_module":
        return node.target
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
