"""Calibration: what a batch holds, and showing all batches to the modules that observe."""

import copy
import inspect
import itertools

import torch
from torch import fx
from tqdm import tqdm

from qhelpers.ptq.kinds import unchanged_buffers
from qhelpers.ptq.layers import QuantizedActivation, QuantizedLayer
from qhelpers.ptq.rules import module_of

SECONDS = 5  # without a progress bar


def read(model, batches):
    """Return an iterator over the arguments in each batch, and the arguments in the first."""
    if isinstance(batches, (torch.Tensor, dict)):
        raise TypeError(f"calibration_batches is a {type(batches).__name__}; if it is one batch, "
                        "put it in a list")  # fmt: skip
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(f"calibration_batches is a {type(batches).__name__}; it must be a list or "
                        "another iterable of batches")  # fmt: skip
    signature = inspect.signature(model.forward)
    arguments = (arguments_of(batch, signature) for batch in batches)
    first = next(arguments, None)
    return itertools.chain([] if first is None else [first], arguments), first


UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def arguments_of(batch, signature):
    """Return what a batch calls the model with, as inspect.BoundArguments.

    What is in a tuple behind the arguments that the model needs is left out, as are labels. A
    dict with none of the arguments' names is one argument.
    """
    parameters = [p for p in signature.parameters.values() if p.kind not in UNNAMED]
    needed = [p for p in parameters if p.default is p.empty]
    if isinstance(batch, dict) and any(p.name in batch for p in parameters):
        args, kwargs = (), {p.name: batch[p.name] for p in parameters if p.name in batch}
    elif isinstance(batch, (tuple, list)):
        args, kwargs = tuple(batch)[: max(1, len(needed))], {}
    else:
        args, kwargs = (batch,), {}
    for value in (*args, *kwargs.values()):
        if not isinstance(value, (torch.Tensor, tuple, list, dict, int, float, type(None))):
            raise TypeError(
                f"calibration_batches holds {type(value).__name__}; it must hold tensors"
            )
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"calibration_batches doesn't fit the model's arguments: {error}") from None


def check_constants(arguments, recipe):
    """Raise ValueError if an argument isn't what it was when the model was traced.

    arguments: inspect.BoundArguments. recipe: of a QuantizedModel; its "constants" are part of
        the graph, as are the defaults of arguments that were not "given".
    """
    arguments.apply_defaults()
    for name, value in arguments.arguments.items():
        parameter = arguments.signature.parameters[name]
        if parameter.kind in UNNAMED:
            continue
        fixed = name in recipe["constants"] or name not in recipe["given"]
        was = recipe["constants"].get(name, parameter.default)
        if fixed and was is not parameter.empty and not same(value, was):
            raise ValueError(f"{name} is {kind_or_value(value)}, but was {was!r} when the model "
                             "was quantized; quantize another one for it")  # fmt: skip


def same(value, other):
    return value is other or (not isinstance(value, torch.Tensor) and value == other)


def kind_or_value(value):
    return "a tensor" if isinstance(value, torch.Tensor) else repr(value)


def as_new(value, dtype):
    """Return a tensor as a new one, floats as this type, so that nothing changes the caller's."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()


def in_order(arguments, dtype=torch.float32):
    """Return bound arguments, with defaults for those left out, in the order of the signature."""
    arguments.apply_defaults()
    parameters = arguments.signature.parameters
    values = [v for n, v in arguments.arguments.items() if parameters[n].kind not in UNNAMED]
    return [fx.node.map_aggregate(value, lambda each: as_new(each, dtype)) for value in values]


@torch.no_grad()
def calibrate(quantized, batches, layer_after_layer, float_target=True):
    """Let the modules observe the batches, then settle their codes, so that they quantize.

    layer_after_layer: each module observes the batches again, once all before it quantize.
    float_target: let layers whose rounding is chosen observe what they take in floats, too.
    What takes long shows a progress bar.
    """
    modules = quantizing_modules(quantized.graph)
    watching = [module for module in modules if module.watches]
    batches = list(batches) if layer_after_layer else batches
    beside = layer_after_layer and float_target and any(module.rounds for module in modules)
    in_floats = copy.deepcopy(quantized) if beside else quantized
    if watching and not show(batches, watching, quantized):
        raise ValueError("calibration_batches is empty; it must hold at least one batch")
    pairs = list(zip(modules, quantizing_modules(in_floats.graph)))
    for module, same in progress(pairs, "Quantizing"):
        if beside and module.rounds:
            show_beside(in_floats, same, batches, module, quantized)
        elif layer_after_layer and module.watches:
            show(batches, [module], quantized)
        module.settle()


def quantizing_modules(graph):
    """Return the quantized layers and activations, in the order in which they compute."""
    modules = [module_of(graph, node) for node in graph.graph.nodes]
    kinds = (QuantizedLayer, QuantizedActivation)
    return list(dict.fromkeys(module for module in modules if isinstance(module, kinds)))


def show_beside(in_floats, same, batches, layer, quantized):
    """Run the model while a layer observes what it takes now, and what `same` takes in floats.

    in_floats: a copy of the model that computes in floats; same: its layer in that place.
    """

    def keep(_, args, kwargs):
        layer.float_inputs.append((*args, *kwargs.values())[0].clone())

    hook = same.register_forward_pre_hook(keep, with_kwargs=True)
    with unchanged_buffers(in_floats):
        show(batches, [layer], quantized, before=in_floats)
    hook.remove()


def show(batches, modules, quantized, before=None):
    """Run the model on the batches while these modules observe; return how many batches it was.

    before: another model that is run on each batch first.
    """
    for module in modules:
        module.observe()
    count = 0
    with unchanged_buffers(quantized):
        for batch in progress(batches, "Calibrating"):
            try:
                if before is not None:
                    before(*batch.args, **batch.kwargs)
                quantized(*batch.args, **batch.kwargs)
            except (RuntimeError, TypeError, IndexError) as error:
                if not count:  # the model computed the first before
                    raise
                raise RuntimeError(
                    f"batch {count + 1} of calibration_batches can't be computed: {error}"
                ) from error
            count += 1
    for module in modules:
        module.observing = False
    return count


def progress(each, name):
    """Return an iterator that shows a progress bar if it takes more than SECONDS."""
    return tqdm(each, name, delay=SECONDS, leave=False)
