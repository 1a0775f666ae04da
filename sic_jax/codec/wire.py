"""Bounded reading, numbers, checks and checksums of the sic file; FORMAT.md has the rules."""

import binascii
import zlib

from sic_jax.errors import BitstreamError

BytesLike = bytes | bytearray | memoryview

MAX_VARINT = 2**32 - 1
_MAX_VARINT_BYTES = 5


class DataEndError(Exception):
    """The data end before what is being read."""


class Reader:
    """Takes bytes and numbers from the front of a file, which may still be arriving.

    Raises:
        TypeError: The data are not bytes-like.
    """

    def __init__(self, data: BytesLike = b"") -> None:
        """Starts at the first byte."""
        self.data = bytearray()
        self.position = 0
        self.append(data)

    def append(self, data: BytesLike) -> None:
        """Adds bytes at the end.

        Raises:
            TypeError: The data are not bytes-like.
        """
        try:
            self.data += data if isinstance(data, bytes) else memoryview(data).tobytes()
        except TypeError:
            raise TypeError(f"data must be bytes-like, got {type(data).__name__}") from None

    def forget(self) -> None:
        """Drops the bytes that were taken."""
        del self.data[: self.position]
        self.position = 0

    def remaining(self) -> int:
        """Bytes that are left."""
        return len(self.data) - self.position

    def take(self, size: int) -> bytes:
        """Takes `size` bytes.

        Raises:
            DataEndError: If fewer are left; then none is taken.
        """
        if size > self.remaining():
            raise DataEndError
        self.position += size
        return bytes(self.data[self.position - size : self.position])

    def number(self, size: int) -> int:
        """Takes an unsigned big-endian number of `size` bytes.

        Raises:
            DataEndError: As `take`.
        """
        return int.from_bytes(self.take(size), "big")

    def varint(self, name: str) -> int:
        """Takes a varint, 0 to `MAX_VARINT`.

        Raises:
            BitstreamError: If it has more bytes than it needs, or is larger.
            DataEndError: If the data end before it does.
        """
        value = 0
        for count in range(_MAX_VARINT_BYTES):
            byte = self.number(1)
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                if byte == 0 and count > 0:
                    raise BitstreamError(
                        f"{name} = {value} is written with {count + 1} bytes, more than it needs"
                    )
                if value > MAX_VARINT:
                    break
                return value
        raise BitstreamError(f"{name} exceeds the limit of {MAX_VARINT}")


def varint(value: int) -> bytes:
    """Unsigned LEB128 of 0 <= value <= MAX_VARINT, in as few bytes as possible."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def uint16(value: int) -> bytes:
    """Two big-endian bytes."""
    return value.to_bytes(2, "big")


def crc16(data: BytesLike) -> int:
    """CRC-16 with polynomial 0x1021 and initial value 0 (CRC-16/XMODEM)."""
    return binascii.crc_hqx(data, 0)


def record_crc(number: int, payload: bytes, symbols_crc: bytes = b"") -> int:
    """CRC-16 of a segment (its index and symbols_crc given) or of a chunk (its kind given)."""
    start = bytes((number,)) + varint(len(payload)) + symbols_crc
    return binascii.crc_hqx(payload, crc16(start))


def check_crc(what: str, actual: int, expected: int) -> None:
    """Compares two checksums of `what`.

    Raises:
        BitstreamError: If they differ.
    """
    if actual != expected:
        raise BitstreamError(
            f"{what} is corrupted: its CRC is 0x{actual:04x}, the file says 0x{expected:04x}"
        )


def inflate(what: str, payload: bytes, limit: int) -> bytes:
    """Decompresses exactly one zlib stream to 1 to `limit` bytes.

    Raises:
        BitstreamError: If the payload is not that.
    """
    inflater = zlib.decompressobj()
    try:
        value = inflater.decompress(payload, limit + 1)
    except zlib.error as error:
        raise BitstreamError(f"{what} does not decompress: {error}") from None
    if len(value) > limit:
        raise BitstreamError(f"{what} decompresses to more than {limit} bytes")
    if not inflater.eof or inflater.unused_data or not value:
        raise BitstreamError(f"{what} is not exactly one non-empty zlib stream")
    return value


def check_bytes(name: str, value: bytes, low: int, high: int) -> None:
    """Checks that a value is bytes of a length in low to high.

    Raises:
        TypeError: If it is not bytes.
        ValueError: If its length is another.
    """
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be bytes, got {type(value).__name__}")
    if not low <= len(value) <= high:
        raise ValueError(f"{name} must have {low} to {high} bytes, got {len(value)}")


def check_int(name: str, value: int, low: int, high: int) -> None:
    """Checks that a value is an int in low to high.

    Raises:
        TypeError: If it is not an int; a bool is none.
        ValueError: If it is out of that range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low} to {high}, got {value}")
