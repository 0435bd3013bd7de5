"""Windows of images: where they lie, and how many numbers they may hold."""

import math

import numpy as np

MOST_NUMBERS = 2**23  # that a convolution or a pooling layer may compute for one image


def windows(layer, codes, size, fill):
    """Return a view of the patches of images, padded with `fill`: (n, channels, h, w, *size).

    Raises ValueError if there is no patch, or if the patches would take too much memory.
    """
    check_images(layer, codes)
    ceil_mode = getattr(layer, "ceil_mode", False)
    geometry = layer.stride, layer.padding, layer.dilation
    span = [(n - 1) * d + 1 for n, d in zip(size, layer.dilation)]
    places = [
        count_places(layer, length, over, step, pad, ceil_mode)
        for length, over, step, pad in zip(codes.shape[2:], span, layer.stride, layer.padding)
    ]
    # With ceil_mode the last window may reach beyond the padding.
    ends = [(n - 1) * step + over for n, step, over in zip(places, layer.stride, span)]
    after = [max(pad, end - n - pad) for n, pad, end in zip(codes.shape[2:], layer.padding, ends)]
    lengths = [n + pad + more for n, pad, more in zip(codes.shape[2:], layer.padding, after)]
    check_numbers(layer, codes.shape[1] * max(math.prod(places) * math.prod(size),
                                              math.prod(lengths)))  # fmt: skip
    (i, j), (down, right), (k, m) = geometry
    around = (0, 0), (0, 0), (down, after[0]), (right, after[1])
    codes = np.pad(codes, around, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(codes, span, axis=(2, 3))
    return view[:, :, ::i, ::j, ::k, ::m]


def count_places(layer, length, span, step, pad, ceil_mode=False):
    """Return how many windows lie along an axis; ValueError if there is none.

    With ceil_mode the last may lie partly outside, if it begins in the image or before it.
    """
    free = length + 2 * pad - span
    places = (-(-free // step) if ceil_mode else free // step) + 1
    if ceil_mode and (places - 1) * step >= length + pad:
        places -= 1
    if places < 1 or free < 0 and not ceil_mode:
        raise ValueError(f"layer {layer.name!r} gets images {length} long, {length + 2 * pad} with "
                         f"padding, which are smaller than its window, {span}")  # fmt: skip
    return places


def check_images(layer, codes):
    if codes.ndim != 4:
        raise ValueError(f"layer {layer.name!r} gets codes of shape {codes.shape}; they must have "
                         "4 axes")  # fmt: skip


def check_numbers(layer, count):
    if count > MOST_NUMBERS:
        raise ValueError(f"layer {layer.name!r} computes {count:,} numbers for each image; "
                         f"{MOST_NUMBERS:,} are allowed")  # fmt: skip


def check_pairs(layer, *names):
    """Raise ValueError if one of these fields of a layer isn't a pair of sizes."""
    for name in names:
        pair, least = getattr(layer, name), 0 if name == "padding" else 1
        if len(pair) != 2 or not all(type(n) is int and n >= least for n in pair):
            raise ValueError(f"layer {layer.name!r}: {name} is {pair!r}; it must be a pair of "
                             f"integers, at least {least}")  # fmt: skip
