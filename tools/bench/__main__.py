"""Run all comparisons on one thread; write their table and a figure of it to build/.

Run as `make bench`, which sets OMP_NUM_THREADS=1, as NumPy reads it when it is imported. It
takes some minutes, and 2 GB of memory.
"""

import os
import statistics
import sys

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from qhelpers import load_data, silence_known_warnings
from qhelpers.files import whole_file
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
    with whole_file(BUILD / "bench.png") as part:
        draw(done).savefig(part, format="png")
    print(f"written to {BUILD / 'bench.md'} and bench.png")


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


def draw(comparisons):
    """Return a figure: for each task, how many times as fast ours is, against the size."""
    tasks = list(dict.fromkeys(comparison.task for comparison in comparisons))
    with plt.style.context("qhelpers.figures"):
        figure, axes = plt.subplots(1, len(tasks), figsize=(3.6 * len(tasks), 3.4), squeeze=False)
        for ax, task in zip(axes[0], tasks):
            of_task = [comparison for comparison in comparisons if comparison.task == task]
            rivals = dict.fromkeys(rival for one in of_task for rival in one.rivals())
            for rival, marker in zip(rivals, "os^Dv"):
                with_rival = [one for one in of_task if rival in one.times]
                sizes = [one.size for one in with_rival]
                speeds = [one.speed(rival) for one in with_rival]
                ax.plot(sizes, speeds, marker + "-", label=rival)
            ax.axhline(1, color="0.5", linestyle=":")
            ax.set(title=task, xscale="log", yscale="log", xlabel=of_task[0].unit)
            ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
            ax.legend(fontsize="small", title="compared with")
        axes[0, 0].set_ylabel("times as fast")
    return figure


if __name__ == "__main__":
    main()
