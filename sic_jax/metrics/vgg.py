"""VGG16 features (Simonyan and Zisserman, ICLR 2015): for LPIPS, DISTS, Wasserstein distortion.

The convolutions of the ImageNet model, without its classifier. The weights are part of this
package; ``weights/README.md`` has their origin, their licences and how they are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.metrics.convnet import (
    Array,
    Features,
    Weights,
    check_images,
    conv_relu,
)
from sic_jax.metrics.pretrained import WEIGHTS_FOLDER, load_weights
from sic_jax.sizes import Size, zero_outside

__all__ = [
    "MIN_SIZE",
    "STAGE_CHANNELS",
    "WEIGHTS_FILE",
    "WEIGHT_SHAPES",
    "load_vgg16_weights",
    "max_pool",
    "normalise",
    "stages_from_normalised",
    "vgg16_stages",
]

MIN_SIZE = 16
"""Smallest image height and width that leaves one sample after four poolings."""

WEIGHTS_FILE = WEIGHTS_FOLDER / "vgg16.npz"
"""The packaged weights."""

STAGE_CHANNELS = (64, 128, 256, 512, 512)
"""Channels of the five stages."""

_STAGE_LAYERS = (2, 2, 3, 3, 3)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    layer, fan_in = 0, 3
    for stage, (count, channels) in enumerate(zip(_STAGE_LAYERS, STAGE_CHANNELS, strict=True), 1):
        for _ in range(count):
            layer += 1
            shapes[f"conv{layer}_kernel"] = (3, 3, fan_in, channels)
            shapes[f"conv{layer}_bias"] = (channels,)
            fan_in = channels
        shapes[f"head{stage}"] = (channels,)
    return shapes


WEIGHT_SHAPES = _shapes()
"""Names and shapes of the arrays of `load_vgg16_weights`."""


def load_vgg16_weights(path: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """Reads the VGG16 features and the LPIPS heads on them.

    Put the result on the device once (``jax.device_put``) and pass it to the jitted function as an
    argument; a closure would compile 59 MB of constants into the program.

    Args:
        path: A file made by `sic_jax.importers.perceptual_weights`; the packaged one when None.

    Returns:
        NumPy float32 arrays of the shapes `WEIGHT_SHAPES`: ``conv1..13_kernel`` (HWIO),
        ``conv1..13_bias`` and ``head1..5``.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or an array is missing, has the wrong shape, holds no floats or
            is not finite.
    """
    return load_weights(WEIGHTS_FILE if path is None else path, WEIGHT_SHAPES)


def vgg16_stages(
    x: Array,
    *,
    weights: Weights,
    pool: Callable[[jax.Array], jax.Array],
    metric: str,
    sizes: Sequence[Size] = (None,) * 5,
) -> Features:
    """Activations at the end of the five stages: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `MIN_SIZE`.
        weights: From `load_vgg16_weights`.
        pool: Halves height and width between stages, as `max_pool` does.
        metric: Name in error messages.
        sizes: Of images that do not fill the arrays, at each stage.

    Returns:
        Five arrays ``[B, h, w, C]`` with C as in `STAGE_CHANNELS`.

    Raises:
        TypeError: `x` holds integers.
        ValueError: `x` does not have the shape of RGB images of at least `MIN_SIZE`.
    """
    check_images(x, metric=metric, min_size=MIN_SIZE)
    h = normalise(x, sizes[0])
    return stages_from_normalised(h, weights=weights, pool=pool, sizes=sizes)


def normalise(x: Array, size: Size = None) -> jax.Array:
    """Colours less ImageNet's mean, over its deviation: float32 ``[B, H, W, 3]``.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1].
        size: Of images that do not fill the arrays; the result is zero outside.
    """
    mean, deviation = (jnp.array(c, jnp.float32)[None, None, None] for c in (_MEAN, _DEVIATION))
    return zero_outside((jnp.asarray(x, jnp.float32) - mean) / deviation, size)


def stages_from_normalised(
    h: jax.Array,
    *,
    weights: Weights,
    pool: Callable[[jax.Array], jax.Array],
    sizes: Sequence[Size] = (None,) * 5,
) -> Features:
    """`vgg16_stages` of a result ``[B, H, W, 3]`` of `normalise`."""
    stages: list[jax.Array] = []
    layer = 0
    for count, size in zip(_STAGE_LAYERS, sizes, strict=True):
        if stages:
            h = zero_outside(pool(h), size)
        for _ in range(count):
            layer += 1
            h = zero_outside(conv_relu(h, weights, layer, padding=1), size)
        stages.append(h.astype(jnp.float32))
    return tuple(stages)


def max_pool(h: jax.Array) -> jax.Array:
    """Largest of 2x2 samples, VGG16's own pooling: ``[B, H // 2, W // 2, C]`` of ``[B, H, W, C]``.

    An odd last row or column is dropped.
    """
    rows, columns = (n // 2 * 2 for n in h.shape[1:3])
    h = jnp.maximum(h[:, 0:rows:2], h[:, 1:rows:2])
    return jnp.maximum(h[:, :, 0:columns:2], h[:, :, 1:columns:2])
