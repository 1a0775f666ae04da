"""Writes the golden container files from FORMAT.md alone, without sic_jax.

Run `python tests/data/make_container_golden.py` to rewrite tests/data/container/*.sic. A change of
a file is a change of the format: do it only together with a new version number.
"""

import struct
import zlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "container"


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM, bit by bit."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
            crc &= 0xFFFF
    return crc


def header(flags: int, model_id: bytes, sizes: bytes, num_levels: int, seed: bytes) -> bytes:
    """Header bytes; sizes and seed, with the grain where it is, are written by hand."""
    start = b"\x93SIC\x02" + bytes([flags]) + model_id + sizes + bytes([num_levels]) + seed
    return start + struct.pack(">H", crc16(start))


def segment(index: int, length: bytes, symbols: list[int], payload: bytes) -> bytes:
    """Segment bytes; length is a varint written by hand."""
    symbols_crc = struct.pack(">H", crc16(struct.pack(f"<{len(symbols)}i", *symbols)))
    crc = crc16(bytes([index]) + length + symbols_crc + payload)
    return length + struct.pack(">H", crc) + symbols_crc + payload


def chunk(kind: int, payload: bytes) -> bytes:
    """Chunk bytes, for a payload shorter than 128 bytes."""
    start = bytes([kind, len(payload)])
    return start + struct.pack(">H", crc16(start + payload)) + payload


def stored_zlib(value: bytes) -> bytes:
    """A zlib stream of one stored block, which is the same whatever library is installed."""
    size = len(value)
    block = b"\x01" + struct.pack("<HH", size, size ^ 0xFFFF) + value
    return b"\x78\x01" + block + struct.pack(">I", zlib.adler32(value))


def golden_files() -> dict[str, bytes]:
    """All golden files by name."""
    rgb = header(0, bytes.fromhex("0123456789ab"), b"\x80\x04\x80\x06", 3, b"\x00")
    levels = [
        segment(0, b"\x03", [0, 1, -1], b"\xde\xad\x01"),
        segment(1, b"\x00", [0, 0], b""),
        segment(2, b"\x80\x01", [5], bytes(range(128))),
        segment(3, b"\x01", [-(2**31), 2**31 - 1], b"\xff"),
    ]
    two_levels = header(0, bytes.fromhex("0123456789ab"), b"\x80\x04\x80\x06", 2, b"\x00")
    with_metadata = header(4, bytes.fromhex("0123456789ab"), b"\x80\x04\x80\x06", 3, b"\x00")
    chunks = [
        chunk(1, stored_zlib(b"a colour profile")),
        chunk(77, b"from a later writer"),
        chunk(2, stored_zlib(b"Exif\x00\x00II*\x00")),
    ]
    minimal = header(1, bytes(6), b"\x01\x01", 1, b"\x00")
    largest = header(
        2, b"\xff" * 6, b"\xff\xff\xff\x07\xff\xff\xff\x07", 1, b"\xff\xff\xff\xff\x0f"
    )
    grainy = header(9, bytes(6), b"\x01\x01", 1, b"\x00\x15")
    minimal_with_metadata = header(5, bytes(6), b"\x01\x01", 1, b"\x00")
    # 300 and 72.01 pixels per inch.
    xmp = [chunk(3, stored_zlib(b"<x:xmpmeta/>")), chunk(4, b"\xb0\xea\x01\xa1\x38")]
    # Two gray pixels, 7 and 200, as a stored zlib stream of 13 bytes.
    samples = bytes([7, 200])
    crc = struct.pack(">H", crc16(samples))
    payload = stored_zlib(samples)
    start = b"\x00\x0d" + crc + payload
    exact = header(17, bytes(6), b"\x01\x02", 3, b"\x00")
    exact += b"\x0d" + struct.pack(">H", crc16(start)) + crc + payload
    # Two colours and an alpha plane of 2 x 1 pixels, 255 above 64: predictor 2, then differences.
    residuals = bytes([2, 255, (64 - 255) % 256])
    crc = struct.pack(">H", crc16(residuals))
    payload = stored_zlib(stored_zlib(residuals))
    start = b"\xff\x19" + crc + payload
    alpha = b"\x19" + struct.pack(">H", crc16(start)) + crc + payload
    see_through = header(33, bytes(6), b"\x02\x01", 1, b"\x00") + alpha
    short = [segment(0, b"\x01", [7], b"\x80"), segment(1, b"\x02", [-7], b"\x12\x34")]
    return {
        "minimal_gray.sic": minimal + b"".join(short),
        "minimal_xmp.sic": minimal_with_metadata + b"".join(short) + b"".join(xmp),
        "exact.sic": exact,
        "alpha.sic": see_through + b"".join(short),
        "grain.sic": grainy + b"".join(short),
        "largest_fields.sic": largest + b"".join(short),
        "three_levels.sic": rgb + b"".join(levels),
        "three_levels_cut_to_two.sic": two_levels + b"".join(levels[:3]),
        "three_levels_metadata.sic": with_metadata + b"".join(levels) + b"".join(chunks),
    }


def main() -> None:
    """Writes the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, data in golden_files().items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
