"""Functions that compute with a weight of the model, such as F.linear, become layers."""

import operator

import torch
from torch import fx, nn
from torch.nn import functional

from qhelpers.ptq.rules import TRANSPOSED

FUNCTIONS = {
    functional.linear: (nn.Linear, ()),
    functional.conv1d: (nn.Conv1d, ("stride", "padding", "dilation", "groups")),
    functional.conv2d: (nn.Conv2d, ("stride", "padding", "dilation", "groups")),
    functional.conv3d: (nn.Conv3d, ("stride", "padding", "dilation", "groups")),
    functional.conv_transpose1d: (
        nn.ConvTranspose1d, ("stride", "padding", "output_padding", "groups", "dilation")),
    functional.conv_transpose2d: (
        nn.ConvTranspose2d, ("stride", "padding", "output_padding", "groups", "dilation")),
    functional.conv_transpose3d: (
        nn.ConvTranspose3d, ("stride", "padding", "output_padding", "groups", "dilation")),
}  # fmt: skip
WEIGHT_AXES = {
    nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5, nn.ConvTranspose1d: 3,
    nn.ConvTranspose2d: 4, nn.ConvTranspose3d: 5,
}  # fmt: skip
PRODUCTS = (operator.matmul, torch.matmul, torch.mm, "matmul", "mm")  # by a transposed weight


def make_layers(graph):
    """Put a layer in the place of each function that computes with a weight of the model.

    This takes in subclasses of torch's layers, which are traced down to the function.
    """
    read = graph.graph.find_nodes(op="get_attr")
    tensors = {node: tensor_of(graph, node.target) for node in read}
    made = {}
    for node in list(graph.graph.nodes):
        if node.target in PRODUCTS:
            layer_class, names = nn.Linear, ()
            given = dict(zip(("input", "weight"), (*node.args, *node.kwargs.values())))
        elif node.op == "call_function" and node.target in FUNCTIONS:
            layer_class, names = FUNCTIONS[node.target]
            given = dict(zip(("input", "weight", "bias", *names), node.args)) | node.kwargs
        else:
            continue
        read, flipped = untransposed(given.get("weight"))
        flipped ^= node.target in PRODUCTS
        weight, bias = tensors.get(read), tensors.get(given.get("bias"))
        options = {name: given[name] for name in names if name in given}
        computed = []
        fx.node.map_arg(options, computed.append)
        if weight is None or (bias is None and given.get("bias") is not None) or computed:
            continue
        if weight.ndim != WEIGHT_AXES[layer_class] or not isinstance(given["input"], fx.Node):
            continue
        if flipped and layer_class is not nn.Linear:
            continue
        if flipped:
            weight = nn.Parameter(weight.detach().t(), weight.requires_grad)
        key = str((read, given.get("bias"), options, flipped))
        if key not in made:  # else another call of the same layer
            made[key] = layer_name(graph, read.target, node)
            graph.add_submodule(made[key], layer_of(layer_class, weight, bias, options))
        with graph.graph.inserting_before(node):
            new = graph.graph.call_module(made[key], (given["input"],))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
        if given["weight"] is not read and not given["weight"].users:
            graph.graph.erase_node(given["weight"])
    take_out(graph, tensors)


def untransposed(node):
    """Return the node whose matrix a node transposes, and True; or the node itself, and False."""
    if not isinstance(node, fx.Node):
        return node, False
    by_method = node.op == "call_method" and node.target == "t"
    if by_method or (node.target is getattr and node.args[1] == "T"):
        return node.args[0], True
    return node, False


def take_out(graph, tensors):
    """Let the graph itself own the tensors that it reads, for their modules may be replaced.

    tensors: by the nodes that read them.
    """
    names = {}
    for node, tensor in tensors.items():
        for user in list(node.users):
            if user.target is getattr and not hasattr(getattr(tensor, user.args[1]), "data_ptr"):
                value = getattr(tensor, user.args[1])  # its dtype, device or shape
                for each in list(user.users):
                    each.args, each.kwargs = fx.node.map_arg(
                        (each.args, each.kwargs), lambda n, u=user, v=value: v if n is u else n
                    )
                graph.graph.erase_node(user)
        if not node.users:
            graph.graph.erase_node(node)
        elif "." in node.target:
            if id(tensor) not in names:
                names[id(tensor)] = name = unused_name(graph, node.target.replace(".", "_"))
                is_parameter = isinstance(tensor, nn.Parameter)
                (graph.register_parameter if is_parameter else graph.register_buffer)(name, tensor)
            node.target = names[id(tensor)]
    still_read = {node.target for node in graph.graph.find_nodes(op="get_attr")}
    for name in {node.target for node in tensors} - still_read:
        if "." not in name:
            delattr(graph, name)


def layer_name(graph, weight, node):
    """Return the name of the layer that is made of a function: its weight's owner's, if free."""
    owner, _, _ = weight.rpartition(".")
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    if owner and owner not in called and not list(graph.get_submodule(owner).children()):
        return owner
    return unused_name(graph, node.name)


def tensor_of(graph, name):
    """Return the parameter or buffer of this name."""
    value = graph
    for part in name.split("."):
        value = getattr(value, part)
    return value


def unused_name(graph, name):
    """Return a name for a submodule that nothing has: `name`, or `name` with a number."""
    new, count = name, 0
    while hasattr(graph, new):
        count += 1
        new = f"{name}_{count}"
    return new


def layer_of(layer_class, weight, bias, options):
    """Return a layer with this weight and bias, which are the model's own."""
    if layer_class is nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        groups = options.get("groups", 1)
        inputs, outputs = weight.shape[1] * groups, weight.shape[0]
        if layer_class in TRANSPOSED:
            inputs, outputs = outputs, inputs
        layer = layer_class(
            inputs, outputs, weight.shape[2:], bias=bias is not None, device="meta", **options
        )
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, False)
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, False)
    return layer.eval()
