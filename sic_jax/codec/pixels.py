"""Pictures at the codec's border: 8-bit samples in and out, and those that a file holds exactly."""

import math
import zlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.container import Container, Segment, symbols_checksum
from sic_jax.codec.wire import inflate
from sic_jax.errors import BitstreamError

if TYPE_CHECKING:
    import jax
    from PIL import Image

Pixels = NDArray[np.uint8]
PictureLike: TypeAlias = "Pixels | jax.Array | Image.Image"
"""What the codec takes for a picture."""
_EXACT_BYTES = 160
_DEFLATED_AT_ONCE = 2**16
_MAX_RATIO = 1032
"""No zlib stream is shorter than its content by more."""


def as_array(image: PictureLike) -> Pixels:
    """An array of NumPy or JAX, or a Pillow image of mode RGB or L, as an array of NumPy.

    A Pillow image gives its pixels as they are: not turned by its EXIF, not converted by its ICC
    profile, and no metadata. `sic_jax.read_image` does all this.

    Raises:
        TypeError: If it is something else, or its samples are not uint8.
        ValueError: If it is a Pillow image of another mode.
    """
    mode = getattr(image, "mode", None)
    if isinstance(mode, str) and mode not in ("RGB", "L", "RGBA"):
        raise ValueError(f'image has the Pillow mode {mode!r}: pass image.convert("RGB")')
    is_array = any(hasattr(image, name) for name in ("__array__", "__array_interface__"))
    array = np.asarray(image) if is_array else None
    if array is None or array.dtype != np.uint8:
        kind = type(image).__name__ if array is None else array.dtype
        raise TypeError(f"image must be a uint8 array or a Pillow image, got {kind}")
    return array


def check_image(image: PictureLike) -> Pixels:
    """The image as uint8 [H, W, 3], or an error that says what is wrong with it."""
    image = as_array(image)
    if image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(
            "image has an alpha channel, which a file cannot hold: blend it onto a background and "
            'pass the three channels, array[..., :3] or, of a Pillow image, image.convert("RGB")'
        )
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"image must be [H, W, 3] or [H, W], not empty; got shape {image.shape}")
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def pad(pixels: Pixels, stride: int) -> Pixels:
    """Repeat the last row and column up to multiples of `stride`."""
    widths = ((0, -pixels.shape[0] % stride), (0, -pixels.shape[1] % stride), (0, 0))
    return np.pad(pixels, widths, mode="edge")


def to_gray(pixels: Pixels) -> Pixels:
    """Luma of RGB pictures [..., 3] by ITU-R BT.601."""
    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(np.clip(luma, 0, 255)).astype(np.uint8)


def exact_segment(image: Pixels) -> Segment | None:
    """The segment that holds a picture uint8 [H, W, 3] or [H, W] exactly; None: better coded.

    Networks that learned photographs tint flat areas and the edges of graphics. Pictures are
    stored exactly if that takes at most sqrt(160 samples) bytes, 22 per pixel of a square's side
    in RGB: the bytes of a graphic grow with the length of its contours, those of a photograph with
    its area (tiny ones fit, too). Deflating stops where it exceeds this, on a photograph soon.
    """
    limit = math.isqrt(_EXACT_BYTES * image.size)
    if limit * _MAX_RATIO < image.size:  # Above 57 megapixels in RGB.
        return None
    samples = np.ascontiguousarray(image).data.cast("B")
    deflater, payload = zlib.compressobj(9), bytearray()
    for start in range(0, len(samples), _DEFLATED_AT_ONCE):
        payload += deflater.compress(samples[start : start + _DEFLATED_AT_ONCE])
        if len(payload) > limit:
            return None
    payload += deflater.flush()
    if len(payload) > limit:
        return None
    return Segment(bytes(payload), symbols_checksum(samples))


def exact_pixels(container: Container) -> Pixels:
    """The picture uint8 [H, W, 3] of a file that holds it exactly.

    Raises:
        BitstreamError: If it is damaged.
    """
    header, (segment,) = container.header, container.segments
    shape = (header.height, header.width, 1 if header.mode == "gray" else 3)
    size = shape[0] * shape[1] * shape[2]
    samples = inflate("the picture", segment.payload, size)
    if len(samples) != size:
        raise BitstreamError(f"the picture has {len(samples)} samples where {size} are needed")
    if symbols_checksum(samples) != segment.symbols_crc:
        raise BitstreamError("the picture does not have its checksum: the data are damaged")
    picture = np.frombuffer(samples, np.uint8).reshape(shape)
    return np.repeat(picture, 3, axis=2) if shape[2] == 1 else picture
