"""Rate-metric plots. Importing this module needs matplotlib (the extra ``eval``)."""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Affine2D

from sic_jax.evaluation.codecs import SIC
from sic_jax.evaluation.means import Curve
from sic_jax.evaluation.page import PUBLISHED, metric_text
from sic_jax.metrics.table import Metric

# Colours that are told apart with colour-blindness too (Okabe and Ito); `sic` has the first.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#b59b00", "#7f3fbf")
_PUBLISHED_COLOURS = ("#8c8c8c", "#b07d62", "#7d8cc4", "#6fa287")
_PUBLISHED_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "d", "p", "8", "H")
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)
_INK = "#01020a"  # Colour of text and axes: the page replaces it by the colour of its text.
_DASHES = {"--": "4 2", "-.": "6 2 1 2"}  # In samples of lines.
_CODEC = "codec-"  # Before the names of codecs in ids.
# In inches and points of 1/72 inch. A page of 390 pixels shows 72 pixels an inch of this size.
_PAGE_SIZE, _PAGE_FONT = (4.8, 3.1), 12


class Plot(NamedTuple):
    """A drawn plot."""

    metric: Metric
    png: bytes
    svg: str
    inline_svg: str
    """For a page: without XML header, title, label of the metric and legend, in the colour of the
    surrounding text, and readable on a screen of 390 pixels. Lines of measured codecs are in
    elements with the codec's name in ``data-codec``."""
    legend: dict[str, str]
    """For a page: of each line that is drawn the name and a sample, an SVG element."""


def draw_plot(
    metric: Metric,
    measured: Sequence[Curve],
    published: Sequence[Curve],
    *,
    log_rate: bool,
    title: str,
    ours: Collection[str] = (SIC,),
) -> Plot | None:
    """One metric by rate: measured codecs with solid lines, published ones dashed.

    Only the parts of published curves at rates near the measured ones are drawn. In files the
    legend stands beside the axes, so that it covers nothing. Text of SVG is text.

    Args:
        metric: What to plot.
        measured: Curves of the run.
        published: Reference curves.
        log_rate: Logarithmic axis of bpp.
        title: Line above the plot.
        ours: Names of the curves with thick lines.

    Returns:
        The plot; None if no codec of the run has the metric.
    """
    shown = [(curve, curve.scaled_points(metric)) for curve in measured]
    shown = [(curve, points) for curve, points in shown if points]
    if not shown:
        return None
    rates = [bpp for _, points in shown for bpp, _ in points]
    low, high = min(rates) / 1.5, max(rates) * 1.25
    lines = _lines_of(measured, ours)
    style: Any = {
        "svg.hashsalt": metric.name,
        "svg.fonttype": "none",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "font.size": 11,
    }

    def draw(size: tuple[float, float]) -> tuple[Figure, Axes]:
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        _draw_published(axes, metric, published, low, high)
        _draw_measured(axes, shown, lines)
        _dress(axes, low, high, log_rate=log_rate)
        return figure, axes

    with mpl.rc_context(style):
        figure, axes = draw((8.4, 5))
        axes.set_title(title, fontsize=11, loc="left")
        axes.set_ylabel(metric_text(metric))
        _add_legend(axes)
        png = _save(figure, "png", dpi=150)
        svg = _save(figure, "svg", metadata={"Date": None}).decode()
    with mpl.rc_context({**style, "font.size": _PAGE_FONT}):
        figure, axes = draw(_PAGE_SIZE)
        clear = _save(figure, "svg", metadata={"Date": None}, transparent=True).decode()
    legend = {str(line.get_label()): _sample(line) for line in axes.get_lines()}
    return Plot(metric, png, svg, _inline(clear, metric), legend)


def _lines_of(measured: Sequence[Curve], ours: Collection[str]) -> dict[str, dict[str, Any]]:
    """How the line of each codec looks, the same in the plots of all metrics."""
    # Our first curve has the first colour, whether there are others or not.
    names = sorted((curve.name for curve in measured), key=lambda name: name not in ours)
    first = 0 if names[0] in ours else 1
    lines = {}
    for place, name in enumerate(names, first):
        thick = name in ours
        lines[name] = {
            "color": _COLOURS[place % len(_COLOURS)],
            "linestyle": "-" if place < len(_COLOURS) else "-.",  # A colour that comes again.
            "markersize": 6 if thick else 4.5,
            "linewidth": 2.6 if thick else 1.7,
            "zorder": 4 if thick else 3,
        }
    return lines


def _draw_measured(
    axes: Axes,
    shown: Sequence[tuple[Curve, list[tuple[float, float]]]],
    lines: Mapping[str, Mapping[str, Any]],
) -> None:
    for curve, points in shown:
        axes.plot(
            *zip(*points, strict=True),
            **lines[curve.name],
            gid=_CODEC + curve.name,
            marker="o",
            label=curve.name,
        )


def _draw_published(
    axes: Axes, metric: Metric, published: Sequence[Curve], low: float, high: float
) -> None:
    for k, curve in enumerate(published):
        points = [point for point in curve.scaled_points(metric) if low <= point[0] <= high]
        if not points:
            continue
        axes.plot(
            *zip(*points, strict=True),
            color=_PUBLISHED_COLOURS[k % len(_PUBLISHED_COLOURS)],
            marker=_PUBLISHED_MARKERS[k % len(_PUBLISHED_MARKERS)],
            markersize=4.5,
            linewidth=1,
            linestyle="--",
            label=curve.name + PUBLISHED,
            zorder=2,
        )


def _dress(axes: Axes, low: float, high: float, *, log_rate: bool) -> None:
    """Axes and grid."""
    if log_rate:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(FixedLocator(_TICKS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, high)
    axes.set_xlabel("bits per pixel of the file" + (", logarithmic" if log_rate else ""))
    axes.grid(visible=True, color="#808080", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(axes: Axes) -> None:
    """Beside the axes, measured codecs first."""
    handles, labels = axes.get_legend_handles_labels()
    ours_first = sorted(range(len(labels)), key=lambda k: labels[k].endswith(PUBLISHED))
    axes.legend(
        [handles[k] for k in ours_first],
        [labels[k] for k in ours_first],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=10,
    )


def _sample(line: Line2D) -> str:
    """A piece of the line with its marker, for a legend."""
    colour, width = line.get_color(), line.get_linewidth()
    marker = MarkerStyle(str(line.get_marker()))
    size = line.get_markersize() * 1.4
    place = marker.get_transform() + Affine2D().scale(size, -size).translate(14, 6)
    shapes = []
    for polygon in marker.get_path().to_polygons(transform=place):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(polygon, np.float64))
        shapes.append(f'<polygon points="{points}" fill="{colour}"/>')
    pattern = _DASHES.get(str(line.get_linestyle()))
    dashes = f' stroke-dasharray="{pattern}"' if pattern else ""
    return (
        '<svg class="sample" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
        f'<path d="M0 6H28" stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
        f"{''.join(shapes)}</svg>"
    )


def _save(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _inline(svg: str, metric: Metric) -> str:
    """The svg element with ids of its own, scalable, in the colour of the text around it."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{metric.name}-", svg)
    svg = svg.replace(f'id="{metric.name}-{_CODEC}', 'data-codec="')
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{metric.label} by bits per pixel">{rest}'
