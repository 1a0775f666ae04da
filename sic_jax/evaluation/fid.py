"""FID and KID of the codecs of a run, over patches of all its images.

As in HiFiC and MS-ILLM: patches of 256 pixels from two grids (`sic_jax.metrics.frechet.patches`).
The values depend on the number of patches: compare only those of the same images.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sic_jax.evaluation.codecs import ImageCodec, Pixels, setting_text
from sic_jax.evaluation.records import Record
from sic_jax.images.io import read_image
from sic_jax.metrics.frechet import fid, kid, patches
from sic_jax.metrics.inception import inception_features, load_inception_weights

FID_FILE = "fid.csv"

_BATCH = 8

Features = Callable[[Pixels], NDArray[np.float32]]
"""Patches uint8 [N, S, S, 3] to [N, D]."""


class FidRow(NamedTuple):
    """A codec at a setting, over all images."""

    codec: str
    setting: float
    num_patches: int
    fid: float
    kid: float


def inception_of(path: Path) -> Features:
    """Features by the Inception network of a weights file.

    Raises:
        OSError, ValueError: As `sic_jax.metrics.inception.load_inception_weights`.
    """
    weights = jax.device_put(load_inception_weights(path))
    compiled = jax.jit(lambda x, weights: inception_features(x, weights=weights))

    def features(found: Pixels) -> NDArray[np.float32]:
        out = []
        for start in range(0, len(found), _BATCH):
            some = found[start : start + _BATCH].astype(np.float32) / np.float32(255)
            # A batch that is not full repeats its last patch, so that it compiles no program.
            full = np.concatenate([some, np.repeat(some[-1:], _BATCH - len(some), axis=0)])
            out.append(np.asarray(compiled(full, weights))[: len(some)])
        return np.concatenate(out)

    return features


def fid_cells(row: FidRow) -> list[str]:
    """A row as text, for tables."""
    setting = setting_text(row.setting)
    return [row.codec, setting, str(row.num_patches), f"{row.fid:.3f}", f"{row.kid:.6f}"]


def fid_rows(
    records: Sequence[Record],
    codecs: Sequence[ImageCodec],
    features: Features,
    out: Path,
    *,
    side: int = 256,
) -> list[FidRow]:
    """Compare the originals with what the files of a run decode to.

    Args:
        records: Of the run; of several samples of a file the first is compared.
        codecs: Of the run.
        features: Of patches.
        out: Folder that the files are relative to.
        side: Of the patches, in pixels; smaller images have none.

    Returns:
        One row a codec and setting, in the order of the records.

    Raises:
        ValueError: If there are fewer than two patches.
    """
    decoders = {codec.name: codec.decode for codec in codecs}
    paths = dict.fromkeys(record.image for record in records)
    originals = [read_image(Path(path), alpha=False).pixels for path in paths]
    real = _features(originals, features, side)
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record.codec, record.setting), []).append(record)
    rows = []
    for (name, setting), group in groups.items():
        decoded = [decoders[name]((out / record.file).read_bytes(), 0) for record in group]
        fake = _features(decoded, features, side)
        rows.append(FidRow(name, setting, len(fake), fid(real, fake), kid(real, fake)))
    return rows


def _features(images: Sequence[Pixels], features: Features, side: int) -> NDArray[np.float32]:
    rgb = [i if i.ndim == 3 else np.repeat(i[..., None], 3, axis=2) for i in images]
    found = [patches(image, size=side) for image in rgb]
    count = sum(map(len, found))
    if count < 2:
        raise ValueError(f"FID needs at least 2 patches of {side} pixels; the images have {count}")
    return np.concatenate([features(some) for some in found if len(some)])
