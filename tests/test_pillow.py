"""The plugin of Pillow: files and pictures are those of the codec."""

import dataclasses
import importlib
import io
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from sic_jax import BitstreamError, Codec, Metadata, read_metadata
from sic_jax.codec.container import pack, unpack

BUNDLE = Path(__file__).parent / "golden" / "v2" / "bundle"
RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
RGBA = np.random.default_rng(1).integers(0, 256, (24, 40, 4), np.uint8)
EXIF = Image.Exif()
EXIF[0x010F] = "maker"


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[types.ModuleType]:
    """The plugin in Pillow's registries, for these tests alone."""
    Image.init()  # Else the first picture would fill the copies, and no registry after them.
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ID", "OPEN", "SAVE", "EXTENSION", "MIME"):
            patch.setattr(Image, name, type(getattr(Image, name))(getattr(Image, name)))
        patch.delitem(sys.modules, "sic_jax.pillow", raising=False)
        patch.setenv("SIC_BUNDLES", str(BUNDLE.parent))
        yield importlib.import_module("sic_jax.pillow")


@pytest.fixture(scope="module")
def codec(plugin: types.ModuleType) -> Codec:
    """The codec of the plugin, so that both share what is compiled."""
    loaded: Codec = plugin._codec(str(BUNDLE))
    return loaded


def opened(data: bytes) -> Any:
    return Image.open(io.BytesIO(data))


def test_importing_costs_no_jax_and_registers() -> None:
    program = (
        "import sys, sic_jax.pillow\n"
        "from PIL import Image\n"
        "print(Image.registered_extensions()['.sic'], Image.MIME['SIC'], 'jax' in sys.modules)\n"
    )
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "SIC image/x-sic False\n"


