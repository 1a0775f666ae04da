"""The pickles of PyTorch's state dicts, read by a small machine that calls nothing.

A pickle is a program: Python's own reader imports and calls whatever it names. This one knows the
instructions that build plain values, and of all names only those of `_NAMES`, for which it makes
the values itself. Anything else is refused before it has an effect.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

STORAGE_TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
"""Type of the values of a storage class of PyTorch."""

MAX_AXES = 16
"""Of a tensor."""


@dataclass(frozen=True)
class Storage:
    """What a pickle says about a block of values."""

    dtype: str
    """A value of `STORAGE_TYPES`."""
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """What a pickle says about a tensor; nothing of it is checked but the types."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """A name that a pickle mentions, before it is used."""

    module: str
    name: str


_MARK = object()


def load(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Read one pickle from where `file` is up to its end.

    Args:
        file: Is left behind the pickle.
        storages: Is filled with all storages that the pickle mentions, by key.

    Returns:
        None, booleans, numbers, strings, bytes, lists, tuples, dicts and `Tensor`. Dicts are
        without the items whose keys are numbers or None.

    Raises:
        ValueError: If the pickle is damaged, or would do anything but build a state dict.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of strange escapes in damaged strings.
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return machine.pop()
                machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, OverflowError, MemoryError, UnicodeError) as e:
        raise ValueError(f"the pickle is damaged: {e!r}") from e
    raise ValueError("the pickle has no end")


class _Machine:
    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK or isinstance(value, _Name):
            raise ValueError("the pickle is damaged: a value is missing")
        return value

    def pop_to_mark(self) -> list[Any]:
        for start in reversed(range(len(self.stack))):
            if self.stack[start] is _MARK:
                values = self.stack[start + 1 :]
                del self.stack[start:]
                return values
        raise ValueError("the pickle is damaged: a mark is missing")

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif opcode in _STEPS:
            _STEPS[opcode](self)
        elif opcode == "GLOBAL":
            self.name(*argument.split(" ", 1))
        elif opcode not in ("PROTO", "FRAME"):
            raise ValueError(f"the pickle has the instruction {opcode}, which no state dict needs")

    def name(self, module: str, name: str) -> None:
        if not (module == "torch" and name in STORAGE_TYPES) and (module, name) not in _NAMES:
            raise ValueError(
                f"the pickle names {module}.{name}, and only a state dict of tensors is read; "
                "nothing was run"
            )
        self.stack.append(_Name(module, name))

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("the pickle is damaged: a name is not a string")
        self.name(module, name)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the pickle is damaged: a value is missing")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(values)

    def dict_of_items(self) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("the pickle is damaged: items are set in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float | None):
                raise ValueError(f"the pickle has a dict with a key of type {type(key).__name__}")
            # Whoever writes a file can choose numbers of equal hashes, but not such strings.
            if isinstance(key, str):
                target[key] = value

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("the pickle is damaged: values are appended to what is no list")
        target.extend(values)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.stack.pop()
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise ValueError("the pickle calls what is no function")
        if (function.module, function.name) not in _NAMES:
            raise ValueError(f"the pickle calls {function.module}.{function.name}")
        self.stack.append(_NAMES[function](*arguments))

    def build(self) -> None:
        # State dicts carry the versions of their modules as an attribute; nobody needs it.
        self.pop()
        if type(self.stack[-1]) is not dict:
            raise ValueError("the pickle sets attributes of what is no dict")

    def persistent(self) -> None:
        identity = self.pop()
        if type(identity) is not tuple or len(identity) not in (5, 6):
            raise ValueError("the pickle is damaged: a storage is not described by 5 values")
        kind, cls, key, _, count, *view = identity
        if kind != "storage" or not isinstance(cls, _Name) or cls.name not in STORAGE_TYPES:
            raise ValueError("the pickle refers to what is no storage of a known type")
        if not isinstance(key, str) or type(count) is not int or view not in ([], [None]):
            raise ValueError("the pickle is damaged: a storage's key, size or view is not valid")
        storage = Storage(STORAGE_TYPES[cls.name], key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the pickle is damaged: storage {key!r} is described in two ways")
        self.stack.append(storage)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    _metadata: Any = None,
) -> Tensor:
    integers = [offset]
    for numbers in (shape, strides):
        # A long tuple costs a file a few bytes for each tensor that shares it.
        if type(numbers) is not tuple or len(numbers) > MAX_AXES:
            raise ValueError(
                "the pickle is damaged: a tensor's shape or stride is no tuple of "
                f"{MAX_AXES} numbers at most"
            )
        integers += numbers
    if type(storage) is not Storage or any(type(n) is not int for n in integers):
        raise ValueError("the pickle is damaged: a tensor's storage or numbers have wrong types")
    if any(n.bit_length() > 63 for n in integers):
        raise ValueError("the pickle is damaged: a tensor's numbers have more than 63 bits")
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any, _grad: Any, _hooks: Any) -> Tensor:
    if type(data) is not Tensor:
        raise ValueError("the pickle is damaged: a parameter is no tensor")
    return data


def _ordered_dict(*items: Any) -> dict[Any, Any]:
    if items:
        raise ValueError("the pickle is damaged: a dict is made of arguments")
    return {}


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_VALUES = frozenset(
    (
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    )
)
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "STACK_GLOBAL": _Machine.stack_name,
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "TUPLE": lambda m: m.stack.append(tuple(m.pop_to_mark())),
    "LIST": lambda m: m.stack.append(m.pop_to_mark()),
    "DICT": _Machine.dict_of_items,
    "SETITEM": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m: m.set_items(m.pop_to_mark()),
    "APPEND": lambda m: m.append([m.pop()]),
    "APPENDS": lambda m: m.append(m.pop_to_mark()),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
