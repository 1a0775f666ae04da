import importlib.util
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from sic_jax.images import io as image_io
from sic_jax.images.io import encode_image, read_image, write_image
from sic_jax.metadata import Metadata

GPS_IFD = 0x8825
EXIF_IFD = 0x8769
ORIENTATION = 0x0112


def random_pixels(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png_bytes(
    samples: NDArray[Any], colour_type: int, extra: tuple[bytes, bytes] | None = None
) -> bytes:
    """A 16-bit PNG, which Pillow cannot write in every colour type."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), *([extra] if extra else []), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in [*chunks, (b"IEND", b"")])


def icc_profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 profile (ICC.1:2001-04)."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"\0" * 4, 0x02400000, kind, space, connection
    )
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", *(round(65536 * v) for v in (0.9642, 1.0, 0.8249)))
    return head + bytes(128 - len(head)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in values))


def wide_gamut_profile() -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256))
    primaries = [(0.60, 0.31, 0.02), (0.21, 0.63, 0.07), (0.15, 0.06, 0.73)]
    tags = {name: xyz(*p) for name, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return icc_profile(
        b"RGB ", b"XYZ ", b"mntr", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    )


def gray_profile() -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256))
    return icc_profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": curve})


def cmyk_profile(cyan_lab: tuple[int, int, int]) -> bytes:
    """Paper white, black for every mixture with K, cyan_lab (8-bit Lab) for the rest."""
    clut = b"".join(
        bytes((255, 128, 128) if i == 0 else (0, 128, 128) if i & 1 else cyan_lab)
        for i in range(16)
    )
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + clut + ramp * 3
    return icc_profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": lut})


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def load(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


SHAPES = [(1, 1, 3), (33, 17), (1, 1), (5, 9, 3)]
SHAPES_WITH_ALPHA = [(1, 1, 4), (33, 17, 2), (1, 1, 2), (5, 9, 4)]
LOSSLESS = (".png", ".tif", "", ".webp", ".jxl")


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [(suffix, shape) for suffix in (*LOSSLESS, ".bmp", ".ppm") for shape in SHAPES]
    + [(suffix, shape) for suffix in LOSSLESS for shape in SHAPES_WITH_ALPHA],
)
def test_round_trip_is_exact(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    if suffix == ".jxl":
        pytest.importorskip("pillow_jxl")
    pixels = random_pixels(*shape)
    if shape in SHAPES_WITH_ALPHA:  # Some formats have no colours where alpha is 0.
        pixels[..., -1] = pixels[..., -1] // 2 + 1
    write_image(tmp_path / f"a{suffix}", pixels)
    picture = read_image(tmp_path / f"a{suffix}")
    if suffix == ".webp":  # It has no gray.
        pixels = np.asarray(Image.fromarray(pixels).convert("RGB" if shape in SHAPES else "RGBA"))
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    if suffix != ".jxl" or pixels.shape[2:] in ((3,), (4,)):  # Its reader makes a profile for gray.
        assert picture.metadata == Metadata()


@pytest.mark.parametrize(("name", "image_format"), [("a.JPG", "JPEG"), ("a.avif", "AVIF")])
def test_lossy_formats_are_close_and_have_full_chroma(
    tmp_path: Path, name: str, image_format: str
) -> None:
    pixels = np.repeat(np.repeat(random_pixels(4, 4, 3) // 2 + 64, 8, 0), 8, 1)
    write_image(tmp_path / name, pixels)
    error = read_image(tmp_path / name).pixels.astype(int) - pixels
    assert 0 < np.abs(error).mean() < 2
    assert load(tmp_path / name).format == image_format


def test_bytes_and_path_give_the_same(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(random_pixels(3, 4, 3)))
    np.testing.assert_array_equal(read_image(path.read_bytes()).pixels, read_image(path).pixels)


def test_palette_and_bilevel(tmp_path: Path) -> None:
    indices = random_pixels(6, 7) % 5
    image = Image.fromarray(indices)
    colours = random_pixels(5, 3, seed=1)
    image.putpalette(colours.tobytes())
    path = save(tmp_path / "p.png", image)
    assert load(path).mode == "P"
    np.testing.assert_array_equal(read_image(path).pixels, colours[indices])
    bits = random_pixels(6, 7) > 127
    path = save(tmp_path / "b.png", Image.fromarray(bits))
    np.testing.assert_array_equal(read_image(path).pixels, bits * np.uint8(255))


def test_16_bit_gray_is_rounded(tmp_path: Path) -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(samples / 257).astype(np.uint8)
    for name in ("a.png", "a.tif", "a.pgm"):
        path = save(tmp_path / name, Image.fromarray(samples))
        np.testing.assert_array_equal(read_image(path).pixels, expected, err_msg=name)


def test_16_bit_rgb_keeps_the_upper_byte() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (5, 6, 3))
    pixels = read_image(png_bytes(samples, 2)).pixels
    np.testing.assert_array_equal(pixels, samples >> 8)
    assert np.abs(pixels - samples / 257).max() <= 1


@pytest.mark.parametrize(("channels", "colour_type"), [(2, 4), (4, 6)])
def test_16_bit_alpha_keeps_the_upper_byte(channels: int, colour_type: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (5, 6, channels))
    pixels = read_image(png_bytes(samples, colour_type)).pixels
    np.testing.assert_array_equal(pixels[..., -1], samples[..., -1] >> 8)
    np.testing.assert_array_equal(pixels[..., 0], samples[..., 0] >> 8)


def test_16_bit_transparency() -> None:
    samples = np.array([[300, 65535]])
    data = png_bytes(samples, 0, (b"tRNS", struct.pack(">H", 300)))
    np.testing.assert_array_equal(read_image(data, background="#404040").pixels, [[64, 255]])
    colours = np.full((2, 2, 3), 300)
    data = png_bytes(colours, 2, (b"tRNS", struct.pack(">3H", 300, 300, 300)))
    assert (read_image(data, background="white").pixels == 255).all()


@pytest.mark.parametrize(("mode", "kind"), [("I", "uint32"), ("F", "float32")])
def test_32_bit_samples_are_refused(tmp_path: Path, mode: str, kind: str) -> None:
    array = np.ones((3, 3), "int32" if mode == "I" else kind)
    path = save(tmp_path / "a.tif", Image.fromarray(array))
    with pytest.raises(ValueError, match=rf"a\.tif: 32-bit samples \(Pillow mode '{mode}'\)"):
        read_image(path)


def test_cmyk_without_profile_is_converted_plainly(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    path = save(tmp_path / "a.jpg", image, quality=100)
    picture = read_image(path)
    assert np.abs(picture.pixels.astype(int) - (0, 255, 255)).max() <= 2
    assert picture.metadata.icc_profile is None


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    lab8 = (150, 108, 98)
    profile = cmyk_profile(lab8)
    expected = lab_to_srgb(lab8[0] / 2.55, lab8[1] - 128, lab8[2] - 128)
    for ink, colour in (
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((255, 0, 0, 0), expected),
    ):
        image = Image.new("CMYK", (16, 16), ink)
        path = save(tmp_path / "a.jpg", image, quality=100, icc_profile=profile)
        picture = read_image(path)
        assert np.abs(picture.pixels.astype(int) - colour).max() <= 3, ink
        assert picture.metadata.icc_profile is None
    assert np.abs(np.array(expected) - (0, 255, 255)).max() > 50


def lab_to_srgb(lightness: float, a: float, b: float) -> list[float]:
    """CIE Lab (D50) to sRGB, with the Bradford-adapted matrix of sRGB."""
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz50 = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    matrix = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = np.clip(matrix @ xyz50, 0, 1)
    return list(
        255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    )


def test_damaged_cmyk_profile_warns(tmp_path: Path) -> None:
    profile = cmyk_profile((150, 108, 98))[:200]
    image = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    path = save(tmp_path / "a.jpg", image, quality=100, icc_profile=profile)
    with pytest.warns(UserWarning, match=r"a\.jpg: the CMYK profile is damaged"):
        picture = read_image(path)
    assert picture.pixels.min() >= 254


def test_lab_tiff(tmp_path: Path) -> None:
    image = Image.new("LAB", (4, 4), (150, 108, 98))
    path = save(tmp_path / "a.tif", image)
    stored = load(path)
    assert (stored.mode, stored.getpixel((0, 0))) == ("LAB", (150, 108, 98))
    expected = lab_to_srgb(150 / 2.55, 108 - 128, 98 - 128)
    assert np.abs(read_image(path).pixels - expected).max() <= 1


UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda s: s,
    2: lambda s: s[:, ::-1],
    3: lambda s: s[::-1, ::-1],
    4: lambda s: s[::-1],
    5: lambda s: s.transpose(1, 0, 2),
    6: lambda s: np.rot90(s, -1),
    7: lambda s: s[::-1, ::-1].transpose(1, 0, 2),
    8: lambda s: np.rot90(s),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_is_applied_and_removed(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = random_pixels(4, 7, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "maker"
    path = save(tmp_path / f"a{suffix}", Image.fromarray(stored), exif=exif)
    picture = read_image(path)
    np.testing.assert_array_equal(picture.pixels, UPRIGHT[orientation](stored))
    kept = Image.Exif()
    kept.load(picture.metadata.exif or b"")
    assert dict(kept) == {0x010F: "maker"}
    write_image(tmp_path / "again.png", picture.pixels, picture.metadata)
    np.testing.assert_array_equal(read_image(tmp_path / "again.png").pixels, picture.pixels)


def test_exif_of_a_photograph_survives(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.get_ifd(EXIF_IFD)[0x829A] = 0.5
    exif.get_ifd(GPS_IFD)[2] = (48.0, 30.0, 0.0)
    path = save(tmp_path / "a.jpg", Image.new("RGB", (8, 4)), exif=exif)
    picture = read_image(path)
    assert picture.pixels.shape == (8, 4, 3)
    assert picture.metadata.exif is not None
    assert picture.metadata.exif[:2] in (b"II", b"MM")
    for name in ("b.png", "b.jpg", "b.tif"):
        write_image(tmp_path / name, picture.pixels, picture.metadata)
        with Image.open(tmp_path / name) as written:
            again = written.getexif()
            assert ORIENTATION not in again or again[ORIENTATION] == 1
            assert again.get_ifd(EXIF_IFD)[0x829A] == 0.5
            assert again.get_ifd(GPS_IFD)[2] == (48.0, 30.0, 0.0)


def test_exif_with_nothing_but_orientation_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    path = save(tmp_path / "a.jpg", Image.new("L", (8, 4)), exif=exif)
    assert read_image(path).metadata.exif is None


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    pixels = random_pixels(5, 6, len(mode))
    pixels[..., -1] = 255
    path = save(tmp_path / "a.png", Image.fromarray(pixels, mode=None))
    expected = pixels[..., :3] if mode == "RGBA" else pixels[..., 0]
    np.testing.assert_array_equal(read_image(path).pixels, expected)


def transparent_image(kind: str) -> tuple[Image.Image, dict[str, object]]:
    if kind == "RGBA":
        pixels = random_pixels(2, 2, 4)
        pixels[0, 0, 3] = 0
        return Image.fromarray(pixels), {}
    if kind == "P":
        image = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8))
        image.putpalette([0, 0, 0, 9, 9, 9])
        return image, {"transparency": 0}
    return Image.fromarray(np.array([[7, 1], [1, 1]], np.uint8)), {"transparency": 7}


@pytest.mark.parametrize("kind", ["RGBA", "P", "L"])
def test_transparency_is_kept_or_lies_over_a_background(tmp_path: Path, kind: str) -> None:
    image, options = transparent_image(kind)
    path = save(tmp_path / "a.png", image, **options)
    kept = read_image(path)
    channels = 2 if kind == "L" else 4
    assert kept.pixels.shape == (2, 2, channels)
    expected = np.asarray(image)[..., 3] if kind == "RGBA" else np.array([[0, 255], [255, 255]])
    np.testing.assert_array_equal(kept.pixels[..., -1], expected)
    colours = {"RGBA": np.asarray(image)[1, 1], "P": (9, 9, 9, 255), "L": (1, 255)}[kind]
    np.testing.assert_array_equal(kept.pixels[1, 1], colours)
    again = read_image(encode_image(kept.pixels))
    np.testing.assert_array_equal(again.pixels, kept.pixels)
    with pytest.raises(ValueError, match=r"a\.png: has transparent pixels; lay it over a colour"):
        read_image(path, alpha=False)
    picture = read_image(path, background="#102030", alpha=False)
    np.testing.assert_array_equal(picture.pixels[0, 0], (0x10, 0x20, 0x30))
    if kind != "RGBA":
        assert len(np.unique(picture.pixels[1])) == 1
        assert picture.pixels[1, 1, 0] == (9 if kind == "P" else 1)


@pytest.mark.parametrize("name", ["a.webp", "a.tif", "a.gif"])
def test_alpha_of_other_formats(tmp_path: Path, name: str) -> None:
    pixels = np.zeros((3, 4, 4), np.uint8)
    pixels[..., :3] = (200, 30, 10)
    pixels[..., 3] = [[0, 255, 255, 0]] * 3 if name == "a.gif" else [[0, 1, 254, 255]] * 3
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    read = read_image(save(tmp_path / name, Image.fromarray(pixels), **options)).pixels
    np.testing.assert_array_equal(read[..., 3], pixels[..., 3])
    seen = pixels[..., 3] > 0
    np.testing.assert_array_equal(read[seen], pixels[seen])


@pytest.mark.parametrize("image_format", ["JPEG", "BMP", "PPM"])
@pytest.mark.parametrize("channels", [2, 4])
def test_formats_without_alpha_have_white_under_it(image_format: str, channels: int) -> None:
    pixels = np.full((8, 8, channels), 40, np.uint8)
    pixels[..., -1] = 0
    pixels[:, 4:, -1] = 255
    with pytest.warns(UserWarning, match=f"{image_format} has no alpha: the picture lies over whi"):
        data = encode_image(pixels, image_format=image_format)
    read = read_image(data).pixels
    assert read.shape == ((8, 8) if channels == 2 and image_format != "BMP" else read.shape)
    assert np.abs(read[:, :4].astype(int) - 255).max() <= 2
    assert np.abs(read[:, 4:].astype(int) - 40).max() <= 2


def test_profiles_of_pictures_with_alpha() -> None:
    gray, wide = gray_profile(), wide_gamut_profile()
    flat = np.full((2, 3, 4), 9, np.uint8)
    flat[0, 0, 3] = 0
    for profile, shape in ((gray, (2, 3, 2)), (wide, (2, 3, 4))):
        data = encode_image(flat, Metadata(icc_profile=profile))
        picture = read_image(data)
        assert picture.pixels.shape == shape
        assert picture.metadata.icc_profile == profile
        np.testing.assert_array_equal(picture.pixels[..., -1], flat[..., 3])
    assert (
        read_image(encode_image(flat[..., 2:], Metadata(icc_profile=wide))).metadata == Metadata()
    )


def test_background_blends_and_gray_stays_gray(tmp_path: Path) -> None:
    pixels = np.array([[[200, 64]]], np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    picture = read_image(path, background="white")
    assert picture.pixels.shape == (1, 1)
    assert abs(int(picture.pixels[0, 0]) - (200 * 64 + 255 * 191) / 255) <= 1
    with pytest.raises(ValueError, match=r"background must be a colour name.*'nonsense'"):
        read_image(path, background="nonsense")
    with pytest.raises(ValueError, match="without transparency, got '#11223344'"):
        read_image(path, background="#11223344")


def test_profiles_are_kept_only_where_they_say_something(tmp_path: Path) -> None:
    wide, gray = wide_gamut_profile(), gray_profile()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = Image.fromarray(random_pixels(3, 4, 3))
    path = tmp_path / "a.png"
    for image, profile, expected in (
        (rgb, wide, wide),
        (rgb, srgb, None),
        (rgb, gray, None),
        (rgb, b"no profile" * 20, None),
        (rgb.convert("L"), gray, gray),
        (rgb.convert("L"), wide, None),
        (rgb.convert("P"), wide, wide),
    ):
        save(path, image, icc_profile=profile)
        assert read_image(path).metadata.icc_profile == expected


def test_16_bit_gray_with_opaque_alpha_and_gray_profile_is_gray() -> None:
    samples = np.full((2, 3, 2), 65535)
    samples[..., 0] = np.arange(6).reshape(2, 3) * 257
    packed = b"icc\0\0" + zlib.compress(gray_profile())
    picture = read_image(png_bytes(samples, 4, (b"iCCP", packed)))
    np.testing.assert_array_equal(picture.pixels, np.arange(6).reshape(2, 3))
    assert picture.metadata.icc_profile == gray_profile()


@pytest.mark.parametrize("name", ["b.png", "b.jpg", "b.tif"])
def test_written_profile_must_fit(tmp_path: Path, name: str) -> None:
    metadata = Metadata(icc_profile=wide_gamut_profile())
    write_image(tmp_path / name, random_pixels(8, 8, 3), metadata)
    assert load(tmp_path / name).info["icc_profile"] == wide_gamut_profile()
    write_image(tmp_path / name, random_pixels(8, 8), metadata)
    assert "icc_profile" not in load(tmp_path / name).info


def test_animation_is_refused_but_a_stereo_jpeg_is_not(tmp_path: Path) -> None:
    frames = [Image.fromarray(random_pixels(4, 4, 3, seed=i)) for i in range(3)]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match=rf"{name}: holds 3 frames.* --frame N, 0 to 2 "):
            read_image(path)
    path = tmp_path / "a.mpo"
    frames[0].save(path, format="MPO", save_all=True, append_images=frames[1:])
    assert read_image(path).pixels.shape == (4, 4, 3)
    path = save(tmp_path / "one.gif", frames[0])
    assert read_image(path).pixels.shape == (4, 4, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.gif", "a.mpo", "a.avif"])
def test_frames(tmp_path: Path, name: str) -> None:
    """Each is of one colour, which all formats keep."""
    colours = np.array([[255, 0, 0], [0, 0, 0], [255, 255, 255]], np.uint8)
    frames = [Image.fromarray(np.tile(colour, (8, 9, 1))) for colour in colours]
    exact = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **exact)
    for frame, colour in enumerate(colours):
        picture = read_image(path, frame=frame)
        assert picture.pixels.shape in ((8, 9, 3), (8, 9))
        error = picture.pixels.reshape(8, 9, -1).astype(int) - colour
        assert np.abs(error).max() <= (0 if name[2:] in ("png", "tif", "webp", "gif") else 3)
        assert "2 further pictures" in picture.dropped
    for frame in (-1, 3):
        with pytest.raises(ValueError, match=rf"{name}: frame must be 0 to 2, got {frame}$"):
            read_image(path, frame=frame)


def test_a_single_picture_is_frame_0(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(random_pixels(4, 5, 3)))
    np.testing.assert_array_equal(read_image(path, frame=0).pixels, read_image(path).pixels)
    with pytest.raises(ValueError, match="frame must be 0 to 0, got 1"):
        read_image(path, frame=1)


def test_a_page_has_its_own_orientation_and_profile(tmp_path: Path) -> None:
    pages = [Image.fromarray(random_pixels(4, 5, 3, seed=i)) for i in range(3)]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pages[1].encoderinfo = {"tiffinfo": exif, "icc_profile": wide_gamut_profile()}
    path = save(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    found = [read_image(path, frame=i) for i in range(3)]
    np.testing.assert_array_equal(found[0].pixels, np.asarray(pages[0]))
    np.testing.assert_array_equal(found[1].pixels, np.rot90(np.asarray(pages[1]), -1))
    np.testing.assert_array_equal(found[2].pixels, np.asarray(pages[2]))
    profiles = [picture.metadata.icc_profile for picture in found]
    assert profiles == [None, wide_gamut_profile(), None]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.bmp", "a.gif"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, Image.fromarray(random_pixels(64, 64, 3)))
    data = path.read_bytes()
    for size in (0, 1, 20, len(data) // 2, len(data) * 3 // 4):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"{name}: (the|not a) [^\n]+$"):
            read_image(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("This is not a picture.\n" * 10)
    with pytest.raises(ValueError, match=r"text\.png: not a picture in a format that Pillow reads"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"text\.png: the file is empty"):
        read_image(path)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("kind", "place", "value", "reason"),
    [
        ("BMP", 30, b"\x04", r"Unsupported BMP compression \(4\)"),
        ("DDS", 80, b"\x04\0\0\0ABCD", "Unimplemented pixel format 1145258561"),
    ],
)
def test_what_pillow_lacks_is_not_called_damaged(
    kind: str, place: int, value: bytes, reason: str
) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, kind)
    data = bytearray(file.getvalue())
    data[place : place + len(value)] = value
    with pytest.raises(ValueError, match=f"image data: Pillow does not read this kind .{reason}"):
        read_image(bytes(data))


def test_size_limit_is_200_megapixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_bytes(np.zeros((1, 1)), 0)

    def sized(width: int, height: int) -> bytes:
        head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]

    before = Image.MAX_IMAGE_PIXELS
    for width in (20001, 10**9):
        with pytest.raises(ValueError, match="more than the 200 megapixels"):
            read_image(sized(width, 10000))
        # Looking for pictures in a folder is no place to refuse it.
        (tmp_path / "a.png").write_bytes(sized(width, 10000))
        assert image_io.why_unreadable(tmp_path / "a.png") == ""
    monkeypatch.setattr(image_io, "MAX_PIXELS", 99)
    with pytest.raises(ValueError, match="megapixels"):
        read_image(sized(10, 10))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", ["a.heic", "a.sic", "a.gif"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: cannot write .* allowed are \.png, \.jpg"):
        write_image(tmp_path / name, random_pixels(2, 2))
    assert list(tmp_path.iterdir()) == []


def test_jpeg_xl_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"a\.jxl: a JPEG XL picture needs .*install pillow-jxl"):
        write_image(tmp_path / "a.jxl", random_pixels(2, 2))
    assert list(tmp_path.iterdir()) == []


def test_wrong_pixels(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be uint8, got float32"):
        write_image(tmp_path / "a.png", np.zeros((2, 2), np.float32))
    for shape in ((2,), (2, 2, 5), (2, 2, 1), (0, 2), (1, 2, 2, 3)):
        with pytest.raises(
            ValueError, match=r"pixels must be \[height, width\(, 2 to 4\)\], got sh"
        ):
            write_image(tmp_path / "a.png", np.zeros(shape, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_cannot_hold_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot write this picture as JPEG: "):
        write_image(tmp_path / "a.jpg", random_pixels(1, 65536))
    assert list(tmp_path.iterdir()) == []


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, sic_jax, sic_jax.images.io\n"
        "assert sic_jax.__version__ == '0.2.0'\n"
        "assert sic_jax.BitstreamError.__name__ == 'BitstreamError'\n"
        "assert 'Codec' in dir(sic_jax)\n"
        "heavy = {'jax', 'flax', 'numpy', 'PIL', 'tensorflow', 'tensorflow_compression'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (result.returncode, result.stderr) == (0, "")


def test_unknown_attribute_of_the_package() -> None:
    import sic_jax

    with pytest.raises(AttributeError, match="'sic_jax' has no attribute 'Codex'"):
        _ = sic_jax.Codex


def test_in_memory_encoding_is_a_png() -> None:
    pixels = random_pixels(3, 5, 3)
    with Image.open(io.BytesIO(image_io.encode_image(pixels))) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_gif_pictures_that_leave_a_part_open() -> None:
    # A picture of 1 x 1 at (1, 0) on a screen of 3 x 2: browsers show the rest transparent.
    screen = b"GIF89a" + struct.pack("<HHBBB", 3, 2, 0x80, 0, 0) + bytes([9, 8, 7, 200, 100, 50])
    frame = b"," + struct.pack("<4HB", 1, 0, 1, 1, 0) + bytes([2, 2, 0x4C, 0x01, 0]) + b";"
    got = read_image(screen + frame, background="#010203")
    expected = np.full((2, 3, 3), (1, 2, 3))
    expected[0, 1] = (200, 100, 50)
    assert got.pixels.tolist() == expected.tolist()
    # A later frame holds what changes; it hides nothing of the frame before.
    first, second = (Image.fromarray(np.full((4, 4, 3), 200, np.uint8)) for _ in range(2))
    second.putpixel((1, 2), (10, 20, 30))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    got = read_image(buffer.getvalue(), frame=1)
    np.testing.assert_array_equal(got.pixels, np.asarray(second))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"GIF89a", "GIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
    ],
)
def test_a_known_format_that_cannot_be_opened(head: bytes, kind: str) -> None:
    with pytest.raises(ValueError, match=f"^image data: the {kind} picture is damaged, or of a"):
        read_image(head)
