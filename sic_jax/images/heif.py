"""The colours that AVIF and HEIC files state without an ICC profile, which Pillow does not apply.

Reference: ISO/IEC 14496-12, 8.11 (`meta`, `pitm`) and 12.1.5 (`colr`); ISO/IEC 23008-12, 9.3
(`iprp`, `ipco`, `ipma`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from sic_jax.images.png import Colours, of_code_points, srgb_to_linear


def colours_of_heif(name: str, data: bytes) -> Colours | None:
    """How the samples of an AVIF or HEIC file become light.

    None where that is sRGB, an ICC profile tells, the file tells nothing, is damaged, or is of
    another format.

    Args:
        name: Of the file, for messages.
        data: Its bytes.

    Raises:
        ValueError: If it is an HDR picture (PQ or HLG), or its colours are not known.
    """
    if data[4:8] != b"ftyp":
        return None
    try:
        stated = [box[:8] for kind, box in _properties(data) if kind == b"colr"]
    except (struct.error, IndexError):  # Pillow has read the picture from it all the same.
        return None
    nclx = [box for box in stated if box.startswith(b"nclx") and len(box) == 8]
    if len(nclx) == 0 or any(box.startswith((b"prof", b"rICC")) for box in stated):
        return None
    primaries, transfer = struct.unpack(">2H", nclx[0][4:])
    # Encoders write BT.709 on pictures in sRGB, and browsers take it for that.
    return of_code_points(name, primaries, transfer, bt709=srgb_to_linear)


def _properties(data: bytes) -> list[tuple[bytes, bytes]]:
    """The properties of the main picture, not of thumbnails and gain maps: type and content."""
    meta = dict(_boxes(dict(_boxes(data)).get(b"meta", b"")[4:]))
    boxes = list(_boxes(meta.get(b"iprp", b"")))
    properties = list(_boxes(dict(boxes).get(b"ipco", b"")))
    pitm = meta.get(b"pitm", b"\0" * 6)
    main = int.from_bytes(pitm[4:8] if pitm[0] else pitm[4:6], "big")
    return [
        properties[index - 1]
        for kind, box in boxes
        if kind == b"ipma"
        for item, index in _associations(box)
        if item == main and index > 0
    ]


def _associations(ipma: bytes) -> Iterator[tuple[int, int]]:
    """Number of an item and, from 1, of a property that it has."""
    version, flags, num_items = struct.unpack(">B3sI", ipma[:8])
    id_format, index_format = ">H" if version == 0 else ">I", ">H" if flags[2] & 1 else ">B"
    id_bytes, index_bytes = struct.calcsize(id_format), struct.calcsize(index_format)
    at = 8
    for _ in range(num_items):
        item, count = struct.unpack_from(id_format + "B", ipma, at)
        at += id_bytes + 1
        for _ in range(count):
            (index,) = struct.unpack_from(index_format, ipma, at)
            at += index_bytes
            yield item, index & (0x7FFF if index_bytes == 2 else 0x7F)  # A bit says "essential".


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the boxes that follow each other."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = len(data) if size == 0 else at + size
        if end < start:
            return
        yield kind, data[start:end]
        at = end
