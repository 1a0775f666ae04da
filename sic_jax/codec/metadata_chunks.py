"""Metadata as they stand at the end of a sic file: chunks, each with a kind and a checksum.

FORMAT.md beside this module specifies every byte.
"""

import zlib
from typing import Any

from sic_jax.codec.wire import (
    DataEndError,
    Reader,
    check_crc,
    inflate,
    record_crc,
    uint16,
    varint,
)
from sic_jax.errors import BitstreamError
from sic_jax.metadata import DPI_UNITS, MAX_METADATA_BYTES, Metadata

_BLOCKS = {1: "icc_profile", 2: "exif", 3: "xmp"}
"""Kinds of compressed chunks, and the fields of `Metadata` that they hold."""
_KIND_RESOLUTION = 4


def write_chunks(metadata: Metadata) -> list[bytes]:
    """The chunks of all metadata that are there, by their kinds."""
    chunks = []
    for kind, name in _BLOCKS.items():
        value = getattr(metadata, name)
        if value is not None:
            chunks.append(_chunk(kind, zlib.compress(value, 9)))
    if metadata.dpi is not None:
        chunks.append(_chunk(_KIND_RESOLUTION, _resolution_payload(metadata.dpi)))
    return chunks


def read_chunks(reader: Reader) -> tuple[Metadata, list[bytes], str]:
    """Reads chunks to the end of the data, or to the first damaged one.

    Returns:
        The metadata, the intact chunks as they are written, and what was wrong ("" for nothing).
    """
    values: dict[str, Any] = {}
    kinds: set[int] = set()
    chunks: list[bytes] = []
    damage = "" if reader.remaining() else "the file ends before them"
    try:
        while reader.remaining():
            kind = reader.number(1)
            length = reader.varint(f"the length of the chunk of kind {kind}")
            expected = reader.number(2)
            payload = reader.take(length)
            check_crc(f"the chunk of kind {kind}", record_crc(kind, payload), expected)
            if kind == 0 or kind in kinds:
                raise BitstreamError(f"a chunk has the reserved or repeated kind {kind}")
            kinds.add(kind)
            if kind in _BLOCKS:
                what = f"the chunk of kind {kind}"
                values[_BLOCKS[kind]] = inflate(what, payload, MAX_METADATA_BYTES)
            elif kind == _KIND_RESOLUTION:
                values["dpi"] = _parse_resolution(payload)
            chunks.append(_chunk(kind, payload))
    except DataEndError:
        damage = "the file ends inside a chunk"
    except BitstreamError as error:
        damage = str(error)
    return Metadata(**values), chunks, damage


def _resolution_payload(dpi: tuple[float, float]) -> bytes:
    return b"".join(varint(round(DPI_UNITS * v)) for v in dpi)


def _parse_resolution(payload: bytes) -> tuple[float, float]:
    """Pixels per inch, horizontally and vertically; BitstreamError if they are not that."""
    reader = Reader(payload)
    try:
        dpi = tuple(reader.varint("a resolution") / DPI_UNITS for _ in range(2))
    except DataEndError:
        raise BitstreamError("a resolution is cut off") from None
    if reader.remaining() or not all(dpi):
        raise BitstreamError("a resolution is not two positive numbers")
    return dpi[0], dpi[1]


def _chunk(kind: int, payload: bytes) -> bytes:
    crc = uint16(record_crc(kind, payload))
    return b"".join((bytes((kind,)), varint(len(payload)), crc, payload))
