"""Configuration of the documentation (Sphinx). `make docs` builds it, offline and strictly."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import sic_jax

HERE = Path(__file__).resolve().parent

project = "sic_jax"
author = "The sic_jax authors"
release = version = sic_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

# Every `name` in a docstring is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
viewcode_line_numbers = True

myst_heading_anchors = 3
# Notebooks run at every build; a cell that fails, fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

html_theme = "furo"
html_title = f"sic_jax {release}"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_copy_source = False
html_show_copyright = False
toc_object_entries = False


_INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def _included() -> dict[Path, Path]:
    """Files of the repository that a page includes, and the pages."""
    pages = {}
    for page in HERE.rglob("*.md"):
        for name in _INCLUDE.findall(page.read_text()):
            pages[(page.parent / name).resolve()] = page
    return pages


def _read_page(app: Any, docname: str, source: list[str]) -> None:
    """Includes files, and lets links to them lead to their pages."""
    page = HERE / f"{docname}.md"
    if not page.exists():
        return
    included = _included()

    def relinked(text: str, folder: Path) -> str:
        def link(found: re.Match[str]) -> str:
            target = (folder / found[1]).resolve()
            return f"]({os.path.relpath(included.get(target, target), page.parent)}"

        return _LINK.sub(link, text)

    def include(found: re.Match[str]) -> str:
        file = (page.parent / found[1]).resolve()
        return relinked(file.read_text(), file.parent)

    source[0] = _INCLUDE.sub(include, relinked(source[0], page.parent))
    if docname == "notebook/README":
        source[0] += "\n```{toctree}\n:glob:\n:hidden:\n\n*\n```\n"


def _to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Makes docstrings reStructuredText: indented blocks are literal, and | is a bar."""
    found: list[str] = []
    above = ""  # The last line that is not blank.
    literal = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and found and not found[-1] and above[:1].strip() and not literal:
            literal = True
            if not above.endswith("::"):
                found += ["::", ""]
        elif line and not indented:
            literal = False
        above = line or above
        found.append(line if literal else re.sub(r"(`[^`]*`)|\|", lambda m: m[1] or r"\|", line))
    lines[:] = found


def _no_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """The fields of a dataclass are listed below it, with types, defaults and meaning."""
    return ("", "") if what == "class" and dataclasses.is_dataclass(obj) else None


_fields: dict[str, list[str]] = {}


def _keep_field(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("attribute", "property"):
        _fields[name] = list(lines)


def _restore_field(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Undoes what napoleon made of a field: it takes words before a colon for a type."""
    if name in _fields:
        lines[:] = _fields.pop(name)


def setup(app: Any) -> None:
    """Adds the handlers; napoleon's has the priority 500."""
    app.connect("source-read", _read_page)
    app.connect("autodoc-process-signature", _no_signature)
    app.connect("autodoc-process-docstring", _to_rst, priority=400)
    app.connect("autodoc-process-docstring", _keep_field, priority=450)
    app.connect("autodoc-process-docstring", _restore_field, priority=550)
