"""Means over images, and codecs compared at equal rate."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sic_jax.evaluation.codecs import SIC
from sic_jax.evaluation.records import Record
from sic_jax.metrics.table import Metric


class Row(NamedTuple):
    """A line of the summary; None is what was not measured, or not on every image."""

    codec: str
    setting: float | None
    """Level or quality; None for values interpolated between settings."""
    level: float | None
    """The level of `sic`, or of its first curve, at whose rate the codecs are compared; None for a
    plain mean."""
    num_images: int
    bpp: float
    bpp_est: float | None
    encode_s: float | None
    decode_s: float | None
    metrics: Mapping[str, float | None]
    spread: Mapping[str, float | None]
    """Standard deviation over samples, mean over images; empty without samples."""


class Protocol(NamedTuple):
    """How published values were measured; "not stated" where no source says it."""

    rate: str
    """What bpp counts."""
    rounding: str
    """Of reconstructions before they are measured."""
    size: str
    """Of the pictures, the longer side first: "768x512" are Kodak's, "512x512" crops of them."""
    networks: Mapping[str, str]
    """Of each LPIPS metric the network, and the version of LPIPS."""


class Curve(NamedTuple):
    """A codec's means by rate, lowest rate first."""

    name: str
    bpp: tuple[float, ...]
    metrics: Mapping[str, tuple[float | None, ...]]
    """Of each metric one value a rate; metrics that were not published are left out."""
    source: str = ""
    """Where published values are from; empty for the measurements of this run."""
    protocol: Protocol | None = None
    """How published values were measured; None for the measurements of this run."""

    def points(self, metric: str) -> list[tuple[float, float]]:
        """The pairs of bpp and value that there are."""
        values = self.metrics.get(metric, ())
        return [(b, v) for b, v in zip(self.bpp, values, strict=False) if v is not None]

    def scaled_points(self, metric: Metric) -> list[tuple[float, float]]:
        """The pairs of bpp and value in the metric's unit; without infinite ones (SSIM of 1)."""
        scaled = [(bpp, metric.scale(value)) for bpp, value in self.points(metric.name)]
        return [(bpp, value) for bpp, value in scaled if math.isfinite(value)]


def mean_rows(records: Sequence[Record]) -> list[Row]:
    """Means over images of every codec and setting, in the order of their first record."""
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record.codec, record.setting), []).append(record)
    rows = []
    for (codec, setting), group in groups.items():
        rows.append(
            Row(
                codec=codec,
                setting=setting,
                level=None,
                num_images=len(group),
                bpp=float(np.mean([record.bpp for record in group])),
                bpp_est=_mean([record.bpp_est for record in group]),
                encode_s=_mean([record.encode_s for record in group]),
                decode_s=_mean([record.decode_s for record in group]),
                metrics=_means([record.metrics for record in group]),
                spread=_means([record.spread for record in group]),
            )
        )
    return rows


def curves_of(means: Sequence[Row]) -> list[Curve]:
    """One curve a codec, from what `mean_rows` returns."""
    groups: dict[str, list[Row]] = {}
    for row in means:
        groups.setdefault(row.codec, []).append(row)
    curves = []
    for codec, group in groups.items():
        group = sorted(group, key=lambda row: row.bpp)
        metrics = {name: tuple(row.metrics[name] for row in group) for name in group[0].metrics}
        curves.append(Curve(codec, tuple(row.bpp for row in group), metrics))
    return curves


def rows_at_equal_rate(means: Sequence[Row], reference: str = SIC) -> list[Row]:
    """For every level of a reference, its means and those of the other codecs at its mean bpp.

    Args:
        means: What `mean_rows` returns.
        reference: Name of the codec whose rates count.

    Returns:
        Per level first the row of the reference, then one row per other codec, interpolated on its
        curve of means; its metrics are None outside the measured rates.
    """
    others = curves_of([row for row in means if row.codec != reference])
    num_images = {row.codec: row.num_images for row in means}
    rows = []
    for ours in (row for row in means if row.codec == reference):
        rows.append(ours._replace(level=ours.setting))
        for curve in others:
            values = {
                name: interpolate(list(zip(curve.bpp, known, strict=True)), ours.bpp)
                for name, known in curve.metrics.items()
            }
            rows.append(
                Row(
                    codec=curve.name,
                    setting=None,
                    level=ours.setting,
                    num_images=num_images[curve.name],
                    bpp=ours.bpp,
                    bpp_est=None,
                    encode_s=None,
                    decode_s=None,
                    metrics=values,
                    spread={},
                )
            )
    return rows


def interpolate(points: Sequence[tuple[float, float | None]], bpp: float) -> float | None:
    """Value of a rate curve at a rate, linear in log bpp between neighbouring points.

    Args:
        points: Pairs of bpp (positive) and value, in any order.
        bpp: Where to read the curve.

    Returns:
        The value; None outside the range of the points or where a point has none.
    """
    points = sorted(points, key=lambda point: point[0])
    rates = [rate for rate, _ in points]
    values = [value for _, value in points if value is not None]
    if not rates[0] <= bpp <= rates[-1] or len(values) < len(rates):
        return None
    return float(np.interp(np.log(bpp), np.log(rates), values))


def _means(groups: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {name: _mean([values[name] for values in groups]) for name in groups[0]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
