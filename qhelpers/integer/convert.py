"""From a quantized model, of qhelpers or of torch.ao, to an integer model."""

import operator

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from qhelpers.integer.layers import Conv2d, Linear, MaxPool2d, QParams, ReLU, Reshape
from qhelpers.integer.model import IntegerModel
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.model import QuantizedModel, TracedModel
from qhelpers.ptq.rules import RELUS, TABLE, is_one_of, module_of, named
from qhelpers.ptq.trace import traced

NO_OPS = (nn.Dropout, nn.Dropout2d, nn.Identity, functional.dropout, "contiguous")
FLATTENS = (nn.Flatten, torch.flatten, "flatten")
VIEWS = ("reshape", "view", torch.reshape)
MAX_POOLS = (nn.MaxPool2d, functional.max_pool2d, torch.max_pool2d)
SHAPES = (*TABLE["shape"], operator.getitem)  # operations on shapes, not on numbers
TORCH_AO = ("torch.ao.nn.quantized.modules", "torch.ao.nn.intrinsic.quantized.modules")


def integer_model(model, arithmetic="fbgemm", products=None):
    """Return the IntegerModel that computes in integers what `model` computes.

    model: a QuantizedModel, from `quantize_model` or the `convert()` of `prepare_qat`'s, or a
        model that torch.ao's `convert` returned. It must be a chain of Linear, Conv2d, ReLU,
        MaxPool2d and reshapes, with codes of at most 8 bits at every place, and weights with
        zero point 0 and without groups. It isn't changed.
    arithmetic, products: as for IntegerModel.

    Raises ValueError, which names the layer that doesn't fit, for any other model, and
    RuntimeError if torch.fx can't trace it.
    """
    if isinstance(model, TracedModel) and not isinstance(model, QuantizedModel):
        raise ValueError("model is still in training; take its convert()")
    graph = model.graph if isinstance(model, QuantizedModel) else traced(model)
    return IntegerModel(layers_of(graph), arithmetic, products)


def layers_of(graph):
    """Yield the integer layers of a torch.fx graph."""
    qparams = None  # of what the next module takes
    waiting, relu = None, False  # a QuantizedLayer whose output has not become codes yet
    for node in chain(graph):
        module = module_of(graph, node)
        if isinstance(module, QuantizedActivation):
            new = activation_qparams(node, module)
            if waiting is not None:
                yield quantized_layer(*waiting, qparams, new, relu)
            qparams, waiting, relu = new, None, False
        elif torch_ao_kind(module) == "Quantize":
            qparams = QParams(module.scale.item(), int(module.zero_point), 255)
        elif waiting is not None and is_one_of(graph, node, RELUS):
            relu = True
        elif waiting is not None or qparams is None:
            raise ValueError(f"{named(node)} gets floats; all activations must be quantized, to at "
                             "most 8 bits (activation_bits)")  # fmt: skip
        elif isinstance(module, QuantizedLayer):
            waiting = node.target, module
        elif torch_ao_kind(module) in ("Linear", "LinearReLU", "Conv2d", "ConvReLU2d"):
            layer = torch_ao_layer(node.target, module, qparams)
            qparams = layer.after
            yield layer
        elif is_one_of(graph, node, RELUS):
            yield ReLU(node.name, qparams.zero_point)
        elif is_one_of(graph, node, (*FLATTENS, *VIEWS)):
            yield reshape(graph, node)
        elif is_one_of(graph, node, MAX_POOLS):
            yield max_pool(graph, node)
        elif not (
            is_one_of(graph, node, NO_OPS) or torch_ao_kind(module) in ("DeQuantize", "Dropout")
        ):
            raise ValueError(f"{named(node)} can't be computed in integers; the layers may be "
                             "Linear, Conv2d, ReLU, MaxPool2d and reshapes, quantized")  # fmt: skip
    if waiting is not None:
        raise ValueError(f"{waiting[0]} returns floats; all activations must be quantized, to at "
                         "most 8 bits (activation_bits)")  # fmt: skip


def chain(graph):
    """Yield the nodes between input and output, each of which takes what the one before returned.

    Raises ValueError if one takes anything else.
    """
    before, shapes = None, set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" and before is None:
            before = node
            continue
        if is_one_of(graph, node, SHAPES):
            shapes.add(node)
            continue
        if [taken for taken in node.all_input_nodes if taken not in shapes] != [before]:
            raise ValueError(f"{named(node)} must take what {named(before)} returns, and nothing "
                             "else; the model must be a chain")  # fmt: skip
        if node.op != "output":
            before = node
            yield node


