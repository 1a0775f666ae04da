"""What one measurement is, and how measurements are kept between runs.

A record in results.json and records.jsonl is an object with these keys:

    image                   path as given
    image_id                16 hex digits, a digest of the pixels
    codec                   "sic", "jpeg", "webp", "avif", "jpeg2000", "jxl" or an external name;
                            in results.json the curve's name where a run has several of "sic"
    options                 all that fixes the codec's result beside the setting: the model and how
                            it draws details, or the encoder's options and version
    setting                 level of `sic`; quality of the others (compression ratio of jpeg2000)
    file                    the compressed file, relative to the output folder
    file_id                 16 hex digits, a digest of the file
    height, width           pixels
    num_bytes, bpp          size of the file; 8 num_bytes / (height width)
    bpp_est                 bpp by the model's probabilities; null for other codecs, and after
                            latent optimisation
    samples                 decodings that were measured: members of the synset
    encode_s, decode_s      seconds of one call with nothing beside it, compilation excluded; null
                            in results.json if they were measured with something else than the run.
                            encode_s of `sic`: of the one encoding of the image, at the run's
                            highest level, that the files of all its levels are cut from; null
                            after latent optimisation. decode_s: of this file, mean over samples
    timed_with              what they were measured with: range coder, device and versions; null in
                            records of versions that did not keep it
    METRIC                  mean over samples; null where it is not finite (PSNR of equal images)
                            or the image is smaller than the metric allows
    METRIC_spread           standard deviation over samples (divisor samples - 1); only where there
                            are several
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_SPREAD = "_spread"


class Record(NamedTuple):
    """One image, coded by one codec at one setting; the module describes the fields."""

    image: str
    image_id: str
    codec: str
    options: str
    setting: float
    file: str
    file_id: str
    height: int
    width: int
    num_bytes: int
    bpp: float
    bpp_est: float | None
    samples: int
    encode_s: float | None
    decode_s: float | None
    timed_with: str | None
    metrics: Mapping[str, float | None]
    spread: Mapping[str, float | None]


def digest(data: bytes) -> str:
    """16 hex digits that tell data apart."""
    return hashlib.sha256(data).hexdigest()[:16]


class Key(NamedTuple):
    """What makes two measurements the same."""

    image_id: str
    codec: str
    options: str
    setting: float


def key_of(record: Record) -> Key:
    """The key of a record."""
    return Key(record.image_id, record.codec, record.options, record.setting)


def to_json(record: Record) -> dict[str, Any]:
    """The record as one flat object."""
    flat = record._asdict()
    metrics, spread = flat.pop("metrics"), flat.pop("spread")
    return {**flat, **metrics, **{name + _SPREAD: value for name, value in spread.items()}}


def from_json(flat: Mapping[str, Any]) -> Record:
    """The inverse of `to_json`.

    Raises:
        ValueError: If it is not the object of a record.
    """
    fields = Record._fields[:-2]
    flat = {"timed_with": None, **flat}
    if missing := [name for name in fields if name not in flat]:
        raise ValueError(f"a record without {missing[0]!r}")
    others = {name: value for name, value in flat.items() if name not in fields}
    spread = {name: value for name, value in others.items() if name.endswith(_SPREAD)}
    metrics = {name: value for name, value in others.items() if name not in spread}
    return Record(
        **{name: flat[name] for name in fields},
        metrics=metrics,
        spread={name.removesuffix(_SPREAD): value for name, value in spread.items()},
    )


def append_records(path: Path, records: list[Record]) -> None:
    """Adds records to a file, one JSON object a line."""
    lines = "".join(json.dumps(to_json(record), allow_nan=False) + "\n" for record in records)
    with open(path, "a+b") as file:
        if file.tell() and path.read_bytes()[-1:] != b"\n":
            lines = "\n" + lines  # A run was killed while it wrote its last line.
        file.write(lines.encode())


def load_records(path: Path) -> dict[Key, Record]:
    """The newest record of every key; lines that are not whole are left out."""
    found: dict[Key, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = from_json(json.loads(line))
        except (ValueError, TypeError):
            continue
        found[key_of(record)] = record
    return found
