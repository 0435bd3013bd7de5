"""Whether each notebook works alone, as on Colab: one file in an empty folder, no course installed.

Run as `python -m tools.colab`, or with how a name begins: `python -m tools.colab 03`. Each
notebook gets an environment of its own: links to the packages of the running Python, except the
course and what it can do without. What is run and installed is the last commit: git takes a
clone of it for the address in the set-up cell. pip needs an index, for setuptools.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

from qhelpers.optional_packages import LANGUAGE_MODEL, REFERENCES
from tools.badges import place
from tools.notebooks import KERNEL_ENVIRONMENT, ROOT, client_of, code_cells, notebooks_of

# And what begins so: onnx_ir, which comes with onnx.
HIDDEN = ("qhelpers", LANGUAGE_MODEL, *REFERENCES)
LIST = "import importlib.metadata as m\nfor p in m.distributions(): print(p.name, p.version)"


def main():
    begins = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as folder:
        course = clone(Path(folder) / "course")
        paths = notebooks_of(begins, course)
        print(f"{'notebook':<36}{'cells':>6}{'seconds':>9}  verdict  packages changed; added")
        failures = [try_alone(path, course, Path(folder) / path.stem) for path in paths]
    if any(failures):
        sys.exit("\n" + "\n".join(filter(None, failures)))


def clone(folder):
    """Clone the last commit; its branch gets the name that the set-up cells ask for."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    subprocess.run(["git", "checkout", "--quiet", "-B", place(ROOT)[1]], cwd=folder, check=True)
    return folder


def try_alone(path, course, folder):
    """Run one notebook and print its line of the table; return what went wrong, or None."""
    environment = kernel_environment(course)
    python = make_environment(folder / "environment")
    before = installed(python, environment)
    started = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    failure = run(notebook, folder / "empty", environment)
    seconds = time.perf_counter() - started
    after = installed(python, environment)
    added = {name for name, _ in after} - {name for name, _ in before}
    changed = {name for name, _ in before ^ after} - added
    if failure is None and (changed or "qhelpers" not in added):
        failure = "a package changed, or the course was not installed"
    packages = "; ".join(" ".join(sorted(names)) or "none" for names in (changed, added))
    print(f"{path.name:<36}{len(code_cells(notebook)):>6}{seconds:>9.1f}  "
          f"{'failed' if failure else 'ok':<7}  {packages}", flush=True)  # fmt: skip
    return failure and f"{path.name}: {failure}"


def make_environment(folder):
    """Make an environment without HIDDEN, and a kernel "python3" of it; return its Python."""
    venv.create(folder)  # pip is among the links
    (folder / "links").mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for package in Path(site).iterdir():
            if not package.name.startswith(HIDDEN):
                (folder / "links" / package.name).symlink_to(package)
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    (Path(paths["purelib"]) / "links.pth").write_text(str(folder / "links"))
    python = Path(paths["scripts"]) / "python"
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = folder / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": command, "display_name": "", "language": "python"}))
    os.environ["JUPYTER_PATH"] = str(folder)
    return python


def kernel_environment(course):
    """The kernel's environment: git finds the clone at the address, Python finds no checkout."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {"QHELPERS_DATA": str(ROOT / "data")} | inherited | KERNEL_ENVIRONMENT | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{course.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{place(ROOT)[0]}",
    }  # fmt: skip


def installed(python, environment):
    """The names and versions of all packages that this Python finds."""
    command = [python, "-P", "-c", LIST]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {tuple(line.split()) for line in done.stdout.splitlines()}


def run(notebook, folder, environment):
    """Run the notebook, and the command of pip that it names; return what went wrong, or None."""
    folder.mkdir()
    if re.search(r"\brequire_\w+\(\)", nbformat.writes(notebook)):
        stopped = failure_of(notebook, folder, environment)
        command = re.search(r"in a cell: (%pip install [^)]*)\)", str(stopped))
        ran = [cell for cell in code_cells(notebook) if cell.execution_count]
        if command is None or len(ran) != 2:
            return f"did not stop in its second cell with a command of pip: {stopped}"
        failure_of(new_notebook(cells=[new_code_cell(command[1])]), folder, environment)
    return failure_of(notebook, folder, environment)


def failure_of(notebook, folder, environment):
    """Execute the notebook in a new kernel; return the exception that ended it, or None."""
    try:
        client_of(notebook, folder).execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return error


if __name__ == "__main__":
    main()
