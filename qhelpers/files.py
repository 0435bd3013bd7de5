"""Where the project's files are kept, and how they are written: whole or not at all."""

import contextlib
import glob
import os
import secrets
import time
from pathlib import Path

ABANDONED = 3600  # seconds since the last byte: whoever wrote this part was killed


def project_folder():
    """Return the nearest folder, from the working directory up, that holds this project,
    or the working directory where none does."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        project = folder / "pyproject.toml"
        if project.is_file() and 'name = "qhelpers"' in project.read_text(encoding="utf-8"):
            return folder
    return here


@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path to write to; rename it to `path` once the block has finished.

    If writing fails, `path` is left as it was. A system error, such as a full disk, is raised
    again with the file's name.
    """
    # A name of its own, so that two processes can write the same file at the same time.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:  # not the system's, but that of a download
            raise
        reason = f"could not write the file ({error.strerror})"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # there is none, or the folder is read-only
            part.unlink()
    remove_abandoned_parts(path)


def remove_abandoned_parts(path):
    """Remove what killed processes left of `path`; parts still being written are younger."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):  # another process removed it, or finished it
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
