"""Pictures at the codec's border: 8-bit samples in and out, and those that a file holds exactly."""

import math
import zlib
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.container import Container, Segment, symbols_checksum
from sic_jax.codec.hidden import fill_hidden
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
_NUM_PREDICTORS = 4


class Parts(NamedTuple):
    """A picture as files hold it."""

    colours: Pixels
    """[H, W, 3] or [H, W]; those that alpha hides are any."""
    alpha: Pixels | None
    """[H, W], 255 where the picture is opaque; None where it is so everywhere."""


def as_array(image: PictureLike) -> Pixels:
    """An array of NumPy or JAX, or a Pillow image of mode RGB, L, RGBA or LA, as one of NumPy.

    A Pillow image gives its pixels as they are: not turned by its EXIF, not converted by its ICC
    profile, and no metadata. `sic_jax.read_image` does all this.

    Returns:
        uint8: of an array in its shape, of a Pillow image [H, W, 3], [H, W], [H, W, 4] or
        [H, W, 2].

    Raises:
        TypeError: If it is something else, or its samples are not uint8.
        ValueError: If it is a Pillow image of another mode.
    """
    mode = getattr(image, "mode", None)
    if isinstance(mode, str) and mode not in ("RGB", "L", "RGBA", "LA"):
        raise ValueError(
            f'image has the Pillow mode {mode!r}: pass image.convert("RGB") or, if it is partly '
            'transparent, image.convert("RGBA")'
        )
    is_array = any(hasattr(image, name) for name in ("__array__", "__array_interface__"))
    array = np.asarray(image) if is_array else None
    if array is None or array.dtype != np.uint8:
        kind = type(image).__name__ if array is None else array.dtype
        raise TypeError(f"image must be a uint8 array or a Pillow image, got {kind}")
    return array


def split_alpha(image: PictureLike) -> Parts:
    """Colours and alpha of an image [H, W, 3], [H, W], [H, W, 4] or [H, W, 2].

    Raises:
        TypeError: As `as_array`.
        ValueError: As `as_array`, or if the image has not the shape of a picture.
    """
    image = as_array(image)
    channels = image.shape[2:]
    if image.size == 0 or image.ndim < 2 or channels not in ((), (2,), (3,), (4,)):
        raise ValueError(
            "image must be [H, W, 3] or [H, W], or with alpha [H, W, 4] or [H, W, 2], not empty; "
            f"got shape {image.shape}"
        )
    if channels in ((), (3,)):
        return Parts(image, None)
    colours, alpha = image[..., :-1], image[..., -1]
    if channels == (2,):
        colours = colours[..., 0]
    return Parts(colours, None if alpha.min() == 255 else alpha)


def join_alpha(colours: Pixels, alpha: Pixels | None) -> Pixels:
    """Colours [H, W, 3] or [H, W] with alpha [H, W], if there is any, as their last channel."""
    return colours if alpha is None else np.dstack((colours, alpha))


def check_image(image: PictureLike) -> Pixels:
    """The image as uint8 [H, W, 3], hidden colours filled; errors are those of `split_alpha`."""
    colours, alpha = split_alpha(image)
    if alpha is not None:
        colours = fill_hidden(colours, alpha)
    return colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, axis=2)


def pad(pixels: Pixels, stride: int) -> Pixels:
    """Repeat the last row and column of [H, W, C], up to multiples of `stride`."""
    widths = ((0, -pixels.shape[0] % stride), (0, -pixels.shape[1] % stride), (0, 0))
    return np.pad(pixels, widths, mode="edge")


def to_gray(pixels: Pixels) -> Pixels:
    """Luma of RGB pictures [..., 3] by ITU-R BT.601."""
    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(np.clip(luma, 0, 255)).astype(np.uint8)


def exact_segment(image: Pixels, alpha: Pixels | None = None) -> Segment | None:
    """The segment that holds a picture uint8 [H, W, 3] or [H, W] exactly; None: better coded.

    Networks that learned photographs tint flat areas and the edges of graphics. Pictures are
    stored exactly if that takes at most sqrt(160 samples) bytes, 22 per pixel of a square's side
    in RGB: the bytes of a graphic grow with the length of its contours, those of a photograph with
    its area (tiny ones fit, too). Deflating stops where it exceeds this, on a photograph soon.
    Colours that alpha [H, W] hides are stored as 0.
    """
    limit = math.isqrt(_EXACT_BYTES * image.size)
    if limit * _MAX_RATIO < image.size:  # Above 57 megapixels in RGB.
        return None
    if alpha is not None:
        shown = alpha > 0 if image.ndim == 2 else alpha[..., None] > 0
        image = np.where(shown, image, np.uint8(0))
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
    samples = _samples("the picture", segment.payload, shape[0] * shape[1] * shape[2], segment)
    picture = np.frombuffer(samples, np.uint8).reshape(shape)
    return np.repeat(picture, 3, axis=2) if shape[2] == 1 else picture.copy()  # To write to.


def alpha_segment(alpha: Pixels) -> Segment:
    """The segment that holds an alpha plane uint8 [H, W], without loss.

    It is deflated twice. One run of a mask is many codes of deflate, which repeat: of a disc in 24
    megapixels one stream has 36 kB, and its own has 8. Soft edges do better without matches but
    runs (`Z_RLE`), by up to a tenth.
    """
    candidates = []
    for predictor in range(_NUM_PREDICTORS):
        residuals = alpha
        for axis in _axes(predictor):
            residuals = np.diff(residuals, axis=axis, prepend=np.uint8(0))
        samples = bytes((predictor,)) + residuals.tobytes()
        for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE):
            deflater = zlib.compressobj(9, strategy=strategy)
            payload = zlib.compress(deflater.compress(samples) + deflater.flush(), 9)
            candidates.append(Segment(payload, symbols_checksum(samples)))
    return min(candidates, key=lambda segment: len(segment.payload))


def alpha_plane(container: Container) -> Pixels | None:
    """The alpha plane uint8 [H, W] of a file; None if it has none.

    Raises:
        BitstreamError: If it is damaged.
    """
    segment, what = container.alpha, "the alpha plane"
    if segment is None:
        return None
    height, width = container.header.height, container.header.width
    size = 1 + height * width
    stream = inflate(what, segment.payload, 2 * size + 64)
    samples = _samples(what, stream, size, segment)
    predictor = samples[0]
    if predictor >= _NUM_PREDICTORS:
        raise BitstreamError(f"{what} has the predictor {predictor}; 0 to 3 are known")
    plane = np.frombuffer(samples, np.uint8, offset=1).reshape(height, width)
    for axis in _axes(predictor):
        plane = np.cumsum(plane, axis=axis, dtype=np.uint8)
    return plane


def _axes(predictor: int) -> list[int]:
    """The axes along which a predictor takes differences: bit 0 along rows, bit 1 down columns."""
    return [axis for axis in (1, 0) if predictor >> (1 - axis) & 1]


def _samples(what: str, stream: bytes, size: int, segment: Segment) -> bytes:
    """Content of a zlib stream of a segment, if it has this size and the segment's checksum."""
    samples = inflate(what, stream, size)
    if len(samples) != size:
        raise BitstreamError(f"{what} has {len(samples)} samples where {size} are needed")
    if symbols_checksum(samples) != segment.symbols_crc:
        raise BitstreamError(f"{what} does not have its checksum: the data are damaged")
    return samples
