"""Pieces of some images of a source: patches for the KLT, centre crops for validation."""

import numpy as np
from numpy.typing import NDArray

from sic_jax.data.open_source import open_source
from sic_jax.data.source import Source, readable


def sample_patches(
    source: Source, size: int, per_image: int, *, seed: int, max_images: int = 1000
) -> NDArray[np.float32]:
    """Random patches for the KLT: float32 [N, size*size*3] in [-0.5, 0.5].

    Of a larger source, `max_images` images are drawn without replacement.

    Raises:
        ValueError: If none of these can be read.
    """
    rng = np.random.default_rng((seed, 1 << 40))
    count = min(len(source), max_images)
    indices = np.sort(rng.choice(len(source), count, replace=False))
    patches = []
    for image in readable(source, indices, size):
        tops = rng.integers(image.shape[0] - size + 1, size=per_image)
        lefts = rng.integers(image.shape[1] - size + 1, size=per_image)
        patches += [
            image[i : i + size, j : j + size].ravel() for i, j in zip(tops, lefts, strict=True)
        ]
    stacked: NDArray[np.float32] = np.stack(patches).astype(np.float32)
    return stacked / np.float32(255) - np.float32(0.5)


def validation_crops(spec: str, crop_size: int, count: int) -> NDArray[np.uint8]:
    """Centre crops of at most `count` images, to validate a run on: uint8 [N, P, P, 3].

    The images are spread evenly over the source; those that cannot be used are reported.

    Raises:
        ValueError: As `open_source`, or if no image can be read.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be positive")
    source = open_source(spec.removeprefix("memory:"), crop_size=crop_size)
    total = len(source)
    indices = np.arange(min(count, total)) * total // min(count, total)
    crops = []
    for image in readable(source, indices, crop_size):
        top, left = ((n - crop_size) // 2 for n in image.shape[:2])
        crops.append(image[top : top + crop_size, left : left + crop_size])
    return np.stack(crops)
