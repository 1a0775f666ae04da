"""Fields of config dataclasses: checks, families, JSON in and out, and what may change when."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar

T = TypeVar("T")

MAX_WIDTH = 2**14
"""Far above any use; a forged config would make the reader allocate what it claims."""


class Family:
    """Base of configs that stand for one another: a field of such a type holds one of several.

    In JSON such a config has its `kind` beside its fields, and `from_dict` is told which class each
    kind means. A kind is a name for one class alone, whatever the family.
    """

    kind: ClassVar[str]
    """Name of the class in files."""


Kinds = dict[str, type[Family]]
"""Classes by their `kind`."""


def kinds_of(*classes: type[Family]) -> Kinds:
    """Some classes by their kinds.

    Raises:
        ValueError: If two have the same kind: one name means one class, of whatever family.
    """
    kinds: Kinds = {}
    for cls in classes:
        if kinds.setdefault(cls.kind, cls) is not cls:
            raise ValueError(
                f"{kinds[cls.kind].__name__} and {cls.__name__} have the same kind {cls.kind!r}"
            )
    return kinds


def require(ok: bool, owner: object, name: str, value: object, allowed: str) -> None:
    """Check a field.

    Raises:
        ValueError: Unless `ok`; the message names the field, its value and what is allowed.
    """
    if not ok:
        raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be {allowed}")


def require_width(owner: object, name: str) -> None:
    """Check that a field holds a number of features, 1 to `MAX_WIDTH`."""
    value = getattr(owner, name)
    require(0 < value <= MAX_WIDTH, owner, name, value, f"positive, at most {MAX_WIDTH}")


Occasion = Literal["resume", "init_from"]
"""When a run is resumed; when it starts from the parameters of another one."""


def may_change(default: Any, *, on: Occasion) -> Any:
    """A field with a default whose value may be another one on some occasion, see `changed`."""
    return dataclasses.field(default=default, metadata={"may_change": on})


def changed(a: Any, b: Any, *, on: Occasion, prefix: str = "") -> Iterator[str]:
    """Names of the fields of which two configs differ, `data.flip`, but for those that may.

    Args:
        a: A config.
        b: Another one, of the same class.
        on: The occasion. Fields that `may_change` on it are left out.
        prefix: Put before each name.
    """
    for field in dataclasses.fields(a):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if field.metadata.get("may_change") == on or mine == theirs:
            continue
        if dataclasses.is_dataclass(mine) and type(mine) is type(theirs):
            yield from changed(mine, theirs, on=on, prefix=f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-ready dicts, tuples and scalars."""
    values: dict[str, Any] = {"kind": config.kind} if isinstance(config, Family) else {}
    for field in dataclasses.fields(config):
        values[field.name] = plain(getattr(config, field.name))
    return values


def plain(value: Any) -> Any:
    """The value of a field, the configs in it as `to_dict` makes them."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def from_dict(cls: type[T], data: Mapping[str, Any], kinds: Kinds | None = None) -> T:
    """The inverse of `to_dict`. Fields that are not there get their defaults.

    Args:
        cls: Class of the config.
        data: Of `to_dict`, or of JSON.
        kinds: Classes that a field of a family may hold.

    Raises:
        ValueError: For an unknown field or kind, or a value of the wrong type, naming it.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{cls.__name__} must be a JSON object, got {type(data).__name__}")
    hints = {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {sorted(hints)}")
    values = {k: _convert(hints[k], v, f"{cls.__name__}.{k}", kinds or {}) for k, v in data.items()}
    try:
        return cls(**values)
    except TypeError as e:
        raise ValueError(f"{cls.__name__}: {e}") from e


def _convert(hint: Any, value: Any, where: str, kinds: Kinds) -> Any:
    if isinstance(hint, type) and issubclass(hint, Family):
        return _of_kind(hint, value, where, kinds)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, kinds)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        args = typing.get_args(hint)
        entries = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(entries) != len(value):
            raise ValueError(f"{where} must have {len(entries)} entries, got {value!r}")
        return tuple(_convert(k, v, where, kinds) for k, v in zip(entries, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def _of_kind(family: type[Family], value: Any, where: str, kinds: Kinds) -> Any:
    """A config of the family, of the class that its kind names."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a JSON object, got {type(value).__name__}")
    kind = value.get("kind")
    known = {name: cls for name, cls in kinds.items() if issubclass(cls, family)}
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"{where} has no kind {kind!r}; there are {', '.join(known)}")
    fields = {name: v for name, v in value.items() if name != "kind"}
    return from_dict(known[kind], fields, kinds)
