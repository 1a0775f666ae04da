"""Training images by index: what every source gives, and how its images are read."""

import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sic_jax.images.colour import in_8_bits, load_upright

_log = logging.getLogger(__name__)


class UnreadableImageError(ValueError):
    """An image of a source cannot be used; the message names it."""


class Source(Protocol):
    """Images by index; a sequence of arrays is one."""

    def __len__(self) -> int:
        """The number of images, unreadable ones included."""

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        """Pixels uint8 [H, W, 3], or `UnreadableImageError`."""


def decode_rgb(name: str, data: bytes) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of an image file, upright and converted as `read_image` does.

    Unlike that function it may run in many threads at once. Gray is repeated, transparent parts
    lie on white, and of several frames the first is taken.

    Raises:
        UnreadableImageError: If the data cannot be decoded; the message begins with `name`.
    """
    try:
        image = load_upright(Image.open(io.BytesIO(data)), data)
        image, _ = in_8_bits(name, image, data, "white")
        return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as e:  # Pillow's decoders raise many kinds on damaged files.
        reason = " ".join(str(e).split()).removeprefix(f"{name}: ") or type(e).__name__
        raise UnreadableImageError(f"{name}: {reason}") from e


def readable(source: Source, indices: NDArray[Any], size: int) -> Iterator[NDArray[np.uint8]]:
    """The images uint8 [H, W, 3] with sides of at least `size`; the others are reported.

    Args:
        source: Of the images.
        indices: Integers [N]: which of them, in this order.
        size: Least height and width in pixels.

    Raises:
        ValueError: If there is none.
    """

    def attempt(index: int) -> NDArray[np.uint8] | UnreadableImageError:
        try:
            return read(source, index, size)
        except UnreadableImageError as e:
            return e

    found = False
    at_once = os.cpu_count() or 1
    with ThreadPoolExecutor(at_once) as threads:
        for first in range(0, len(indices), at_once):
            for image in threads.map(attempt, indices[first : first + at_once].tolist()):
                if isinstance(image, UnreadableImageError):
                    _log.warning("skipped an image: %s", image)
                else:
                    found = True
                    yield image
    if not found:
        raise ValueError(f"none of {len(indices)} images can be used")


def read(source: Source, index: int, size: int) -> NDArray[np.uint8]:
    """An image whose sides are at least `size`: uint8 [H, W, 3].

    Raises:
        UnreadableImageError: If it is broken or smaller.
    """
    image = source[index]
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise UnreadableImageError(
            f"image {index}: {width}x{height} pixels, smaller than {size} px"
        )
    return image
