"""Configuration of the documentation (Sphinx). `make docs` builds it, offline and strictly."""

import re
from typing import Any

import sic_jax

project = "sic_jax"
author = "The sic_jax authors"
release = version = sic_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "results"]

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
    app.connect("autodoc-process-docstring", _to_rst, priority=400)
    app.connect("autodoc-process-docstring", _keep_field, priority=450)
    app.connect("autodoc-process-docstring", _restore_field, priority=550)
