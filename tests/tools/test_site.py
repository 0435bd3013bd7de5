"""tools/site: what it makes of small notebooks, and the whole site in a real browser."""

import re
import shutil
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.files import ROOT
from tools.site import build, index, page

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPENING = """# {title}

[![Colab](https://example.org/badge.svg)](https://example.org)
[![Binder](https://example.org/badge.svg)](https://example.org)

See [two](02_b.ipynb), [seven](07_c.ipynb) and [all](../README.md).
"""
README = "\n".join(
    f"| [{stem}](notebooks/{stem}.ipynb) | [![](x.svg)](x) | learn {stem} | {seconds} s |"
    for stem, seconds in (("01_a", 10), ("02_b", 20), ("05_e", 50))
)


def small(title):
    """A notebook with what the real ones have."""
    picture = new_output(
        "display_data", {"image/png": "AAAA"}, metadata={"image/png": {"alt": 'dots & "lines"'}}
    )
    opening = new_markdown_cell(OPENING.format(title=title))
    return new_notebook(cells=[opening, new_code_cell("draw()", outputs=[picture])])


SMALL = {"01_a": small("1. First"), "02_b": small("2. Second"), "05_e": small("5. Fifth")}


def test_the_index_tells_core_and_beyond_apart_in_order():
    text = index(SMALL, README)
    core, beyond = text.split("## Beyond")
    assert re.findall("item-card} (.*)", core) == ["1. First", "2. Second"]
    assert re.findall("item-card} (.*)", beyond) == ["5. Fifth"]
    assert re.findall(r"^learn \w+$|\d+ s", text, re.MULTILINE) == [
        "learn 01_a", "10 s", "learn 02_b", "20 s", "learn 05_e", "50 s"
    ]  # fmt: skip


def test_a_notebook_that_readme_does_not_list_is_named():
    with pytest.raises(RuntimeError, match="no row for 05_e"):
        index(SMALL, README.rpartition("\n")[0])


def test_a_page_has_texts_of_its_figures_no_badges_and_links_that_lead_somewhere():
    opening, drawing = page(SMALL["01_a"], SMALL).cells
    assert drawing.metadata.mystnb == {"image": {"alt": 'dots & "lines"'}}
    assert "badge" not in opening.source
    github = "https://github.com/jevliu/quantization-from-scratch/blob/main/"
    assert re.findall(r"\]\((.*?)\)", opening.source) == [
        "02_b.ipynb", f"{github}notebooks/07_c.ipynb", f"{github}README.md"
    ]  # fmt: skip
    assert SMALL["01_a"] == small("1. First") | {"cells": SMALL["01_a"].cells}  # left as it was


@pytest.mark.slow
def test_what_sphinx_warns_of_stops_the_build_and_the_old_site_stays(tmp_path):
    old = tmp_path / "site" / "index.html"
    old.parent.mkdir()
    old.write_text("old")
    broken = new_notebook(cells=[new_markdown_cell("# 1. First\n\n[nowhere](02_nowhere.md#)")])
    with pytest.raises(RuntimeError, match="02_nowhere"):
        build({"01_math_basics": broken}, tmp_path / "site")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["old"]


def dead_links(folder):
    """The links and pictures on the pages that lead to no file or no place in it."""
    pages = {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in folder.glob("*.html")
    }
    for path, soup in pages.items():
        for element in soup.select("[href], [src]"):
            address = element.get("href", element.get("src"))
            parts = urlsplit(address)
            target = folder / unquote(parts.path) if parts.path else path
            if parts.scheme in ("http", "https", "data"):
                continue
            name = unquote(parts.fragment)
            if not target.is_file() or (name and not pages[target].find(id=name)):
                yield path.name, address


# Where the text of a page ends, in pixels; tables scroll by themselves.
RIGHTMOST = """Math.max(...[...document.querySelectorAll("main p, main h1, main h2, main img")]
  .filter(e => !e.closest("table")).map(e => e.getBoundingClientRect().right))"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here")
def test_a_browser_shows_the_site_without_a_network(tmp_path):
    from playwright.sync_api import sync_playwright

    build({path.stem: nbformat.read(path, as_version=4) for path in PATHS}, tmp_path / "site")
    assert list(dead_links(tmp_path / "site")) == []
    errors, asked = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 844})  # a phone's
        tab.set_default_timeout(600_000)  # ms; a busy machine is slow
        tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))

        def show(name):
            tab.goto((tmp_path / "site" / name).as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name
            assert tab.evaluate(RIGHTMOST) <= 390, name

        show("index.html")
        for path in PATHS:
            show(f"{path.stem}.html")
            tab.wait_for_function("MathJax.startup.promise.then(() => true)")
            formulas = tab.locator("span.math, div.math").count()
            assert tab.locator("mjx-container").count() >= formulas > 0
            assert tab.locator("mjx-merror").count() == 0
            figures = tab.locator(".cell_output img")
            texts = [image.get_attribute("alt") for image in figures.all()]
            assert texts and not any(text.endswith(".png") for text in texts)  # Sphinx's own
        show("search.html")
        tab.fill("#search-input, input[name=q] >> visible=true", "zero point")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#search-results li a[href*='01_math_basics']")
        browser.close()
    assert errors == []
    assert [address for address in asked if not re.match("file:|data:|blob:", address)] == []
