"""Models that can't be quantized, refused with what to do instead."""

import keyword

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

WRAPPED = {"DataParallel": "module", "DistributedDataParallel": "module",
           "OptimizedModule": "_orig_mod"}  # fmt: skip


def check_model(model):
    """Raise TypeError or ValueError for what is no nn.Module on the CPU that can be traced."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {kind}; it must be an nn.Module")
    if kind in ("QuantizedModel", "QATModel"):
        raise TypeError(f"model is a {kind}; give the float model that it was made from")
    if kind in WRAPPED:
        raise TypeError(f"model is a {kind}; give the model in it, model.{WRAPPED[kind]}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{name or 'model'} is a {type(module).__name__}; give the nn.Module "
                            "that it was made from")  # fmt: skip
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"model has {name} without a shape yet; call it with a batch first")
        if tensor.device.type != "cpu":
            raise ValueError(f"model has {name} on {tensor.device}; move it to the CPU first")
    taken = dir(fx.GraphModule(nn.Module(), fx.Graph()))
    for name, _ in [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]:
        if name in taken or any(keyword.iskeyword(part) for part in name.split(".")):
            raise ValueError(f"model has a part {name!r}, a name that Python or torch.fx needs; "
                             "give it another")  # fmt: skip
