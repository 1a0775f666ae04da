"""Metadata inside picture files, by Pillow: what is kept of them, and what is not.

Pillow is imported when a function runs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sic_jax.metadata import DPI_UNITS, MAX_DPI, MAX_METADATA_BYTES, Metadata

if TYPE_CHECKING:
    from PIL import Image

EXIF_PREFIX = b"Exif\x00\x00"
"""What stands before the TIFF structure where Pillow hands EXIF around."""
_ORIENTATION = 0x0112
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_XMP_TAG = 700
# Of a TIFF file's tags, those that describe the picture and not how this file stores it.
_TIFF_TAGS_KEPT = frozenset(
    (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853, 36867)
)
_TIFF_TAGS_NAMED = {33723: "IPTC", 34735: "GeoTIFF"}
# Image resources of Photoshop, in PSD files and, of these the first, in JPEG files.
_RESOURCES = {0x0404: "IPTC", 0x0422: "EXIF", 0x0424: "XMP"}
_PNG_TEXT_KEPT = ("XML:com.adobe.xmp", "Raw profile type exif")
_PNG_IPTC = "Raw profile type iptc"
_MAX_KEYS = 5
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\x00"
_NAMES = {"icc_profile": "ICC profile", "exif": "EXIF", "xmp": "XMP", "dpi": "resolution"}
_BLOCKS_OF_FORMAT: dict[str, tuple[str, ...]] = {
    "AVIF": ("icc_profile", "exif", "xmp"),
    "BMP": ("dpi",),
    "JXL": ("exif", "xmp"),  # Of the plugin; the format has a place for profiles.
    "PPM": (),
    "WEBP": ("icc_profile", "exif", "xmp"),
}
"""The metadata that a format holds, where it cannot hold all."""
_MAX_JPEG_BYTES = {"exif": 65533 - 6, "xmp": 65533 - 29, "icc_profile": 255 * (65533 - 14)}
"""What segments of a JPEG file hold beside the block's name; a profile may take 255 of them."""
_XMP_ORIENTATION = re.compile(
    rb"""\stiff:Orientation\s{0,9}=\s{0,9}(?:"[^"<]{0,99}"|'[^'<]{0,99}')"""
    rb"|<tiff:Orientation(?:\s[^<>]{0,999})?(?:/>|>[^<]{0,99}</tiff:Orientation\s{0,9}>)"
)
"""An attribute or an element. The repetitions are bounded, so that no text takes long to search."""


def turn_upright(image: Image.Image) -> None:
    """Decodes a picture and applies its EXIF orientation, to pixels and resolution."""
    from PIL import ImageOps

    if image.format != "TIFF":  # Pillow turns those when it decodes them.
        image.load()
    try:
        sideways = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # Damaged EXIF must not cost the picture; Pillow takes it for empty now.
        sideways = False
    ImageOps.exif_transpose(image, in_place=True)
    if sideways:
        exif = image.getexif()
        if "dpi" in image.info:
            image.info["dpi"] = image.info["dpi"][::-1]
        if _X_RESOLUTION in exif and _Y_RESOLUTION in exif:
            exif[_X_RESOLUTION], exif[_Y_RESOLUTION] = exif[_Y_RESOLUTION], exif[_X_RESOLUTION]


def embedded(image: Image.Image, icc_profile: bytes | None) -> tuple[Metadata, tuple[str, ...]]:
    """Metadata of a picture file, and the names of those that are not kept.

    Args:
        image: Of `turn_upright`.
        icc_profile: That of the pixels which are kept.
    """
    dropped = list(dict.fromkeys(_not_kept(image)))
    dpi = _dpi(image)
    blocks: dict[str, bytes | None] = {"icc_profile": icc_profile}
    for name, read in (("exif", _exif), ("xmp", _xmp)):
        try:
            blocks[name] = read(image)
        except Exception as error:  # Of many kinds, and none must cost the picture.
            dropped.append(f"damaged {_NAMES[name]} ({error})")
    for name, value in blocks.items():
        if value is not None and len(value) > MAX_METADATA_BYTES:
            dropped.append(f"{_NAMES[name]} of {len(value)} bytes")
            blocks[name] = None
    return Metadata(dpi=dpi, **blocks), tuple(dropped)


