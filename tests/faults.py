"""A fault before, in the middle of and after every write and rename that some code makes."""

import contextlib
import errno
import io
import os
import signal
from unittest import mock


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_permission():
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def read_only():
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Steps:
    """Counts the moments at which a fault may come; from number `first` on, each brings it."""

    def __init__(self, first, fault):
        self.first, self.fault, self.count = first, fault, 0

    def step(self):
        self.count += 1
        if self.count > self.first:
            self.fault()

    def around(self, function):
        """Return the function with one step before it, and one after."""

        def wrapped(*arguments, **options):
            self.step()
            result = function(*arguments, **options)
            self.step()
            return result

        return wrapped


class FaultyFile:
    """An open file that takes its steps when it is written and closed."""

    def __init__(self, file, steps):
        self.file, self.steps = file, steps

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        middle = len(content) // 2
        for part in (content[:middle], content[middle:]):
            self.steps.step()
            self.file.write(part)
            self.file.flush()
        self.steps.step()
        return len(content)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def close(self):
        try:
            self.steps.step()
        finally:
            self.file.close()
        self.steps.step()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


@contextlib.contextmanager
def faults(folder, first=10**9, fault=disk_full):
    """Let writing below `folder` fail from step number `first` on; give the Steps."""
    steps = Steps(first, fault)

    def below(path):
        return isinstance(path, str | os.PathLike) and str(folder) in os.path.abspath(path)

    def opens(path, mode="r", *arguments, **options):
        if set(mode) <= set("rbt") or not below(path):
            return real_open(path, mode, *arguments, **options)
        steps.step()
        file = real_open(path, mode, *arguments, **options)
        try:
            steps.step()
        except OSError:
            file.close()  # Windows removes no open file
            raise
        return FaultyFile(file, steps)

    real_open = io.open
    with (
        mock.patch("builtins.open", opens),
        mock.patch("io.open", opens),
        mock.patch("os.replace", steps.around(os.replace)),
        mock.patch("os.mkdir", steps.around(os.mkdir)),
    ):
        yield steps
