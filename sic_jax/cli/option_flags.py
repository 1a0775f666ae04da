"""Flags of a command line, made of the fields of a class of options (`sic_jax.codec.options`)."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
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
    for field in dataclasses.fields(options):
        if field.name in without:
            continue
        name, kind = _flag(field), _kind(options, field.name)
        text = phrase(docs.get(field.name, "")).replace("%", "%%")
        # A flag that is not given leaves no trace: the class has the defaults.
        common: dict[str, Any] = {"dest": _dest(options, field.name), "default": argparse.SUPPRESS}
        if kind is bool:
            flag = f"--no-{name}" if field.default else f"--{name}"
            value = not field.default
            text = field.metadata.get("flag_help", text)
            parser.add_argument(flag, action="store_const", const=value, help=text, **common)
            continue
        if field.default is not None:
            text += f" (default: {field.default})"
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


def setting_names(options: type, *, without: Collection[str] = ()) -> list[str]:
    """Names of the flags of `add_flags`, without dashes in front, that `with_settings` knows."""
    fields = (f for f in dataclasses.fields(options) if f.name not in without)
    return [_flag(field) for field in fields]


def with_settings(options: T, texts: Mapping[str, str], *, without: Collection[str] = ()) -> T:
    """The options, changed by texts as those of the command line: "0.25", "12", "yes" or "no".

    Args:
        options: A dataclass as `add_flags` takes it.
        texts: By names of flags; names that are not among `setting_names` are ignored.
        without: Fields that have no flag.

    Raises:
        ValueError: If a text is no value of its field.
    """
    kind: Any = type(options)
    changes = {}
    for field in dataclasses.fields(kind):
        name = _flag(field)
        if field.name not in without and name in texts:
            changes[field.name] = _value(name, texts[name], _kind(kind, field.name))
    return typing.cast(T, dataclasses.replace(typing.cast(Any, options), **changes))


def _value(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("yes", "no"):
            raise ValueError(f"{name} must be yes or no, got {text!r}")
        return text == "yes"
    try:
        return kind(text)
    except ValueError as error:
        needed = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {needed}, got {text!r}") from error


def _flag(field: "dataclasses.Field[Any]") -> str:
    return str(field.metadata.get("flag", field.name)).replace("_", "-")


def _kind(options: type, name: str) -> type:
    """Of a field, which may also be None."""
    hint = typing.get_type_hints(options)[name]
    (kind,) = (c for c in typing.get_args(hint) or (hint,) if c is not types.NoneType)
    return typing.cast(type, kind)


def phrase(text: str) -> str:
    """The first paragraph of a docstring as the help of a flag."""
    first = " ".join(text.split("\n\n")[0].split()).rstrip(".")
    return first[:1].lower() + first[1:]


def _dest(options: type, name: str) -> str:
    """Two classes may have fields of one name."""
    return f"{options.__name__}.{name}"
