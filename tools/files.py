"""The folders that the tools read and write, and files that are whole at every moment."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


def replace(path, text):
    """Write `text` to `path`, which is whole at every moment.

    Raises OSError, which names the file, if it can't be written.
    """
    from qhelpers.files import whole_file  # slow to import, for PyTorch comes with it

    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
