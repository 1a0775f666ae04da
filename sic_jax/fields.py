"""Fields of config dataclasses: their checks, and JSON in and out, unknown fields refused."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

MAX_WIDTH = 2**14
"""Far above any use; a forged config would make the reader allocate what it claims."""


def require(ok: bool, owner: object, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError that names the field, its value and what is allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be {allowed}")


def require_width(owner: object, name: str) -> None:
    """Check that a field holds a number of features, 1 to `MAX_WIDTH`."""
    value = getattr(owner, name)
    require(0 < value <= MAX_WIDTH, owner, name, value, f"positive, at most {MAX_WIDTH}")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-ready dicts, lists and scalars."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """The inverse of `to_dict`.

    Raises:
      ValueError: For an unknown field or a value of the wrong type, naming it.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{cls.__name__} must be a JSON object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {sorted(hints)}")
    values = {k: _convert(hints[k], v, f"{cls.__name__}.{k}") for k, v in data.items()}
    try:
        return cls(**values)
    except TypeError as e:
        raise ValueError(f"{cls.__name__}: {e}") from e


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        args = typing.get_args(hint)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{where} must have {len(kinds)} entries, got {value!r}")
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}")
    return value
