"""The course as a site that needs no network: Sphinx builds it from notebooks with outputs."""

import base64
import copy
import posixpath
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from tools.badges import place
from tools.files import ROOT

ABOUT = """\
A course in Jupyter notebooks that teaches how a neural network's 32-bit floats become 8-bit
integers: first the mathematics, by hand, then a whole network, and in the end a language model. It
is for you if you know Python and a little PyTorch. It runs on a laptop's CPU, on real data.
"""
LAST_OF_THE_CORE = "04"
BADGE = re.compile(r"^\[!\[.*\n?", re.MULTILINE)
LINK = re.compile(r"\]\(([\w./-]+\.(?:ipynb|md))\)")
ROW = re.compile(r"\| .*\(notebooks/(\w+)\.ipynb\).*\|(.*)\|(.*)\|")  # of README's table


def build(notebooks, folder):
    """Write the site of these notebooks, a dict by stem in order, whole or not at all.

    Raises RuntimeError if README's table lacks one of them, and with what Sphinx says if it
    warns of anything.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".site-") as temporary:
        sources, pages, old = (Path(temporary) / name for name in ("sources", "pages", "old"))
        sources.mkdir()
        for stem, notebook in notebooks.items():
            nbformat.write(page(notebook, notebooks), sources / f"{stem}.ipynb")
            if picture := picture_of(notebook):
                png = base64.b64decode(picture.data["image/png"])
                (sources / f"{stem}.png").write_bytes(png)
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        (sources / "index.md").write_text(index(notebooks, readme), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going",
             "-c", Path(__file__).parent, "-d", Path(temporary) / "doctrees", sources, pages],
            cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"Sphinx can't build the site:\n{done.stderr}")
        if folder.exists():
            folder.rename(old)
        pages.rename(folder)


def page(notebook, stems):
    """Return the notebook without badges, with its figures' texts and links as Sphinx takes them.

    The theme's launch buttons do what the badges do, whose pictures need a network.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    repository, branch = place(ROOT)

    def link(found):
        """A link to what isn't on the site leads to GitHub."""
        if found[1].removesuffix(".ipynb") in stems:
            return found[0]
        path = posixpath.normpath(f"notebooks/{found[1]}")
        return f"](https://github.com/{repository}/blob/{branch}/{path})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(link, BADGE.sub("", cell.source))
        for output in cell.get("outputs", []):
            if alt := alt_of(output):
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return notebook


def alt_of(output):
    return output.get("metadata", {}).get("image/png", {}).get("alt", "")


def picture_of(notebook):
    """Return the first figure among the notebook's outputs, or None."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return next((output for output in outputs if "image/png" in output.get("data", {})), None)


def index(notebooks, readme):
    """Return the site's first page. What one learns, and the time, are those of README's table."""
    rows = {stem: texts for stem, *texts in ROW.findall(readme)}
    if missing := [stem for stem in notebooks if stem not in rows]:
        raise RuntimeError(f"README's table of notebooks has no row for {', '.join(missing)}.")
    text = f"# Quantization from scratch\n\n{ABOUT}"
    core = [stem for stem in notebooks if stem[:2] <= LAST_OF_THE_CORE]
    beyond = [stem for stem in notebooks if stem not in core]
    for caption, stems in (("The core", core), ("Beyond", beyond)):
        if stems:
            listed = "\n".join(stems)
            cards = "\n".join(card(stem, notebooks[stem], *rows[stem]) for stem in stems)
            text += f"\n## {caption}\n\n:::::{{grid}} 1 1 2 2\n:gutter: 3\n\n{cards}\n:::::\n"
            text += f"\n:::{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n:::\n"
    return text


def card(stem, notebook, learn, time):
    title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
    picture = picture_of(notebook)
    image = f":img-top: {stem}.png\n:img-alt: {alt_of(picture)}\n" if picture else ""
    return (
        f"::::{{grid-item-card}} {title}\n:link: {stem}\n:link-type: doc\n{image}\n"
        f"{learn.strip()}\n\n:::{{card-footer}}\nIt runs in {time.strip()}.\n:::\n::::"
    )
