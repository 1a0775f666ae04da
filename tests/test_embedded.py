"""Metadata in picture files: what is kept, what is named, and what comes back out."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from sic_jax.images.io import encode_image, read_image, write_image
from sic_jax.metadata import Metadata

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>\xc3\xa4</a></x:xmpmeta>'
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, UNIT = 0x0112, 0x011A, 0x011B, 0x0128
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
NO_NUMBER = IFDRational(0, 0)
PER_CM = (299.72, 149.86)
"""118 and 59 pixels per centimetre, in pixels per inch."""


def saved(image_format: str, image: Image.Image = PICTURE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_text(**texts: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key.replace("_", " "), value)
    return info


def with_chunk(kind: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add(kind, b"data")
    return info


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG file with segments of given markers after its start."""
    data = saved("JPEG")
    more = b"".join(
        bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body for marker, body in segments
    )
    return data[:2] + more + data[2:]


def exif_with(**tags: Any) -> Image.Exif:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[globals()[name]] = value
    return exif


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_xmp_is_kept(image_format: str) -> None:
    options: dict[str, Any] = {"xmp": XMP}
    if image_format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP)
        options = {"pnginfo": info}
    elif image_format == "TIFF":
        options = {"tiffinfo": {700: XMP}}
    picture = read_image(saved(image_format, **options))
    assert picture.metadata == Metadata(xmp=XMP)
    assert picture.dropped == ()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_all_come_back_from_what_is_written(image_format: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    profile = bytes(16) + b"RGB " + bytes(108) + b"profile"
    metadata = Metadata(icc_profile=profile, exif=block, xmp=XMP, dpi=(300.0, 72.0))
    data = encode_image(PIXELS, metadata, image_format=image_format)
    picture = read_image(data)
    assert picture.metadata.icc_profile == profile
    assert picture.metadata.xmp == XMP
    assert picture.metadata.dpi == pytest.approx((300, 72), abs=0.013)
    assert picture.dropped == ()
    kept = Image.Exif()
    kept.load(picture.metadata.exif or b"")
    resolution = {X_RESOLUTION, Y_RESOLUTION, UNIT} if image_format == "TIFF" else set()
    assert {tag: value for tag, value in kept.items() if tag not in resolution} == {0x010F: "maker"}
    again = encode_image(picture.pixels, picture.metadata, image_format=image_format)
    assert read_image(again).metadata == picture.metadata


@pytest.mark.parametrize(
    ("image_format", "options", "dpi"),
    [
        ("JPEG", {"dpi": (300, 150)}, (300, 150)),
        ("JPEG", {}, None),
        ("JPEG", {"exif": exif_with(X_RESOLUTION=118.0, Y_RESOLUTION=59.0, UNIT=3)}, PER_CM),
        ("JPEG", {"exif": exif_with(X_RESOLUTION=96.0, Y_RESOLUTION=48.0)}, (96, 48)),
        ("JPEG", {"exif": exif_with(X_RESOLUTION=96.0, Y_RESOLUTION=48.0, UNIT=1)}, None),
        ("JPEG", {"exif": exif_with(X_RESOLUTION=96.0)}, None),
        ("JPEG", {"exif": exif_with(X_RESOLUTION=0.0, Y_RESOLUTION=0.0)}, None),
        ("WEBP", {"exif": exif_with(X_RESOLUTION=NO_NUMBER, Y_RESOLUTION=NO_NUMBER)}, None),
        ("WEBP", {"exif": exif_with(X_RESOLUTION=300.0, Y_RESOLUTION=NO_NUMBER)}, None),
        ("WEBP", {"exif": exif_with(X_RESOLUTION=NO_NUMBER, Y_RESOLUTION=300.0)}, None),
        ("PNG", {"dpi": (300, 72)}, (300, 72.01)),
        ("PNG", {}, None),
        ("WEBP", {"exif": exif_with(X_RESOLUTION=96.0, Y_RESOLUTION=48.0)}, (96, 48)),
        ("TIFF", {"dpi": (600, 599.5)}, (600, 599.5)),
        ("TIFF", {"resolution_unit": 3, "x_resolution": 118.0, "y_resolution": 59.0}, PER_CM),
        ("TIFF", {"resolution_unit": 1, "x_resolution": 118.0, "y_resolution": 59.0}, None),
        ("TIFF", {}, None),
        ("BMP", {"dpi": (300, 72)}, (300, 72.01)),
        ("BMP", {"dpi": (0, 0)}, None),
        ("GIF", {}, None),
    ],
)  # fmt: skip
def test_resolution(
    image_format: str, options: dict[str, Any], dpi: tuple[float, float] | None
) -> None:
    assert read_image(saved(image_format, **options)).metadata.dpi == dpi


def test_resolution_of_a_jpeg_in_pixels_per_centimetre() -> None:
    data = saved("JPEG", dpi=(118, 59))
    at = data.index(b"JFIF\0") + 7
    assert data[at] == 1
    picture = read_image(data[:at] + b"\2" + data[at + 1 :])
    assert picture.metadata.dpi == PER_CM
    with Image.open(io.BytesIO(encode_image(PIXELS, picture.metadata))) as written:
        assert written.info["dpi"] == pytest.approx(PER_CM, abs=0.013)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(("orientation", "dpi"), [(3, (300, 72)), (6, (72, 300)), (5, (72, 300))])
def test_resolution_turns_with_the_picture(
    image_format: str, orientation: int, dpi: tuple[float, float]
) -> None:
    exif = exif_with(ORIENTATION=orientation, X_RESOLUTION=300.0, Y_RESOLUTION=72.0, UNIT=2)
    metadata = read_image(saved(image_format, exif=exif, dpi=(300, 72))).metadata
    assert metadata.dpi == pytest.approx(dpi, abs=0.013)
    kept = Image.Exif()
    kept.load(metadata.exif or b"")
    assert (kept[X_RESOLUTION], kept[Y_RESOLUTION]) == dpi
    assert ORIENTATION not in kept


def test_orientation_leaves_the_xmp_too() -> None:
    xmp = b'<x:xmpmeta tiff:Orientation="6" a="b"/>'
    picture = read_image(saved("JPEG", xmp=xmp))
    assert picture.pixels.shape == (6, 4, 3)
    assert picture.metadata.xmp == b'<x:xmpmeta  a="b"/>'


@pytest.mark.parametrize(
    "xmp",
    [
        b'<a%s b="c"/>' % b' tiff:Orientation="6"',
        b'<a%s b="c"/>' % b"\ntiff:Orientation = '6'",
        b"<a>%s<b/></a>" % b"<tiff:Orientation>6</tiff:Orientation>",
        b"<a>%s<b/></a>" % b'<tiff:Orientation rdf:datatype="x" >6</tiff:Orientation >',
        b"<a>%s<b/></a>" % b"<tiff:Orientation/>",
    ],
)
def test_xmp_never_keeps_an_orientation(xmp: bytes) -> None:
    picture = read_image(saved("JPEG", xmp=xmp, exif=exif_with(ORIENTATION=1)))
    assert picture.pixels.shape == PIXELS.shape
    assert picture.metadata.xmp in (b'<a b="c"/>', b"<a><b/></a>")


@pytest.mark.parametrize(
    "part", [b" ", b" tiff:Orientation=", b"<tiff:Orientation ", b"<tiff:Orientation>6"]
)
def test_xmp_that_repeats_the_beginning_of_an_orientation_is_kept(part: bytes) -> None:
    xmp = b"<a>" + part * (60_000 // len(part))
    assert read_image(saved("JPEG", xmp=xmp)).metadata.xmp == xmp


NO_FIT = "ICC profile, which does not fit the picture"
IPTC = b"8BIM\x04\x04\0\0" + struct.pack(">I", 8) + b"\x1c\x02\x05\0\3abc"


def psd(*resources: int) -> bytes:
    """A flat Photoshop file with image resources of given numbers."""
    blocks = b"".join(b"8BIM" + struct.pack(">HHI4s", n, 0, 4, b"data") for n in resources)
    height, width, channels = PIXELS.shape
    head = b"8BPS" + struct.pack(">H6xHIIHHI", 1, channels, height, width, 8, 3, 0)
    return (
        head
        + struct.pack(">I", len(blocks))
        + blocks
        + struct.pack(">IH", 0, 0)
        + PIXELS.transpose(2, 0, 1).tobytes()
    )


def test_a_flat_photoshop_file() -> None:
    picture = read_image(psd(0x0404, 0x03F3, 0x0424))
    np.testing.assert_array_equal(picture.pixels, PIXELS)
    assert picture.dropped == ("IPTC", "XMP")


@pytest.mark.parametrize(
    ("data", "dropped"),
    [
        (jpeg_with((0xED, b"Photoshop 3.0\0" + IPTC)), ("IPTC",)),
        (jpeg_with((0xED, b"Photoshop 3.0\0" + IPTC.replace(b"\4\4", b"\4\5"))), ()),
        (jpeg_with((0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40))), ("extended XMP",)),
        (jpeg_with((0xEB, b"JP" + bytes(10) + b"jumb" + bytes(40))), ("content credentials",)),
        (saved("PNG", pnginfo=with_chunk(b"caBX")), ("content credentials",)),
        (jpeg_with((0xFE, b"made by hand")), ("comment",)),
        (jpeg_with((0xE1, b"Exif\0\0garbage!!")), None),
        (saved("TIFF", tiffinfo={33723: b"\x1c\x02\x05\0\3abc"}), ("IPTC",)),
        (saved("TIFF", tiffinfo={34735: (1, 1, 0, 0)}), ("GeoTIFF",)),
        (saved("GIF", comment=b"made by hand"), ("comment",)),
        (saved("PNG", exif=b"Exif\0\0garbage!!"), None),
        (saved("PNG", pnginfo=png_text(Author="me", Title="it")), ("PNG text (Author, Title)",)),
        (saved("PNG", pnginfo=png_text(Raw_profile_type_iptc="x")), ("IPTC",)),
        (
            saved("PNG", pnginfo=png_text(**{f"\x1b{k}": "x" for k in range(7)})),
            ("PNG text (?0, ?1, ?2, ?3, ?4, 2 more)",),
        ),
        (saved("MPO", save_all=True, append_images=[PICTURE]), ("1 further picture",)),
        (saved("MPO", save_all=True, append_images=[PICTURE] * 3), ("3 further pictures",)),
        (saved("PNG", icc_profile=b"no profile" * 20), (NO_FIT,)),
        (saved("PNG"), ()),
    ],
)  # fmt: skip
def test_what_is_dropped_is_named(data: bytes, dropped: tuple[str, ...] | None) -> None:
    picture = read_image(data)
    assert picture.pixels.shape == PIXELS.shape
    assert picture.metadata == Metadata()
    if dropped is None:
        assert [name[:14] for name in picture.dropped] == ["damaged EXIF ("]
    else:
        assert picture.dropped == dropped


def test_a_block_that_is_too_large_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sic_jax.images.embedded.MAX_METADATA_BYTES", len(XMP))
    assert read_image(saved("WEBP", xmp=XMP)).metadata.xmp == XMP
    picture = read_image(saved("WEBP", xmp=XMP + b" ", exif=exif_with(X_RESOLUTION=1.0)))
    assert picture.metadata.xmp is None
    assert picture.metadata.exif is not None
    assert picture.dropped == (f"XMP of {len(XMP) + 1} bytes",)


def test_what_a_format_has_no_place_for_is_named(tmp_path: Path) -> None:
    metadata = Metadata(exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", xmp=XMP, dpi=(300, 72))
    with pytest.warns(UserWarning, match=r"^PPM has no place for: EXIF, XMP, resolution$"):
        write_image(tmp_path / "a.ppm", PIXELS, metadata)
    with pytest.warns(UserWarning, match=r"^BMP has no place for: EXIF, XMP$"):
        write_image(tmp_path / "a.bmp", PIXELS, metadata)
    assert read_image(tmp_path / "a.bmp").metadata == Metadata(dpi=(300, 72.01))
    np.testing.assert_array_equal(read_image(tmp_path / "a.ppm").pixels, PIXELS)


@pytest.mark.parametrize("dpi", [(0.5, 72), (72, 65535.5), (0.01, 100_000)])
def test_resolutions_that_a_jpeg_cannot_say_are_left_out(dpi: tuple[float, float]) -> None:
    with pytest.warns(UserWarning, match=r"^JPEG has no place for: resolution$"):
        data = encode_image(PIXELS, Metadata(dpi=dpi), image_format="JPEG")
    assert read_image(data).metadata.dpi is None


def test_resolutions_that_a_jpeg_can_say_are_whole() -> None:
    data = encode_image(PIXELS, Metadata(dpi=(0.51, 65535.4)), image_format="JPEG")
    assert read_image(data).metadata.dpi == (1, 65535)


def test_blocks_of_any_size_leave_the_picture_writable() -> None:
    """A JPEG segment has at most 65533 bytes, with the name of the block before them."""
    exif = b"II*\0\x08\0\0\0\0\0\0\0\0\0"
    fit = Metadata(exif=exif.ljust(65527, b"\0"), xmp=XMP.ljust(65504))
    data = encode_image(PIXELS, fit, image_format="JPEG")
    assert fit.exif is not None
    assert b"\xff\xe1\xff\xffExif\0\0" + fit.exif in data
    assert read_image(data).metadata.xmp == fit.xmp
    large = Metadata(exif=exif.ljust(65528, b"\0"), xmp=XMP.ljust(65505), dpi=(300, 72))
    with pytest.warns(UserWarning, match=r"^JPEG has no place for: EXIF, XMP$"):
        data = encode_image(PIXELS, large, image_format="JPEG")
    assert read_image(data).metadata == Metadata(dpi=(300, 72))
    profile = (bytes(16) + b"RGB ").ljust(255 * 65519 + 1, b"\0")
    with pytest.warns(UserWarning, match=r"^JPEG has no place for: ICC profile$"):
        encode_image(PIXELS, Metadata(icc_profile=profile), image_format="JPEG")
    assert read_image(encode_image(PIXELS, large)).metadata.xmp == large.xmp


@pytest.mark.parametrize("image_format", ["AVIF", "TIFF"])
def test_exif_that_is_no_tiff_structure_is_left_out_of_such_files(image_format: str) -> None:
    metadata = Metadata(exif=b"garbage!", xmp=XMP)
    with pytest.warns(UserWarning, match=rf"^{image_format} has no place for: EXIF$"):
        data = encode_image(PIXELS, metadata, image_format=image_format)
    assert read_image(data).metadata == Metadata(xmp=XMP)


@pytest.mark.parametrize("image_format", ["WEBP", "AVIF"])
def test_modern_formats_hold_all_but_the_resolution(image_format: str) -> None:
    exif = exif_with(X_RESOLUTION=300.0, Y_RESOLUTION=72.0, UNIT=2).tobytes()[6:]
    profile = (bytes(16) + b"RGB ").ljust(200, b"\0")
    metadata = Metadata(icc_profile=profile, exif=exif, xmp=XMP)
    data = encode_image(PIXELS, metadata, image_format=image_format)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == profile
        assert image.info["xmp"] == XMP
        assert image.getexif().tobytes()[6:] == exif
    with pytest.warns(UserWarning, match=rf"^{image_format} has no place for: resolution$"):
        encode_image(PIXELS, Metadata(dpi=(300, 72)), image_format=image_format)
    strange = Metadata(exif=b"garbage!") if image_format == "WEBP" else Metadata(xmp=b"\xff\0<")
    data = encode_image(PIXELS, strange, image_format=image_format)
    assert read_image(data).pixels.shape == PIXELS.shape


def test_what_a_jpeg_xl_file_holds() -> None:
    pytest.importorskip("pillow_jxl")
    exif = exif_with(X_RESOLUTION=300.0, Y_RESOLUTION=72.0, UNIT=2).tobytes()[6:]
    data = encode_image(PIXELS, Metadata(exif=exif, xmp=XMP), image_format="JXL")
    assert read_image(data).metadata.exif == exif
    assert XMP in data
    profile = (bytes(16) + b"RGB ").ljust(200, b"\0")
    with pytest.warns(UserWarning, match=r"^JXL has no place for: ICC profile, resolution$"):
        data = encode_image(PIXELS, Metadata(icc_profile=profile, dpi=(1, 1)), image_format="JXL")
    np.testing.assert_array_equal(read_image(data).pixels, PIXELS)
