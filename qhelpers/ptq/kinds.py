"""What each node of a graph returns: numbers that codes can hold, or something else."""

import contextlib

import torch
from torch import fx

from qhelpers.ptq.rules import named


class Kinds(fx.Interpreter):
    """Runs a graph, and notes what each node returns, in `found`."""

    def __init__(self, graph):
        super().__init__(graph)
        self.found, self.now = {}, None

    def run_node(self, node):
        self.now = node
        value = super().run_node(node)
        self.found[node.name] = kind_of(value)
        return value


def kinds_of(graph, arguments):
    """Return what each node of a graph returns for these arguments, by its name.

    The number of axes for a float tensor; "several" for several values with one among them;
    "only floats" for numbers that codes can't hold: complex or sparse ones, and those with minus
    infinity, or -1e9 in its place, such as attention has for what is masked; "no floats" for all
    else, such as indices and sizes.
    """
    kinds = Kinds(graph)
    try:
        with torch.no_grad(), unchanged_buffers(graph):
            kinds.run(*arguments)
    except Exception as error:  # whatever an operation raises for what it can't compute
        raise RuntimeError(
            f"{named(kinds.now)} can't compute what the first of calibration_batches gives it: "
            f"{str(error).partition('While executing')[0].strip()}"
        ) from error
    return kinds.found


@contextlib.contextmanager
def unchanged_buffers(model):
    """Give a model's buffers the values back that they had, whatever its forward does to them."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def kind_of(value):
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.layout is not torch.strided or is_mask(value):
            return "only floats"
        return value.ndim if value.is_floating_point() else "no floats"
    values = value.values() if isinstance(value, dict) else value
    if isinstance(values, (tuple, list)) and any(kind_of(v) != "no floats" for v in values):
        return "several"
    return "no floats"


def is_mask(value):
    """Whether a tensor has numbers so far below all others that they stand for minus infinity."""
    if not value.is_floating_point() or not value.numel():
        return False
    low, high = value.aminmax()
    return bool(low <= -1e4 and high < -1e-3 * low)
