"""Sphinx's settings for the site; __init__.py makes the pages that it is built from."""

from tools.badges import place
from tools.files import ROOT

repository, branch = place(ROOT)

project = "Quantization from scratch"
author = ""
extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design", "sphinx-mathjax-offline"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
nb_execution_mode = "off"

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""  # the download is called 01_math_basics.ipynb
html_context = {"default_mode": "auto"}  # light or dark as the reader's system
html_show_copyright = False
html_show_search_summary = False  # needs a server, and the pages are read from files, too
html_theme_options = {
    "navbar_persistent": [],
    "repository_url": f"https://github.com/{repository}",
    "repository_branch": branch,
    "path_to_docs": "notebooks",
    "use_repository_button": True,
    "launch_buttons": {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    },
}
