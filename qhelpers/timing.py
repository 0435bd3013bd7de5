"""Timing functions in turn, so that other load on the machine slows all of them alike."""

import time

import numpy as np


def times_in_turn(functions, argument, rounds, warm_up=True):
    """Return the times, in seconds, of each function in a dict, by its name.

    argument: what each is called with. rounds: how often. warm_up: whether to call each once
        before that without measuring it.
    """
    taken = {name: [] for name in functions}
    for measured in [False] * warm_up + [True] * rounds:
        for name, function in functions.items():
            started = time.perf_counter()
            function(argument)
            if measured:
                taken[name].append(time.perf_counter() - started)
    return taken


def median_times(functions, argument, rounds):
    """Return the median of the times of each function, as `times_in_turn` takes them."""
    taken = times_in_turn(functions, argument, rounds)
    return {name: float(np.median(times)) for name, times in taken.items()}
