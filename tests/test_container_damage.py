import random
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sic_jax.codec.container import (
    Container,
    read_header,
    truncate,
    unpack,
)
from sic_jax.codec.wire import crc16, varint
from sic_jax.errors import BitstreamError
from sic_jax.metadata import MAX_METADATA_BYTES, Metadata

GOLDEN = Path(__file__).resolve().parent / "data" / "container"
FAST = settings(max_examples=60, deadline=None, derandomize=True)


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.sic").read_bytes()


WHOLE = unpack(golden("three_levels_metadata"), strict=True)
HEADER, SEGMENTS, METADATA = WHOLE.header, WHOLE.segments, WHOLE.metadata
# Where the header, each segment and each chunk of three_levels_metadata.sic end.
ENDS = (20, 28, 33, 167, 173)
CHUNK_ENDS = (204, 227, 252)


def with_crc(start: bytes) -> bytes:
    return start + crc16(start).to_bytes(2, "big")


@FAST
@given(st.binary(max_size=60), st.booleans())
def test_random_bytes_after_a_valid_start(tail: bytes, has_metadata: bool) -> None:
    data = golden("three_levels_metadata" if has_metadata else "three_levels")
    for end in ENDS[:3]:
        try:
            found = unpack(data[:end] + tail)
        except BitstreamError:
            continue
        assert found.segments == SEGMENTS[: len(found.segments)]


@pytest.mark.parametrize("name", ["three_levels", "three_levels_metadata"])
def test_every_truncation_point(name: str) -> None:
    data = golden(name)
    for size in range(len(data)):
        part = data[:size]
        if size < ENDS[2]:
            expected = "not a sic file" if size < 4 else "the file is truncated"
            with pytest.raises(BitstreamError, match=expected):
                unpack(part)
            continue
        found = unpack(part)
        count = sum(end <= size for end in ENDS) - 1
        assert found.segments == SEGMENTS[:count]
        assert (found.level, found.num_segments_missing) == (count - 1, 4 - count)
        assert found.truncated == (count < 4)
        assert found.header == HEADER
        # A cut exactly between two chunks cannot be seen.
        unseen = name == "three_levels_metadata" and size in CHUNK_ENDS
        assert found.metadata_damaged == (name == "three_levels_metadata" and not unseen)
        assert found.metadata.icc_profile == (
            METADATA.icc_profile if size >= CHUNK_ENDS[0] else None
        )
        assert found.metadata.exif is None
        if not unseen:
            with pytest.raises(BitstreamError, match=r"is truncated|metadata are damaged"):
                unpack(part, strict=True)


@pytest.mark.parametrize(
    "name", ["minimal_gray", "alpha", "largest_fields", "three_levels", "three_levels_metadata"]
)
def test_every_bit_flip(name: str) -> None:
    data = golden(name)
    whole = unpack(data, max_pixels=None)
    metadata_start = ENDS[-1] if name == "three_levels_metadata" else len(data)
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(BitstreamError):
            unpack(damaged, strict=True, max_pixels=None)
        try:
            found = unpack(damaged, max_pixels=None)
        except BitstreamError:
            assert position // 8 < metadata_start
            continue
        assert found.header == whole.header
        if position // 8 < metadata_start:
            assert found.truncated
            assert found.segments == whole.segments[: len(found.segments)]
        else:
            assert found.segments == whole.segments
            assert found.metadata_damaged
            for value, right in zip(
                (found.metadata.icc_profile, found.metadata.exif),
                (METADATA.icc_profile, METADATA.exif),
                strict=True,
            ):
                assert value in (None, right)


def test_random_damage_never_gives_another_exception() -> None:
    generator = random.Random(0)
    data = golden("three_levels_metadata")
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(data))] = generator.randrange(256)
        try:
            found = unpack(damaged)
        except BitstreamError:
            continue
        assert found.segments == SEGMENTS[: len(found.segments)]
        assert len(found.segments) == 4 or found.truncated


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a sic file: it is empty"),
        (b"\x93SI", r"not a sic file: it starts with b'\\x93SI', not b'\\x93SIC'"),
        (b"hello, this is text", "not a sic file: it starts with b'hell'"),
        (b"\x89PNG\r\n\x1a\n", r"not a sic file: it starts with b'\\x89PNG'"),
        (b"\x93SIC", "the file is truncated: it ends inside the header"),
        (b"\x93SIC\x01", "the file has format version 1; this software reads version 2"),
        (b"\x93SIC\x00", "the file has format version 0; this software reads version 2"),
        (b"\x93SIC\x02\x00" + bytes(6) + b"\x80\x00", "height = 0 is written with 2 bytes"),
        (
            b"\x93SIC\x02\x00" + bytes(6) + b"\x01" + b"\xff" * 5,
            "width exceeds the limit of 4294967295",
        ),
        (
            b"\x93SIC\x02\x00" + bytes(6) + b"\x01\x01\x01\xff\xff\xff\xff\x10",
            "seed exceeds the limit of 4294967295",
        ),
    ],
)
def test_bad_starts(data: bytes, message: str) -> None:
    for read in (read_header, unpack):
        with pytest.raises(BitstreamError, match=message):
            read(data)
    with pytest.raises(BitstreamError, match=message):
        truncate(data, 1)


