"""Puts MathJax into the site, so that formulas, too, need no network; links to folders become text."""

import importlib.metadata
import pathlib
import shutil

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# It draws formulas as SVG, and needs neither fonts nor other files beside it.
_SCRIPT = "tex-svg.js"


def _copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    scripts = [file for file in files if file.name == _SCRIPT]
    if not scripts:
        raise ExtensionError(f"sphinx-mathjax-offline has no {_SCRIPT}; setup.cfg says which version is meant")
    target = pathlib.Path(app.outdir, "_static", "mathjax")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(str(scripts[0].locate()), target / _SCRIPT)


def _unlink_folders(app: Sphinx, document: nodes.document) -> None:
    """GitHub shows a folder of the repository; the site has no page for it."""
    here = pathlib.Path(app.srcdir, app.env.docname).parent
    for link in list(document.findall(addnodes.pending_xref)):
        if link["reftype"] == "myst" and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects it to Sphinx."""
    app.config.mathjax_path = f"mathjax/{_SCRIPT}"
    app.connect("doctree-read", _unlink_folders)
    app.connect("build-finished", _copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
