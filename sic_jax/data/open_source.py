"""The data source that a command line names."""

from collections.abc import Callable
from pathlib import Path

from sic_jax.data.folder import open_folder
from sic_jax.data.memory import decode_folder
from sic_jax.data.source import Source
from sic_jax.data.tfds import open_tfds

_SPECS = "FOLDER, memory:FOLDER or tfds:NAME/SPLIT[@DATA_DIR]"


def open_source(spec: str, *, crop_size: int, listed: Callable[[], None] = lambda: None) -> Source:
    """The images that a command line names.

    Args:
        spec: `FOLDER` (all image files below it, decoded when they are needed), `memory:FOLDER`
            (decoded now, cropped on the device) or `tfds:NAME/SPLIT[@DATA_DIR]` (a data set that
            TensorFlow Datasets prepared as array_record; NAME may end in a config and version,
            SPLIT in a slice, as `train[:90%]`).
        crop_size: Smaller images are left out; of `tfds:`, when their turn comes.
        listed: Called when the images are known, before any is decoded.

    Raises:
        ValueError: If there is no such source, or it holds no usable image.
    """
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest:
        source = open_tfds(rest)
        listed()
        return source
    if kind == "memory" and rest:
        folder = open_folder(rest, crop_size=crop_size)
        listed()
        return decode_folder(folder)
    # One letter is a drive of Windows.
    if len(kind) > 1 and rest and not Path(spec).exists():
        raise ValueError(f"unknown data source {spec!r}; it must be {_SPECS}")
    folder = open_folder(spec, crop_size=crop_size)
    listed()
    return folder
