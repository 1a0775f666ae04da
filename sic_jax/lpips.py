"""LPIPS v0.1 with AlexNet features, as a pure JAX function.

The distance of Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric" (CVPR 2018), with the pretrained weights of the PyTorch package ``lpips``. The weights are
part of this package; ``weights/README.md`` has their origin and licences.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

__all__ = [
    "MIN_SIZE",
    "WEIGHTS_FILE",
    "check_alexnet_weights",
    "load_alexnet_weights",
    "lpips",
    "lpips_features",
    "lpips_from_features",
]

Array = jax.Array | NDArray[Any]
Weights = Mapping[str, Array]
Features = tuple[jax.Array, ...]

MIN_SIZE = 31
"""Smallest image height and width that leaves one sample after AlexNet's second pooling."""

WEIGHTS_FILE = Path(__file__).parent / "weights" / "lpips_alex.npz"
"""The packaged weights."""

_SHAPES = {
    "conv1_kernel": (11, 11, 3, 64),
    "conv2_kernel": (5, 5, 64, 192),
    "conv3_kernel": (3, 3, 192, 384),
    "conv4_kernel": (3, 3, 384, 256),
    "conv5_kernel": (3, 3, 256, 256),
    **{f"conv{i}_bias": (c,) for i, c in enumerate((64, 192, 384, 256, 256), 1)},
    **{f"head{i}": (c,) for i, c in enumerate((64, 192, 384, 256, 256), 1)},
}
# Mean and deviation of ImageNet's colours for inputs in [-1, 1], as in LPIPS v0.1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_NORM_EPS = 1e-10


def load_alexnet_weights(path: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """Reads the AlexNet features and LPIPS heads.

    Put the result on the device once (``jax.device_put``) and pass it to the jitted function as an
    argument; a closure would compile 10 MB of constants into the program.

    Args:
        path: A file made by `sic_jax.lpips_convert`; the packaged one when None.

    Returns:
        NumPy float32 arrays: ``conv1..5_kernel`` (HWIO), ``conv1..5_bias`` and ``head1..5``.

    Raises:
        ValueError: An array is missing, has the wrong shape, or is not finite.
    """
    path = WEIGHTS_FILE if path is None else path
    with np.load(path, allow_pickle=False) as stored:
        weights = {
            name: stored[name].astype(np.float32) for name in _SHAPES if name in stored.files
        }
    check_alexnet_weights(weights, source=str(path))
    return weights


def check_alexnet_weights(weights: Weights, *, source: str) -> None:
    """Checks that all arrays are there, of the right shape and finite.

    Raises:
        ValueError: They are not; the message names the array and `source`.
    """
    for name, shape in _SHAPES.items():
        if name not in weights:
            raise ValueError(f"{source} has no LPIPS array {name!r}")
        if weights[name].shape != shape:
            raise ValueError(f"{name} in {source} has shape {weights[name].shape}, not {shape}")
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"{name} in {source} is not finite")


def lpips(x: Array, x_hat: Array, *, weights: Weights) -> jax.Array:
    """LPIPS distance of two batches of images, lower is more alike.

    Differentiable in both arguments; the gradient is finite everywhere, also for equal images.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `MIN_SIZE`.
        x_hat: Same shape as `x`.
        weights: From `load_alexnet_weights`.

    Returns:
        ``[B]`` float32.

    Raises:
        TypeError: The images hold integers.
        ValueError: The shapes differ, or are not those of RGB images of at least `MIN_SIZE`.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"images to compare must have one shape, got {x.shape} and {x_hat.shape}")
    return lpips_from_features(
        lpips_features(x, weights=weights), lpips_features(x_hat, weights=weights), weights=weights
    )


def lpips_features(x: Array, *, weights: Weights) -> Features:
    """Five AlexNet layers, each scaled to unit length over channels.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `MIN_SIZE`.
        weights: From `load_alexnet_weights`.

    Returns:
        Five arrays ``[B, h, w, C]``, for `lpips_from_features`.

    Raises:
        TypeError: `x` holds integers.
        ValueError: `x` does not have the shape of RGB images of at least `MIN_SIZE`.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"LPIPS needs floating-point images in [0, 1], got {x.dtype}")
    if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < MIN_SIZE:
        raise ValueError(
            f"LPIPS needs images [B, H, W, 3] with H and W at least {MIN_SIZE}, got {x.shape}"
        )
    shift, scale = jnp.array(_SHIFT, jnp.float32), jnp.array(_SCALE, jnp.float32)
    h = (2.0 * jnp.asarray(x, jnp.float32) - 1.0 - shift) / scale
    h1 = _conv(h, weights, 1, stride=4, padding=2)
    h2 = _conv(_max_pool(h1), weights, 2, padding=2)
    h3 = _conv(_max_pool(h2), weights, 3, padding=1)
    h4 = _conv(h3, weights, 4, padding=1)
    h5 = _conv(h4, weights, 5, padding=1)
    return tuple(_unit_length(h) for h in (h1, h2, h3, h4, h5))


def lpips_from_features(a: Features, b: Features, *, weights: Weights) -> jax.Array:
    """LPIPS of two results of `lpips_features`; returns ``[B]`` float32."""
    layers = [
        jnp.sum(jnp.mean(jnp.square(f - g), axis=(1, 2)) * weights[f"head{i}"], axis=-1)
        for i, (f, g) in enumerate(zip(a, b, strict=True), 1)
    ]
    return jnp.sum(jnp.stack(layers), axis=0)


def _conv(
    h: jax.Array, weights: Weights, layer: int, *, padding: int, stride: int = 1
) -> jax.Array:
    h = lax.conv_general_dilated(
        h,
        jnp.asarray(weights[f"conv{layer}_kernel"]),
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        # The default on GPUs and TPUs rounds the operands, which moves the distance visibly.
        precision=lax.Precision.HIGHEST,
    )
    activations: jax.Array = jax.nn.relu(h + weights[f"conv{layer}_bias"])
    return activations


def _max_pool(h: jax.Array) -> jax.Array:
    # Slices instead of reduce_window: 15 % less time for value and gradient on CPUs.
    rows, cols = ((n - 3) // 2 * 2 + 1 for n in h.shape[1:3])
    h = functools.reduce(jnp.maximum, [h[:, i : i + rows : 2] for i in range(3)])
    return functools.reduce(jnp.maximum, [h[:, :, i : i + cols : 2] for i in range(3)])


def _unit_length(h: jax.Array) -> jax.Array:
    energy = jnp.sum(jnp.square(h), axis=-1, keepdims=True)
    # Where no channel is active the root has no derivative; any length gives the same zeros.
    length = jnp.sqrt(jnp.where(energy > 0.0, energy, 1.0))
    return h / (length + _NORM_EPS)
