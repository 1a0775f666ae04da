"""Colours and transparency of PNG files, from files that are written here byte by byte."""

import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sic_jax.data.source import decode_rgb
from sic_jax.images.io import read_image

GRAY, RGB, PALETTE = 0, 2, 3
SRGB = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
P3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(rows: list[bytes], width: int, bits: int, colour: int, **chunks: bytes) -> bytes:
    """A PNG file of packed rows, with further chunks before the picture."""
    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    body = b"".join(chunk(kind.encode(), data) for kind, data in chunks.items())
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + body
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def gray8(values: list[int], **chunks: bytes) -> bytes:
    return png([bytes(values)], len(values), 8, GRAY, **chunks)


def rgb8(pixels: list[tuple[int, int, int]], **chunks: bytes) -> bytes:
    return png([bytes(v for p in pixels for v in p)], len(pixels), 8, RGB, **chunks)


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def to_srgb(linear: NDArray[Any]) -> NDArray[Any]:
    low, high = 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.round(255 * np.where(linear <= 0.0031308, low, high))


def test_linear_gray_becomes_srgb() -> None:
    values = [0, 1, 47, 128, 254, 255]
    got = read_image(gray8(values, gAMA=u32(100_000)))
    # 47 / 255 of the light is 119 / 255 in sRGB.
    assert got.pixels.tolist() == [[0, 13, 119, 188, 255, 255]]
    assert got.pixels[0].tolist() == to_srgb(np.array(values) / 255).tolist()
    assert got.metadata.icc_profile is None
    assert (
        decode_rgb("x", gray8(values, gAMA=u32(100_000)))[0, :, 1].tolist()
        == got.pixels[0].tolist()
    )


@pytest.mark.parametrize(
    "chunks",
    [
        {},
        {"gAMA": u32(45455)},
        {"gAMA": u32(45455), "cHRM": u32(*SRGB)},
        {"gAMA": u32(0)},
        {"sRGB": b"\0", "gAMA": u32(100_000), "cHRM": u32(*P3)},
        {"cHRM": u32(*P3)},
        {"cICP": bytes([1, 13, 0, 1]), "gAMA": u32(100_000)},
        {"cICP": b"\1"},
    ],
)
def test_what_is_srgb_already_stays(chunks: dict[str, bytes]) -> None:
    values = list(range(0, 256, 5))
    assert read_image(gray8(values, **chunks)).pixels[0].tolist() == values
    pixels = [(v, 255 - v, 7) for v in values]
    assert read_image(rgb8(pixels, **chunks)).pixels[0].tolist() == [list(p) for p in pixels]


PIXELS = [(255, 0, 0), (0, 255, 0), (200, 100, 50), (128, 128, 128), (13, 40, 90)]
# Linear Display P3 to linear sRGB, as published.
P3_TO_SRGB = np.array(
    [[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09827]]
)


