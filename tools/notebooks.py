"""Execute the notebooks: `run` writes copies and the site, `refresh` the notebooks' outputs.

`site` writes the site of the notebooks as they are, with the outputs that they hold.
"""

import argparse
import asyncio
import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
import time

if __name__ == "__main__":  # no traceback of a Ctrl-C during the imports below, which take a second
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

from tools.files import BUILD, ROOT, replace
from tools.site import build

SITE = BUILD / "site"
EMPTY = tempfile.mkdtemp(prefix="quantization-")
atexit.register(shutil.rmtree, EMPTY, ignore_errors=True)
# In the kernels: no progress bars among the outputs, numbers that don't depend on the cores,
# figures as the course draws them, whatever the user has set for Matplotlib and IPython, and no
# sliders above them.
KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "",
    "IPYTHONDIR": EMPTY,
    "QHELPERS_STILL": "1",
}
CELL_TIMEOUT = 600  # seconds
AT_ONCE = 2  # notebooks that run at the same time, each on one thread
# The text below a figure that says what to see; the marks of numbers in it are not part of it.
FIGURE_TEXT = re.compile(r"^\*Figure: (.+?)\*$", re.MULTILINE)
MARKS = re.compile(r"<!--.*?-->|(?<!\w)_(?=[-+\d])|(?<=\d)_(?!\w)|[$`*]")


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "refresh", "site"])
    parser.add_argument("notebook", nargs="?", default="", help="how the file's name begins: 03")
    arguments = parser.parse_args()
    paths = notebooks_of(arguments.notebook)
    try:
        if arguments.command == "site":
            return write_site(paths)
        failed = report(asyncio.run(process_all(paths, arguments.command == "refresh")))
        if arguments.command == "run":
            executed = [BUILD / path.name for path in notebooks_of("")]  # some of them before
            write_site([path for path in executed if path.exists()])
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    sys.exit(failed)


def notebooks_of(begins, root=ROOT):
    """Return the paths of the notebooks whose names begin so; end the program if there is none."""
    paths = sorted((root / "notebooks").glob(f"{begins}*.ipynb"))
    if not paths:
        sys.exit(f"No notebook's name begins with {begins!r}.")
    return paths


async def process_all(paths, refresh):
    """Execute the notebooks and write them; return the rows of the table."""
    # nbclient's own handling of Ctrl-C would end one notebook and go on with the others.
    asyncio.get_running_loop().add_signal_handler = lambda *_: None
    notebooks = {path: nbformat.read(path, as_version=4) for path in paths}
    cells = sum(len(code_cells(notebook)) for notebook in notebooks.values())
    # Refreshed one at a time, so that the times in their outputs are those of a quiet machine.
    slots = asyncio.Semaphore(1 if refresh else AT_ONCE)
    with tqdm(desc="notebooks", total=cells, unit="cell") as progress:

        async def in_turn(path):
            async with slots:
                return await process(path, notebooks[path], refresh, progress)

        # The last ones first: they take longer than the first.
        async with asyncio.TaskGroup() as group:  # waits for all that Ctrl-C ends
            tasks = [group.create_task(in_turn(path)) for path in reversed(paths)]
    return [task.result() for task in reversed(tasks)]


async def process(path, notebook, refresh, progress):
    """Execute a notebook and write it; return its row of the table."""
    started = time.perf_counter()
    failure = await execute(notebook, refresh, progress)
    describe_figures(notebook)
    if not refresh:
        replace(BUILD / path.name, nbformat.writes(notebook) + "\n")
    elif failure is None:
        normalise(notebook)
        replace(path, nbformat.writes(notebook) + "\n")
    if failure is not None:
        tqdm.write(f"\n{path.name}: {failure}\n", file=sys.stderr)
    seconds = time.perf_counter() - started
    return path.name, len(code_cells(notebook)), seconds, "failed" if failure else "ok"


def report(rows):
    """Print the table; return whether a notebook failed."""
    print(f"\n{'notebook':<36}{'cells':>6}{'seconds':>9}  verdict")
    for name, cells, seconds, verdict in rows:
        print(f"{name:<36}{cells:>6}{seconds:>9.1f}  {verdict}", flush=True)
    return any(verdict != "ok" for *_, verdict in rows)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures_of(cell):
    """The outputs of a code cell that are figures."""
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def client_of(notebook, folder=ROOT / "notebooks", **options):
    """Return what executes the notebook in a kernel of its own, in this folder.

    What an earlier run left in the notebook is gone.
    """
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        coalesce_streams=True,
        shutdown_kernel="immediate",  # a kernel that Ctrl-C ends politely prints what it was doing
        extra_arguments=["--log-level=40"],  # errors: the kernel's log is not the notebook's
        resources={"metadata": {"path": str(folder)}},
        **options,
    )


async def execute(notebook, refresh, progress):
    """Execute the notebook in place; return what went wrong as text, or None."""
    cells = code_cells(notebook)
    running = {"cell": None}  # for the report

    def starts(cell, cell_index):
        running["cell"] = cell

    def ends(cell, cell_index, execute_reply):
        progress.update()

    client = client_of(notebook, on_cell_execute=starts, on_cell_executed=ends)
    environment = os.environ | KERNEL_ENVIRONMENT
    if refresh:
        environment["QHELPERS_DATASET"] = "mnist"  # the committed numbers are MNIST's
    try:
        await client.async_execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        if asyncio.current_task().cancelling():  # to nbclient, Ctrl-C is a kernel that died
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # of tasks it left
            raise asyncio.CancelledError from None
        number = cells.index(running["cell"]) + 1
        return f"code cell {number} raised.\n\n{running['cell'].source}\n\n{error}"
    return None


def describe_figures(notebook):
    """Give each figure the text below it as its alternative text, which the site takes over."""
    text = None
    for cell in reversed(notebook.cells):
        if cell.cell_type == "markdown":
            found = FIGURE_TEXT.search(cell.source)
            text = MARKS.sub("", found[1]) if found else text
            continue
        figures = figures_of(cell)
        for output in figures:
            output.metadata["image/png"] = {"alt": text} if text else {}
        text = None if figures else text


def write_site(paths):
    """Write the site of these notebooks, and say where it is."""
    try:
        build({path.stem: nbformat.read(path, as_version=4) for path in paths}, SITE)
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"The pages are at {(SITE / 'index.html').relative_to(ROOT)}.")


def normalise(notebook):
    """Drop all metadata that differs from machine to machine."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in cell.metadata if key == "tags"}


if __name__ == "__main__":
    main()
