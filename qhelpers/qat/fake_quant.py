"""Fake quantization, which rounds in the forward pass only, and scales that are learned with it."""

import math

import torch
from torch import nn


class StraightThrough(torch.autograd.Function):
    """x rounded to codes and back, with the gradients of the straight-through estimator.

    The gradient of x is computed as if nothing had been rounded, and is 0 where the code was
    clipped, as in torch. The gradient of the scale is that of LSQ: code - zero_point - x / scale
    where x / scale lies between quant_min - zero_point and quant_max - zero_point, and
    code - zero_point beyond.
    Source: Bengio et al. 2013 (for a threshold); Esser et al. 2020, equation 3.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, quant_min, quant_max):
        exact = x * (1 / scale)
        codes = torch.round(exact).add_(zero_point)
        steps = codes.clamp(quant_min, quant_max)
        inside = steps == codes
        steps.sub_(zero_point)
        ctx.save_for_backward(exact if ctx.needs_input_grad[1] else None, scale, inside, steps)
        ctx.ends = quant_min - zero_point, quant_max - zero_point
        return steps * scale

    @staticmethod
    def backward(ctx, gradient):
        exact, scale, inside, steps = ctx.saved_tensors
        to_scale = None
        if ctx.needs_input_grad[1]:
            first, last = ctx.ends
            within = (exact > first) & (exact < last)
            to_scale = (gradient * (steps - exact * within)).sum_to_size(scale.shape)
        return torch.where(inside, gradient, 0), to_scale, None, None, None


def fake_quantize(x, scale, zero_point, quant_min, quant_max, axis=0):
    """Return x quantized and dequantized, as torch.fake_quantize_per_tensor_affine computes it.

    x: float tensor.
    scale, zero_point: tensors of shape (), or (channels,) along the axis `axis`, as for
        torch.fake_quantize_per_channel_affine.
    quant_min, quant_max: the first and the last code, integers.
    """
    if scale.ndim:
        shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return StraightThrough.apply(x, scale, zero_point, quant_min, quant_max)


class FakeQuantize(nn.Module):
    """Fake-quantizes with the scale and zero point that its observer finds.

    observer: one of qhelpers' observers, or None where scale and zero_point are given and fixed.
    observing: whether the observer watches. It does so in training mode only; torch.ao's
        watches in evaluation, too.
    quantizing: whether x is quantized or returned as it is.

    Raises RuntimeError if it has to quantize before it has seen data.
    Source: Jacob et al. 2018, section 3.
    """

    def __init__(
        self, observer=None, *, scale=None, zero_point=None, quant_min=None, quant_max=None
    ):
        super().__init__()
        self.observer, self.observing, self.quantizing = observer, observer is not None, True
        self.quant_min = quant_min if observer is None else observer.quant_min
        self.quant_max = quant_max if observer is None else observer.quant_max
        self.register_buffer("scale", torch.tensor(math.nan) if scale is None else scale)
        self.register_buffer("zero_point", torch.tensor(0) if zero_point is None else zero_point)
        if observer is not None:  # saved with the model, so that training can be resumed
            seen = observer.low is not None
            for name, end in [("low", observer.low), ("high", observer.high)]:
                self.register_buffer(name, end if seen else torch.full_like(self.scale, math.nan))

    def forward(self, x):
        if not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel()):
            return x  # a mask, indices, or an empty batch
        if self.observing and self.training:
            if not self.low.isnan().any():
                self.observer.low, self.observer.high = self.low.float(), self.high.float()
            self.observer(x)
            self.low, self.high = self.observer.low, self.observer.high
            self.scale, self.zero_point = self.observer.calculate_qparams()
        if not self.quantizing:
            return x
        scale = self.step(x)
        if scale.isnan().any():
            raise RuntimeError("FakeQuantize has seen no data; call it in training mode first (or "
                               "training diverged)")  # fmt: skip
        return fake_quantize(x, scale, self.zero_point, self.quant_min, self.quant_max)

    def step(self, x):
        """Return the scale to quantize x with."""
        return self.scale

    def extra_repr(self):
        return f"codes {self.quant_min} to {self.quant_max}"


class LearnedStepSize(FakeQuantize):
    """Fake-quantizes with a scale that is trained like a weight: LSQ. The zero point isn't.

    scale: where to start, shape () or (channels,). Its logarithm is what is trained, so that
        it stays positive; the paper trains the scale itself.

    The first axis of its input is that of a weight's channels or of a batch's images. The
    gradient of the scale is divided by sqrt(n * quant_max), where n is how many numbers one
    channel or one image has. Source: Esser et al. 2020, sections 2.1 and 2.2.
    """

    def __init__(self, scale, zero_point, quant_min, quant_max):
        super().__init__(
            scale=scale, zero_point=zero_point, quant_min=quant_min, quant_max=quant_max
        )
        del self.scale
        self.log_scale = nn.Parameter(scale.log())

    def step(self, x):
        scale = self.log_scale.exp()
        slow = scale / math.sqrt(math.prod(x.shape[1:]) * self.quant_max)
        return scale.detach() + (slow - slow.detach())  # scale, with the gradient of slow
