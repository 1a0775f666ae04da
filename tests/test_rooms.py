"""Rooms of the package, and which of them imports which: arrows point one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "sic_jax"
SMALL = {
    "compilation_cache", "devices", "errors", "fields", "files", "metadata", "progress", "sizes",
}  # fmt: skip
"""Modules of the root, which import nothing of ours; every room may import them."""
ARROWS: dict[str, set[str]] = {
    "entropy": set(),
    "metrics": set(),
    "images": set(),
    "model": {"entropy"},
    "codec": {"model", "entropy", "metrics"},
    "data": {"images"},
    "training": {"model", "codec", "metrics", "data"},
    "evaluation": {"codec", "metrics", "images"},
    "importers": {"model", "codec", "metrics"},
    "cli": {"model", "codec", "metrics", "images", "data", "training", "evaluation", "importers"},
}

BORDERS = {"pillow": {"codec", "images"}}
"""Modules of the root which only users import, and the rooms that they import."""


def imported(path: Path) -> Iterator[str]:
    """What a file imports of the package, wherever in it: dotted names below `sic_jax`."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            if name.startswith("sic_jax."):
                yield name.removeprefix("sic_jax.")


def rooms_of(path: Path) -> set[str]:
    """The rooms that a file imports."""
    return {name.split(".")[0] for name in imported(path)} - SMALL


def test_arrows_between_rooms() -> None:
    found: dict[str, set[str]] = {room: set() for room in ARROWS}
    for room in ARROWS:
        for path in (PACKAGE / room).rglob("*.py"):
            found[room] |= rooms_of(path) - {room}
    assert found == ARROWS
    assert {name: rooms_of(PACKAGE / f"{name}.py") for name in BORDERS} == BORDERS
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert rooms == set(ARROWS)


def test_small_modules_import_nothing_of_ours() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == SMALL | set(BORDERS) | {"__init__"}
    assert {name: list(imported(PACKAGE / f"{name}.py")) for name in SMALL} == {
        name: [] for name in SMALL
    }


def test_no_circles() -> None:
    """Whatever order of the rooms, imports within them lead somewhere, too."""
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    needs = {
        name: {
            other for text in imported(path) for other in (text, text.rpartition(".")[0])
        } & set(modules)
        for name, path in modules.items()
    }  # fmt: skip
    while free := {name for name, others in needs.items() if not others}:
        needs = {name: others - free for name, others in needs.items() if name not in free}
    assert needs == {}


def test_entropy_is_mathematics() -> None:
    for path in (PACKAGE / "entropy").glob("*.py"):
        text = path.read_text()
        assert "flax" not in text, path
