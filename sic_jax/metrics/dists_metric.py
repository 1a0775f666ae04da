"""DISTS, a distance of structure and texture, as a pure JAX function.

Ding, Ma, Wang and Simoncelli, "Image Quality Assessment: Unifying Structure and Texture
Similarity" (TPAMI 2020), with the weights of the PyTorch package ``DISTS_pytorch``. VGG16 pools
with L2 norms here. Images are compared at the size that they have; the authors' script resizes
them first so that the shorter side has 256 pixels, its function does not.
"""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import NDArray

from sic_jax.metrics.convnet import (
    Array,
    Features,
    Weights,
    check_same_shape,
    spatial_mean,
)
from sic_jax.metrics.pretrained import WEIGHTS_FOLDER, load_weights, on_device
from sic_jax.metrics.vgg import STAGE_CHANNELS, load_vgg16_weights, vgg16_stages
from sic_jax.sizes import Size

__all__ = [
    "WEIGHTS_FILE",
    "dists",
    "dists_features",
    "dists_from_features",
    "load_dists_weights",
]

WEIGHTS_FILE = WEIGHTS_FOLDER / "dists.npz"
"""The packaged weights of the channels."""

_CHANNELS = (3, *STAGE_CHANNELS)
_POOL_WINDOW = (0.25, 0.5, 0.25)
_POOL_EPS = 1e-12
_C1, _C2 = 1e-6, 1e-6


def load_dists_weights(
    path: Path | None = None, *, vgg16: Path | None = None
) -> dict[str, NDArray[Any]]:
    """Reads the weights of DISTS; they also serve ``lpips(..., net="vgg")``.

    Args:
        path: ``alpha`` and ``beta``; the packaged file when None.
        vgg16: As the argument of `sic_jax.metrics.vgg.load_vgg16_weights`.

    Returns:
        The arrays of `load_vgg16_weights`, ``alpha`` (textures) and ``beta`` (structures): float32
        ``[1475]``, one value for each of the 3 + 64 + 128 + 256 + 512 + 512 channels.

    Raises:
        OSError: A file cannot be read.
        ValueError: One is damaged, or an array is missing, has the wrong shape, holds no floats or
            is not finite.
    """
    return load_vgg16_weights(vgg16) | _load_channel_weights(path)


def dists(
    x: Array, x_hat: Array, *, weights: Weights | None = None, size: Size = None
) -> jax.Array:
    """DISTS of two batches of images; 0 for equal images, higher is less alike.

    Differentiable in both arguments; the gradient is finite everywhere, also for equal images.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `sic_jax.metrics.vgg.MIN_SIZE`.
        x_hat: Same shape as `x`.
        weights: From `load_dists_weights`. None: the packaged ones, read once a process. Give them
            where this is compiled, in training too: they would be constants of the program.
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        ``[B]`` float32.

    Raises:
        TypeError: The images hold integers.
        ValueError: The shapes differ, or are not those of RGB images of at least the minimum.
    """
    check_same_shape(x, x_hat)
    if weights is None:
        weights = {**on_device(load_vgg16_weights), **on_device(_load_channel_weights)}
    return dists_from_features(
        dists_features(x, weights=weights, size=size),
        dists_features(x_hat, weights=weights, size=size),
        weights=weights,
        size=size,
    )


def dists_features(x: Array, *, weights: Weights, size: Size = None) -> Features:
    """The image and five VGG16 stages.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `sic_jax.metrics.vgg.MIN_SIZE`.
        weights: From `load_dists_weights`.
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        Six arrays ``[B, h, w, C]``, for `dists_from_features`.

    Raises:
        TypeError: `x` holds integers.
        ValueError: `x` does not have the shape of RGB images of at least the minimum.
    """
    sizes = _stage_sizes(size)
    stages = vgg16_stages(x, weights=weights, pool=_l2_pool, metric="DISTS", sizes=sizes)
    return jnp.asarray(x, jnp.float32), *stages


def dists_from_features(
    a: Features, b: Features, *, weights: Weights, size: Size = None
) -> jax.Array:
    """DISTS of two results of `dists_features` with one size; returns ``[B]`` float32."""
    texture, structure = [], []
    for f, g, s in zip(a, b, (size, *_stage_sizes(size)), strict=True):
        mean_f, mean_g = spatial_mean(f, s), spatial_mean(g, s)
        rest_f, rest_g = f - mean_f[:, None, None], g - mean_g[:, None, None]
        var_f, var_g, covariance = (
            spatial_mean(product, s)
            for product in (rest_f * rest_f, rest_g * rest_g, rest_f * rest_g)
        )
        texture.append((2.0 * mean_f * mean_g + _C1) / (mean_f**2 + mean_g**2 + _C1))
        structure.append((2.0 * covariance + _C2) / (var_f + var_g + _C2))
    alpha, beta = (jnp.asarray(weights[name])[None] for name in ("alpha", "beta"))
    # The mean of 1 - similarity: more exact for near-equal images than 1 - mean of similarities.
    unlike = alpha * (1.0 - jnp.concatenate(texture, axis=-1))
    unlike += beta * (1.0 - jnp.concatenate(structure, axis=-1))
    return jnp.sum(unlike, axis=-1) / (jnp.sum(alpha) + jnp.sum(beta))


def _load_channel_weights(path: Path | None = None) -> dict[str, NDArray[Any]]:
    """``alpha`` and ``beta``."""
    shapes = {name: (sum(_CHANNELS),) for name in ("alpha", "beta")}
    return dict(load_weights(WEIGHTS_FILE if path is None else path, shapes))


def _stage_sizes(size: Size) -> tuple[Size, ...]:
    """Heights and widths of the five stages: halves, rounded up."""
    return (None,) * 5 if size is None else tuple(-(-size // 2**stage) for stage in range(5))


def _l2_pool(h: jax.Array) -> jax.Array:
    """Root of the blurred squares at every second sample; zeros outside, odd sides round up."""
    h = jnp.pad(jnp.square(h.astype(jnp.float32)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (n - 2 for n in h.shape[1:3])
    h = functools.reduce(
        operator.add, [g * h[:, i : i + rows : 2] for i, g in enumerate(_POOL_WINDOW)]
    )
    h = functools.reduce(
        operator.add, [g * h[:, :, i : i + columns : 2] for i, g in enumerate(_POOL_WINDOW)]
    )
    return jnp.sqrt(h + _POOL_EPS)
