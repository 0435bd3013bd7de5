"""Which numbers share a scale: all of them, those of a channel, or those of a group."""

import itertools
import math

from qhelpers.checks import checked_integer

BLOCK = 2**15  # values worked on at a time: few enough to stay in the processor's cache


def share_scales(params, axis, group_size):
    """Return a 3-d view of `params` in which a scale belongs to an index of the middle axis,
    and the shape that the scales have for the caller."""
    shape = params.shape
    if axis is not None and group_size is not None:
        raise ValueError(f"axis is {axis!r} and group_size is {group_size!r}; give one of them")
    if axis is not None and not shape:
        raise ValueError(f"axis is {axis!r}; params is a single number and has no axis")
    if axis is not None:
        axis = checked_integer("axis", axis, -params.ndim, params.ndim - 1) % params.ndim
        scale_shape = tuple(n if i == axis else 1 for i, n in enumerate(shape))
        return params.reshape(math.prod(shape[:axis]), shape[axis], -1), scale_shape
    if group_size is not None:
        length = shape[-1] if shape else 1
        if length % checked_integer("group_size", group_size, 1, length):
            raise ValueError(
                f"group_size is {group_size}; it must divide the length of the last axis, {length}"
            )
        return params.reshape(1, -1, group_size), (*shape[:-1], length // group_size)
    return params.reshape(1, 1, -1), ()


def align_with_scale(params_q, scale):
    """Return a 3-d view of the codes, as `share_scales` does, and the scale's shape for it."""
    shape, many = params_q.shape, [i for i, n in enumerate(scale.shape) if n > 1]
    if not many:
        return params_q.reshape(1, 1, -1), (1, 1, 1)
    if scale.ndim == params_q.ndim:
        if len(many) == 1 and scale.size == shape[many[0]]:
            return share_scales(params_q, many[0], None)[0], (1, -1, 1)
        if scale.shape[:-1] == shape[:-1] and shape[-1] % scale.shape[-1] == 0:
            return params_q.reshape(1, scale.size, -1), (1, -1, 1)
    raise ValueError(
        f"scale has the shape {scale.shape}; for codes of shape {shape} it must be one number, "
        "one for each index of an axis, or one for each group of the last axis"
    )


def blocks(shape, room=BLOCK):
    """Yield the slices that cut an array of this shape into blocks of at most `room` values."""
    sizes = []
    for length in reversed(shape):
        sizes.insert(0, max(1, min(length, room)))
        room //= max(1, length)
    cuts = [
        [slice(start, start + size) for start in range(0, length, size)]
        for length, size in zip(shape, sizes)
    ]
    return itertools.product(*cuts)
