"""Which pictures a report shows, and which part of them."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

from sic_jax.evaluation.codecs import ImageCodec, Pixels, setting_text
from sic_jax.evaluation.records import Record
from sic_jax.images.io import read_image
from sic_jax.metrics.table import Metric

CROP_HEIGHT, CROP_WIDTH = 336, 448
"""Largest part of an image that is shown, in pixels."""
WEBP_QUALITY = 92
MATCH_FACTOR = 1.5
"""A baseline is shown beside a file of the reference whose size is at most this much off."""

_TARGET_BPP = (0.1, 0.25, 0.5)
_SEARCH_STEP = 16


class Crop(NamedTuple):
    """A part of an image."""

    top: int
    left: int
    height: int
    width: int


class Shown(NamedTuple):
    """One picture of the report."""

    codec: str
    """Empty for the original."""
    label: str
    rate: str
    facts: str
    """Metrics; like the rate, of the whole image."""
    uri: str
    """The crop as a data URI."""


class Group(NamedTuple):
    """Decodings of an image at nearly one rate."""

    bpp: float
    """Of the reference codec's file."""
    pictures: list[Shown]
    """The reference codec's, then those of the others."""


class Comparison(NamedTuple):
    """An image, and its decodings grouped by rate."""

    name: str
    crop: Crop
    full_height: int
    full_width: int
    original: Shown
    groups: list[Group]
    """One of each setting of the reference codec, lowest rate first."""


def choose_images(paths: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """Paths of images to show.

    Args:
        paths: Of the run.
        names: File names or stems; None for up to three, spread over the run.

    Raises:
        ValueError: If the run has no image of a name.
    """
    if names is None:
        count = min(3, len(paths))
        return [paths[k * len(paths) // count] for k in range(count)]
    chosen = []
    for name in names:
        found = [path for path in paths if name in (Path(path).name, Path(path).stem, path)]
        if not found:
            raise ValueError(f"--show: no image of this run is called {name!r}")
        chosen += [path for path in found if path not in chosen]
    return chosen


def compare_pictures(
    path: str,
    records: Sequence[Record],
    codecs: Mapping[str, ImageCodec],
    metrics: Sequence[Metric],
    out: Path,
) -> Comparison:
    """Decode what a report shows of one image.

    Args:
        path: The image.
        records: Of this image, those of the reference codec first.
        codecs: By name, to decode the files.
        metrics: To list.
        out: Folder that the files of the records are relative to.
    """
    image = read_image(path, alpha=False).pixels
    crop = choose_crop(image)

    def show(record: Record) -> Shown:
        codec = codecs[record.codec]
        decoded = codec.decode((out / record.file).read_bytes(), 0)
        return Shown(
            record.codec,
            f"{record.codec}, {codec.setting_name} {setting_text(record.setting)}",
            f"{record.bpp:.3f} bpp",
            _facts(record, metrics),
            to_data_uri(decoded, crop),
        )

    reference = [record for record in records if record.codec == records[0].codec]
    others = [name for name in codecs if name != records[0].codec]
    groups = []
    for ours in _spread_over_rates(reference):
        matched = (
            nearest_rate([record for record in records if record.codec == name], ours.bpp)
            for name in others
        )
        near = [record for record in matched if record is not None]
        groups.append(Group(ours.bpp, [show(record) for record in (ours, *near)]))
    return Comparison(
        name=Path(path).name,
        crop=crop,
        full_height=image.shape[0],
        full_width=image.shape[1],
        original=Shown("", "original", "", "", to_data_uri(image, crop)),
        groups=groups,
    )


def nearest_rate(records: Sequence[Record], bpp: float) -> Record | None:
    """The record nearest in log bpp; None if none is within `MATCH_FACTOR`."""
    best = min(records, key=lambda record: abs(math.log(record.bpp / bpp)), default=None)
    if best is None or abs(math.log(best.bpp / bpp)) > math.log(MATCH_FACTOR):
        return None
    return best


def choose_crop(image: Pixels) -> Crop:
    """The part with the strongest differences between neighbouring pixels.

    Args:
        image: uint8 [H, W, 3] or [H, W].
    """
    height, width = min(CROP_HEIGHT, image.shape[0]), min(CROP_WIDTH, image.shape[1])
    gray = image.astype(np.float64) if image.ndim == 2 else image.mean(axis=2)
    steps = np.zeros_like(gray)
    steps[1:] += np.abs(np.diff(gray, axis=0))
    steps[:, 1:] += np.abs(np.diff(gray, axis=1))
    sums = np.pad(steps.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    best, place = -1.0, (0, 0)
    for top in range(0, image.shape[0] - height + 1, _SEARCH_STEP):
        for left in range(0, image.shape[1] - width + 1, _SEARCH_STEP):
            bottom, right = top + height, left + width
            total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            if total > best:
                best, place = float(total), (top, left)
    return Crop(*place, height, width)


def to_data_uri(image: Pixels, crop: Crop, *, lossless: bool = False) -> str:
    """The crop of an image [H, W, 3] or [H, W] as a WebP file in a data URI.

    Where Pillow has no WebP, it is a JPEG or PNG file.
    """
    top, left, height, width = crop
    part = np.ascontiguousarray(image[top : top + height, left : left + width])
    kind = "webp" if features.check("webp") else "png" if lossless else "jpeg"
    options: dict[str, dict[str, Any]] = {
        "webp": {"method": 4, "lossless": lossless, "quality": WEBP_QUALITY},
        "jpeg": {"subsampling": 0, "quality": WEBP_QUALITY},
        "png": {},
    }
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, kind, **options[kind])
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _spread_over_rates(records: Sequence[Record]) -> list[Record]:
    """At most three records, those nearest to low, middle and high rates."""
    if len(records) <= len(_TARGET_BPP):
        return list(records)
    chosen = [
        min(records, key=lambda record: abs(math.log(record.bpp / target)))
        for target in _TARGET_BPP
    ]
    return [record for record in records if record in chosen]


def _facts(record: Record, metrics: Sequence[Metric]) -> str:
    parts = []
    for metric in metrics:
        value = record.metrics[metric.name]
        if value is not None:
            parts.append(f"{metric.label.split(' (')[0]} {value:.{min(metric.decimals, 3)}f}")
    return ", ".join(parts)
