"""Sizes of pictures that share a program: arrays of a few shapes, pictures in their top left."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Size = jax.Array | None
"""Heights and widths, int32 ``[B, 2]``, of images that fill only the top left of their arrays; None
where they fill them. Functions that take it give inside each image what they would give for the
image alone, so that images of many sizes share one program."""

_SMALL = (16, 32)


def bucket_side(side: int) -> int:
    """The side that sides up to it share: four to each doubling, at least 8 apart.

    8, 16, ..., 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, ..., 512, 640, ...
    """
    step: int = max(8, 2 ** (side - 1).bit_length() // 8)
    return -(-side // step) * step


def bucket(height: int, width: int) -> tuple[int, int]:
    """Shape of the arrays that hold a map of latent positions, or a picture in units of 16 pixels.

    Small maps take a square of 16 or 32, for a program costs more to compile than to run on one;
    sides of larger ones are 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, ...
    """
    for side in _SMALL:
        if max(height, width) <= side:
            return side, side
    return bucket_side(max(height, _SMALL[0])), bucket_side(max(width, _SMALL[0]))


def fill(a: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Zeros below and to the right of a map [h, w, ...], up to a shape."""
    if a.shape[:2] == shape:
        return a
    out = np.zeros((*shape, *a.shape[2:]), a.dtype)
    out[: a.shape[0], : a.shape[1]] = a
    return out


def inside(h: jax.Array, size: jax.Array) -> jax.Array:
    """Where the images are in ``[B, H, W, C]``: bool ``[B, H, W, 1]``."""
    rows = jnp.arange(h.shape[1])[None] < size[:, 0, None]
    columns = jnp.arange(h.shape[2])[None] < size[:, 1, None]
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def zero_outside(h: jax.Array, size: Size, scale: int = 1) -> jax.Array:
    """``[B, H, W, C]`` with zeros outside the images: what a convolution's padding would be.

    Args:
        h: A map.
        size: Of the images.
        scale: Positions of the map that a unit of `size` covers in each direction.
    """
    return h if size is None else jnp.where(inside(h, size * scale), h, 0)
