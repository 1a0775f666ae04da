"""Images of TensorFlow Datasets, read from array_record files without TensorFlow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sic_jax.data.source import UnreadableImageError, decode_rgb


@dataclass(frozen=True, eq=False)
class TfdsSource:
    """The first image feature of a split."""

    name: str
    records: Any
    """Random access to examples whose images are still encoded."""
    feature: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        where = f"{self.name}, record {index}"
        try:
            data = self.records[index][self.feature]
        except Exception as e:  # The reader and the parser of examples raise many kinds.
            raise UnreadableImageError(f"{where}: {' '.join(str(e).split())}") from e
        return decode_rgb(where, data)


def open_tfds(spec: str) -> TfdsSource:
    """A prepared data set.

    Args:
        spec: `NAME/SPLIT[@DATA_DIR]`; without a folder, the one of TensorFlow Datasets.

    Raises:
        ValueError: If TensorFlow Datasets is not installed, the data set is not prepared as
            array_record, or has no such split or no image of 8 or 16 bits.
    """
    rest, _, data_dir = spec.partition("@")
    name, _, split = rest.rpartition("/")
    if not name or not split:
        raise ValueError(f"data source 'tfds:{spec}' must be tfds:NAME/SPLIT[@DATA_DIR]")
    try:
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise ValueError(f"tfds: needs TensorFlow Datasets ({e}): install sic_jax[train]") from e
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        features = builder.info.features or {}
        feature = next((k for k, f in features.items() if _is_image(tfds, f)), None)
        if feature is None:
            raise ValueError(f"no image with 1 or 3 channels among {sorted(features)}")
        encoded = {feature: tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split=split, decoders=encoded)
        return TfdsSource(f"tfds:{spec}", records, feature)
    except Exception as e:  # Of many kinds; some messages list all data sets that there are.
        reason = str(e).strip("\"'\n ").split("\n")[0] or type(e).__name__
        raise ValueError(f"data source 'tfds:{spec}': {reason}") from e


def _is_image(tfds: Any, feature: Any) -> bool:
    if not isinstance(feature, tfds.features.Image):
        return False
    return feature.shape[-1] in (1, 3) and feature.np_dtype in (np.uint8, np.uint16)
