"""From measurements to tables: means over images, and codecs compared at equal rate."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SIC = "sic"
"""Name of this package's codec, at whose rates the others are compared."""

_METRICS = ("bpp_est", "psnr", "ms_ssim", "lpips", "encode_s", "decode_s")
_DECIMALS = {
    "bpp": 4,
    "bpp_est": 4,
    "psnr": 2,
    "ms_ssim": 4,
    "lpips": 4,
    "encode_s": 3,
    "decode_s": 3,
}


class Record(NamedTuple):
    """One image, coded by one codec at one setting; `sic_jax.evaluation` describes the fields."""

    image: str
    codec: str
    setting: int
    file: str
    height: int
    width: int
    num_bytes: int
    bpp: float
    bpp_est: float | None
    psnr: float | None
    ms_ssim: float | None
    lpips: float | None
    encode_s: float
    decode_s: float


class Row(NamedTuple):
    """A line of the summary; None is what was not measured, or not on every image."""

    codec: str
    setting: int | None
    """Level or quality; None for values interpolated between settings."""
    level: int | None
    """The `sic` level at whose rate the codecs are compared; None for a plain mean."""
    num_images: int
    bpp: float
    bpp_est: float | None = None
    psnr: float | None = None
    ms_ssim: float | None = None
    lpips: float | None = None
    encode_s: float | None = None
    decode_s: float | None = None


def mean_rows(records: Sequence[Record]) -> list[Row]:
    """Means over images of every codec and setting, in the order of their first record."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.codec, record.setting), []).append(record)
    rows = []
    for (codec, setting), group in groups.items():
        bpp = float(np.mean([record.bpp for record in group]))
        means = {name: _mean([getattr(record, name) for record in group]) for name in _METRICS}
        rows.append(Row(codec, setting, None, len(group), bpp, **means))
    return rows


def rows_at_equal_rate(means: Sequence[Row]) -> list[Row]:
    """For every level of `sic`, its means and those of the other codecs at its mean bpp.

    Args:
        means: What `mean_rows` returns.

    Returns:
        Per level first the row of `sic`, then one row per other codec, interpolated on its curve
        of means; its metrics are None outside the measured rates.
    """
    curves: dict[str, list[Row]] = {}
    for row in means:
        curves.setdefault(row.codec, []).append(row)
    rows = []
    for ours in curves.pop(SIC, []):
        rows.append(ours._replace(level=ours.setting))
        for codec, curve in curves.items():
            values = {
                name: interpolate([(row.bpp, getattr(row, name)) for row in curve], ours.bpp)
                for name in ("psnr", "ms_ssim", "lpips")
            }
            rows.append(Row(codec, None, ours.setting, curve[0].num_images, ours.bpp, **values))
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


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with a header line; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; None is "-"."""
    lines = [list(Row._fields), ["---"] * len(Row._fields)]
    for row in rows:
        lines.append([_cell(name, value) for name, value in row._asdict().items()])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.{_DECIMALS[name]}f}" if name in _DECIMALS else str(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
