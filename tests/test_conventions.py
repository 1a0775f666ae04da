"""Conventions of the code that no linter checks, by syntax alone: nothing of it is imported.

One more is checked as it runs: nothing promotes types or ranks, as conftest.py has it.

Linters hold the rest: that public things have docstrings, and that `Args` leaves no argument out.
"""

import ast
import builtins
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sic_jax"

SECTIONS = ["Args", "Attributes", "Returns", "Yields", "Raises"]
"""Sections of docstrings, in their order."""
MAGIC = {"__init__", "__post_init__", "__call__"}
"""Magic methods that are documented as others are, or by their class; the rest by their names."""
UNDOCUMENTED = {"NotImplementedError", "SystemExit"}
"""Exceptions that nobody catches: of interfaces, and to leave a program."""
HANDED_OUT = {"PmapRunner", "SicImageFile"}
"""Classes that no other file names, but whose objects `make_runner` and Pillow hand out."""

ARRAY = re.compile(r"\b(?:Array|ndarray|NDArray|ArrayLike|Floats|Ints|Pixels|PictureLike)\b")
"""Types of arrays, and the package's names for them."""
_AXIS = r"[^\s\[\],`]+(?: [-+*/] [^\s\[\],`]+)*"
_AXES = rf"\[(?=[^\]]*(?:[A-Za-z]|\.\.\.)){_AXIS}(?:, ?{_AXIS})*\]|\[\d+\]"
SHAPE = re.compile(rf"{_AXES}|\b(?:scalars?|shapes?)\b")
"""[B, H, W, 3], [n] and [1475], but not the range [0, 1]; "a scalar", "of any shape"."""
SEE = re.compile(r"See `(?:\w+\.)*?([A-Z]\w*)(?:\.\w+)?`")
"""How the docstring of a method begins that its interface explains."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """A file of the package."""

    name: str
    tree: ast.Module

    def problem(self, node: ast.stmt, text: str) -> str:
        return f"{self.name}:{node.lineno}: {text}"


class Member(NamedTuple):
    """A public class, function or method, and the class that it belongs to."""

    node: ast.ClassDef | Function
    owner: ast.ClassDef | None

    @property
    def name(self) -> str:
        return f"{self.owner.name}.{self.node.name}" if self.owner else self.node.name


@cache
def package() -> list[Source]:
    return [
        Source(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text()))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


@cache
def definitions(file: Source) -> list[ast.ClassDef | Function]:
    """All classes and functions of a file, private and inner ones too."""
    return [node for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef | Function)]


@cache
def members(file: Source) -> list[Member]:
    """Public classes, functions and methods of a file; not what lies in functions."""

    def of(body: list[ast.stmt], owner: ast.ClassDef | None) -> Iterator[Member]:
        for node in body:
            if not isinstance(node, ast.ClassDef | Function):
                continue
            if node.name.startswith("_") and not (owner and node.name in MAGIC):
                continue
            yield Member(node, owner)
            if isinstance(node, ast.ClassDef):
                yield from of(node.body, node)

    return list(of(file.tree.body, None))


def functions(file: Source) -> Iterator[tuple[Member, Function]]:
    """Public functions and methods."""
    for member in members(file):
        if isinstance(member.node, Function):
            yield member, member.node


@cache
def interfaces() -> dict[str, dict[str, str]]:
    """Docstrings of the methods of each class of the package."""
    found: dict[str, dict[str, str]] = {}
    for file in package():
        for node, owner in members(file):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, {})
            elif owner:
                found[owner.name][node.name] = docstring(node)
    return found


def docstring(node: ast.ClassDef | Function) -> str:
    return ast.get_docstring(node) or ""


def explanation(member: Member) -> str:
    """What readers find of a function: its docstring, and what that stands for or belongs to."""
    docs = [docstring(member.node)]
    if see := SEE.match(docs[0]):
        docs.append(interfaces().get(see[1], {}).get(member.node.name, ""))
    if member.owner and member.node.name in MAGIC:
        docs.append(docstring(member.owner))
    return "\n\n".join(docs)


def arguments(node: Function) -> list[ast.arg]:
    args = node.args
    every = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    return [arg for arg in every if arg]


def annotations(node: Function) -> str:
    types = [arg.annotation for arg in arguments(node)] + [node.returns]
    return " ".join(ast.unparse(t) for t in types if t)


def below(section: str) -> re.Pattern[str]:
    """A section: its header and the indented lines below it."""
    return re.compile(rf"^{section}:(?:\n .*|\n(?=\n ))+", re.MULTILINE)


def entries(doc: str, section: str) -> list[str]:
    """First lines of the entries of a section."""
    text = "".join(below(section).findall(doc))
    return re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)


def names(doc: str, section: str) -> list[str]:
    """What the entries of a section are about."""
    before = [line.partition(": ")[0] for line in entries(doc, section)]
    return [name.strip(" *") for line in before for name in line.split(",")]


def own_raises(
    node: ast.AST, caught: frozenset[str] = frozenset()
) -> Iterator[tuple[ast.Raise, str]]:
    """What a function itself raises and does not catch: the statement, and what `raise` names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.Lambda | ast.ClassDef | ast.expr):
            continue
        inside = caught
        if isinstance(node, ast.Try) and child in node.body:
            types = [ast.unparse(h.type) if h.type else "Exception" for h in node.handlers]
            inside |= {*re.findall(r"\w+", " ".join(types))}
        if isinstance(child, ast.Raise) and child.exc:
            exception = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            name = ast.unparse(exception).rpartition(".")[2]
            if not inside & {name, "Exception", "BaseException"}:
                yield child, name
        yield from own_raises(child, inside)


