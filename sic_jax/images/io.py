"""Pictures in and out: 8-bit arrays with their metadata, read and written by Pillow.

NumPy and Pillow are imported when a picture is read or encoded, so that programs that need none
start at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sic_jax.files import write_atomic
from sic_jax.images.colour import flatten, in_8_bits, is_srgb, load_upright, match_profile
from sic_jax.images.embedded import embedded, save_options
from sic_jax.images.png import without_damaged_chunks
from sic_jax.metadata import Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

MAX_PIXELS = 200_000_000
PICTURES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".tga",
    )
)
"""Suffixes of the picture files that are taken from folders."""

_FORMATS = {
    "": "PNG",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".jxl": "JXL",
}
WRITTEN = tuple(filter(None, _FORMATS))
"""Suffixes of the picture files that `write_image` writes."""
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "BMP": {"dpi": (0, 0)},  # None; Pillow would write 96.
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "JXL": {"lossless": True},
    "PNG": {"compress_level": 2},  # On photographs as small as the default and 3 times as fast.
    "WEBP": {"lossless": True},
}
_WITH_ALPHA = ("AVIF", "JXL", "PNG", "TIFF", "WEBP")
# What Pillow says of pictures that are whole, but of a kind that it, or this build of it, lacks.
_UNSUPPORTED = re.compile(r"unsupported|not supported|unimplemented|not available", re.IGNORECASE)
_KNOWN_HEADS = {b"\x89PNG\r\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF"}
_pillow_limit_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright 8-bit picture.

    Attributes:
        pixels: uint8 [height, width, 3] (RGB) or [height, width] (gray); where the picture is
            transparent or partly so, [height, width, 4] (RGBA) or [height, width, 2] (gray and
            alpha), not premultiplied.
        metadata: What a sic file keeps. Its ICC profile is that of these pixels; none means sRGB
            (or its gray), also where the file had a profile that says the same. Its EXIF has no
            orientation and no thumbnail. `dpi` is that of the upright picture.
        dropped: Names of what else the file has, as ("IPTC", "1 further picture").
    """

    pixels: NDArray[np.uint8]
    metadata: Metadata = Metadata()
    dropped: tuple[str, ...] = ()


def read_image(
    path_or_bytes: str | os.PathLike[str] | bytes,
    *,
    background: str | None = None,
    alpha: bool = True,
    frame: int | None = None,
) -> Picture:
    """Reads any single picture that Pillow reads, as 8-bit RGB or gray, with alpha if it has any.

    The EXIF orientation is applied. Palettes become RGB. 16-bit gray is rounded (v / 257); 16-bit
    RGB, and alpha of 16 bits, come from Pillow as their upper 8 bits. CMYK is converted to sRGB
    through its embedded profile, without one by Pillow's plain formula. Colours that a PNG file
    describes by `gAMA`, `cHRM` or `cICP`, or an AVIF or HEIC file by `nclx`, are converted to sRGB.
    A transparent colour and palettes with transparency become alpha. An opaque alpha channel is
    dropped.

    Args:
        path_or_bytes: A file, or the bytes of one.
        background: Colour to lay transparent pixels over, as a CSS name or "#rrggbb", so that the
            pixels have no alpha. None keeps it.
        alpha: Whether the pixels may have alpha. If not, a transparent picture is an error where
            there is no background.
        frame: Which picture of an animation or of a file with several pages, from 0 on; files with
            a single picture have 0. None: the main picture of stereo photographs and layers;
            animations and pages are refused.

    Returns:
        The picture.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is no picture that Pillow reads, is damaged, has no such frame or needs one,
            is HDR (PQ or HLG), larger than 200 megapixels, transparent and must not be, or has a
            sample format without a defined 8-bit range.
    """
    import numpy as np

    if isinstance(path_or_bytes, bytes):
        name, data = "image data", path_or_bytes
    else:
        name, data = os.fspath(path_or_bytes), Path(path_or_bytes).read_bytes()
    image = _decode(name, data, frame)
    upright = image
    image, stated = in_8_bits(name, image, data, background)
    if not alpha and image.mode in ("LA", "RGBA"):
        raise ValueError(f"{name}: has transparent pixels; lay it over a colour first")
    pixels, profile = match_profile(np.array(image, dtype=np.uint8), stated)
    says_something = stated is not None and not is_srgb(stated)
    metadata, dropped = embedded(upright, profile if says_something else None)
    if says_something and profile is None:
        dropped += ("ICC profile, which does not fit the picture",)
    return Picture(pixels, metadata, dropped)