@pytest.mark.parametrize(
    ("flags", "rest", "message"),
    [
        (0, b"\x00\x01\x01\x00", "invalid header: height must be in 1 to 16777215, got 0"),
        (0, b"\x01\x00\x01\x00", "invalid header: width must be in 1 to 16777215, got 0"),
        (0, b"\x80\x80\x80\x08\x01\x01\x00", "height must be in 1 to 16777215, got 16777216"),
        (0, b"\x01\x01\x00\x00", "invalid header: num_levels must be in 1 to 64, got 0"),
        (0, b"\x01\x01\x41\x00", "invalid header: num_levels must be in 1 to 64, got 65"),
        (64, b"\x01\x01\x01\x00", "flags 0x40 must be a subset of 0x3f"),
        (0x85, b"\x01\x01\x01\x00", "flags 0x85 must be a subset of 0x3f"),
        (8, b"\x01\x01\x01\x00\x00", "invalid header: it announces grain, and the grain is 0"),
    ],
)
def test_bad_header_values(flags: int, rest: bytes, message: str) -> None:
    data = with_crc(b"\x93SIC\x02" + bytes([flags]) + HEADER.model_id + rest)
    with pytest.raises(BitstreamError, match=message):
        read_header(data)


def test_corrupted_header_and_segment_messages() -> None:
    data = bytearray(golden("three_levels"))
    data[8] ^= 1
    with pytest.raises(BitstreamError, match=r"the header is corrupted: its CRC is 0x.* 0x2d82"):
        read_header(data)
    data = bytearray(golden("three_levels"))
    data[-1] ^= 1
    with pytest.raises(BitstreamError, match="segment 3 is corrupted: its CRC is 0x"):
        unpack(data)


def test_truncated_messages() -> None:
    data = golden("three_levels")
    message = (
        r"segment 1 of 0 to 3 is incomplete, and segments 0 and 1 \(z and level 1\) are needed"
    )
    with pytest.raises(BitstreamError, match=message):
        unpack(data[: ENDS[1]])
    with pytest.raises(BitstreamError, match="is truncated: segment 3 of 0 to 3 is incomplete"):
        unpack(data[: ENDS[3]], strict=True)


def test_trailing_bytes() -> None:
    with pytest.raises(BitstreamError, match="2 bytes follow the last segment"):
        unpack(golden("three_levels") + b"\x00\x00")


def test_segments_of_another_position_are_refused() -> None:
    data = golden("minimal_gray")
    header, first, second = data[:18], data[18:24], data[24:]
    assert unpack(header + first + second).level == 1
    with pytest.raises(BitstreamError, match="segment 0 is corrupted"):
        unpack(header + second + first)
    with pytest.raises(BitstreamError, match="segment 1 is corrupted"):
        unpack(header + first + first)


def test_no_byte_of_alpha_may_be_missing_or_wrong() -> None:
    data = golden("alpha")
    end = len(data) - 13  # Of z and level 1.
    for size in range(18, end):
        with pytest.raises(BitstreamError, match="truncated: it ends inside its alpha segment"):
            unpack(data[:size])
    for position in range(8 * 18, 8 * end):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(BitstreamError, match="alpha segment"):
            unpack(damaged)
    # It cannot change places with a segment, and a reader that leaves the flag out finds it.
    other = with_crc(data[:5] + b"\x01" + data[6:16])
    with pytest.raises(BitstreamError, match="segment 0 is corrupted"):
        unpack(other + data[18:])


def test_zeros_in_place_of_the_end_are_refused() -> None:
    data = golden("three_levels")
    for end in ENDS[1:4]:
        with pytest.raises(BitstreamError, match=r"is corrupted|bytes follow"):
            unpack(data[:end] + bytes(200))


def test_max_pixels() -> None:
    data = golden("three_levels")
    assert unpack(data, max_pixels=512 * 768).level == 3
    with pytest.raises(BitstreamError, match=r"512 x 768 = 393216 pixels, more than .* = 393215"):
        unpack(data, max_pixels=512 * 768 - 1)
    with pytest.raises(BitstreamError, match="more than max_pixels = 200000000"):
        unpack(golden("largest_fields"))
    assert read_header(golden("largest_fields")).height == 2**24 - 1


