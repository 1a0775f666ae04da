"""Draws the figures of docs/concepts.md: ``python docs/figures.py`` (needs matplotlib).

Numbers in them come from the code and from docs/results: channels of the default model, rates of
the default bundle on Kodak.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from sic_jax.codec.library import DEFAULT
from sic_jax.training.presets import default_model

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "figures"
CODED, DETAIL, BOX, INK = "#0072b2", "#e6e6e6", "#f4f1e8", "#222222"
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "sic_jax", "font.size": 11}


def model(ax: Axes) -> None:
    """Networks, and what passes from one to the next."""
    ax.set(xlim=(0, 100), ylim=(0, 44))
    _box(ax, 2, 30, 9, "x", "picture")
    _box(ax, 19, 30, 9, "g_a", "analysis")
    _box(ax, 36, 30, 9, "y", "latents")
    _box(ax, 53, 30, 14, "y_s", "coded levels")
    _box(ax, 74, 30, 9, "g_s", "synthesis")
    _box(ax, 89, 30, 9, "x_hat", "decoded")
    _box(ax, 33, 4, 15, "h_a", "hyper-analysis")
    _box(ax, 53, 4, 14, "z", "hyperprior")
    _box(ax, 74, 4, 20, "h_s and context", "entropy networks")
    for start, end in (((11, 34), (19, 34)), ((28, 34), (36, 34)), ((45, 34), (53, 34)),
                       ((67, 34), (74, 34)), ((83, 34), (89, 34)), ((40.5, 30), (40.5, 12)),
                       ((48, 8), (53, 8)), ((67, 8), (74, 8))):  # fmt: skip
        _arrow(ax, start, end)
    _arrow(ax, (78, 12), (64, 30))
    ax.text(76, 21, "distributions of y_s\nand of the details", va="center", color=INK)


def latent_split(ax: Axes, level: int = 6) -> None:
    """Channels of y, level by level: those up to one level are coded."""
    counts = default_model().levels.channels
    total = sum(counts)
    coded = sum(counts[:level])
    start = 0
    for k, count in enumerate(counts):
        colour = CODED if k < level else DETAIL
        ax.add_patch(Rectangle((start, 0), count, 10, facecolor=colour, edgecolor="white"))
        ink = "white" if k < level else INK
        ax.text(start + count / 2, 5, str(k + 1), ha="center", va="center", color=ink, fontsize=8)
        start += count
    ax.set(xlim=(-2, total + 2), ylim=(-6, 17))
    text = f"y_s: levels 1 to {level}, {coded} channels, in the file"
    ax.text(0, 12, text, color=CODED)
    ax.text(total, 12, f"y_eps: the other {total - coded} channels, drawn", color=INK, ha="right")
    ax.text(0, -2, f"the {total} channels of y in {len(counts)} levels", va="top", color=INK)


def prefixes(ax: Axes) -> None:
    """A file, cut after some levels: mean rates of Kodak."""
    with (HERE / "results" / f"kodak-{DEFAULT}.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    ours = {float(row["setting"]): row for row in rows if row["codec"] == rows[0]["codec"]}
    shown = [level for level in (2, 4, 8, 12, 16) if level in ours]
    for i, level in enumerate(reversed(shown)):
        bpp, dists = float(ours[level]["bpp"]), float(ours[level]["dists"])
        ax.barh(i, bpp, color=CODED, height=0.55)
        ax.text(bpp + 0.01, i, f"{bpp:.2f} bpp, DISTS {dists:.3f}", va="center", color=INK)
    ax.set_yticks(range(len(shown)), [f"levels 1 to {level}" for level in reversed(shown)])
    ax.set(xlim=(0, 0.95), xlabel="bits per pixel")
    ax.set_axis_on()
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(left=False)


def synset(ax: Axes) -> None:
    """One file, several seeds, several pictures."""
    ax.set(xlim=(0, 100), ylim=(0, 40))
    _box(ax, 2, 16, 13, "file", "bytes")
    _box(ax, 24, 16, 13, "y_s", "decoded levels", colour=CODED, ink="white")
    _arrow(ax, (15, 20), (24, 20))
    for i, y in enumerate((31, 16, 1)):
        _box(ax, 46, y, 16, f"y_eps, seed {i + 1}", "drawn details", colour=DETAIL)
        _box(ax, 70, y, 9, "g_s", "synthesis")
        _box(ax, 87, y, 11, "x_hat", f"member {i + 1}")
        _arrow(ax, (37, 20), (46, y + 4))
        _arrow(ax, (62, y + 4), (70, y + 4))
        _arrow(ax, (79, y + 4), (87, y + 4))


def exact_coding(ax: Axes) -> None:
    """Encoder and decoder compute the same integers, and so the same tables."""
    ax.set(xlim=(0, 100), ylim=(0, 44))
    for y, side, symbols in ((30, "encoder", "symbols in"), (4, "decoder", "symbols out")):
        ax.text(0, y + 4, side, va="center", color=INK, weight="bold")
        _box(ax, 13, y, 17, "known symbols", "integers")
        _box(ax, 36, y, 19, "entropy networks", "integer arithmetic")
        _box(ax, 62, y, 13, "table", "integers")
        _box(ax, 82, y, 16, "range coder", symbols)
        _arrow(ax, (30, y + 4), (36, y + 4))
        _arrow(ax, (55, y + 4), (62, y + 4))
        _arrow(ax, (75, y + 4), (82, y + 4))
    _arrow(ax, (90, 30), (90, 12))
    ax.text(89, 21, "file", va="center", ha="right", color=INK)
    ax.text(68.5, 21, "equal", va="center", ha="center", color=CODED)
    for x in (21.5, 45.5):
        ax.text(x, 21, "equal", va="center", ha="center", color=CODED)


FIGURES: dict[str, tuple[Callable[[Axes], None], float]] = {
    "model": (model, 3.2),
    "latent_split": (latent_split, 1.6),
    "prefixes": (prefixes, 2.4),
    "synset": (synset, 3.0),
    "exact_coding": (exact_coding, 3.2),
}
"""By name: the function that draws it, and its height in inches; all are 8 inches wide."""


def draw(name: str, path: Path) -> None:
    """Writes a figure as SVG; its text is text."""
    plot, height = FIGURES[name]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, height), layout="tight")
        ax = figure.add_subplot()
        ax.set_axis_off()
        plot(ax)
        figure.savefig(path, metadata={"Date": None, "Title": plot.__doc__}, facecolor="white")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes all figures; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="figures.py", description="Draw the figures of docs/.")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        draw(name, args.out / f"{name}.svg")
    return 0


def _box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    name: str,
    about: str,
    *,
    colour: str = BOX,
    ink: str = INK,
) -> None:
    shape = FancyBboxPatch((x, y), width, 8, boxstyle="round,pad=0,rounding_size=1",
                           facecolor=colour, edgecolor=INK, linewidth=0.8)  # fmt: skip
    ax.add_patch(shape)
    middle = x + width / 2
    ax.text(middle, y + 5.3, name, ha="center", va="center", color=ink, fontsize=10)
    ax.text(middle, y + 2.2, about, ha="center", va="center", color=ink, fontsize=7)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=INK,
                                 linewidth=0.8, shrinkA=0, shrinkB=0))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
