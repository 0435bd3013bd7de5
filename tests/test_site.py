"""tools/site.py: a site whose links lead somewhere, with formulas, and without a network."""

import functools
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from math_core import LatexError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.notebooks import replace
from tools.site import pages

PATHS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
STEMS = [path.stem for path in PATHS]
NAMES = [f"{stem}.html" for stem in STEMS]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site, made of the notebooks as they are committed."""
    folder = tmp_path_factory.mktemp("site")
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in PATHS}
    for name, text in pages(notebooks).items():
        replace(folder / name, text)
    return folder


def faults(folder, name):
    """What is wrong with a page, one word for each kind."""
    text = (folder / name).read_text(encoding="utf-8")
    page = BeautifulSoup(text, "html.parser")
    found = set()
    if len(set(ids(folder / name))) < len(ids(folder / name)):
        found.add("id")
    if any(dead(folder, name, element["href"]) for element in page.select("a[href]")):
        found.add("link")
    sources = [element.get("src", "") for element in page.select("[src]")]
    sources += [element.get("href", "") for element in page.select("link")]
    if page.select("script") or any(not source.startswith("data:") for source in sources):
        found.add("source")
    styles = " ".join(element.text for element in page.select("style"))
    if re.search(r"@import|url\((?!['\"]?data:)", styles):
        found.add("style")
    if not page.select("h1") or (name != "index.html" and not page.select("math")):
        found.add("empty")
    for element in page.select("pre, code, style"):
        element.decompose()
    if re.search(r"\$|\\[a-zA-Z]", page.text):
        found.add("latex")
    return found


def dead(folder, name, address):
    """Does this link on a page lead nowhere on the site?"""
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        return False
    target = folder / (parts.path or name)
    if not target.is_file():
        return True
    return bool(parts.fragment) and unquote(parts.fragment) not in ids(target)


@functools.cache
def ids(path):
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return [element["id"] for element in page.select("[id]")]


def test_the_index_has_the_notebooks_in_order_with_title_opening_and_time(built):
    index = BeautifulSoup((built / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert [link["href"] for link in index.select("h2 a")] == NAMES
    assert [link.text[:2] for link in index.select("h2 a")] == [f"{n}." for n in range(1, 7)]
    openings = [[item.text for item in found.select("li")] for found in index.select("ul")]
    for able, need, takes in openings:
        assert able.startswith("You will be able to ") and need.startswith("You need ")
        assert takes.startswith("Running it takes ")
    assert len(re.findall(r"\d+ seconds", index.text)) == len(NAMES)


@pytest.mark.parametrize("name", ["index.html", *NAMES])
def test_pages_are_whole(built, name):
    assert faults(built, name) == set()


SPOIL = {
    "id": '<p id="here">',
    "link": '<a href="02_range.ipynb">',
    "link ": '<a href="#nowhere">',
    "link  ": '<a href="other.html#nowhere">',
    "source": '<script src="https://cdnjs.cloudflare.com/mathjax.js"></script>',
    "source ": '<img src="http://example.org/badge.svg">',
    "source  ": '<link rel="stylesheet" href="https://example.org/style.css">',
    "style": "<style>@import 'https://example.org/style.css'</style>",
    "latex": "<p>the scale $s$</p>",
    "latex ": r"<p>the scale \alpha</p>",
}
WHOLE = '<h1 id="here">A</h1><code>$s \\alpha$</code><a href="#here">B</a><math><mi>s</mi></math>'


@pytest.mark.parametrize("kind", SPOIL)
def test_each_fault_is_found(tmp_path, kind):
    replace(tmp_path / "other.html", WHOLE)
    assert faults(tmp_path, "other.html") == set()
    replace(tmp_path / "spoiled.html", WHOLE + SPOIL[kind])
    assert faults(tmp_path, "spoiled.html") == {kind.strip()}


def test_a_page_without_formulas_is_found(tmp_path):
    replace(tmp_path / "page.html", "<h1>Title</h1>")
    assert faults(tmp_path, "page.html") == {"empty"}


@pytest.mark.parametrize("path", PATHS, ids=STEMS)
def test_every_heading_is_in_the_contents_and_every_formula_on_the_page(built, path):
    page = BeautifulSoup((built / f"{path.stem}.html").read_text(encoding="utf-8"), "html.parser")
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    contents = [link["href"] for link in page.select(".contents li a")]
    assert len(contents) == len(re.findall(r"^##+ ", text, flags=re.M)) > 10
    assert len(page.select("main p math, main table math, main li math, main h2 math")) == len(
        re.findall(r"\$\$.*?\$\$|\$[^$]+\$", text, flags=re.S)
    )
    at = STEMS.index(path.stem)
    ways = [link["href"] for link in page.select(".contents .ways a")]
    assert ways == NAMES[max(at - 1, 0) : at] + ["index.html"] + NAMES[at + 1 : at + 2]


MARKDOWN = """# A title