def why_unreadable(
    path: str | os.PathLike[str], *, frame: int | None = None, any_frame: bool = True
) -> str:
    """Why a file is no picture that can be read here; empty if its first bytes say that it is one.

    Args:
        path: The file.
        frame: As in `read_image`.
        any_frame: Whether any frame will do. If not, `frame` counts.

    Raises:
        OSError: The file cannot be opened.
    """
    from PIL import Image

    with open(path, "rb") as file:
        head = file.read(32)
        _add_formats()
        try:
            with _pillow_limit(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(file)
                return "" if any_frame else _frame_problem(image, frame)
        except Image.DecompressionBombError:  # `read_image` says that it is too large.
            return ""
        except Exception:  # Pillow's readers raise many kinds on files that are something else.
            return _no_picture(head)


@functools.cache
def _add_formats() -> None:
    """HEIC and JPEG XL, where the packages that read them are installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")


def _no_picture(head: bytes) -> str:
    """What to say of a file that Pillow does not know, by its first bytes."""
    brands = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
    if head[4:8] == b"ftyp" and head[8:12] in brands:
        kind, module, package = "HEIC", "pillow_heif", "pillow-heif"
    elif head.startswith(b"\xff\x0a") or head[4:8] == b"JXL ":
        kind, module, package = "JPEG XL", "pillow_jxl", "pillow-jxl-plugin"
    else:
        known = [kind for start, kind in _KNOWN_HEADS.items() if head.startswith(start)]
        if head[4:12] in (b"ftypavif", b"ftypavis"):
            known = ["AVIF"]
        if known:
            return f"the {known[0]} picture is damaged, or of a kind that Pillow does not read"
        return "not a picture in a format that Pillow reads"
    if importlib.util.find_spec(module) is None:
        return f"a {kind} picture needs the package {package} (pip install {package})"
    return f"a {kind} picture that is damaged"


def write_image(
    path: str | os.PathLike[str],
    pixels: NDArray[np.uint8],
    metadata: Metadata = Metadata(),
) -> None:
    """Writes a picture in the format that the extension names (PNG without one), atomically.

    Args:
        path: File to write. .jpg, .jpeg and .avif have quality 95; .png, .tif, .tiff, .bmp, .ppm,
            .pgm, .webp and .jxl (with pillow-jxl-plugin) are lossless.
        pixels: uint8 of one of the shapes that `encode_image` takes.
        metadata: As in `encode_image`.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
        ValueError: Unknown extension, a package is missing, or the format cannot hold the picture.
    """
    image_format = output_format(path)
    write_atomic(path, encode_image(pixels, metadata, image_format=image_format))


def output_format(path: str | os.PathLike[str]) -> str:
    """Pillow's name of the format in which `write_image` writes this path.

    Raises:
        ValueError: Unknown extension, or a package is missing.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(
            f"{os.fspath(path)}: cannot write a picture with the extension {suffix!r}; "
            f"allowed are {', '.join(WRITTEN)}"
        )
    if suffix == ".jxl" and importlib.util.find_spec("pillow_jxl") is None:
        raise ValueError(
            f"{os.fspath(path)}: a JPEG XL picture needs the package "
            "pillow-jxl-plugin (pip install pillow-jxl-plugin)"
        )
    return _FORMATS[suffix]


def encode_image(
    pixels: NDArray[np.uint8],
    metadata: Metadata = Metadata(),
    *,
    image_format: str = "PNG",
) -> bytes:
    """Bytes of a picture file.

    Args:
        pixels: uint8 [height, width, 3] or [height, width], or with alpha [height, width, 4] or
            [height, width, 2]. JPEG, BMP and PPM have no alpha: in them the picture lies over
            white, with a warning.
        metadata: To write too. A profile that is not one for these pixels is left out, and what
            the format has no place for, with a warning.
        image_format: What `output_format` returns.

    Raises:
        TypeError: pixels are not uint8.
        ValueError: Wrong shape, or the format cannot hold the picture.
    """
    from PIL import Image

    if pixels.dtype.name != "uint8":
        raise TypeError(f"pixels must be uint8, got {pixels.dtype.name}")
    channels = pixels.shape[2:]
    if pixels.ndim < 2 or channels not in ((), (2,), (3,), (4,)) or 0 in pixels.shape:
        raise ValueError(f"pixels must be [height, width(, 2 to 4)], got shape {pixels.shape}")
    pixels, icc_profile = match_profile(pixels, metadata.icc_profile)
    metadata = dataclasses.replace(metadata, icc_profile=icc_profile)
    image = Image.fromarray(pixels)
    if image.mode in ("LA", "RGBA") and image_format not in _WITH_ALPHA:
        image = flatten(image.convert(image.mode[:-1]), image.getchannel("A"), "white")
        warnings.warn(f"{image_format} has no alpha: the picture lies over white", stacklevel=2)
    buffer = io.BytesIO()
    _add_formats()
    try:
        options = _SAVE_OPTIONS.get(image_format, {}) | save_options(metadata, image_format)
        image.save(buffer, image_format, **options)
    except Exception as error:
        raise ValueError(f"cannot write this picture as {image_format}: {error}") from error
    return buffer.getvalue()


@contextlib.contextmanager
def _pillow_limit() -> Iterator[None]:
    """Replaces Pillow's limit on the picture size, a global of that library, by ours."""
    from PIL import Image

    with _pillow_limit_lock, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decode(name: str, data: bytes, frame: int | None) -> Image.Image:
    """Decodes a frame, or the only one, and turns it upright.

    Damage beside the picture costs a warning.
    """
    if not data:
        raise ValueError(f"{name}: the file is empty")
    _add_formats()
    try:
        return _decode_as_it_is(name, data, frame)
    except ValueError:
        data, damaged = without_damaged_chunks(data)
        if not damaged:
            raise
    image = _decode_as_it_is(name, data, frame)
    kinds = ", ".join(dict.fromkeys(damaged))
    warnings.warn(f"{name}: damaged and left out: {kinds}", stacklevel=3)
    return image


def _decode_as_it_is(name: str, data: bytes, frame: int | None) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with _pillow_limit():
            image: Image.Image = Image.open(io.BytesIO(data))
            problem = _frame_problem(image, frame)
            if not problem:
                return load_upright(_at_frame(image, frame or 0, data), data)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: {_no_picture(data[:32])}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name}: more than the {MAX_PIXELS // 10**6} megapixels that are allowed"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files.
        reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(reason):
            raise ValueError(f"{name}: Pillow does not read this kind ({reason})") from error
        raise ValueError(f"{name}: the picture is damaged ({reason})") from error
    raise ValueError(f"{name}: {problem}")


def _frame_problem(image: Image.Image, frame: int | None) -> str:
    """Why `read_image` takes no picture of this file; empty if it takes one."""
    animated = getattr(image, "is_animated", False)
    num_frames = getattr(image, "n_frames", 2) if animated else 1
    if image.format == "PSD":  # Layers are no pictures of their own.
        num_frames = 1
    single = num_frames == 1 or image.format == "MPO"
    if (single and not frame) or (frame is not None and 0 <= frame < num_frames):
        return ""
    if frame is not None:
        return f"frame must be 0 to {num_frames - 1}, got {frame}"
    return (
        f"holds {num_frames} frames, of which a sic file holds one; choose it with "
        f"--frame N, 0 to {num_frames - 1} (frame= in Python)"
    )


def _at_frame(image: Image.Image, frame: int, data: bytes) -> Image.Image:
    """A picture at one of its frames, not decoded yet."""
    from PIL import Image

    if image.format == "TIFF" and getattr(image, "is_animated", False):
        # Profiles of pages that Pillow has seen stay where a page has none.
        image = Image.open(io.BytesIO(data))
        if frame:
            image.info.clear()
    if frame:
        image.seek(frame)
    return image
