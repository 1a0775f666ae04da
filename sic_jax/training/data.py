"""Training images: decoded once, cropped per step as a pure function of (seed, step)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSource:
    """Random crops of images held in memory.

    A batch depends on nothing but the seed and the step, so that a resumed run sees the batches
    that an uninterrupted one would have seen.
    """

    images: Sequence[NDArray[Any]]
    """uint8 [H, W, 3] each, sides at least `crop_size`."""
    crop_size: int
    seed: int

    def batch(self, step: int, batch_size: int) -> NDArray[Any]:
        """Crops of step `step`, flipped and transposed at random: uint8 [B, P, P, 3]."""
        rng = np.random.default_rng((self.seed, step))
        p = self.crop_size
        out = np.empty((batch_size, p, p, 3), np.uint8)
        areas = np.array([im.shape[0] * im.shape[1] for im in self.images], np.float64)
        for k, i in enumerate(rng.choice(len(areas), batch_size, p=areas / areas.sum())):
            image = self.images[i]
            top = rng.integers(image.shape[0] - p + 1)
            left = rng.integers(image.shape[1] - p + 1)
            crop = image[top : top + p, left : left + p]
            if rng.random() < 0.5:
                crop = crop[:, ::-1]
            if rng.random() < 0.25:
                crop = crop.transpose(1, 0, 2)
            out[k] = crop
        return out


def load_folder(folder: str | Path, *, crop_size: int, seed: int) -> ImageSource:
    """Decode every image below `folder` into memory.

    Files that cannot be read and images smaller than a crop are left out, counted and reported.

    Raises:
      ValueError: If the folder does not exist or holds no usable image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"data folder {str(root)!r} does not exist")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
    images: list[NDArray[Any]] = []
    broken: list[str] = []
    small: list[str] = []
    for path in paths:
        try:
            with Image.open(path) as im:
                pixels = np.asarray(im.convert("RGB"))
        except Exception:  # Pillow's decoders raise many kinds on damaged files.
            broken.append(path.name)
            continue
        if min(pixels.shape[:2]) < crop_size:
            small.append(path.name)
        else:
            images.append(pixels)
    for names, why in ((broken, "cannot be read"), (small, f"smaller than {crop_size} px")):
        if names:
            _log.warning("skipped %d images (%s): %s", len(names), why, ", ".join(names[:5]))
    if not images:
        raise ValueError(
            f"no usable image in {str(root)!r}: {len(paths)} files found, {len(broken)} broken, "
            f"{len(small)} smaller than {crop_size} px"
        )
    return ImageSource(images, crop_size, seed)


def sample_patches(source: ImageSource, size: int, per_image: int) -> NDArray[Any]:
    """Random patches for the KLT: float32 [N, size*size*3] in [-0.5, 0.5]."""
    rng = np.random.default_rng((source.seed, 1 << 40))
    patches = []
    for image in source.images:
        tops = rng.integers(image.shape[0] - size + 1, size=per_image)
        lefts = rng.integers(image.shape[1] - size + 1, size=per_image)
        patches += [
            image[i : i + size, j : j + size].ravel() for i, j in zip(tops, lefts, strict=True)
        ]
    stacked: NDArray[np.float32] = np.stack(patches).astype(np.float32)
    return stacked / np.float32(255) - np.float32(0.5)
