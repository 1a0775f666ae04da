"""Colours of AVIF and HEIC files, from boxes written here and from files of Pillow."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from sic_jax.images.heif import colours_of_heif
from sic_jax.images.io import read_image

P3, SRGB, PQ = (12, 13, 6), (1, 13, 6), (9, 16, 9)


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def colr(codes: tuple[int, int, int]) -> bytes:
    return box(b"colr", b"nclx", struct.pack(">3HB", *codes, 128))


def heif(properties: list[bytes], associations: bytes, *, main: bytes, version: int = 0) -> bytes:
    """The boxes of a file without pictures."""
    head = bytes([version, 0, 0, version])  # Long numbers of items and properties, or short ones.
    pitm = box(b"pitm", head, main)
    iprp = box(b"iprp", box(b"ipco", *properties), box(b"ipma", head, associations))
    return box(b"ftyp", b"avif", bytes(4)) + box(b"meta", bytes(4), pitm, iprp)


def primaries_of(data: bytes) -> tuple[float, ...] | None:
    colours = colours_of_heif("name", data)
    return None if colours is None else colours.primaries[2:4]


def test_colours_are_those_of_the_main_picture() -> None:
    properties = [box(b"ispe", bytes(12)), colr(PQ), colr(P3)]
    # Item 7 is a gain map with property 2, item 8 the picture with 1 and, essential, 3.
    short = struct.pack(">I HBB HBBB", 2, 7, 1, 2, 8, 2, 1, 0x80 | 3)
    assert primaries_of(heif(properties, short, main=b"\0\x08")) == (0.68, 0.32)
    long = struct.pack(">I IBH IBHH", 2, 7, 1, 2, 8, 2, 1, 0x8000 | 3)
    wide = heif(properties, long, main=bytes([0, 0, 0, 8]), version=1)
    assert primaries_of(wide) == (0.68, 0.32)
    with pytest.raises(ValueError, match=r"^name: an HDR picture \(PQ\)"):
        primaries_of(heif(properties, short, main=b"\0\x07"))
    assert primaries_of(heif(properties, short, main=b"\0\x09")) is None


def test_a_profile_goes_first_and_bt709_is_srgb() -> None:
    both = struct.pack(">I HBBB", 1, 1, 2, 1, 2)
    profile = box(b"colr", b"prof", bytes(200))
    assert primaries_of(heif([colr(P3), profile], both, main=b"\0\1")) is None
    one = struct.pack(">I HBB", 1, 1, 1, 1)
    for codes in (SRGB, (1, 1, 1), (2, 2, 2), (1, 6, 5)):
        assert primaries_of(heif([colr(codes)], one, main=b"\0\1")) is None, codes
    with pytest.raises(ValueError, match="colours are not known: primaries 300"):
        primaries_of(heif([colr((300, 13, 0))], one, main=b"\0\1"))


@given(st.integers(0, 200), st.binary(max_size=20))
@settings(max_examples=100, deadline=None)
def test_damaged_boxes_say_nothing_or_are_named(at: int, noise: bytes) -> None:
    whole = heif([colr(P3)], struct.pack(">I HBB", 1, 1, 1, 1), main=b"\0\1")
    data = whole[:at] + noise + whole[at + len(noise) :]
    try:
        assert primaries_of(data) is None or len(primaries_of(data) or ()) == 2
    except ValueError as error:
        assert str(error).startswith("name: ")  # noqa: PT017


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_avif_pictures_become_srgb() -> None:
    pixels = np.repeat([[[200, 30, 40]], [[40, 180, 60]], [[90, 90, 90]]], 24, 0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(pixels, 72, 1)).save(buffer, "AVIF", quality=100)
    data, srgb = buffer.getvalue(), colr(SRGB)
    assert data.count(srgb) == 1
    plain = read_image(data).pixels
    assert np.abs(plain[12::24, 36].astype(int) - pixels[12::24, 0]).max() <= 3
    # Linear Display P3 to linear sRGB, as published.
    matrix = [[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09827]]
    v = plain / 255
    light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4) @ np.array(matrix).T
    light = np.clip(light, 0, 1)
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    got = read_image(data.replace(srgb, colr(P3))).pixels
    assert np.abs(got - 255 * expected).max() <= 1
    assert np.abs(got.astype(int) - plain).max() > 20
    with pytest.raises(ValueError, match="an HDR picture"):
        read_image(data.replace(srgb, colr(PQ)))
