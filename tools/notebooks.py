"""Execute the notebooks: `run` writes them to build/, `refresh` writes their outputs in place."""

import argparse
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

from tools.site import pages

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
# In the kernels: no progress bars among the outputs, and numbers that don't depend on the cores.
KERNEL_ENVIRONMENT = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
CELL_TIMEOUT = 600  # seconds
AT_ONCE = 2  # notebooks that run at the same time, each on one thread
# The text below a figure that says what to see; the marks of numbers in it are not part of it.
FIGURE_TEXT = re.compile(r"^\*Figure: (.+?)\*$", re.MULTILINE)
MARKS = re.compile(r"<!--.*?-->|(?<!\w)_(?=[-+\d])|(?<=\d)_(?!\w)|[$`*]")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "refresh"])
    parser.add_argument("notebook", nargs="?", default="", help="how the file's name begins: 03")
    arguments = parser.parse_args()
    paths = notebooks_of(arguments.notebook)
    if arguments.command == "refresh":  # one at a time: the times in their outputs stay
        rows = [process(path, refresh=True) for path in paths]
    else:
        with ProcessPoolExecutor(min(AT_ONCE, os.cpu_count())) as pool:
            done = pool.map(process, paths)
            rows = list(tqdm(done, desc="notebooks", total=len(paths), unit="notebook"))
        write_site()
    print(f"\n{'notebook':<36}{'cells':>6}{'seconds':>9}  verdict")
    for name, cells, seconds, verdict in rows:
        print(f"{name:<36}{cells:>6}{seconds:>9.1f}  {verdict}")
    if any(verdict != "ok" for *_, verdict in rows):
        sys.exit(1)


def notebooks_of(begins, root=ROOT):
    """Return the paths of the notebooks whose names begin so; end the program if there is none."""
    paths = sorted((root / "notebooks").glob(f"{begins}*.ipynb"))
    if not paths:
        sys.exit(f"No notebook's name begins with {begins!r}.")
    return paths


def process(path, refresh=False):
    """Execute a notebook and write it; return its row of the table."""
    started = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    failure = execute(notebook, path.name, refresh)
    describe_figures(notebook)
    if not refresh:
        replace(BUILD / path.name, nbformat.writes(notebook) + "\n")
    elif failure is None:
        normalise(notebook)
        replace(path, nbformat.writes(notebook) + "\n")
    if failure is not None:
        print(f"\n{path.name}: {failure}\n", file=sys.stderr)
    seconds = time.perf_counter() - started
    return path.name, len(code_cells(notebook)), seconds, "failed" if failure else "ok"


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
        extra_arguments=["--log-level=40"],  # errors: the kernel's log is not the notebook's
        resources={"metadata": {"path": str(folder)}},
        **options,
    )


def execute(notebook, name, refresh):
    """Execute the notebook in place; return what went wrong as text, or None."""
    cells = code_cells(notebook)
    running = {"cell": None}  # for the report

    def starts(cell, cell_index):
        running["cell"] = cell

    # Notebooks that run at the same time would draw their bars over each other.
    with tqdm(total=len(cells), desc=name, unit="cell", disable=not refresh) as progress:

        def ends(cell, cell_index, execute_reply):
            progress.update()

        client = client_of(notebook, on_cell_execute=starts, on_cell_executed=ends)
        environment = os.environ | KERNEL_ENVIRONMENT
        if refresh:
            environment["QHELPERS_DATASET"] = "mnist"  # the committed numbers are MNIST's
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            number = cells.index(running["cell"]) + 1
            return f"code cell {number} raised.\n\n{running['cell'].source}\n\n{error}"
    return None


def describe_figures(notebook):
    """Give each figure the text below it as its alternative text, where nbconvert looks for it."""
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


def write_site():
    """Write pages of all notebooks in build/, also of those that were executed before."""
    executed = [BUILD / path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in executed if path.exists()}
    for name, text in pages(notebooks).items():
        replace(BUILD / name, text)


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


def replace(path, text):
    """Write `text` to `path`, which is whole at every moment.

    Raises OSError, which names the file, where it can't be written.
    """
    from qhelpers.files import whole_file  # slow to import, for PyTorch comes with it

    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
