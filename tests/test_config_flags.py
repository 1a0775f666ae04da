"""Flags of a config, with families of the test's own."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from sic_jax.cli.config_flags import add_flags, config_of, flag_groups
from sic_jax.cli.field_docs import field_docs
from sic_jax.fields import Family, kinds_of
from sic_jax.training.train_config import used_kinds


@dataclass(frozen=True, kw_only=True)
class Shape(Family):
    """Base of the two."""

    colour: str = "red"
    """Of the whole
    shape."""


@dataclass(frozen=True, kw_only=True)
class Disc(Shape):
    """A disc.

    It is round.
    """

    kind: ClassVar[str] = "disc"
    size: float = 1.5
    """Radius; 100 % is the picture."""


@dataclass(frozen=True, kw_only=True)
class Box(Shape):
    """A box."""

    kind: ClassVar[str] = "box"
    size: tuple[int, int] = (2, 3)
    """Width and height."""
    solid: bool = False
    """Without a hole."""


@dataclass(frozen=True, kw_only=True)
class Mark(Family):
    """Of another family."""

    kind: ClassVar[str] = "mark"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is around."""

    corner_shape: Shape = Disc()
    """In each corner."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture."""

    shape: Shape
    """In the middle."""
    frame: Frame = Frame()
    """Around it."""
    names: tuple[str, ...] = ()
    """What it is called."""


KINDS = kinds_of(Disc, Box, Mark)
PICTURE = Picture(shape=Disc(size=0.1, colour="blue"))


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="draw", usage="draw", allow_abbrev=False)
    add_flags(made, tuple(flag_groups(PICTURE, words, KINDS)))
    return made


def parse(text: str) -> Picture:
    words = text.split()
    return config_of(Picture, parser(words).parse_args(words), KINDS)


def test_values_of_the_config_are_the_defaults() -> None:
    assert parse("") == PICTURE
    assert parse("--shape disc") == PICTURE
    assert parse("--shape.size 7 --names a b") == Picture(
        shape=Disc(size=7.0, colour="blue"), names=("a", "b")
    )


def test_a_flag_chooses_a_kind_and_the_others_are_its_fields() -> None:
    assert parse("--shape box").shape == Box()
    assert parse("--shape=box --shape.size 4 5 --shape.solid").shape == Box(size=(4, 5), solid=True)
    # Wherever it stands, and at any depth.
    found = parse("--frame.corner-shape.size 6 7 --shape.colour green --frame.corner-shape box")
    assert found == Picture(
        shape=Disc(size=0.1, colour="green"), frame=Frame(corner_shape=Box(size=(6, 7)))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--shape star", "argument --shape: invalid choice: 'star' (choose from "),
        ("--shape mark", "argument --shape: invalid choice: 'mark' (choose from "),
        ("--shape", "argument --shape: expected one argument"),
        ("--shape.solid", "unrecognized arguments: --shape.solid"),
        ("--shape box --frame.corner-shape.solid", "unrecognized arguments: --frame.corner-shape."),
        ("--shape box --shape.size 1.5 2", "argument --shape.size: invalid int value: '1.5'"),
        ("--shape box --shape.solid no", "argument --shape.solid: 'no' is neither true nor false"),
    ],
)
def test_wrong_flags_are_one_line(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        parse(text)
    assert info.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: draw"
    assert error.startswith(f"draw: error: {message}")


def test_wrong_values_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"^Box\.size must have 2 entries, got \[1\]$"):
        parse("--shape box --shape.size 1")


def test_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    words = ["--shape", "box"]
    shown = parser(words).format_help()
    assert shown[shown.index("config:") :].splitlines() == [
        "config:",
        "  A picture.",
        "",
        "  --shape {disc,box}    In the middle. (default: disc)",
        "  --names [STR ...]     What it is called. (default: none)",
        "",
        "config shape:",
        "  A box.",
        "",
        "  --shape.colour STR    Of the whole shape. (default: red)",
        "  --shape.size [INT ...]",
        "                        Width and height. (default: 2 3)",
        "  --shape.solid [true|false]",
        "                        Without a hole. (default: false)",
        "",
        "config frame:",
        "  What is around.",
        "",
        "  --frame.corner-shape {disc,box}",
        "                        In each corner. (default: disc)",
        "",
        "config frame.corner_shape:",
        "  A disc.",
        "",
        "  --frame.corner-shape.colour STR",
        "                        Of the whole shape. (default: red)",
        "  --frame.corner-shape.size FLOAT",
        "                        Radius; 100 % is the picture. (default: 1.5)",
    ]


def test_field_docs() -> None:
    assert field_docs(Disc)["size"] == "Radius; 100 % is the picture."
    assert field_docs(Disc)["colour"].split() == ["Of", "the", "whole", "shape."]
    # Typed at a prompt, it has no source.
    scope: dict[str, type] = {}
    exec("from dataclasses import dataclass\n@dataclass\nclass Typed:\n    a: int = 1", scope)
    assert field_docs(scope["Typed"]) == {}


def test_used_kinds() -> None:
    assert used_kinds(PICTURE) == {"disc": Disc}
    assert used_kinds(Picture(shape=Box())) == {"disc": Disc, "box": Box}
    assert used_kinds(Box()) == {}