def activation_qparams(node, module):
    if module.dynamic or module.top > 255:
        has = "dynamic ranges" if module.dynamic else f"{module.bits} bits"
        raise ValueError(f"{node.target} has {has}; it must be calibrated, to at most 8 bits")
    return QParams(module.scale.item(), int(module.zero_point), int(module.top))


def torch_ao_kind(module):
    """Return the class's name if a module is one of torch.ao's integer modules, else None."""
    return type(module).__name__ if type(module).__module__.startswith(TORCH_AO) else None


def quantized_layer(name, module, before, after, relu):
    """Return the integer layer for a QuantizedLayer."""
    if module.bits > 8:
        raise ValueError(f"{name} has weights of {module.bits} bits; they may have up to 8")
    if module.scale.ndim and module.scale.shape[1] > 1:
        raise ValueError(f"{name} has scales of groups; it must be per tensor or per channel")
    weight = module.codes.reshape(module.shape).numpy()
    scale = module.scale.flatten() if module.scale.ndim else module.scale
    bias = module.layer.bias
    return weighted_layer(
        name, module.layer, weight, int(module.bits), scale, bias, before, after, relu
    )


def torch_ao_layer(name, module, before):
    """Return the integer layer for a Linear or Conv2d that torch.ao's `convert` made."""
    weight = module.weight()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        scale, zeros = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
    else:
        scale, zeros = torch.tensor(weight.q_scale()), torch.tensor(weight.q_zero_point())
    if zeros.any():
        raise ValueError(f"{name} has weights with a zero point; it must be 0 (symmetric)")
    after = QParams(module.scale, int(module.zero_point), 255)
    relu = "ReLU" in type(module).__name__
    codes = weight.int_repr().numpy()
    return weighted_layer(name, module, codes, 8, scale, module.bias(), before, after, relu)


def weighted_layer(name, module, weight, bits, scale, bias, before, after, relu):
    """Return a Linear or Conv2d; `module` has the stride, padding, dilation and groups."""
    bias = np.zeros(len(weight), np.float32) if bias is None else bias.detach().numpy().copy()
    scale = scale.detach().float().numpy().copy()
    arguments = name, weight.copy(), bits, scale, bias, before, after, relu
    if weight.ndim == 2:
        return Linear(*arguments)
    if module.padding_mode != "zeros":
        raise ValueError(f"{name} has the padding mode {module.padding_mode!r}; it must be zeros")
    padding = same_padding(name, module) if module.padding == "same" else module.padding
    padding = (0, 0) if padding == "valid" else padding
    return Conv2d(*arguments, module.stride, padding, module.dilation, module.groups)


def same_padding(name, module):
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
    if any(n % 2 for n in total):
        raise ValueError(f"{name} has more padding on one side; it must be the same on both")
    return tuple(n // 2 for n in total)


def reshape(graph, node):
    """Return the Reshape for a flatten, view or reshape that keeps the images apart."""
    if is_one_of(graph, node, FLATTENS):
        if node.op == "call_module":
            module = module_of(graph, node)
            ends = module.start_dim, module.end_dim
        else:
            given = dict(zip(("start_dim", "end_dim"), node.args[1:])) | node.kwargs
            ends = given.get("start_dim", 0), given.get("end_dim", -1)
        shape = (-1,) if ends == (1, -1) else None
    else:
        lengths = node.args[1:] or (node.kwargs["shape"],)
        lengths = lengths[0] if isinstance(lengths[0], (tuple, list)) else lengths
        first, *rest = lengths
        apart = first == -1 or isinstance(first, fx.Node)
        shape = tuple(rest) if apart and all(type(n) is int for n in rest) else None
    if shape is None:
        raise ValueError(f"{named(node)} must keep the first axis and give the others fixed "
                         "lengths, as flatten(1) and reshape(-1, 784) do")  # fmt: skip
    return Reshape(node.name, shape)


def max_pool(graph, node):
    module = module_of(graph, node)
    if module is None:
        module = nn.MaxPool2d(*node.args[1:5], **node.kwargs)
    if module.ceil_mode:
        raise ValueError(f"{named(node)} has ceil_mode=True; only ceil_mode=False is supported")
    sizes = module.kernel_size, module.stride, module.padding, module.dilation
    return MaxPool2d(node.name, *(n if isinstance(n, tuple) else (n, n) for n in sizes))