def undocumented_exceptions(file: Source) -> Iterator[str]:
    makers = {
        node.name: ast.unparse(node.returns)
        for node in file.tree.body
        if isinstance(node, Function) and node.returns
    }
    for member, function in functions(file):
        known = {*names(explanation(member), "Raises"), *UNDOCUMENTED}
        for node, name in own_raises(function):
            name = makers.get(name, name)
            # A variable holds what was caught before.
            if name[0].isupper() and name not in known:
                yield file.problem(node, f"add `{name}: When.` to Raises of {member.name}")


@cache
def exceptions() -> set[str]:
    """Names of the built-in exceptions and of the package's classes."""
    return {*interfaces()} | {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }


def vague_exceptions(file: Source) -> Iterator[str]:
    for node in definitions(file):
        for line in entries(docstring(node), "Raises"):
            found = re.fullmatch(r"(\w+(?:, \w+)*): \S.*", line)
            if not found or not {*found[1].split(", ")} <= exceptions():
                text = f"Raises of {node.name}: write `Exception: When.`, not `{line}`"
                yield file.problem(node, text)


def fields(node: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    """Fields of a class, and the docstring below each, or that of the class."""
    for field, after in pairwise([*node.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign):
            has_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield field, ast.unparse(after) if has_doc else docstring(node)


def missing_shapes(file: Source) -> Iterator[str]:
    for node, _ in members(file):
        for field, doc in fields(node) if isinstance(node, ast.ClassDef) else ():
            name = ast.unparse(field.target)
            has_arrays = ARRAY.search(ast.unparse(field.annotation)) and not name.startswith("_")
            if has_arrays and not SHAPE.search(doc):
                text = f"{node.name}.{name} has arrays: give their shapes, as [B, H, W, 3]"
                yield file.problem(field, text)
    for member, function in functions(file):
        # That a wrong shape is an error does not say which is right.
        doc = below("Raises").sub("", explanation(member))
        if ARRAY.search(annotations(function)) and not SHAPE.search(doc):
            text = f"{member.name} has arrays: give their shapes, as [B, H, W, 3]"
            yield file.problem(function, text)


def wrong_sections(file: Source) -> Iterator[str]:
    for node in definitions(file):
        found = re.findall(r"(?:^|\n\n)([A-Z]\w*(?: \w+)?):\n(?= )", docstring(node))
        for name in found:
            if name not in SECTIONS:
                yield file.problem(node, f"{node.name}: {name} is none of the sections {SECTIONS}")
        known = [name for name in found if name in SECTIONS]
        if known != sorted({*known}, key=SECTIONS.index):
            yield file.problem(node, f"{node.name}: order its sections {known} as {SECTIONS}")


def wrong_entries(file: Source) -> Iterator[str]:
    for node in definitions(file):
        section = "Attributes" if isinstance(node, ast.ClassDef) else "Args"
        found = names(docstring(node), section)
        if not found:
            continue
        if isinstance(node, ast.ClassDef):
            exist = attributes(node)
        else:
            exist = [arg.arg for arg in arguments(node)]
            known = [name for name in found if name in exist]
            if known != sorted({*known}, key=exist.index):
                text = f"Args of {node.name}: order {known} as in the signature"
                yield file.problem(node, text)
        for name in found:
            if name not in exist:
                yield file.problem(node, f"{section} of {node.name}: there is no `{name}`")


def attributes(node: ast.ClassDef) -> list[str]:
    """Fields and methods of a class, and what its methods assign."""
    found = []
    for child in ast.walk(node):
        if isinstance(child, Function):
            found.append(child.name)
        elif isinstance(child, ast.Name | ast.Attribute) and isinstance(child.ctx, ast.Store):
            found.append(child.id if isinstance(child, ast.Name) else child.attr)
    return found


def unused_names(file: Source, used: set[str]) -> Iterator[str]:
    """Functions and classes that are public, but not used; types that users meet count as used.

    Args:
        file: Where they are defined.
        used: Names that other files use.
    """
    types = " ".join(annotations(function) for _, function in functions(file))
    for node, _ in members(file):
        if isinstance(node, ast.ClassDef):
            nodes = [*node.bases, *(field.annotation for field, _ in fields(node))]
            types += " ".join(["", *map(ast.unparse, nodes)])
    met = {*re.findall(r"\w+", types)} | HANDED_OUT
    for node, owner in members(file):
        is_met = isinstance(node, ast.ClassDef) and node.name in met
        if not owner and not is_met and node.name not in used:
            yield file.problem(node, f"nobody else uses {node.name}: call it _{node.name}")


def words_in_program(text: str) -> set[str]:
    """What a program imports of the package, looks up with a dot, quotes or mentions."""
    imports = re.findall(r"^[\s\"]*from sic_jax\S* import (\([^)]*\)|.*)", text, re.MULTILINE)
    return {*re.findall(r"[.`\"'](\w+)", text), *re.findall(r"\w+", " ".join(imports))}


def words_in_page(text: str) -> set[str]:
    """Words of the code in a page."""
    code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.DOTALL | re.MULTILINE)
    return {*re.findall(r"\w+", " ".join(code))}


@cache
def words() -> dict[str, set[str]]:
    """Names that each file uses; not this one, and no pages of earlier revisions."""
    programs = [p for folder in ("sic_jax", "tests", "docs") for p in (ROOT / folder).rglob("*.py")]
    programs += [*ROOT.glob("*.py"), *(ROOT / "docs").rglob("*.ipynb"), ROOT / "pyproject.toml"]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.md")]
    found = {}
    for paths, read in ((programs, words_in_program), (pages, words_in_page)):
        for path in paths:
            name = path.relative_to(ROOT)
            if path != Path(__file__).resolve() and not {"notebook", "_build"} & {*name.parts}:
                found[name.as_posix()] = read(path.read_text())
    return found


CHECKS: list[Callable[[Source], Iterator[str]]] = [
    undocumented_exceptions,
    vague_exceptions,
    missing_shapes,
    wrong_sections,
    wrong_entries,
]


@pytest.mark.parametrize("check", CHECKS)
def test_package(check: Callable[[Source], Iterator[str]]) -> None:
    found = [problem for file in package() for problem in check(file)]
    assert not found, "\n" + "\n".join(found)


def test_public_names_are_used() -> None:
    assert interfaces().keys() >= HANDED_OUT
    files = Counter(word for found in words().values() for word in found)
    found: list[str] = []
    for file in package():
        own = words()[file.name]
        found += unused_names(file, {word for word, n in files.items() if n > (word in own)})
    assert not found, "\n" + "\n".join(found)


GOOD = '''
class Box:
    """A box.

    Attributes:
        size: Of it.

    Raises:
        KeyError: If it is lost.
    """

    size: int
    pixels: Pixels
    """[H, W]."""
    _own: Pixels

    def __init__(self, key: str) -> None:
        """Opens it."""
        raise KeyError(key)

def scaled(x: jax.Array, factor: float, *rest: float, **more: float) -> jax.Array:
    """An array [B, H/2, W + 1, 3] times a factor in [0, 1].

    A line that ends with a colon:

        is no header.

    Args:
        x: The array.
        factor: Goes
            on: here.
        *rest: Others.
        **more: Others.

    Returns:
        It.

    Raises:
        ValueError, TypeError: If not.
    """
    def inner() -> None:
        raise KeyError

    try:
        raise OSError("caught")
    except (OSError, RuntimeError) as error:
        raise ValueError from error
    raise _error()

def symbol_bits(y: jax.Array) -> jax.Array:
    """See `EntropyNetworks`."""
    raise NotImplementedError

def _error() -> TypeError: ...
def _private(x: jax.Array) -> jax.Array: ...
'''


@pytest.mark.parametrize("check", CHECKS)
def test_checks_pass_what_is_right(check: Callable[[Source], Iterator[str]]) -> None:
    assert list(check(Source("good.py", ast.parse(GOOD)))) == []


@pytest.mark.parametrize(
    ("check", "old", "new", "message"),
    [
        (undocumented_exceptions, "KeyError: If", "IndexError: If", "add `KeyError: When.`"),
        (undocumented_exceptions, "ValueError, Type", "Type", "add `ValueError: When.`"),
        (undocumented_exceptions, "ValueError, TypeError", "ValueError", "add `TypeError: When.`"),
        (undocumented_exceptions, "(OSError, R", "(R", "add `OSError: When.`"),
        (
            undocumented_exceptions,
            "raise NotImpl",
            "raise errors.A()\n    raise NotImpl",
            "add `A: When.` to Raises of symbol_bits",
        ),
        (vague_exceptions, "TypeError: If", "TypeErrors: If", "Raises of scaled"),
        (vague_exceptions, "ValueError, TypeError: If not.", "If not.", "Raises of scaled"),
        (missing_shapes, " [B, H/2, W + 1, 3] times", "", "scaled has arrays"),
        (missing_shapes, "[H, W].", "Of it.", "Box.pixels has arrays"),
        (missing_shapes, "See `EntropyNetworks`", "See `Entropy`", "symbol_bits has arrays"),
        (
            missing_shapes,
            "See `EntropyNetworks`.",
            "Bits.\n\n    Raises:\n        ValueError: If shapes differ.\n    ",
            "symbol_bits has arrays",
        ),
        (wrong_sections, "    Args:", "    Arguments:", "scaled: Arguments is none"),
        (wrong_sections, "    Returns:", "    See also:", "scaled: See also is none"),
        (wrong_sections, "    Attributes:", "    Raises:", "Box: order its sections"),
        (wrong_entries, "        factor: ", "        faktor: ", "Args of scaled: there is no"),
        (wrong_entries, "size: Of", "sise: Of", "Attributes of Box: there is no `sise`"),
        (
            wrong_entries,
            "scaled(x: jax.Array, factor: float",
            "scaled(factor: float, x: T",
            "Args of scaled: order",
        ),
    ],
)
def test_checks_find_what_is_wrong(
    check: Callable[[Source], Iterator[str]], old: str, new: str, message: str
) -> None:
    assert GOOD.count(old) == 1
    found = list(check(Source("bad.py", ast.parse(GOOD.replace(old, new)))))
    assert len(found) == 1
    assert message in found[0]
    assert re.match(r"bad\.py:\d+: ", found[0])


def test_names_that_nobody_uses_are_found() -> None:
    text = "def f() -> A: ...\nclass A: ...\nclass B: ...\nclass C(B): ...\ndef _g(): ...\n"
    assert list(unused_names(Source("some.py", ast.parse(text)), {"C"})) == [
        "some.py:1: nobody else uses f: call it _f"
    ]
    assert list(unused_names(Source("some.py", ast.parse(text)), {"f"})) == [
        "some.py:4: nobody else uses C: call it _C"
    ]


def test_what_counts_as_use() -> None:
    text = "from sic_jax.a import (\n    f,\n    g as h,\n)\nm.attribute\n'quoted'\nvariable = 1\n"
    assert {"f", "g", "attribute", "quoted"} <= words_in_program(text)
    assert "variable" not in words_in_program(text)
    page = "Words, `code()` and\n```python\nsome.block\n```\n"
    assert words_in_page(page) == {"code", "python", "some", "block"}


def test_nothing_promotes_types_or_ranks() -> None:
    pair = jnp.ones(2)
    with pytest.raises(ValueError, match="dtype_promotion=strict"):
        pair + jnp.ones(2, jnp.int32)
    with pytest.raises(ValueError, match="rank_promotion='raise'"):
        pair + jnp.ones((2, 2))
    # And in processes that tests start.
    assert os.environ["JAX_NUMPY_DTYPE_PROMOTION"] == "strict"
    assert os.environ["JAX_NUMPY_RANK_PROMOTION"] == "raise"
