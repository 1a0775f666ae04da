"""Tables of a report as text: CSV, Markdown and the results format of CompressAI."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sic_jax.evaluation.bd import BdResult, bd_metric, bd_rate
from sic_jax.evaluation.codecs import setting_text
from sic_jax.evaluation.means import Curve, Row
from sic_jax.metrics.table import Metric

_COMPRESSAI_NAMES = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb", "ssim": "ssim-rgb"}
_NUMBERS = {"bpp": 4, "bpp_est": 4, "encode_s": 3, "decode_s": 3}


class BdRow(NamedTuple):
    """Two codecs compared over one metric."""

    metric: Metric
    reference: str
    test: str
    rate: BdResult
    """Percent of the reference's rate."""
    delta: BdResult
    """Test minus reference, in the unit of the metric's axis."""


def summary_columns(metrics: Sequence[Metric], *, samples: bool) -> list[str]:
    """Names of the columns of `summary_cells`."""
    spread = [f"{metric.name}_spread" for metric in metrics] if samples else []
    first = ["codec", "setting", "level", "num_images", "bpp", "bpp_est"]
    return [*first, *(metric.name for metric in metrics), *spread, "encode_s", "decode_s"]


def summary_cells(row: Row, columns: Sequence[str]) -> list[Any]:
    """The values of a row; None is what was not measured."""
    known: dict[str, Any] = row._asdict()
    known |= row.metrics
    known |= {f"{name}_spread": value for name, value in row.spread.items()}
    return [known.get(column) for column in columns]


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows with a header line; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def formatted(columns: Sequence[str], cells: Sequence[Any], metrics: Sequence[Metric]) -> list[str]:
    """Cells of a summary row as text; None is "-"."""
    decimals = dict(_NUMBERS)
    for metric in metrics:
        decimals[metric.name] = metric.decimals
        decimals[f"{metric.name}_spread"] = metric.decimals + 1
    out = []
    for column, value in zip(columns, cells, strict=True):
        if value is None:
            out.append("-")
        elif column in decimals:
            out.append(f"{value:.{decimals[column]}f}")
        else:
            out.append(value if isinstance(value, str) else setting_text(value))
    return out


def bd_rows(
    measured: Sequence[Curve], published: Sequence[Curve], metrics: Sequence[Metric]
) -> list[BdRow]:
    """Every pair of measured codecs, and every measured codec against every published curve."""
    rows = []
    for metric in metrics:
        for reference in (*measured, *published):
            for test in measured:
                if test is reference or not reference.points(metric.name):
                    continue
                a, b = reference.scaled_points(metric), test.scaled_points(metric)
                up = metric.higher_is_better
                rate, delta = (
                    bd_rate(a, b, higher_is_better=up),
                    bd_metric(a, b, higher_is_better=up),
                )
                rows.append(BdRow(metric, reference.name, test.name, rate, delta))
    return rows


BD_COLUMNS = (
    "metric",
    "reference",
    "test",
    "bd_rate_percent",
    "quality_low",
    "quality_high",
    "bd_metric",
    "unit",
    "bpp_low",
    "bpp_high",
    "remark",
)
"""Of bd.csv: the ranges are those in which both curves have values."""


def bd_cells(row: BdRow) -> list[Any]:
    """A comparison as a line of bd.csv."""
    remarks = []
    if row.rate.reason or row.delta.reason:
        remarks.append(f"rate: {row.rate.reason or 'ok'}, metric: {row.delta.reason or 'ok'}")
    if row.rate.num_dropped:
        remarks.append(f"{row.rate.num_dropped} points left out: not better than a cheaper one")
    return [
        row.metric.name,
        row.reference,
        row.test,
        row.rate.value,
        row.rate.low,
        row.rate.high,
        row.delta.value,
        row.metric.unit,
        row.delta.low,
        row.delta.high,
        "; ".join(remarks),
    ]


def to_compressai(
    codec: str, rows: Sequence[Row], metrics: Sequence[Metric], description: str
) -> str:
    """Means of one codec in the JSON format of CompressAI's results and plotting tool.

    Its names: psnr-rgb and ms-ssim-rgb; bpp, encoding_time and decoding_time (seconds an image).
    Metrics and times that some setting lacks are left out.

    Args:
        codec: Name of the codec.
        rows: Its mean rows.
        metrics: Metrics to write.
        description: Of what was measured.
    """
    rows = sorted(rows, key=lambda row: row.bpp)
    results: dict[str, list[float]] = {"bpp": [row.bpp for row in rows]}
    lists = {
        _COMPRESSAI_NAMES.get(metric.name, metric.name): [row.metrics[metric.name] for row in rows]
        for metric in metrics
    }
    lists["encoding_time"] = [row.encode_s for row in rows]
    lists["decoding_time"] = [row.decode_s for row in rows]
    for name, values in lists.items():
        known = [value for value in values if value is not None]
        if len(known) == len(rows):
            results[name] = known
    content = {"name": codec, "description": description, "results": results}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
