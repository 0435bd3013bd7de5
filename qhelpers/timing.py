"""Median times of functions that take turns, so that what else the machine does hits all alike."""

import time

import numpy as np


def median_times(functions, argument, rounds):
    """Return the median time, in seconds, of each function in a dict, by its name.

    argument: what each is called with. rounds: how often; a call before them isn't measured.
    """
    taken = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function(argument)
            if number:
                taken[name].append(time.perf_counter() - started)
    return {name: float(np.median(times)) for name, times in taken.items()}
