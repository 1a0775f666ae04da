"""Images decoded once into one buffer, which lies on the device and is cropped there."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from sic_jax.data.crops import CropSampler
from sic_jax.data.folder import FolderSource
from sic_jax.data.source import UnreadableImageError

_BLOCK = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Decoded images in one buffer."""

    pixels: NDArray[np.uint8]
    """All images one after the other, then zeros up to the last block's end, [n]."""
    offsets: NDArray[np.int64]
    """First byte of each image, [N]."""
    sizes: NDArray[np.int32]
    """Height and width of each, [N, 2]; 0 for those that could not be decoded."""

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        height, width = self.size(index)
        first = self.offsets[index]
        return self.pixels[first : first + 3 * height * width].reshape(height, width, 3)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width.

        Raises:
            UnreadableImageError: If the image could not be decoded.
        """
        height, width = self.sizes[index].tolist()
        if not height:
            raise UnreadableImageError(f"image {index}: could not be decoded")
        return height, width

    @cached_property
    def blocks(self) -> jax.Array:
        """The buffer on the device, uint8 [blocks, 2^20 + overlap].

        Two indices reach more than 2^31 bytes with 32 bits each. Blocks overlap by the longest
        side of an image, so that every piece of a row lies in one block.
        """
        overlap = _overlap(self.sizes)
        shape = ((self.pixels.size - overlap) // _BLOCK, _BLOCK + overlap)
        return jnp.asarray(np.lib.stride_tricks.as_strided(self.pixels, shape, (_BLOCK, 1)))


def _overlap(sizes: NDArray[np.int32]) -> int:
    """Bytes of the longest side."""
    return 3 * int(sizes.max())


def decode_folder(folder: FolderSource) -> MemorySource:
    """All images of a folder, decoded in threads; those that cannot be are reported.

    Raises:
        ValueError: If none can be decoded.
    """
    lengths = 3 * folder.sizes.astype(np.int64).prod(1)
    offsets = np.cumsum(lengths) - lengths
    num_blocks = -(-int(lengths.sum()) // _BLOCK)
    pixels = np.zeros(num_blocks * _BLOCK + _overlap(folder.sizes), np.uint8)
    sizes = np.zeros_like(folder.sizes)

    def decode(index: int) -> str | None:
        try:
            image = folder[index]
        except UnreadableImageError as e:
            return str(e)
        if image.size != lengths[index]:
            return f"{folder.paths[index]}: its size is not that in its header"
        first = offsets[index]
        pixels[first : first + image.size] = image.ravel()
        sizes[index] = image.shape[:2]
        return None

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        unreadable = [m for m in threads.map(decode, range(len(folder))) if m is not None]
    for message in unreadable:
        _log.warning("an image cannot be used: %s", message)
    if len(unreadable) == len(folder):
        raise ValueError(f"none of {len(folder)} images can be decoded")
    return MemorySource(pixels, offsets, sizes)


def device_batch(source: MemorySource, sampler: CropSampler, positions: Sequence[int]) -> jax.Array:
    """Crops of `source` at these positions of a run: uint8 [B, P, P, 3] on the device.

    They are those that the host cuts from the same images, bit for bit where nothing is scaled;
    scaled ones differ by a rounding step here and there.
    """
    where = np.empty((len(positions), 6), np.int32)
    for k, position in enumerate(positions):
        index, (height, width), _ = sampler.first_usable(position, source.size)
        crop = sampler.crop(position, height, width)
        first = int(source.offsets[index]) + 3 * (crop.top * width + crop.left)
        where[k] = (*divmod(first, _BLOCK), 3 * width, crop.side, crop.flip, crop.transpose)
    reach = sampler.crop_size
    if sampler.data.scale_jitter:
        longest = int(source.sizes.min(1).max())
        reach = min(int(np.ceil(reach / (1 - sampler.data.scale_jitter))), longest)
    crops: jax.Array = _cut_all(source.blocks, where, size=sampler.crop_size, reach=reach)
    return crops


@partial(jax.jit, static_argnames=("size", "reach"))
def _cut_all(blocks: jax.Array, where: jax.Array, *, size: int, reach: int) -> jax.Array:
    return jax.vmap(partial(_cut, blocks, size=size, reach=reach))(where)


def _cut(blocks: jax.Array, where: jax.Array, *, size: int, reach: int) -> jax.Array:
    """One crop, cut from a square of side `reach` that holds it."""
    block, offset, stride, side, flip, transpose = where

    def row(i: jax.Array) -> jax.Array:
        # Within an image: less than 2^31. Past the last one the slice is clamped, and not used.
        first = offset + i * stride
        start = (block + first // _BLOCK, first % _BLOCK)
        return lax.dynamic_slice(blocks, start, (1, 3 * reach))

    box = jax.vmap(row)(jnp.arange(reach)).reshape(reach, reach, 3)
    if reach != size:
        weights = _bicubic(side, size, reach)
        box = box.astype(jnp.float32)
        box = _round(jnp.einsum("pj,ijc->ipc", weights, box, precision="highest"))
        box = _round(jnp.einsum("pi,ijc->pjc", weights, box, precision="highest"))
    box = jnp.where(flip, box[:, ::-1], box)
    return jnp.where(transpose, box.transpose(1, 0, 2), box).astype(jnp.uint8)


def _bicubic(side: jax.Array, size: int, reach: int) -> jax.Array:
    """Weights [size, reach] that scale `side` pixels down to `size`; the identity if equal.

    Keys' cubic with a = -1/2 (IEEE Trans. ASSP 29, 1981), widened by the ratio and normalised
    within the pixels that there are, as Pillow does.
    """
    ratio = side / size
    j = jnp.arange(reach)[None]
    centre = (jnp.arange(size, dtype=jnp.float32)[:, None] + 0.5) * ratio
    d = jnp.abs((j.astype(jnp.float32) + 0.5 - centre) / ratio)
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0)) * (j < side).astype(jnp.float32)
    return weights / weights.sum(1, keepdims=True)


def _round(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)
