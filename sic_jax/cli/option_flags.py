"""Flags of a command line, made of the fields of a class of options (`sic_jax.codec.options`)."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

from sic_jax.cli.field_docs import field_docs

T = TypeVar("T")


def add_flags(
    parser: argparse._ActionsContainer, options: type, *, without: Collection[str] = ()
) -> None:
    """Adds a flag for each field: ``--max-pixels N``; of a boolean, the one that changes it.

    Args:
        parser: Parser or group of one.
        options: A dataclass whose fields have defaults; the first paragraph of a field's docstring
            is the help. A field may have another name as a flag, in its metadata, "flag".
        without: Fields that get no flag.
    """
    docs = field_docs(options)
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if field.name in without:
            continue
        name = field.metadata.get("flag", field.name).replace("_", "-")
        text = phrase(docs.get(field.name, "")).replace("%", "%%")
        # A flag that is not given leaves no trace: the class has the defaults.
        common: dict[str, Any] = {"dest": _dest(options, field.name), "default": argparse.SUPPRESS}
        if hints[field.name] is bool:
            flag = f"--no-{name}" if field.default else f"--{name}"
            value = not field.default
            text = field.metadata.get("flag_help", text)
            parser.add_argument(flag, action="store_const", const=value, help=text, **common)
            continue
        if field.default is not None:
            text += f" (default: {field.default})"
        choices = typing.get_args(hints[field.name]) or (hints[field.name],)
        (kind,) = (c for c in choices if c is not types.NoneType)
        metavar = "N" if kind is int else "X"
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text, **common)


def options_of(args: argparse.Namespace, options: type[T]) -> T:
    """The options that the flags of `add_flags` say.

    Raises:
        ValueError: If a value is out of range.
    """
    names = (field.name for field in dataclasses.fields(typing.cast(Any, options)))
    dests = {name: _dest(options, name) for name in names}
    return options(**{k: getattr(args, dest) for k, dest in dests.items() if hasattr(args, dest)})


def phrase(text: str) -> str:
    """The first paragraph of a docstring as the help of a flag."""
    first = " ".join(text.split("\n\n")[0].split()).rstrip(".")
    return first[:1].lower() + first[1:]


def _dest(options: type, name: str) -> str:
    """Two classes may have fields of one name."""
    return f"{options.__name__}.{name}"
