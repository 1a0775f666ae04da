"""The sic file, format version 2: header, alpha, a segment for z and one a level, metadata.

FORMAT.md beside this module specifies every byte. Only the standard library is imported, so that
files can be inspected and truncated without a model.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sic_jax.codec.metadata_chunks import read_chunks, write_chunks
from sic_jax.codec.wire import (
    MAX_VARINT,
    BytesLike,
    DataEndError,
    Reader,
    check_bytes,
    check_crc,
    check_int,
    crc16,
    record_crc,
    uint16,
    varint,
)
from sic_jax.errors import BitstreamError
from sic_jax.metadata import Metadata

MAGIC = b"\x93SIC"
VERSION = 2
MODEL_ID_BYTES = 6
MAX_HEADER_BYTES = 29
MAX_LEVELS = 64
MAX_SIDE = 2**24 - 1
MAX_SEED = 2**32 - 1
MAX_GRAIN = 255
GRAIN_UNITS = 16
"""Grain counts in 1/16 of a step of 8-bit samples."""
DEFAULT_MAX_PIXELS = 200_000_000

_FLAG_GRAY = 1
_FLAG_FLOAT_ENTROPY = 2
_FLAG_METADATA = 4
_FLAG_GRAIN = 8
_FLAG_EXACT = 16
_FLAG_ALPHA = 32
_KNOWN_FLAGS = 2 * _FLAG_ALPHA - 1
_ALPHA_INDEX = 255
"""What the CRC of the alpha segment counts as its index."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself before its segments; checked when it is made.

    Attributes:
        model_id: First 6 bytes of the SHA-256 of the bundle that codes the file.
        height: Rows of the image, 1 to 2^24 - 1.
        width: Columns of the image, 1 to 2^24 - 1.
        num_levels: Coded levels, 1 to 64; of an exact picture, those that were asked for.
        mode: "rgb" or "gray".
        seed: Detail seed, 0 to 2^32 - 1.
        grain: Standard deviation of the grain to draw, in 1/16 of a step of 8-bit samples, 0 (none)
            to 255.
        float_entropy: The entropy path was computed in float arithmetic, so that the symbols
            decode only where that arithmetic agrees.
        exact: The file holds the picture's samples and no latents.
        alpha: The file has an alpha segment.
        version: Format version, 2.

    Raises:
        TypeError: If a field has another type.
        ValueError: If a field is out of these bounds.
    """

    model_id: bytes
    height: int
    width: int
    num_levels: int
    mode: Literal["rgb", "gray"] = "rgb"
    seed: int = 0
    grain: int = 0
    float_entropy: bool = False
    exact: bool = False
    alpha: bool = False
    version: int = VERSION

    def __post_init__(self) -> None:
        """Check the fields."""
        check_bytes("model_id", self.model_id, MODEL_ID_BYTES, MODEL_ID_BYTES)
        check_int("height", self.height, 1, MAX_SIDE)
        check_int("width", self.width, 1, MAX_SIDE)
        check_int("num_levels", self.num_levels, 1, MAX_LEVELS)
        if self.mode not in ("rgb", "gray"):
            raise ValueError(f"mode must be 'rgb' or 'gray', got {self.mode!r}")
        check_int("seed", self.seed, 0, MAX_SEED)
        check_int("grain", self.grain, 0, MAX_GRAIN)
        for name in ("float_entropy", "exact", "alpha"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        check_int("version", self.version, VERSION, VERSION)

    @property
    def num_segments(self) -> int:
        """Of a complete file, without alpha: z and one a level, or that of an exact picture."""
        return 1 if self.exact else self.num_levels + 1


@dataclass(frozen=True)
class Segment:
    """Coded symbols of z (segment 0) or a level, an exact picture, or alpha; checked when made.

    Attributes:
        payload: The range coder's bytes, or the zlib stream of an exact picture or of alpha; fewer
            than 2^32, may be empty.
        symbols_crc: `symbols_checksum` of the symbols or samples that the payload decodes to, 0 to
            65535. The container carries it; only a decoder can check it.

    Raises:
        TypeError: If a field has another type.
        ValueError: If a field is out of these bounds.
    """

    payload: bytes
    symbols_crc: int

    def __post_init__(self) -> None:
        """Check the fields."""
        check_bytes("payload", self.payload, 0, MAX_VARINT)
        check_int("symbols_crc", self.symbols_crc, 0, 0xFFFF)


@dataclass(frozen=True)
class Container:
    """A parsed file.

    Attributes:
        header: The header as written; its num_levels counts the missing levels too.
        segments: The segments that are there: z, level 1, ..., at least these two; or the one of an
            exact picture.
        metadata: The metadata that could be read.
        metadata_damaged: Metadata are announced and some are cut off or damaged.
        alpha: The alpha segment; None if the header announces none.
    """

    header: Header
    segments: tuple[Segment, ...]
    metadata: Metadata = field(default_factory=Metadata)
    metadata_damaged: bool = False
    alpha: Segment | None = None

    @property
    def level(self) -> int:
        """Highest level that is there, 1 to header.num_levels."""
        return self.header.num_levels if self.header.exact else len(self.segments) - 1

    @property
    def num_segments_missing(self) -> int:
        """How many announced segments are cut off."""
        return self.header.num_segments - len(self.segments)

    @property
    def truncated(self) -> bool:
        """Whether segments are missing."""
        return self.num_segments_missing > 0


def symbols_checksum(data: BytesLike) -> int:
    """CRC-16 of the symbols of one segment.

    Args:
        data: The symbols as little-endian int32, in coding order; of an exact picture or of alpha
            what its zlib stream holds.

    Returns:
        The checksum for `Segment.symbols_crc`, 0 to 65535.
    """
    return crc16(data)


def pack(
    header: Header,
    segments: Sequence[Segment],
    metadata: Metadata | None = None,
    *,
    alpha: Segment | None = None,
) -> bytes:
    """Writes a file.

    Args:
        header: Its num_segments must be the number of segments, and its alpha say whether there is
            an alpha segment.
        segments: z, level 1, level 2, ...; or the one of an exact picture.
        metadata: Stored after the segments; None for none.
        alpha: Stored before the segments; None for none.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: The segments do not fit the header.
    """
    if header.alpha != (alpha is not None):
        there = "no" if alpha is None else "an"
        raise ValueError(
            f"the header says alpha = {header.alpha}, and {there} alpha segment is given"
        )
    if len(segments) != header.num_segments:
        what = "an exact picture" if header.exact else f"num_levels = {header.num_levels}"
        raise ValueError(f"{what} needs {header.num_segments} segments, got {len(segments)}")
    chunks = [] if metadata is None else write_chunks(metadata)
    return _join(header, alpha, segments, chunks)


def unpack(
    data: BytesLike, *, strict: bool = False, max_pixels: int | None = DEFAULT_MAX_PIXELS
) -> Container:
    """Reads a file, or the beginning of one.

    Data that end inside a segment lose that segment and what follows it; metadata are lost from
    the first damaged chunk on. The result says so (`truncated`, `metadata_damaged`).

    Args:
        data: The file; at least the header, alpha, z and level 1 must be there.
        strict: Whether missing segments and damaged metadata are errors.
        max_pixels: Largest height * width to accept; None for no limit.

    Returns:
        The parsed file.

    Raises:
        BitstreamError: The data are not a sic file, have another version, are too short or
            corrupted, or the image has more than max_pixels pixels.
        TypeError: The data are not bytes-like.
    """
    unpacker = Unpacker(max_pixels=max_pixels)
    unpacker.feed(data)
    return unpacker.close(strict=strict)


class Unpacker:
    """Reads a file that is still arriving.

    After an error it gives what it had read before, and the same error again.
    """

    def __init__(self, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> None:
        """Start before the first byte; `max_pixels` is that of `unpack`."""
        self.header: Header | None = None
        """None until it has arrived."""
        self.alpha: Segment | None = None
        """The alpha segment; None until it has arrived, or if there is none."""
        self.segments: list[Segment] = []
        """Those that have arrived, as in `Container`."""
        self.chunks: list[bytes] = []
        """Intact metadata chunks as they are written; empty before `close`."""
        self._max_pixels = max_pixels
        self._reader = Reader()
        self._has_metadata = False

    def feed(self, data: BytesLike) -> None:
        """Take the next bytes, any number of them.

        Raises:
            BitstreamError: As `unpack`, but for what may still come.
            TypeError: The data are not bytes-like.
        """
        self._reader.append(data)
        try:
            header = self.header or self._read_header()
            if header.alpha and self.alpha is None:
                self.alpha = self._read_segment(_ALPHA_INDEX, "the alpha segment")
            while len(self.segments) < header.num_segments:
                index = len(self.segments)
                self.segments.append(self._read_segment(index, f"segment {index}"))
        except DataEndError:
            return
        finally:
            self._reader.position = 0
        if not self._has_metadata and self._reader.remaining():
            raise BitstreamError(
                f"{self._reader.remaining()} bytes follow the last segment, "
                "and the header announces no metadata"
            )

    def close(self, *, strict: bool = False) -> Container:
        """The file, after the last byte; `strict` is that of `unpack`.

        Raises:
            BitstreamError: As `unpack`.
        """
        self.feed(b"")  # Raises again what was wrong.
        header, segments = self.header, tuple(self.segments)
        if header is None:
            raise _cut_header(self._reader)
        if header.alpha and self.alpha is None:
            raise BitstreamError("the file is truncated: it ends inside its alpha segment")
        if len(segments) < header.num_segments:
            if header.exact:
                raise BitstreamError("the file is truncated: it ends inside its picture")
            found = f"the file is truncated: segment {len(segments)} of 0 to {header.num_levels}"
            if len(segments) < 2:
                raise BitstreamError(
                    f"{found} is incomplete, and segments 0 and 1 (z and level 1) are needed"
                )
            if strict:
                raise BitstreamError(f"{found} is incomplete")
            return Container(
                header, segments, metadata_damaged=self._has_metadata, alpha=self.alpha
            )
        if not self._has_metadata:
            return Container(header, segments, alpha=self.alpha)
        metadata, self.chunks, damage = read_chunks(self._reader)
        if strict and damage:
            raise BitstreamError(f"the metadata are damaged: {damage}")
        return Container(header, segments, metadata, bool(damage), self.alpha)

    def _read_segment(self, index: int, name: str) -> Segment:
        segment = _parse_segment(self._reader, index, name)
        self._reader.forget()
        return segment

    def _read_header(self) -> Header:
        header, self._has_metadata = _parse_header(self._reader)
        pixels = header.height * header.width
        if self._max_pixels is not None and pixels > self._max_pixels:
            raise BitstreamError(
                f"the image has {header.height} x {header.width} = {pixels} pixels, "
                f"more than max_pixels = {self._max_pixels}"
            )
        self._reader.forget()
        self.header = header
        return header


def read_header(data: BytesLike) -> Header:
    """Reads the header only.

    Args:
        data: A file or its first bytes; `MAX_HEADER_BYTES` are always enough.

    Returns:
        The header.

    Raises:
        BitstreamError: The data are not a sic file, have another version, or the header is
            incomplete or corrupted.
        TypeError: The data are not bytes-like.
    """
    reader = Reader(data)
    try:
        return _parse_header(reader)[0]
    except DataEndError:
        raise _cut_header(reader) from None


def read_metadata(data: BytesLike) -> Metadata:
    """Reads the metadata of a file, as far as they are there and whole.

    Raises:
        BitstreamError: The data are not a valid file, as in `unpack`.
        TypeError: The data are not bytes-like.
    """
    return unpack(data, max_pixels=None).metadata


def truncate(data: BytesLike, level: int) -> bytes:
    """Makes the file that coding at a lower level would have made.

    Metadata chunks are kept byte for byte up to the first damaged one.

    Args:
        data: A file, or the beginning of one that still holds the level.
        level: Levels to keep, 1 to the highest level that is there.

    Returns:
        The bytes of the smaller file.

    Raises:
        BitstreamError: The data are not a valid file, as in `unpack`.
        TypeError: The data are not bytes-like, or the level is not an int.
        ValueError: The level is not there.
    """
    container, chunks = _whole_levels(data)
    check_int("level", level, 1, container.level)
    header = dataclasses.replace(container.header, num_levels=level)
    return _join(header, container.alpha, container.segments[: level + 1], chunks)


def truncate_to(data: BytesLike, max_bytes: int) -> bytes:
    """The file with as many levels as fit into some bytes, as `truncate` makes it.

    Args:
        data: A file, or the beginning of one.
        max_bytes: The limit.

    Raises:
        BitstreamError: As `truncate`.
        TypeError: The data are not bytes-like, or the limit is not an int.
        ValueError: If level 1 does not fit.
    """
    if not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes must be an int, got {type(max_bytes).__name__}")
    sizes = level_sizes(data)
    if sizes[0] > max_bytes:
        raise ValueError(f"the smallest file has {sizes[0]} bytes; {max_bytes} are allowed")
    return truncate(data, bisect.bisect(sizes, max_bytes))


def level_sizes(data: BytesLike) -> list[int]:
    """Bytes that a file has after `truncate` to level 1, 2, ..., up to the highest that is there.

    Raises:
        BitstreamError, TypeError: As `unpack`.
    """
    container, chunks = _whole_levels(data)
    header = dataclasses.replace(container.header, num_levels=1)
    smallest = len(_join(header, container.alpha, container.segments[:2], chunks))
    if header.exact:
        return [smallest] * container.level
    payloads = (len(segment.payload) for segment in container.segments[2:])
    records = (len(varint(payload)) + 4 + payload for payload in payloads)
    return list(itertools.accumulate(records, initial=smallest))


def _whole_levels(data: BytesLike) -> tuple[Container, list[bytes]]:
    """A file as `unpack` reads it, and its intact metadata chunks as they are written."""
    unpacker = Unpacker(max_pixels=None)
    unpacker.feed(data)
    return unpacker.close(), unpacker.chunks


def _cut_header(reader: Reader) -> BitstreamError:
    """What is wrong with data that end before a header does."""
    start = bytes(reader.data)
    if len(start) < len(MAGIC):
        found = f"it starts with {start!r}, not {MAGIC!r}" if start else "it is empty"
        return BitstreamError(f"not a sic file: {found}")
    return BitstreamError("the file is truncated: it ends inside the header")


def _parse_header(reader: Reader) -> tuple[Header, bool]:
    """Reads the header and whether metadata follow the segments; DataEndError if it is cut."""
    start = bytes(reader.data[: len(MAGIC)])
    if not MAGIC.startswith(start):
        raise BitstreamError(f"not a sic file: it starts with {start!r}, not {MAGIC!r}")
    reader.take(len(MAGIC))
    version = reader.number(1)
    if version != VERSION:
        raise BitstreamError(
            f"the file has format version {version}; this software reads version {VERSION}"
        )
    flags = reader.number(1)
    model_id = reader.take(MODEL_ID_BYTES)
    height = reader.varint("height")
    width = reader.varint("width")
    num_levels = reader.number(1)
    seed = reader.varint("seed")
    grain = reader.number(1) if flags & _FLAG_GRAIN else 0
    crc = crc16(reader.data[: reader.position])
    check_crc("the header", crc, reader.number(2))
    if flags & ~_KNOWN_FLAGS:
        raise BitstreamError(f"flags 0x{flags:02x} must be a subset of 0x{_KNOWN_FLAGS:02x}")
    if flags & _FLAG_GRAIN and grain == 0:
        raise BitstreamError("invalid header: it announces grain, and the grain is 0")
    try:
        header = Header(
            model_id=model_id,
            height=height,
            width=width,
            num_levels=num_levels,
            mode="gray" if flags & _FLAG_GRAY else "rgb",
            seed=seed,
            grain=grain,
            float_entropy=bool(flags & _FLAG_FLOAT_ENTROPY),
            exact=bool(flags & _FLAG_EXACT),
            alpha=bool(flags & _FLAG_ALPHA),
        )
    except ValueError as error:
        raise BitstreamError(f"invalid header: {error}") from None
    return header, bool(flags & _FLAG_METADATA)


def _parse_segment(reader: Reader, index: int, name: str) -> Segment:
    length = reader.varint(f"the length of {name}")
    expected = reader.number(2)
    symbols_crc = reader.take(2)
    payload = reader.take(length)
    check_crc(name, record_crc(index, payload, symbols_crc), expected)
    return Segment(payload, int.from_bytes(symbols_crc, "big"))


def _join(
    header: Header, alpha: Segment | None, segments: Sequence[Segment], chunks: Sequence[bytes]
) -> bytes:
    flags = _FLAG_GRAY if header.mode == "gray" else 0
    flags |= _FLAG_FLOAT_ENTROPY if header.float_entropy else 0
    flags |= _FLAG_METADATA if chunks else 0
    flags |= _FLAG_GRAIN if header.grain else 0
    flags |= _FLAG_EXACT if header.exact else 0
    flags |= _FLAG_ALPHA if header.alpha else 0
    start = MAGIC + bytes((header.version, flags)) + header.model_id
    start += varint(header.height) + varint(header.width)
    start += bytes((header.num_levels,)) + varint(header.seed)
    start += bytes((header.grain,)) if header.grain else b""
    parts = [start, uint16(crc16(start))]
    numbered = list(enumerate(segments))
    if alpha is not None:
        numbered.insert(0, (_ALPHA_INDEX, alpha))
    for index, segment in numbered:
        symbols_crc = uint16(segment.symbols_crc)
        crc = record_crc(index, segment.payload, symbols_crc)
        parts += (varint(len(segment.payload)), uint16(crc), symbols_crc, segment.payload)
    return b"".join((*parts, *chunks))
