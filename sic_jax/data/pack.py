"""Pack folders of images into a data set of TensorFlow Datasets, without TensorFlow.

Many small files are slow to open on network storage; array_record files hold thousands each. The
image files go in as they are; nothing is decoded or recompressed:

    python -m sic_jax.data.pack DATA_DIR NAME train=photos/ validation=others/
    python train.py ... --data tfds:NAME/train@DATA_DIR
"""

import argparse
import io
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sic_jax.data.folder import FolderSource, open_folder

_VERSION = "1.0.0"
_IMAGES_PER_FILE = 4096


def pack(data_dir: str | Path, name: str, splits: Mapping[str, str | Path]) -> Path:
    """Write a data set with an `image` and its file `name` in each record.

    Args:
        data_dir: Folder of data sets.
        name: Of the data set, in lower case with underscores.
        splits: A folder of images for each split.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: If TensorFlow Datasets is not installed, the data set exists already, or a
            folder holds no image.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise ValueError(f"packing needs TensorFlow Datasets ({e}): install sic_jax[train]") from e
    folders = {split: open_folder(folder, crop_size=1) for split, folder in splits.items()}
    target = Path(data_dir) / name / _VERSION
    if target.exists():
        raise ValueError(f"{str(target)!r} exists already")
    # Complete or not there: an interrupted attempt can be repeated.
    unfinished = target.with_name(f"{_VERSION}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    # An identity without a Python class: whoever reads it needs nothing but these files.
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(_VERSION), data_dir=str(unfinished), module_name=""
    )
    image = tfds.features.Image(shape=(None, None, 3))
    features = tfds.features.FeaturesDict({"image": image, "name": tfds.features.Text()})
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=features),
        max_examples_per_shard=_IMAGES_PER_FILE,
        file_format="array_record",
    )
    writer.initialize_splits(list(folders))
    for split, source in folders.items():
        for example in _examples(source):
            writer.add_examples({split: [example]})
    writer.close_all()
    unfinished.rename(target)
    return target


def _examples(source: FolderSource) -> Iterator[dict[str, Any]]:
    for path in source.paths:
        yield {"image": io.BytesIO(path.read_bytes()), "name": path.name}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `splits` becomes a folder for each split."""
    parser = argparse.ArgumentParser(
        prog="python -m sic_jax.data.pack", description=__doc__.split("\n")[0]
    )
    parser.add_argument("data_dir", help="folder of data sets")
    parser.add_argument("name", help="of the data set")
    parser.add_argument("splits", nargs="+", metavar="SPLIT=FOLDER", help="images of a split")
    args = parser.parse_args(argv)
    splits = dict(s.partition("=")[::2] for s in args.splits)
    if not all(splits.values()) or len(splits) < len(args.splits):
        parser.error(f"splits must be SPLIT=FOLDER, each once, got {' '.join(args.splits)}")
    args.splits = splits
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Pack folders; errors are one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = parse(argv)
    try:
        logging.info("written: %s", pack(args.data_dir, args.name, args.splits))
    except (ValueError, OSError) as e:
        sys.exit(f"pack: error: {e}")


if __name__ == "__main__":
    main()
