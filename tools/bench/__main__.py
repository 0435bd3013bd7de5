"""Run all comparisons on one thread; write their table to build/bench.md.

Run as `make bench`, which sets OMP_NUM_THREADS=1, as NumPy reads it when it is imported. It
takes some minutes, and 2 GB of memory.
"""

import os
import statistics
import sys

from qhelpers import load_data, silence_known_warnings
from tools.bench import engines, kernels, loops, searches
from tools.bench.comparison import OURS
from tools.notebooks import BUILD, replace

HEADER = (
    "| task | size | ours, ms | fastest to slowest | compared with | ms | fastest to slowest "
    "| speed-up | goal | MB besides input and output |\n"
    "| --- | --: | --: | --- | --- | --: | --- | --: | --: | --: |\n"
)


def main():
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("Set OMP_NUM_THREADS=1, as `make bench` does: all is timed on one thread.")
    silence_known_warnings()
    data = load_data()
    if data.name != "mnist":
        sys.exit("The plain loops need MNIST.")
    done = []
    for comparisons in (
        loops.comparisons(data),
        kernels.comparisons(),
        searches.comparisons(),
        engines.comparisons(data),
    ):
        for comparison in comparisons:
            print("".join(rows(comparison)), end="", flush=True)
            done.append(comparison)
    replace(BUILD / "bench.md", HEADER + "".join(map("".join, map(rows, done))))
    print(f"written to {BUILD / 'bench.md'}")


def rows(comparison):
    """Yield the lines of the table, one for each rival."""
    for rival in comparison.rivals():
        goal = comparison.goals.get(rival)
        verdict = "reached" if comparison.reached(rival) else "missed"
        cells = [
            comparison.task,
            f"{comparison.size:,} {comparison.unit}",
            *milliseconds(comparison.times[OURS]),
            rival,
            *milliseconds(comparison.times[rival]),
            f"{comparison.speed(rival):.3g}",
            "" if goal is None else f"{goal:.2g}: {verdict}",
            "" if comparison.peak is None else f"{comparison.peak / 1e6:.1f}",
        ]
        yield f"| {' | '.join(cells)} |\n"


def milliseconds(times):
    median, low, high = (1e3 * f(times) for f in (statistics.median, min, max))
    return f"{median:.4g}", f"{low:.4g} to {high:.4g}"


if __name__ == "__main__":
    main()
