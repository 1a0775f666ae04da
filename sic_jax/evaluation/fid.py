"""FID and KID of the codecs of a run, over patches of all its images, and a stand-in for FID.

The protocol is MS-ILLM's: 8-bit originals and reconstructions, cut into patches of 256 pixels from
two grids (`sic_jax.metrics.frechet.patches`), which the Inception network resizes itself. On Kodak
that gives 192 patches, fewer than the 2048 features, and MS-ILLM states no FID there; GenCodec cuts
patches of 64 pixels, of which Kodak has 4152. Values depend on the size and the number of patches:
compare only those of the same images and the same size.

The stand-in needs no weights but those of this package. It is the Frechet distance of VGG16
features: it compares codecs of one run by the same idea, and is nobody's FID.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.evaluation.codecs import ImageCodec, Pixels, setting_text
from sic_jax.evaluation.records import Record
from sic_jax.images.io import read_image
from sic_jax.metrics.convnet import Weights
from sic_jax.metrics.frechet import fid, kid, patches
from sic_jax.metrics.inception import NUM_FEATURES, inception_features, load_inception_weights
from sic_jax.metrics.vgg import load_vgg16_weights, max_pool, vgg16_stages

FID_FILE = "fid.csv"
FID_LABELS = ("codec", "setting", "patch", "patches", "FID", "KID", "Frechet distance (VGG16)")
"""Of the columns of `FidRow`, for readers."""

_BATCH = 8

Features = Callable[[Pixels], NDArray[np.float32]]
"""Patches uint8 [N, S, S, 3] to [N, D]."""


class FidRow(NamedTuple):
    """A codec at a setting, over all images; None is what was not computed."""

    codec: str
    setting: float
    patch: int
    """Side of the patches, in pixels."""
    num_patches: int
    fid: float | None
    kid: float | None
    vgg16_frechet: float | None
    """The stand-in, on another scale than FID."""


def inception_of(path: Path) -> Features:
    """Features by the Inception network of a weights file.

    Raises:
        OSError, ValueError: As `sic_jax.metrics.inception.load_inception_weights`.
    """
    weights = load_inception_weights(path)
    return _in_batches(lambda x, weights: inception_features(x, weights=weights), weights)


def vgg16_of_package() -> Features:
    """Means over space of VGG16's last stage, 512 features: not those of Inception."""

    def means(x: jax.Array, weights: Weights) -> jax.Array:
        stages = vgg16_stages(x, weights=weights, pool=max_pool, metric="the stand-in for FID")
        return jnp.mean(stages[-1], axis=(1, 2))

    return _in_batches(means, load_vgg16_weights())


def _in_batches(network: Callable[[jax.Array, Any], jax.Array], weights: Weights) -> Features:
    weights = jax.device_put(weights)
    compiled = jax.jit(network)

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
    values = ((row.fid, 3), (row.kid, 6), (row.vgg16_frechet, 4))
    texts = ["-" if value is None else f"{value:.{places}f}" for value, places in values]
    return [row.codec, setting_text(row.setting), str(row.patch), str(row.num_patches), *texts]


def fid_remark(row: FidRow) -> str:
    """How the values of a run were made, and what they are worth, in a sentence or two."""
    text = f"Over {row.num_patches} patches of {row.patch} pixels of all images."
    if row.fid is not None and row.num_patches < NUM_FEATURES:
        text += f" They are fewer than the {NUM_FEATURES} features: do not state this FID."
    if row.vgg16_frechet is not None:
        text += " The Frechet distance of VGG16 features is a stand-in, and no FID."
    return text


def fid_rows(
    records: Sequence[Record],
    codecs: Sequence[ImageCodec],
    out: Path,
    *,
    inception: Features | None = None,
    vgg16: Features | None = None,
    side: int = 256,
) -> list[FidRow]:
    """Compare the originals with what the files of a run decode to.

    Args:
        records: Of the run; of several samples of a file the first is compared.
        codecs: Of the run.
        out: Folder that the files are relative to.
        inception: Features for FID and KID; None: they are not computed.
        vgg16: Features for the stand-in, likewise; one of the two is given.
        side: Of the patches, in pixels; smaller images have none.

    Returns:
        One row a codec and setting, in the order of the records.

    Raises:
        ValueError: If there are fewer than two patches.
    """
    decoders = {codec.name: codec.decode for codec in codecs}
    networks = [network for network in (inception, vgg16) if network is not None]
    names = dict.fromkeys(record.image for record in records)
    originals = (read_image(Path(name), alpha=False).pixels for name in names)
    real = _features(originals, networks, side)
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record.codec, record.setting), []).append(record)
    rows = []
    for (name, setting), group in groups.items():
        decoded = (decoders[name]((out / record.file).read_bytes(), 0) for record in group)
        pairs = list(zip(real, _features(decoded, networks, side), strict=True))
        row = FidRow(name, setting, side, len(pairs[0][1]), None, None, None)
        if inception is not None:
            row = row._replace(fid=fid(*pairs[0]), kid=kid(*pairs[0]))
        if vgg16 is not None:
            row = row._replace(vgg16_frechet=fid(*pairs[-1]))
        rows.append(row)
    return rows


def _features(
    images: Iterable[Pixels], networks: Sequence[Features], side: int
) -> list[NDArray[np.float32]]:
    """Of each network those of all patches; image by image, since all of them are much memory."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in networks]
    count = 0
    for image in images:
        rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        cut = patches(rgb, size=side)
        count += len(cut)
        for own, network in zip(found, networks, strict=True):
            own += [network(cut)] if len(cut) else []
    if count < 2:
        raise ValueError(f"need at least 2 patches of {side} pixels; the images have {count}")
    return [np.concatenate(own) for own in found]
