"""Images of a folder, decoded when they are read."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sic_jax.data.source import UnreadableImageError, decode_rgb

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
_NUM_THREADS = 32  # Of the scan, which waits for the file system more than it computes.
_log = logging.getLogger(__name__)


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