def save_options(metadata: Metadata, image_format: str) -> dict[str, Any]:
    """Arguments of Pillow's `save` that write metadata; a warning names what the format lacks."""
    from PIL import Image, PngImagePlugin

    values = {name: getattr(metadata, name) for name in _NAMES}
    there = [name for name, value in values.items() if value is not None]
    held = [name for name in there if _holds(image_format, name, values[name])]
    if lost := [_NAMES[name] for name in there if name not in held]:
        warnings.warn(f"{image_format} has no place for: {', '.join(lost)}", stacklevel=3)
    options: dict[str, Any] = {name: values[name] for name in held}
    exif, xmp = options.get("exif"), options.pop("xmp", None)
    if exif is not None:
        options["exif"] = EXIF_PREFIX + exif.removeprefix(EXIF_PREFIX)
    if xmp is not None and image_format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt(_PNG_TEXT_KEPT[0], xmp)
    elif xmp is not None and image_format == "TIFF":
        tags = Image.Exif()
        tags.load(options.get("exif", b""))
        tags[_XMP_TAG] = xmp
        options["exif"] = tags
    elif xmp is not None:
        options["xmp"] = xmp
    if image_format == "JPEG" and "dpi" in options:
        options["dpi"] = tuple(map(round, options["dpi"]))
    return options


def _holds(image_format: str, name: str, value: Any) -> bool:
    """Whether a format has a place for this value of a field of `Metadata`."""
    if name not in _BLOCKS_OF_FORMAT.get(image_format, _NAMES):
        return False
    if image_format == "JPEG" and name == "dpi":
        return all(1 <= round(v) <= 65535 for v in value)  # Whole numbers of 16 bits.
    if image_format == "JPEG":
        return len(value) <= _MAX_JPEG_BYTES[name]
    if image_format in ("AVIF", "TIFF") and name == "exif":
        return _is_exif(value)  # AVIF encoders parse it; its tags become those of a TIFF file.
    return True


def _is_exif(block: bytes) -> bool:
    """Whether Pillow can read the block's tags and write them."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(block)
        exif.tobytes()
    except Exception:  # Of many kinds.
        return False
    return True


def _exif(image: Image.Image) -> bytes | None:
    """EXIF without thumbnail and without orientation, which is applied already."""
    from PIL import Image

    exif = image.getexif()
    if not exif and image.info.get("exif"):
        Image.Exif().load(image.info["exif"])  # Raises where it is damaged.
    for tag in list(exif):
        if tag == _ORIENTATION or (image.format == "TIFF" and tag not in _TIFF_TAGS_KEPT):
            del exif[tag]
    return exif.tobytes().removeprefix(EXIF_PREFIX) if len(exif) else None


def _xmp(image: Image.Image) -> bytes | None:
    """XMP without orientation, for readers would turn the picture a second time."""
    xmp = image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if xmp is not None and not isinstance(xmp, bytes):
        raise TypeError(f"of type {type(xmp).__name__}")
    return _XMP_ORIENTATION.sub(b"", xmp or b"") or None


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch, which a file states by itself or in its EXIF."""
    exif, stated = image.getexif(), image.info.get("dpi")
    if image.format == "TIFF" or (
        image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2)
    ):
        stated = None  # Pillow makes numbers up where the tags are missing.
    try:
        if stated is None:
            unit = {2: 1.0, 3: 2.54}[exif.get(_RESOLUTION_UNIT, 2)]
            stated = (unit * exif[_X_RESOLUTION], unit * exif[_Y_RESOLUTION])
        x, y = (round(float(v), 2) for v in stated)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    # Not by min and max: they pass over numbers that are none, as of 300 / 0.
    return (x, y) if all(v * DPI_UNITS >= 1 and v <= MAX_DPI for v in (x, y)) else None


def _not_kept(image: Image.Image) -> Iterator[str]:
    """Names of the metadata that `Metadata` has no place for."""
    has: Any = image  # Readers of some formats have attributes of their own.
    text = dict(has.text) if image.format == "PNG" else {}
    if image.format == "PNG" and any(chunk[0] == b"caBX" for chunk in has.private_chunks):
        yield "content credentials"
    resources = [r[0] for r in has.resources] if image.format == "PSD" else []
    if image.format in ("JPEG", "MPO"):
        resources = list(image.info.get("photoshop", ()))
        if any(segment.startswith(_EXTENDED_XMP) for _, segment in has.applist):
            yield "extended XMP"
        if any(app == "APP11" and segment[12:16] == b"jumb" for app, segment in has.applist):
            yield "content credentials"
    yield from (name for number, name in _RESOURCES.items() if number in resources)
    if image.format == "TIFF":
        yield from (name for tag, name in _TIFF_TAGS_NAMED.items() if tag in has.tag_v2)
    if _PNG_IPTC in text:
        yield "IPTC"
    keys = [key for key in text if key not in (*_PNG_TEXT_KEPT, _PNG_IPTC)]
    if keys:
        shown = ["".join(c if c.isprintable() else "?" for c in key[:79]) for key in keys]
        more = [f"{len(keys) - _MAX_KEYS} more"] if len(keys) > _MAX_KEYS else []
        yield f"PNG text ({', '.join(shown[:_MAX_KEYS] + more)})"
    if image.info.get("comment"):
        yield "comment"
    frames = getattr(image, "n_frames", 1)
    if image.format == "PSD":
        if frames:
            yield "layers"
    elif frames > 1:
        yield f"{frames - 1} further picture{'s' * (frames > 2)}"
