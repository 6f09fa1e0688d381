"""Sphinx's configuration of the site in docs/; scripts/docs.sh builds it into build/docs."""

import os
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import bsjax  # noqa: E402

project = "bsjax"
author = "The bsjax authors"
project_copyright = "The bsjax authors, Apache-2.0"
version = release = bsjax.__version__

extensions = [
    "myst_nb",  # Markdown, and notebooks that are executed
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    # docs/_ext
    "docstrings",
    "notebook_files",
    "without_network",
]
exclude_patterns = ["_ext", "_static"]

# Markdown. GitHub shows the same pages, so they use few of MyST's extensions.
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# "$1.20 ... is $11" is no formula.
myst_dmath_allow_space = False
myst_dmath_allow_digits = False

# Notebooks. What they print is kept in the cache until their code changes.
nb_execution_mode = os.environ.get("BSJAX_DOCS_NOTEBOOKS", "cache")  # "off": pages without results, in seconds
nb_execution_cache_path = str(DOCS.parent / "build" / "docs_cache")
nb_execution_timeout = 600  # seconds for a cell, on a machine that is busy
nb_execution_raise_on_error = True
nb_merge_streams = True

# The API.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "py:obj"  # `name` in a docstring is a link where there is such a name, see _ext/docstrings.py
python_use_unqualified_type_names = True
nitpicky = True
toc_object_entries_show_parents = "hide"

# The looks.
html_theme = "sphinx_book_theme"
html_title = f"bsjax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = True
html_show_sourcelink = False
html_last_updated_fmt = None
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search is in the sidebar
}
# GitHub Actions says where the repository is; a build elsewhere has no links to it.
_repository = os.environ.get("GITHUB_REPOSITORY")
if _repository:
    html_theme_options |= {
        "repository_url": f"https://github.com/{_repository}",
        "path_to_docs": "docs",
        "repository_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "use_repository_button": True,
        "use_source_button": True,
        "use_issues_button": True,
    }