@pytest.mark.parametrize(
    "pixels", [RGB, RGB[..., 0], RGBA, RGBA[..., 2:]], ids=["RGB", "L", "RGBA", "LA"]
)
def test_files_and_pictures_are_those_of_the_codec(
    codec: Codec, tmp_path: Path, pixels: NDArray[Any]
) -> None:
    path = tmp_path / "x.sic"
    image = Image.fromarray(pixels)
    image.save(path, level=2, seed=3, grain=1.5, bundle="bundle", quality=90)
    data = codec.compress(pixels, level=2, seed=3, grain=1.5)
    assert path.read_bytes() == data
    image.save(path, max_bytes=len(data), bundle=BUNDLE, seed=3, grain=1.5)
    assert path.read_bytes() == data
    with Image.open(path) as again:
        assert np.shape(pixels)[2:] == {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[again.mode]
        assert (again.format, again.size, again.mode) == ("SIC", (40, 24), image.mode)
        assert again.get_format_mimetype() == "image/x-sic"
        assert again.info == {
            "model_id": codec.bundle.model_id.hex(),
            "level": 2,
            "num_levels": 2,
            "seed": 3,
            "grain": 1.5,
            "exact": False,
        }
        np.testing.assert_array_equal(np.asarray(again), codec.decompress(data))
    again.load()  # Once decoded it needs no file.


def test_decoding_otherwise(codec: Codec) -> None:
    data = codec.compress(RGB)
    image = opened(data)
    with pytest.raises(TypeError, match="DecodeOptions has no field 'levle'"):
        image.load(levle=1)
    with pytest.raises(ValueError, match="level must be 1 to"):
        image.load(level=9)
    image.load(level=1, seed=2, temperature=0.5)
    expected = codec.decompress(data, level=1, seed=2, temperature=0.5)
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert (expected != codec.decompress(data)).any()
    with pytest.raises(ValueError, match="decoded already; open its file again"):
        image.load(level=2)


def test_opaque_alpha_is_none(codec: Codec) -> None:
    file = io.BytesIO()
    image = Image.fromarray(RGB).convert("RGBA")
    image.save(file, "SIC", level=1, bundle=BUNDLE)
    assert file.getvalue() == codec.compress(RGB, level=1)
    assert Image.open(file).mode == "RGB"


def test_opening_decodes_nothing(codec: Codec) -> None:
    container = unpack(codec.compress(RGB, level=1))
    header = dataclasses.replace(container.header, model_id=bytes(6))
    image = opened(pack(header, container.segments))
    assert image.size == (40, 24)
    with pytest.raises(ValueError, match="no bundle has the id 000000000000"):
        image.load()


def test_metadata(codec: Codec) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    block = EXIF.tobytes().removeprefix(b"Exif\0\0")
    metadata = Metadata(icc_profile=profile, exif=block, xmp=b"<x/>", dpi=(300, 72.5))
    image = opened(codec.compress(RGB, level=1, metadata=metadata))
    assert dict(image.getexif()) == {0x010F: "maker"}
    assert (image.info["icc_profile"], image.info["xmp"]) == (profile, b"<x/>")
    assert image.info["dpi"] == (300, 72.5)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", exif=image.info["exif"], dpi=image.info["dpi"])
    image.save(jpeg, "JPEG", exif=image.info["exif"])
    for other in (png, jpeg):
        assert dict(Image.open(other).getexif()) == {0x010F: "maker"}
    # As in Pillow's own formats, only the profile goes along by itself.
    for given, kept in (
        ({}, Metadata(icc_profile=profile)),
        ({"icc_profile": None, "exif": Image.Exif(), "xmp": b""}, Metadata()),
        ({"exif": EXIF, "xmp": "<x/>", "dpi": (300, 72.5)}, metadata),
        ({"exif": EXIF.tobytes(), "xmp": b"<x/>", "dpi": [300, 72.5]}, metadata),
        ({"exif": block, "xmp": b"<x/>", "dpi": (300, 72.5)}, metadata),
    ):
        file = io.BytesIO()
        image.save(file, "SIC", level=1, bundle=BUNDLE, **given)
        assert read_metadata(file.getvalue()) == kept


def test_prefixes_and_damage(codec: Codec) -> None:
    data = codec.compress(RGB)
    cut = opened(data[:-1])
    top = unpack(data).header.num_levels
    assert (cut.info["level"], cut.info["num_levels"]) == (top - 1, top)
    with pytest.warns(UserWarning, match=f"truncated: {top - 1} of {top} levels are whole"):
        cut.load()
    np.testing.assert_array_equal(np.asarray(cut), codec.decompress(data, level=top - 1))
    with pytest.raises(BitstreamError, match="incomplete"):
        opened(data[:-1]).load(strict=True)
    for bad, message in (
        (data[:14], "ends inside the header"),
        (data[:13] + bytes([data[13] ^ 1]) + data[14:], "the header is corrupted: its CRC"),
        (data[:-1] + bytes([data[-1] ^ 1]), f"segment {top} is corrupted"),
    ):
        with pytest.raises(BitstreamError, match=message):
            opened(bad)
    with pytest.raises(UnidentifiedImageError):
        opened(b"\x93SIX" + data[4:])


def test_pillows_limit_holds(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    data = codec.compress(RGB, level=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 24 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError, match="960 pixels"):
        opened(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert opened(data).convert("L").size == (40, 24)


def test_other_modes_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    for mode in ("P", "CMYK", "I;16", "1"):
        with pytest.raises(OSError, match=f"cannot write mode {mode} as SIC; convert the image"):
            Image.new(mode, (4, 4)).save(tmp_path / "x.sic")
    with pytest.raises(ValueError, match="no bundle 'absent'"):
        Image.fromarray(RGB).save(tmp_path / "x.sic", bundle="absent")
    with pytest.raises(ValueError, match="level must be 1 to"):
        Image.fromarray(RGB).save(tmp_path / "x.sic", bundle=BUNDLE, level=0)
    assert os.listdir(tmp_path) == []
