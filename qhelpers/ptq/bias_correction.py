"""Bias correction: the mean of a layer's output stays as it was before quantizing."""


def bias_correction(before, exact, after, weight):
    """Return what to add to a layer's bias, a float64 tensor of shape (channels,).

    before, after: InputMoments of what the layer took while the network computed in floats, and
        of what it takes now.
    exact, weight: its weight in floats, and as it is quantized.
    Source: Nagel et al. 2019, section 4.2.
    """
    return before.mean_output(exact) - after.mean_output(weight)
