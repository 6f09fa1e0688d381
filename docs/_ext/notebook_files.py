"""Notebooks are Markdown files in docs/notebooks; the site offers each as an .ipynb file, which Jupyter and Colab open.

The file has no results, and its links lead to the published site or are text. Where GITHUB_REPOSITORY names the
repository, as in GitHub Actions, its first cell installs bsjax from there, and the page has a link that opens the file
in Colab. Colab opens files of a branch, so .github/workflows/docs.yaml pushes them to the branch "notebooks".
"""

import os
import pathlib
import re
from collections.abc import Iterator

import nbformat
from docutils import nodes
from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.application import Sphinx

_BRANCH = "notebooks"
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)#]+)\.md(#[^)]*)?\)")


def names(app: Sphinx) -> Iterator[str]:
    """The notebooks, without folder and suffix."""
    for path in sorted(pathlib.Path(app.srcdir, "notebooks").glob("*.md")):
        if path.stem != "index":
            yield path.stem


def as_ipynb(text: str, repository: str | None) -> nbformat.NotebookNode:
    """The notebook that a Markdown file describes.

    Args:
      text: of the file.
      repository: OWNER/NAME on GitHub, or None.
    """
    notebook = read_myst_markdown_notebook(text)
    owner, _, name = (repository or "").partition("/")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # the same at every build
        if cell.cell_type == "markdown":
            page = rf"[\1](https://{owner}.github.io/{name}/notebooks/\2.html\3)" if repository else r"\1"
            cell.source = _LINK.sub(page, cell.source)
        elif repository:
            cell.source = cell.source.replace(
                "%pip install --quiet bsjax", f"%pip install --quiet git+https://github.com/{repository}"
            )
    notebook.metadata = {"kernelspec": dict(notebook.metadata["kernelspec"])}
    return notebook


def _add_links(app: Sphinx, document: nodes.document) -> None:
    """Below the title of a notebook."""
    folder, _, name = app.env.docname.rpartition("/")
    if folder != "notebooks" or name == "index":
        return
    links = [("Download the notebook", f"{name}.ipynb")]
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        links.append(
            ("Open it in Colab", f"https://colab.research.google.com/github/{repository}/blob/{_BRANCH}/{name}.ipynb")
        )
    paragraph = nodes.paragraph()
    for number, (text, address) in enumerate(links):
        paragraph += nodes.Text(" · " if number else "")
        paragraph += nodes.reference("", text, refuri=address)
    title = next(document.findall(nodes.title))
    title.parent.insert(title.parent.index(title) + 1, paragraph)


def _write(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    target = pathlib.Path(app.outdir, "notebooks")
    for name in names(app):
        text = pathlib.Path(app.srcdir, "notebooks", f"{name}.md").read_text(encoding="utf-8")
        nbformat.write(as_ipynb(text, os.environ.get("GITHUB_REPOSITORY")), target / f"{name}.ipynb")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects it to Sphinx."""
    app.connect("doctree-read", _add_links)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
