"""Colours on the way to 8-bit RGB or gray and alpha: sample formats, ICC profiles.

NumPy and Pillow are imported when a function runs. `name` is the file, for messages.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

from sic_jax.images.embedded import turn_upright
from sic_jax.images.heif import colours_of_heif
from sic_jax.images.png import colours_of, to_srgb, with_exact_transparency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


def load_upright(image: Image.Image, data: bytes) -> Image.Image:
    """Decodes a picture and applies its EXIF orientation.

    Args:
        image: Of `PIL.Image.open`.
        data: Bytes of the file.
    """
    from PIL import Image

    image = with_exact_transparency(image, data)
    tile: Any = getattr(image, "tile", None)
    first_of_gif = image.format == "GIF" and tile and image.tell() == 0
    covered = tile[0][1] if first_of_gif else None
    turn_upright(image)
    if covered not in (None, (0, 0, *image.size)) and not image.has_transparency_data:
        # Pillow fills the rest of a GIF picture with a colour; browsers leave it transparent.
        alpha = Image.new("L", image.size)
        alpha.paste(255, covered)
        image.putalpha(alpha)
    return image


def in_8_bits(
    name: str, image: Image.Image, data: bytes, background: str | None
) -> tuple[Image.Image, bytes | None]:
    """The picture in mode L, RGB, LA or RGBA, and the ICC profile that it still needs.

    Args:
        name: File, for messages.
        image: Of `load_upright`.
        data: Bytes of the file.
        background: Colour under transparent pixels, so that the picture has no alpha; None to keep
            it. An alpha channel of 255 is always dropped.
    """
    profile = image.info.get("icc_profile")
    image, alpha = split_alpha(image)
    image, profile = _to_gray_or_rgb(name, image, profile)
    colours = colours_of(name, data) or colours_of_heif(name, data)
    if colours is not None:
        image, profile = to_srgb(image, colours), None
    if alpha is None or alpha.getextrema() == (255, 255):
        return image, profile
    if background is None:
        image.putalpha(alpha)
        return image, profile
    return flatten(image, alpha, background), profile


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Separates colours and alpha, in whichever way the file stores transparency."""
    from PIL import Image

    if not image.has_transparency_data:
        return image, None
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        import numpy as np

        mask = np.where(np.asarray(image) == transparent, 0, 255)
        return image, Image.fromarray(mask.astype(np.uint8))
    gray = image.mode in ("1", "L", "LA", "La")
    image = image.convert("LA" if gray else "RGBA")
    return image.convert("L" if gray else "RGB"), image.getchannel("A")


def _to_gray_or_rgb(
    name: str, image: Image.Image, profile: bytes | None
) -> tuple[Image.Image, bytes | None]:
    """Converts to mode L or RGB; the profile is None where the conversion used it up."""
    from PIL import Image, ImageCms

    if image.mode in ("L", "RGB"):
        return image, profile
    if image.mode == "1":
        return image.convert("L"), profile
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        import numpy as np

        wide = np.asarray(image).astype(np.int32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)), profile
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name}: 32-bit samples (Pillow mode {image.mode!r}) have no defined range; "
            "convert the picture to 8 or 16 bits first"
        )
    is_lab = image.mode == "LAB"
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if is_lab:  # The table that would replace the exact formula is ten steps off in places.
        flags |= ImageCms.Flags.NOOPTIMIZE
    if is_lab or (image.mode == "CMYK" and _profile_space(profile) == b"CMYK"):
        try:
            source = ImageCms.createProfile("LAB") if is_lab else io.BytesIO(profile or b"")
            converted = ImageCms.profileToProfile(
                image,
                source,
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=flags,
            )
        except ImageCms.PyCMSError as error:
            if is_lab:
                raise ValueError(f"{name}: cannot convert Lab to RGB ({error})") from error
            warnings.warn(
                f"{name}: the CMYK profile is damaged, so the colours are approximate ({error})",
                stacklevel=4,
            )
            profile = None
        else:
            return converted or image, None
    return image.convert("RGB"), profile


def flatten(image: Image.Image, alpha: Image.Image, background: str) -> Image.Image:
    """Lays a picture of mode L or RGB over a colour."""
    from PIL import Image

    colour = opaque_colour(background)
    if image.mode == "L" and len(set(colour)) == 1:
        under = Image.new("L", image.size, colour[0])
    else:
        under, image = Image.new("RGB", image.size, colour), image.convert("RGB")
    under.paste(image, mask=alpha)
    return under


def opaque_colour(background: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a CSS name or "#rrggbb".

    Raises:
        ValueError: If it is no colour, or a transparent one.
    """
    from PIL import ImageColor

    with contextlib.suppress(ValueError):
        colour = ImageColor.getrgb(background)
        if len(colour) == 3:
            return colour
    raise ValueError(
        f"background must be a colour name or #rrggbb, without transparency, got {background!r}"
    )


def _profile_space(profile: bytes | None) -> bytes:
    """Colour space that an ICC profile's header names (ICC.1:2022, 7.2.6)."""
    return profile[16:20] if profile is not None and len(profile) >= 128 else b""


def is_srgb(profile: bytes) -> bool:
    """Whether a profile shows 17^3 colours as sRGB does, within one step: then it says nothing."""
    import numpy as np
    from PIL import Image, ImageCms

    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
    try:
        shown = ImageCms.profileToProfile(
            Image.fromarray(colours),
            io.BytesIO(profile),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except ImageCms.PyCMSError:
        return False
    return bool((np.abs(np.asarray(shown).astype(int) - colours) <= 1).all())


def match_profile(
    pixels: NDArray[np.uint8], profile: bytes | None
) -> tuple[NDArray[np.uint8], bytes | None]:
    """Drops a profile of another colour space; gray stored as RGB under a gray one becomes gray.

    Args:
        pixels: uint8 [H, W, 3], [H, W], or with alpha [H, W, 4] or [H, W, 2].
        profile: An ICC profile.
    """
    space = _profile_space(profile)
    is_gray = pixels.shape[2:] in ((), (2,))
    if space == b"GRAY" and not is_gray and (pixels[..., :3] == pixels[..., :1]).all():
        pixels = (pixels[..., 0] if pixels.shape[2] == 3 else pixels[..., 2:]).copy()
        is_gray = True
    fits = space == (b"GRAY" if is_gray else b"RGB ")
    return pixels, profile if fits else None
