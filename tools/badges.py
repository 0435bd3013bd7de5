"""Write the repository's address and branch into every badge, set-up cell and link.

They stand in pyproject.toml, [project.urls]; `--repo` and `--branch` change them there first.
"""

import argparse
import re
import sys
from urllib.parse import quote

import nbformat

from tools.files import ROOT, replace

# Every form in which the files hold the address. The first is pyproject's, which rules.
FORMS = (
    '"https://github.com/{repo}/tree/{branch}"',
    "https://colab.research.google.com/github/{repo}/blob/{branch}/notebooks/",
    "https://mybinder.org/v2/gh/{repo}/{branch}?urlpath=",
    "git-pull?repo=https://github.com/{repo}&branch={branch}&",
    "git+https://github.com/{repo}@{branch}",
    "https://github.com/{repo}/actions/workflows/ci.yml/badge.svg?branch={branch}",
    "https://github.com/{repo}/actions/workflows/ci.yml)",
    "git clone https://github.com/{repo}.git",
    "[as a site](https://{owner}.github.io/{name}/)",
)
REPO = r"[\w.-]+/[\w.-]+"
BRANCH = r"[\w./%-]+"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", help="owner/name on GitHub; by default pyproject's")
    parser.add_argument("--branch", help="by default pyproject's")
    arguments = parser.parse_args()
    repo, branch = place(ROOT)
    repo, branch = arguments.repo or repo, arguments.branch or branch
    for name, value, pattern in (("REPO", repo, REPO), ("BRANCH", branch, BRANCH)):
        if not re.fullmatch(pattern, value) or value.endswith(".git"):
            sys.exit(f"{name} is {value!r}; REPO looks like owner/name, BRANCH like main.")
    for path in changed_files(ROOT, repo, branch):
        print(f"rewrote {path.relative_to(ROOT)}")


def place(root):
    """Return the repository and the branch that pyproject.toml names."""
    found = pattern(FORMS[0]).search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if found is None:
        sys.exit(f"pyproject.toml holds no address of the form {FORMS[0]}.")
    return found["repo"], found["branch"]


def pattern(form):
    """Return the regular expression that finds this form with any repository and branch."""
    parts = {"repo": f"(?P<repo>{REPO}?)", "branch": f"(?P<branch>{BRANCH})",
             "owner": r"[\w-]+", "name": r"[\w.-]+"}  # fmt: skip
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda found: parts[found[1]], re.escape(form)))


def written(form, repo, branch):
    """Return the form with this repository and branch."""
    in_address = quote(branch, safe="") if "mybinder.org" in form else branch
    owner, name = repo.split("/")
    return form.format(repo=repo, branch=in_address, owner=owner, name=name)


def rewritten(text, repo, branch):
    """Return the text with every form of an address leading to this repository and branch."""
    for form in FORMS:
        new = written(form, repo, branch)
        text = pattern(form).sub(lambda _, new=new: new, text)
    return text


def changed_files(root, repo, branch):
    """Rewrite the files that name the repository; yield the paths of those that changed."""
    for path in (root / "pyproject.toml", root / "README.md"):
        old = path.read_text(encoding="utf-8")
        new = rewritten(old, repo, branch)
        if new != old:
            replace(path, new)
            yield path
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        old = [cell.source for cell in notebook.cells]
        for cell in notebook.cells:
            cell.source = rewritten(cell.source, repo, branch)
        if [cell.source for cell in notebook.cells] != old:
            replace(path, nbformat.writes(notebook) + "\n")
            yield path


if __name__ == "__main__":
    main()
