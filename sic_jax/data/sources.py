"""Where training images come from: folders, memory and TensorFlow Datasets, by index."""

import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sic_jax.images.colour import flatten, split_alpha, to_gray_or_rgb

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
_SPECS = "FOLDER, memory:FOLDER or tfds:NAME/SPLIT[@DATA_DIR]"
_NUM_THREADS = 32  # Of the scan, which waits for the file system more than it computes.
_log = logging.getLogger(__name__)


class UnreadableImageError(ValueError):
    """An image of a source cannot be used; the message names it."""


class Source(Protocol):
    """Images by index; a sequence of arrays is one."""

    def __len__(self) -> int:
        """The number of images, unreadable ones included."""

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        """Pixels uint8 [H, W, 3], or `UnreadableImageError`."""


def open_source(spec: str, *, crop_size: int) -> Source:
    """The images that a command line names.

    Args:
      spec: `FOLDER` (all image files below it, decoded when they are needed), `memory:FOLDER`
        (decoded now, cropped on the device) or `tfds:NAME/SPLIT[@DATA_DIR]` (a data set that
        TensorFlow Datasets prepared as array_record; NAME may end in a config and version, SPLIT
        in a slice, as `train[:90%]`).
      crop_size: Smaller images are left out; of `tfds:`, when their turn comes.

    Raises:
      ValueError: If there is no such source, or it holds no usable image.
    """
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest:
        from sic_jax.data.tfds import open_tfds

        return open_tfds(rest)
    if kind == "memory" and rest:
        from sic_jax.data.memory import decode_folder

        return decode_folder(open_folder(rest, crop_size=crop_size))
    # One letter is a drive of Windows.
    if len(kind) > 1 and rest and not Path(spec).exists():
        raise ValueError(f"unknown data source {spec!r}; it must be {_SPECS}")
    return open_folder(spec, crop_size=crop_size)


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files, decoded when they are read."""

    paths: tuple[Path, ...]
    sizes: NDArray[np.int32]
    """Height and width of each as its header tells, [N, 2]; EXIF may turn the picture."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        path = self.paths[index]
        try:
            data = path.read_bytes()
        except OSError as e:
            raise UnreadableImageError(f"{path}: {e.strerror or e}") from e
        return decode_rgb(str(path), data)


def decode_rgb(name: str, data: bytes) -> NDArray[np.uint8]:
    """Pixels uint8 [H, W, 3] of an image file, upright and converted as `read_image` does.

    Unlike that function it may run in many threads at once. Gray is repeated, transparent parts
    lie on white, and of several frames the first is taken.

    Raises:
      UnreadableImageError: If the data cannot be decoded; the message begins with `name`.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        profile = image.info.get("icc_profile")
        image, alpha = split_alpha(name, image)
        image, _ = to_gray_or_rgb(name, image, profile)
        if alpha is not None and alpha.getextrema() != (255, 255):
            image = flatten(name, image, alpha, "white")
        return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as e:  # Pillow's decoders raise many kinds on damaged files.
        reason = " ".join(str(e).split()).removeprefix(f"{name}: ") or type(e).__name__
        raise UnreadableImageError(f"{name}: {reason}") from e


def open_folder(folder: str | Path, *, crop_size: int) -> FolderSource:
    """The image files below `folder`, sorted; links are followed, each folder entered once.

    Only headers are read. Files whose header is broken and images smaller than a crop are left
    out, counted and reported.

    Raises:
      ValueError: If the folder does not exist or holds no usable image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"data folder {str(root)!r} does not exist")
    paths = sorted(_image_files(root))
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        sizes = list(threads.map(_header_size, paths))
    broken = [p.name for p, size in zip(paths, sizes, strict=True) if size is None]
    small = [p.name for p, s in zip(paths, sizes, strict=True) if s and min(s) < crop_size]
    for names, why in ((broken, "cannot be read"), (small, f"smaller than {crop_size} px")):
        if names:
            more = ", ..." if len(names) > 5 else ""
            _log.warning(
                "skipped %d images (%s): %s%s", len(names), why, ", ".join(names[:5]), more
            )
    good = [(p, s) for p, s in zip(paths, sizes, strict=True) if s and min(s) >= crop_size]
    if not good:
        raise ValueError(
            f"no usable image in {str(root)!r}: {len(paths)} files found, {len(broken)} broken, "
            f"{len(small)} smaller than {crop_size} px"
        )
    return FolderSource(tuple(p for p, _ in good), np.array([s for _, s in good], np.int32))


def _image_files(root: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            status = folder.stat()
            entries = sorted(os.listdir(folder), reverse=True)
        except OSError as e:
            _log.warning("skipped folder %s (%s)", folder, e.strerror or e)
            continue
        # A link to a folder above would be followed for ever.
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in (folder / name for name in entries):
            if os.path.isdir(path):
                folders.append(path)
            elif path.suffix.lower() in _SUFFIXES:
                yield path


def _header_size(path: Path) -> tuple[int, int] | None:
    """Height and width; None for a broken header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # Pillow's decoders raise many kinds on damaged files.
        return None


def readable(source: Source, indices: NDArray[Any], size: int) -> Iterator[NDArray[np.uint8]]:
    """The images at `indices` with sides of at least `size`; the others are reported.

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


def held_out(spec: str, crop_size: int, count: int) -> NDArray[np.uint8]:
    """Centre crops of at most `count` images for evaluation: uint8 [N, P, P, 3].

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
