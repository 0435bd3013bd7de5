"""torch.ao's FX mode, beside which qhelpers.ptq stands: the same scheme, computed in floats."""

import copy

import torch
import torch.ao.quantization as ao
from torch import nn
from torch.ao.quantization import observer
from torch.ao.quantization.quantize_fx import convert_to_reference_fx, prepare_fx
from torch.nn import functional

ACTIVATION = observer.MinMaxObserver.with_args(dtype=torch.quint8)
PER_CHANNEL = observer.PerChannelMinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=torch.per_channel_symmetric
)
PER_TENSOR = observer.MinMaxObserver.with_args(
    dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
)
# FX quantizes these with fixed scales only.
UP_TO_ONE = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, functional.sigmoid, functional.hardsigmoid,
             torch.sigmoid, "sigmoid")  # fmt: skip
TANHS = (nn.Tanh, torch.tanh, "tanh")
# FX can't quantize these per channel.
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def scheme():
    """Return the QConfigMapping of `quantize_model` with its default options."""
    mapping = ao.QConfigMapping().set_global(ao.QConfig(ACTIVATION, PER_CHANNEL))
    fixed = [
        (UP_TO_ONE, observer.default_fixed_qparams_range_0to1_observer),
        (TANHS, observer.default_fixed_qparams_range_neg1to1_observer),
    ]
    for operations, activation in fixed:
        for operation in operations:
            mapping.set_object_type(operation, ao.QConfig(activation, PER_CHANNEL))
    for layer in TRANSPOSED:
        mapping.set_object_type(layer, ao.QConfig(ACTIVATION, PER_TENSOR))
    embedding = ao.QConfig(
        observer.PlaceholderObserver.with_args(dtype=torch.float32),
        PER_CHANNEL.with_args(dtype=torch.quint8),
    )
    for layer in (nn.Embedding, nn.EmbeddingBag):
        mapping.set_object_type(layer, embedding)
    for layer in RECURRENT:
        mapping.set_object_type(layer, None)
    return mapping


def fx_reference(model, arguments):
    """Return the reference graph, calibrated with these arguments, and what it leaves in floats.

    That is a set of names: of modules, and of the graph's nodes where they call functions.
    """
    prepared = prepare_fx(copy.deepcopy(model), scheme(), arguments)
    with torch.no_grad():
        prepared(*arguments)
    floats = {name_of(node) for node in prepared.graph.nodes if computes_in_floats(node)}
    return convert_to_reference_fx(prepared), floats


def name_of(node):
    return node.target if node.op == "call_module" else node.name


def computes_in_floats(node):
    """Whether FX has chosen no observer for what an operation returns."""
    if not node.op.startswith("call") or "target_dtype_info" not in node.meta:
        return False
    chosen = node.meta["target_dtype_info"]["output_act_obs_or_fq_ctr"]
    return chosen is None or chosen().dtype == torch.float32
