"""The site: what it takes from the code is complete. scripts/docs.sh builds it, and runs its notebooks."""

import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(set(DOCS.glob("notebooks/*.md")) - {DOCS / "notebooks/index.md"})


@pytest.fixture
def extension(monkeypatch):
    """A function that imports one of the site's extensions, which need the extra `docs`."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    needs = {"docstrings": "sphinx", "notebook_files": "myst_nb"}
    return lambda name: pytest.importorskip(needs[name]) and importlib.import_module(name)


def test_the_api_has_every_module():
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.glob("bsjax/**/*.py")
    }
    documented = re.findall(r"automodule:: (\S+)", "".join(path.read_text() for path in DOCS.glob("api/*.md")))
    assert sorted(documented) == sorted({name.removesuffix(".__init__") for name in modules} - {"bsjax.analysis"})


def test_drawings_are_those_of_their_script(run_python, tmp_path):
    program = tmp_path / "draw.py"
    program.write_text(
        f"import pathlib, sys\nsys.path.insert(0, {str(DOCS)!r})\nimport drawings\n"
        f"drawings.STATIC = pathlib.Path({str(tmp_path)!r})\ndrawings.main()\n"
    )
    result = run_python("-W", "error", program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("_static/*.svg")}
    assert len(drawn) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_begin_with_an_installation_and_use_public_names_only(path):
    text = path.read_text(encoding="utf-8")
    cells = re.findall(r"^```{code-cell} ipython3\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert "%pip install --quiet bsjax\n" in cells[0] and cells[0].startswith("import importlib.util\n")
    assert any("assert " in cell or "AssertionError" in cell for cell in cells)
    assert not re.search(r"experiments import|import experiments|\b_[a-z]\w*\(|\._[a-z]", "".join(cells))
    assert f"({path.name})" in (DOCS / "notebooks/index.md").read_text(encoding="utf-8")


def test_notebook_files_install_bsjax_and_have_no_link_that_leads_nowhere(extension):
    text = (
        "---\nkernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n\n"
        "# A title\n\nSee [plans](../recipes.md#adam).\n\n```{code-cell} ipython3\n%pip install --quiet bsjax\n```\n"
    )
    as_ipynb = extension("notebook_files").as_ipynb
    words, code = as_ipynb(text, None).cells
    assert (words.source, code.source) == ("# A title\n\nSee plans.", "%pip install --quiet bsjax")
    words, code = as_ipynb(text, "someone/bsjax").cells
    assert words.source.endswith("See [plans](https://someone.github.io/bsjax/notebooks/../recipes.html#adam).")
    assert code.source == "%pip install --quiet git+https://github.com/someone/bsjax"
    assert as_ipynb(text, None) == as_ipynb(text, None)


def test_docstrings_become_restructured_text(extension):
    as_restructured_text = extension("docstrings").as_restructured_text
    lines = [
        "The norm |G|² of `a|b`, *truly*, [n, *shape], and `Update`s.",
        "",
        "| name | what |",
        "|---|---|",
        "| `x` | one |",
        "",
        "    state = init()",
        "",
        "    state = next(state)",
        "",
        "Shown:",
        ">>> 1 | 2",
        "3",
    ]
    text = "\n".join(as_restructured_text(lines))
    assert r"The norm \|G\|² of `a|b`, *truly*, [n, \*shape], and `Update`\ s." in text
    assert ".. list-table::\n   :header-rows: 1\n\n   * - name\n     - what\n   * - `x`\n     - one" in text
    assert "::\n\n    state = init()\n\n    state = next(state)\n\nShown:\n\n>>> 1 | 2\n3" in text


def test_a_field_is_described_by_its_comment_and_a_name_that_is_gone_is_found(extension):
    docstrings = extension("docstrings")
    assert docstrings._field_comment("bsjax.gradient_noise.Estimate.trace") == "tr(Σ), of one example"
    assert docstrings._field_comment("bsjax.Recipe.momentum") is None
    names = ("bsjax.Recipe.plan", "bsjax.Recipe", "bsjax.engine.step", "bsjax.engine.step.Steps.metrics")
    assert all(docstrings._exists(name) for name in names)
    assert not any(docstrings._exists(name) for name in ("bsjax.Recpie", "bsjax.Recipe.gone", "bsjax.gone.too"))
