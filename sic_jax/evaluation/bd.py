"""Bjontegaard deltas: codecs compared over the range where both curves have values.

Bjontegaard, "Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001), with
monotone piecewise cubic interpolation (PCHIP; Fritsch and Carlson, 1980) of log bpp and quality in
place of one cubic, as the current common test conditions do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float64]
Points = Sequence[tuple[float, float]]
"""Pairs of bpp and value of a metric."""


class BdResult(NamedTuple):
    """A Bjontegaard delta and the range that it is the mean over."""

    value: float | None
    """None where there is nothing to compare."""
    low: float | None
    """Lower end of the common range: of the metric for a rate delta, of bpp for a metric delta."""
    high: float | None
    reason: str
    """Why there is no value; empty where there is one."""
    num_dropped: int
    """Points left out since one at a lower rate is as good."""


def bd_rate(reference: Points, test: Points, *, higher_is_better: bool) -> BdResult:
    """Mean difference of rate at equal quality, in percent of the reference's; below 0 is better.

    Args:
        reference: Curve of the codec that is compared with.
        test: Curve of the codec that is judged.
        higher_is_better: Direction of the metric.

    Returns:
        100 (exp(mean of ln test bpp - ln reference bpp) - 1) over the common range of the metric.
    """
    (rate_a, quality_a), (rate_b, quality_b), dropped = _frontiers(
        reference, test, higher_is_better
    )
    found = _mean_difference(quality_a, rate_a, quality_b, rate_b)
    if isinstance(found, str):
        return BdResult(None, None, None, found, dropped)
    delta, low, high = found
    if not higher_is_better:
        low, high = -high, -low
    return BdResult(100 * float(np.expm1(delta)), low, high, "", dropped)


def bd_metric(reference: Points, test: Points, *, higher_is_better: bool) -> BdResult:
    """Mean difference of the metric at equal rate, test minus reference, over log bpp.

    Arguments are those of `bd_rate`; the range is of bpp.
    """
    (rate_a, quality_a), (rate_b, quality_b), dropped = _frontiers(
        reference, test, higher_is_better
    )
    found = _mean_difference(rate_a, quality_a, rate_b, quality_b)
    if isinstance(found, str):
        return BdResult(None, None, None, found, dropped)
    delta, low, high = found
    sign = 1 if higher_is_better else -1
    return BdResult(sign * delta, float(np.exp(low)), float(np.exp(high)), "", dropped)


def _frontiers(
    reference: Points, test: Points, higher_is_better: bool
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats], int]:
    """The frontiers of both curves, and how many points they leave out."""
    a, b = (_frontier(points, higher_is_better) for points in (reference, test))
    return a, b, len(reference) + len(test) - len(a[0]) - len(b[0])


def _frontier(points: Points, higher_is_better: bool) -> tuple[Floats, Floats]:
    """Log of bpp, and quality, of the points better than all at lower or equal rates."""
    rates: list[float] = []
    qualities: list[float] = []
    best_first = sorted((bpp, value if higher_is_better else -value) for bpp, value in points)
    for bpp, quality in best_first:
        if qualities and quality <= qualities[-1]:
            continue
        if rates and np.log(bpp) == rates[-1]:
            rates.pop()
            qualities.pop()
        rates.append(float(np.log(bpp)))
        qualities.append(quality)
    return np.array(rates), np.array(qualities)


def _mean_difference(
    x_a: Floats, y_a: Floats, x_b: Floats, y_b: Floats
) -> tuple[float, float, float] | str:
    """Mean of b - a over the common range of x, and the range; or why there is none."""
    if min(len(x_a), len(x_b)) < 2:
        return "fewer than 2 points"
    low, high = float(max(x_a[0], x_b[0])), float(min(x_a[-1], x_b[-1]))
    if low >= high:
        return "no overlap"
    areas = [
        float(PchipInterpolator(x, y).integrate(low, high)) for x, y in ((x_a, y_a), (x_b, y_b))
    ]
    return (areas[1] - areas[0]) / (high - low), low, high