[![a badge](https://example.org/badge.svg)](https://example.org)

See [two](2.ipynb#The-end), [three](3.ipynb) and [all](../README.md).

## Twice

## Twice

<details>
<summary>Answer</summary>

```python
price = "$5"
```

</details>
"""


@pytest.fixture
def small():
    """A page of what the notebooks may hold."""
    picture = new_output(
        "display_data", {"image/png": "AAAA"}, metadata={"image/png": {"alt": 'dots & "lines"'}}
    )
    cells = [new_markdown_cell(MARKDOWN), new_code_cell("price = '$5$'", outputs=[picture])]
    notebook = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    return BeautifulSoup(pages({"1": notebook, "2": notebook})["1.html"], "html.parser")


def test_links_lead_to_pages_and_where_there_is_none_are_text(small):
    assert [link["href"] for link in small.select("main p a")] == [
        "https://example.org", "2.html#The-end", "index.html"
    ]  # fmt: skip
    assert small.select("main p a")[0].text == "a badge"
    assert "three" in small.text


def test_headings_of_the_same_name_have_ids_of_their_own(small):
    assert len({heading["id"] for heading in small.select("h2")}) == 2


def test_code_keeps_its_dollars_and_colours_also_in_details(small):
    folded, cell = small.select("main .highlight")
    assert folded.find_parent("details") and folded.select(".s2")[0].text == '"$5"'
    assert cell.select(".s1")[0].text == "'$5$'"


def test_a_picture_has_the_description_from_its_metadata(small):
    assert [image["alt"] for image in small.select("img")] == ['dots & "lines"']


@pytest.mark.parametrize("latex", [r"\nosuch x", r"\frac{1}"])
def test_a_formula_that_cannot_be_read_stops_the_build(latex):
    with pytest.raises(LatexError):
        pages({"1": new_notebook(cells=[new_markdown_cell(f"# A\n\n${latex}$")])})


# Appended to a page: how many of its formulas have no size, and how many files it asked for.
PROBE = """<script>
addEventListener("load", () => {
  const sizes = [...document.querySelectorAll("math")].map(m => m.getBoundingClientRect());
  const flat = sizes.filter(box => !(box.width && box.height)).length;
  const files = performance.getEntriesByType("resource").filter(f => !f.name.startsWith("data:"));
  document.body.dataset.probe = `${flat} ${files.length}`;
});
</script>"""


def shown(page, folder):
    """Open a page without a network: formulas without a size, files, and lines on the console."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={folder / 'profile'}", page.as_uri()],
        capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    flat, files = re.search(r'data-probe="(\d+) (\d+)"', done.stdout).groups()
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return int(flat), int(files), console


needs_browser = pytest.mark.skipif(not BROWSER, reason="there is no Chromium or Chrome here")


@needs_browser
@pytest.mark.parametrize("name", ["index.html", *NAMES])
def test_a_browser_shows_every_formula_and_reports_nothing(built, tmp_path, name):
    page = tmp_path / name
    replace(page, (built / name).read_text(encoding="utf-8") + PROBE)
    assert shown(page, tmp_path) == (0, 0, [])


@needs_browser
def test_what_a_browser_reports_is_found(tmp_path):
    page = tmp_path / "page.html"
    elsewhere = '<body><math></math><script src="https://example.org/mathjax.js"></script>'
    replace(page, elsewhere + "<script>MathJax.start()</script>" + PROBE)
    flat, files, console = shown(page, tmp_path)
    assert (flat, files) == (1, 1) and "MathJax is not defined" in console[0]
