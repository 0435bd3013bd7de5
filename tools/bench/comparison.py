"""One comparison: the times of our code and of its rivals, for one task and one size."""

import statistics
import tracemalloc
from dataclasses import dataclass, field

OURS = "ours"


@dataclass
class Comparison:
    """Times of functions that took turns.

    task: what was timed. size, unit: on how many of what, such as 1000 images.
    times: the seconds of each round, by the function's name; OURS is one of them.
    goals: how many times as fast as a rival ours should be, by the rival's name.
    peak: the most bytes that ours took at a time, besides its input and its output, or None.
    """

    task: str
    size: int
    unit: str
    times: dict
    goals: dict = field(default_factory=dict)
    peak: int | None = None

    def rivals(self):
        return [name for name in self.times if name != OURS]

    def speed(self, rival):
        """How many times as fast as a rival ours is, by the medians."""
        return statistics.median(self.times[rival]) / statistics.median(self.times[OURS])

    def reached(self, rival):
        return self.speed(rival) >= self.goals.get(rival, 0)


def peak_of(function, argument, output_bytes):
    """Return the most bytes that a function takes at a time, besides its input and its output."""
    tracemalloc.start()
    try:
        function(argument)
        return max(0, tracemalloc.get_traced_memory()[1] - output_bytes)
    finally:
        tracemalloc.stop()
