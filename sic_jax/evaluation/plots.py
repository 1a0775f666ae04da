"""Rate-metric plots. Importing this module needs matplotlib (the extra ``eval``)."""

import io
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sic_jax.evaluation.codecs import SIC
from sic_jax.evaluation.means import Curve
from sic_jax.metrics.table import Metric

# Colours that are told apart with colour-blindness too (Okabe and Ito); `sic` has the first.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#b59b00", "#7f3fbf")
_PUBLISHED_COLOURS = ("#8c8c8c", "#b07d62", "#7d8cc4", "#6fa287")
_PUBLISHED_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "d", "p", "8", "H")
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)
_INK = "#01020a"  # Colour of text and axes: the page replaces it by the colour of its text.


class Plot(NamedTuple):
    """A drawn plot."""

    metric: Metric
    png: bytes
    svg: str
    inline_svg: str
    """For a page: without XML header, in the colour of the surrounding text."""


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

    Only the parts of published curves at rates near the measured ones are drawn. The legend
    stands beside the axes, so that it covers nothing.

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
    style: Any = {
        "svg.hashsalt": metric.name,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "font.size": 11,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, 5), layout="constrained")
        axes = figure.add_subplot()
        _draw_published(axes, metric, published, low, high)
        _draw_measured(axes, shown, ours)
        _dress(axes, metric, low, high, log_rate=log_rate, title=title)
        png = _save(figure, "png", dpi=150)
        svg = _save(figure, "svg", metadata={"Date": None}).decode()
        clear = _save(figure, "svg", metadata={"Date": None}, transparent=True).decode()
    return Plot(metric, png, svg, _inline(clear, metric))


def _draw_measured(
    axes: Axes, shown: Sequence[tuple[Curve, list[tuple[float, float]]]], names: Collection[str]
) -> None:
    # Our first curve has the first colour, whether there are others or not.
    order = sorted((curve.name for curve, _ in shown), key=lambda name: name not in names)
    first = 0 if order[0] in names else 1
    for curve, points in shown:
        ours = curve.name in names
        place = first + order.index(curve.name)
        axes.plot(
            *zip(*points, strict=True),
            color=_COLOURS[place % len(_COLOURS)],
            linestyle="-" if place < len(_COLOURS) else "-.",  # A colour that comes again.
            marker="o",
            markersize=6 if ours else 4.5,
            linewidth=2.6 if ours else 1.7,
            label=curve.name,
            zorder=4 if ours else 3,
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
            label=f"{curve.name}, published",
            zorder=2,
        )


def _dress(
    axes: Axes, metric: Metric, low: float, high: float, *, log_rate: bool, title: str
) -> None:
    """Axes, grid and legend."""
    if log_rate:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(FixedLocator(_TICKS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, high)
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "higher" if metric.higher_is_better else "lower"
    axes.set_xlabel("bits per pixel of the file" + (", logarithmic" if log_rate else ""))
    axes.set_ylabel(f"{metric.label}{unit}, {better} is better")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(visible=True, color="#808080", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    ours_first = sorted(range(len(labels)), key=lambda k: labels[k].endswith(", published"))
    axes.legend(
        [handles[k] for k in ours_first],
        [labels[k] for k in ours_first],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=10,
    )


def _save(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _inline(svg: str, metric: Metric) -> str:
    """The svg element with ids of its own, scalable, in the colour of the text around it."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{metric.name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{metric.label} by bits per pixel">{rest}'
