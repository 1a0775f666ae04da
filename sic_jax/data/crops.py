"""Which crop of which image each row of a batch is: a pure function of (seed, position).

The positions of a run count its crops from 0: row k of step s is position s * B + k. An epoch is
N positions, a permutation of the N images, so that every image gives one crop an epoch, whatever
its size. Within the image the place is uniform.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sic_jax.data.source import UnreadableImageError
from sic_jax.fields import may_change, require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How crops are made of training images, and how they are read ahead."""

    flip: bool = True
    """Mirror crops left to right, with probability 1/2."""
    transpose: float = 0.25
    """Probability that the rows and columns of a crop are exchanged."""
    scale_jitter: float = 0.0
    """Strength s of random scaling: images are scaled by a factor from [1 - s, 1], log-uniform, and
    never become smaller than the crop."""
    workers: int = may_change(0, on="resume")
    """Processes that read images ahead. 0: threads, one per core."""
    prefetch: int = may_change(8, on="resume")
    """Batches that each worker process reads ahead. Without worker processes: the most threads."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(0 <= self.transpose <= 1, self, "transpose", self.transpose, "in [0, 1]")
        ok = 0 <= self.scale_jitter < 1
        require(ok, self, "scale_jitter", self.scale_jitter, "in [0, 1)")
        require(self.workers >= 0, self, "workers", self.workers, "at least 0")
        require(self.prefetch > 0, self, "prefetch", self.prefetch, "positive")


T = TypeVar("T")
_MAX_ATTEMPTS = 100
_ORDER, _PLACE, _REPLACEMENT = 0, 1, 2  # Streams of random numbers of a seed.


class Crop(NamedTuple):
    """A square of an image, and what is done with it, in this order."""

    top: int
    left: int
    side: int
    """In pixels of the image; more than the crop's size means scaling down."""
    flip: bool
    """Left and right change places."""
    transpose: bool
    """Rows and columns change places."""


@dataclass(frozen=True)
class CropSampler:
    """The crops of a run."""

    num_images: int
    crop_size: int
    seed: int
    data: DataConfig

    def image(self, position: int, attempt: int = 0) -> int:
        """Index of the image; from attempt 1 on, of a replacement drawn from all."""
        if attempt:
            rng = np.random.default_rng((self.seed, _REPLACEMENT, position, attempt))
            return int(rng.integers(self.num_images))
        epoch, i = divmod(position, self.num_images)
        return int(_permutation(self.num_images, self.seed, epoch)[i])

    def crop(self, position: int, height: int, width: int) -> Crop:
        """The crop of an image of this size."""
        rng = np.random.default_rng((self.seed, _PLACE, position))
        # Always five numbers, so that no switch changes what the others do.
        scale, top, left, flip, transpose = rng.random(5).tolist()
        side = self.crop_size
        if self.data.scale_jitter:
            scaled = self.crop_size / (1 - self.data.scale_jitter) ** scale
            side = min(round(scaled), height, width)
        return Crop(
            math.floor(top * (height - side + 1)),
            math.floor(left * (width - side + 1)),
            side,
            self.data.flip and flip < 0.5,
            transpose < self.data.transpose,
        )

    def first_usable(
        self, position: int, read: Callable[[int], T]
    ) -> tuple[int, T, list[tuple[int, str]]]:
        """The image of a position, replaced as often as it takes to find a usable one.

        Args:
            position: In the run.
            read: Reads an image by its index, or raises `UnreadableImageError`.

        Returns:
            (index, what `read` gave, index and message of those that could not be read).

        Raises:
            ValueError: After 100 unreadable images in a row.
        """
        unreadable: list[tuple[int, str]] = []
        for attempt in range(_MAX_ATTEMPTS):
            index = self.image(position, attempt)
            try:
                return index, read(index), unreadable
            except UnreadableImageError as e:
                unreadable.append((index, str(e)))
        raise ValueError(
            f"{_MAX_ATTEMPTS} images in a row cannot be used; the last one is {unreadable[-1][1]}"
        )


def cut(image: NDArray[np.uint8], crop: Crop, size: int) -> NDArray[np.uint8]:
    """The crop of an image: uint8 [size, size, 3]; scaled down by Pillow's bicubic filter."""
    box = image[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
    if crop.side != size:
        box = np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.BICUBIC))
    if crop.flip:
        box = box[:, ::-1]
    return box.transpose(1, 0, 2) if crop.transpose else box


@lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(num_images)