HOSTILE_LENGTHS = [
    (b"\xff" * 9 + b"\x01", "the length of segment 2 exceeds the limit of 4294967295"),
    (b"\x80" * 9 + b"\x01", "the length of segment 2 exceeds the limit"),
    (b"\xff\xff\xff\xff\x1f", "the length of segment 2 exceeds the limit"),
    (b"\x81\x00", "the length of segment 2 = 1 is written with 2 bytes, more than it needs"),
    (b"\xff\xff\xff\xff\x0f", None),
    (b"\xff\xff\xff\x7f", None),
]


@pytest.mark.parametrize(("length", "message"), HOSTILE_LENGTHS)
def test_hostile_lengths_allocate_nothing(length: bytes, message: str | None) -> None:
    data = golden("three_levels")[: ENDS[2]] + length + bytes(100)
    tracemalloc.start()
    try:
        if message is None:
            assert unpack(data).level == 1
        else:
            with pytest.raises(BitstreamError, match=message):
                unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def chunk(kind: int, payload: bytes) -> bytes:
    start = bytes([kind]) + varint(len(payload))
    return start + crc16(start + payload).to_bytes(2, "big") + payload


EXIF_CHUNK = chunk(2, zlib.compress(b"exif"))


@pytest.mark.parametrize(
    ("chunks", "exif", "message"),
    [
        (b"", None, "the file ends before them"),
        (EXIF_CHUNK + b"\x01", b"exif", "the file ends inside a chunk"),
        (EXIF_CHUNK + b"\x01\xff\xff\xff\xff\x0f", b"exif", "the file ends inside a chunk"),
        (EXIF_CHUNK + b"\x01" + b"\xff" * 9, b"exif", "length of the chunk of kind 1 exceeds"),
        (EXIF_CHUNK + EXIF_CHUNK, b"exif", "a chunk has the reserved or repeated kind 2"),
        (EXIF_CHUNK + bytes(40), b"exif", "a chunk has the reserved or repeated kind 0"),
        (EXIF_CHUNK + b"\x09\x00\x00\x00", b"exif", "the chunk of kind 9 is corrupted"),
        (b"\x01\x00\x00\x00" + EXIF_CHUNK, None, "the chunk of kind 1 is corrupted"),
        (EXIF_CHUNK + chunk(1, b"no zlib"), b"exif", "the chunk of kind 1 does not decompress"),
        (EXIF_CHUNK + chunk(1, zlib.compress(b"")), b"exif", "not exactly one non-empty zlib"),
        (EXIF_CHUNK + chunk(3, b"no zlib"), b"exif", "the chunk of kind 3 does not decompress"),
        (EXIF_CHUNK + chunk(4, b""), b"exif", "a resolution is cut off"),
        (EXIF_CHUNK + chunk(4, b"\x01"), b"exif", "a resolution is cut off"),
        (EXIF_CHUNK + chunk(4, b"\x01\x00"), b"exif", "not two positive numbers"),
        (EXIF_CHUNK + chunk(4, b"\x01\x01\x01"), b"exif", "not two positive numbers"),
        (EXIF_CHUNK + chunk(4, b"\x01" + b"\xff" * 5), b"exif", "a resolution exceeds the limit"),
        (chunk(2, zlib.compress(b"x") + b"y"), None, "not exactly one non-empty zlib stream"),
        (chunk(2, zlib.compress(b"x")[:-1]), None, "not exactly one non-empty zlib stream"),
    ],
)
def test_damaged_metadata(chunks: bytes, exif: bytes | None, message: str) -> None:
    start = golden("three_levels_metadata")[: ENDS[-1]]
    expected = Container(HEADER, SEGMENTS, Metadata(exif=exif), metadata_damaged=True)
    assert unpack(start + chunks) == expected
    with pytest.raises(BitstreamError, match=f"the metadata are damaged: .*{message}"):
        unpack(start + chunks, strict=True)
    assert truncate(start + chunks, 3) == (start + EXIF_CHUNK if exif else golden("three_levels"))


@pytest.mark.parametrize("excess", [0, 1, 2**26])
@pytest.mark.parametrize(("kind", "name"), [(1, "icc_profile"), (3, "xmp")])
def test_decompression_is_bounded(kind: int, name: str, excess: int) -> None:
    compressor = zlib.compressobj()
    bomb = compressor.compress(bytes(MAX_METADATA_BYTES + excess)) + compressor.flush()
    start = golden("three_levels_metadata")[: ENDS[-1]]
    data = start + chunk(kind, bomb)
    tracemalloc.start()
    try:
        found = unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_METADATA_BYTES
    finally:
        tracemalloc.stop()
    assert found.metadata_damaged == (excess > 0)
    assert getattr(found.metadata, name) == (None if excess else bytes(MAX_METADATA_BYTES))
    if excess:
        with pytest.raises(BitstreamError, match="decompresses to more than 16777216 bytes"):
            unpack(data, strict=True)