@pytest.mark.parametrize(
    ("chunks", "exponent"),
    [
        ({"cICP": bytes([12, 13, 0, 1])}, None),
        ({"gAMA": u32(50_000), "cHRM": u32(*P3)}, 2.0),
        ({"cICP": bytes([12, 8, 0, 1])}, 1.0),
        ({"cICP": bytes([12, 4, 0, 1]), "iCCP": b"x\0\0" + zlib.compress(b"no profile")}, 2.2),
    ],
)
def test_wide_colours_become_srgb(chunks: dict[str, bytes], exponent: float | None) -> None:
    v = np.array(PIXELS) / 255
    if exponent is None:
        linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    else:
        linear = v**exponent
    expected = to_srgb(np.clip(linear @ P3_TO_SRGB.T, 0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        got = read_image(rgb8(PIXELS, **chunks))
    assert np.abs(got.pixels[0].astype(int) - expected).max() <= 1
    assert got.metadata.icc_profile is None
    # Gray stays gray.
    assert np.ptp(got.pixels[0, 3]) == 0


def test_bt709_of_another_white() -> None:
    # Displays of BT.709 have the exponent 2.4 (ITU-R BT.1886). Then illuminant C.
    got = read_image(rgb8([(128, 128, 128)], cICP=bytes([1, 1, 0, 1])))
    light = (128 / 255) ** 2.4
    assert got.pixels[0, 0].tolist() == [to_srgb(np.array(light))] * 3
    white_c = (31006, 31616, *SRGB[2:])
    got = read_image(rgb8([(255, 255, 255)], gAMA=u32(45455), cHRM=u32(*white_c)))
    assert np.abs(got.pixels[0, 0].astype(int) - 255).max() <= 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (bytes([9, 16, 0, 1]), r"an HDR picture \(PQ\), whose brightness 8-bit sRGB does not hold"),
        (bytes([9, 18, 0, 1]), r"an HDR picture \(HLG\)"),
        (bytes([200, 13, 0, 1]), "the colours are not known: primaries 200, transfer 13"),
        (bytes([1, 13, 1, 1]), "chunk cICP are not known: 1, 13, 1, 1"),
        (bytes([1, 13, 0, 0]), "chunk cICP are not known: 1, 13, 0, 0"),
    ],
)
def test_colours_that_are_refused(code: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^image data: .*{message}"):
        read_image(rgb8(PIXELS, cICP=code))


def test_primaries_without_sense_are_left_out() -> None:
    flat = (31270, 32900, 30000, 30000, 30000, 30000, 30000, 30000)
    data = rgb8(PIXELS, gAMA=u32(100_000), cHRM=u32(*flat))
    with pytest.warns(UserWarning, match="image data: the chunk cHRM makes no sense"):
        got = read_image(data)
    assert got.pixels[0].tolist() == to_srgb(np.array(PIXELS) / 255).tolist()


@given(st.binary(max_size=60), st.sampled_from(["cICP", "gAMA", "cHRM", "sRGB"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_in_a_chunk(data: bytes, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            assert read_image(rgb8(PIXELS, **{kind: data})).pixels.shape == (1, 5, 3)
        except ValueError as e:
            assert str(e).startswith("image data: ")  # noqa: PT017


def test_a_transparent_colour_of_16_bits() -> None:
    pixels = np.array(
        [[0x1234, 0x5678, 0x9ABC], [0x1235, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD]], ">u2"
    )
    key = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
    got = read_image(png([pixels.tobytes()], 3, 16, RGB, tRNS=key), background="#010203")
    assert got.pixels[0].tolist() == [[1, 2, 3], [0x12, 0x56, 0x9A], [0x12, 0x56, 0x9A]]
    # A key of small numbers, which 8-bit samples could be taken for.
    small = np.array([[5, 5, 5], [0x0505] * 3], ">u2")
    got = read_image(png([small.tobytes()], 2, 16, RGB, tRNS=b"\0\5" * 3), background="white")
    assert got.pixels[0].tolist() == [[255, 255, 255], [5, 5, 5]]
    assert decode_rgb("x", png([small.tobytes()], 2, 16, RGB, tRNS=b"\0\5" * 3))[0].tolist() == [
        [255, 255, 255], [5, 5, 5]
    ]  # fmt: skip
    # No sample has it: the picture needs no background.
    got = read_image(png([small.tobytes()], 2, 16, RGB, tRNS=b"\7\7" * 3))
    assert got.pixels[0].tolist() == [[0, 0, 0], [5, 5, 5]]


@pytest.mark.parametrize(
    ("bits", "row", "values"),
    [
        (1, 0b01000000, [0, 255]),
        (2, 0b00011011, [0, 85, 170, 255]),
        (4, 0x5A, [85, 170]),
        (8, 0x5A, [0x5A]),
    ],
)
def test_transparent_grays_of_any_depth(bits: int, row: int, values: list[int]) -> None:
    for k, value in enumerate(values):
        key = value * (2**bits - 1) // 255
        # Only as many low bits of the key count as a sample has.
        for high in (0, 2**bits):
            data = png([bytes([row])], len(values), bits, GRAY, tRNS=struct.pack(">H", key + high))
            got = read_image(data, background="#808080").pixels[0].tolist()
            assert got == [0x80 if i == k else v for i, v in enumerate(values)]


def test_a_transparent_colour_of_8_bits_counts_low_bits() -> None:
    data = rgb8([(1, 2, 3), (4, 5, 6)], tRNS=struct.pack(">3H", 0x104, 0x205, 6))
    assert read_image(data, background="white").pixels[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_damage_beside_the_picture_costs_a_warning() -> None:
    text = chunk(b"tEXt", b"Title\0Sea")
    whole = rgb8(PIXELS, gAMA=u32(50_000), cHRM=u32(*P3), tEXt=b"Title\0Sea")
    expected = read_image(whole)
    assert expected.dropped == ("PNG text (Title)",)
    short = chunk(b"pHYs", b"\0")
    for kind, damaged in (
        ("tEXt", whole.replace(text, text[:-1] + b"?")),  # A checksum.
        ("pHYs", whole.replace(text, short)),
        ("pHYs", whole.replace(text, b"")[:-12] + short + whole[-12:]),  # Behind the picture.
    ):
        with pytest.warns(UserWarning, match=f"^image data: damaged and left out: {kind}$"):
            got = read_image(damaged)
        np.testing.assert_array_equal(got.pixels, expected.pixels)
        assert got.dropped == ()
    # A compression method that there is not.
    with pytest.warns(UserWarning, match="damaged and left out: iCCP"):
        got = read_image(rgb8(PIXELS, iCCP=b"name\0\1"))
    assert got.pixels[0].tolist() == [list(p) for p in PIXELS]


def test_damaged_colours_are_not_applied() -> None:
    gamma = chunk(b"gAMA", u32(100_000))
    data = rgb8(PIXELS, gAMA=u32(100_000)).replace(gamma, gamma[:-1] + b"?")
    with pytest.warns(UserWarning, match="damaged and left out: gAMA"):
        assert read_image(data).pixels[0].tolist() == [list(p) for p in PIXELS]


@pytest.mark.parametrize("at", [29, -20])
def test_damage_of_the_picture_is_refused(at: int) -> None:
    data = bytearray(rgb8(PIXELS, pHYs=b"\0"))
    data[at] ^= 1  # The checksum of IHDR, that of the samples.
    with pytest.raises(ValueError, match="damaged"):
        read_image(bytes(data))
