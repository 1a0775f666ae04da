"""A flag for every field of a config: its name and help, and the config that the flags give."""

import argparse
import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from sic_jax.cli.field_docs import field_docs
from sic_jax.fields import Family, Kinds, from_dict, plain

T = TypeVar("T")
_DEST = "config."
"""How the names of fields begin among parsed arguments."""


class Flag(NamedTuple):
    """The flag of a field, or the one that chooses the kind of a family."""

    field: str
    """`loss.temperature`; for a kind `model.transforms.kind`."""
    option: str
    """`--loss.temperature`; for a kind `--model.transforms`."""
    hint: Any
    """Type of the field."""
    default: Any
    help: str
    kinds: tuple[str, ...] = ()
    """What may be chosen, where it chooses a kind."""


class FlagGroup(NamedTuple):
    """The flags of one dataclass."""

    title: str
    about: str
    flags: tuple[Flag, ...]


def flag_groups(
    config: Any, words: Sequence[str], kinds: Kinds, prefix: str = ""
) -> Iterator[FlagGroup]:
    """The flags of a config's fields, and of those of the configs in it.

    Of a field that holds a family, the flags are those of the kind that `words` choose: a kind that
    the config has not got begins with its defaults.

    Args:
        config: Its values are the flags' defaults.
        words: The command line.
        kinds: Classes that may be chosen.
        prefix: Of the fields' names, `model.`.

    Raises:
        ValueError: If a chosen class has fields without defaults.
    """
    hints, docs = typing.get_type_hints(type(config)), field_docs(type(config))
    flags, inner = [], []
    for field in dataclasses.fields(config):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        value, about = getattr(config, field.name), " ".join(docs.get(field.name, "").split())
        option = f"--{name}".replace("_", "-")
        if isinstance(hint, type) and issubclass(hint, Family):
            fitting = {kind: cls for kind, cls in kinds.items() if issubclass(cls, hint)}
            flags.append(Flag(f"{name}.kind", option, str, value.kind, about, tuple(fitting)))
            kind = _value_of(option, words)
            if kind in fitting and kind != value.kind:
                value = from_dict(fitting[kind], {}, kinds)
        if dataclasses.is_dataclass(value):
            inner.append((value, name))
        else:
            flags.append(Flag(name, option, hint, plain(value), about))
    about = (type(config).__doc__ or "").split("\n\n")[0]
    yield FlagGroup(f"config {prefix}".rstrip(" ."), " ".join(about.split()), tuple(flags))
    for value, name in inner:
        yield from flag_groups(value, words, kinds, f"{name}.")


def add_flags(parser: argparse.ArgumentParser, groups: Sequence[FlagGroup]) -> None:
    """Let a parser take flags; tuples take several values, and a switch alone means true."""
    for group in groups:
        arguments = parser.add_argument_group(group.title, group.about)
        for flag in group.flags:
            arguments.add_argument(
                flag.option,
                dest=f"{_DEST}{flag.field}",
                default=flag.default,
                help=f"{flag.help} (default: {_typed(flag.default)})".strip().replace("%", "%%"),
                **_how_to_parse(flag),
            )


def config_of(cls: type[T], args: argparse.Namespace, kinds: Kinds) -> T:
    """The config that parsed flags give.

    Args:
        cls: Class of the config that `flag_groups` saw.
        args: Of a parser with these flags.
        kinds: As in `flag_groups`.

    Raises:
        ValueError: If a value is not allowed, naming its field.
    """
    config: dict[str, Any] = {}
    for dest, value in vars(args).items():
        if dest.startswith(_DEST):
            *parents, name = dest.removeprefix(_DEST).split(".")
            node = config
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = value
    return from_dict(cls, config, kinds)


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of a flag in a command line whose other flags are not known yet."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value", nargs="?")
    value: str | None = parser.parse_known_args(words)[0].value
    return value


def _how_to_parse(flag: Flag) -> dict[str, Any]:
    if flag.kinds:
        return {"choices": flag.kinds}
    if typing.get_origin(flag.hint) is tuple:
        kind = typing.get_args(flag.hint)[0]
        if dataclasses.is_dataclass(kind):
            return {"type": _json, "nargs": "*", "metavar": "JSON"}
        return {"type": kind, "nargs": "*", "metavar": kind.__name__.upper()}
    if flag.hint is bool:
        return {"type": _boolean, "nargs": "?", "const": True, "metavar": "true|false"}
    return {"type": flag.hint, "metavar": flag.hint.__name__.upper()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {e}") from e


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _typed(value: Any) -> str:
    """A value as it is typed on a command line, numbers shortened."""
    if isinstance(value, tuple):
        return " ".join(_typed(v) for v in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{...}"
    return f"{value:g}" if isinstance(value, float) else str(value)
