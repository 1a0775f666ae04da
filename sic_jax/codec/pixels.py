"""Pictures at the codec's border: uint8 arrays in and out."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def check_image(image: NDArray[np.uint8]) -> Pixels:
    """The image as uint8 [H, W, 3], or an error that says what is wrong with it."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"image must be a uint8 array, got {kind}")
    if image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(
            "image has an alpha channel, which a file cannot hold: blend it onto a background and "
            "pass image[..., :3]"
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
