"""The docstrings below the fields of dataclasses, from which commands make the help of flags."""

import ast
import sys
from itertools import pairwise
from pathlib import Path


def field_docs(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of its bases, as they are written.

    A class whose source is not at hand has none. (`inspect` would do, but takes long to import.)
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            source = Path(sys.modules[base.__module__].__file__ or "").read_text(encoding="utf-8")
        except (OSError, AttributeError, KeyError):  # Of Python's own classes.
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                for field, text in pairwise(node.body):
                    if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                        docs[ast.unparse(field.target)] = str(ast.literal_eval(text.value))
    return docs
