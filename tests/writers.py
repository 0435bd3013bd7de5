"""All that writes files in this project: one small call each, which can write two versions."""

import functools
import shutil
from pathlib import Path
from unittest import mock

import torch

from qhelpers import VerySimpleNet, build_model, data, experiments, integer_model, quantize_model
from qhelpers.integer.file import save_integer_model
from qhelpers.training import save_checkpoint
from tests.mirror import NAMES
from tools.badges import changed_files
from tools.notebooks import replace

ROOT = Path(__file__).parent.parent


@functools.cache
def model(version):
    return build_model(lambda: VerySimpleNet(4, 4), version).eval()


@functools.cache
def integers(version):
    images = torch.linspace(-1, 2, 4 * 784).reshape(4, 1, 28, 28)
    return integer_model(quantize_model(model(version), [images], 3))


def write_checkpoint(folder, version):
    save_checkpoint(folder / "model.pt", "the key", model(version), [0.5, 0.25])


def write_integer_model(folder, version):
    save_integer_model(integers(version), folder / "model.npz")


def write_table(folder, version):
    tables = {"made-up": (("row", "version"), lambda _: [(row, version) for row in range(3)])}
    with (
        mock.patch.object(experiments, "load_data", lambda: None),
        mock.patch.dict(experiments.TABLES, tables),
    ):
        experiments.write_tables(folder, ["made-up"])


def write_page(folder, version):
    replace(folder / "page.html", f"version {version}\n" * 1000)


def write_badges(folder, version):
    if not (folder / "README.md").exists():
        (folder / "notebooks").mkdir()
        for name in ("README.md", "pyproject.toml", "notebooks/01_math_basics.ipynb"):
            shutil.copy(ROOT / name, folder / name)
    list(changed_files(folder, f"some-one/version{version}", "main"))


def download(folder, version):
    """Version 0 is a damaged file, which version 1 replaces."""
    path = folder / f"{NAMES[0]}.gz"
    path.write_bytes(b"damaged") if version == 0 else data.download(path)


def unpack(folder, version):
    """From a file that was downloaded before; the versions are as above."""
    path = folder / NAMES[0]
    packed = folder.with_name(folder.name + "-packed") / f"{NAMES[0]}.gz"
    data.download(packed)
    path.write_bytes(b"damaged") if version == 0 else data.unpack(packed, path)


WRITERS = {
    "a checkpoint": write_checkpoint,
    "an integer model": write_integer_model,
    "a table": write_table,
    "a notebook or page": write_page,
    "badges": write_badges,
    "a download": download,
    "unpacking": unpack,
}


def contents(folder):
    """The bytes of all files below the folder, by their paths in it; parts are left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".part"
    }


def parts(folder):
    return sorted(folder.rglob("*.part"))
