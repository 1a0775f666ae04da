"""Wasserstein distortion on VGG16 features with one scale of pooling, as a pure JAX function.

Qiu, Wagner, Ballé and Theis, "Wasserstein Distortion: Unifying Fidelity and Realism" (CISS 2024),
in the form of Ballé, Versari, Dupont, Kim and Bauer, "Good, Cheap, and Fast: Overfitted Image
Compression with Wasserstein Distortion" (CVPR 2025): features are compared by their means and
standard deviations near each position. How near, sigma says: where log2 sigma is 0 the
features themselves are compared, and with a larger one a texture may be replaced by another like
it. There sigma is a map over the picture; here it is one number.

**Features.** The picture with ImageNet's normalisation (subtract the mean, divide by the deviation)
at three scales, and at each VGG16's relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, with means of
2x2 samples for its pooling (an odd last row or column is dropped); and the picture itself: 16 maps.
A scale is the one before it under the window [1 2 1] / 4 along both axes, with zeros outside, at
every second row and column from the first on.

**Means and deviations.** Level 0 of a map is its values, with deviations of 0. Level 1 is mean and
standard deviation of the map under the window [1 2 1] / 4 along both axes, at every position, where
zeros outside count as values. Level i + 1 is level i at every second row and column from the first
on, as if all of the map had been pooled so: its means and mean squares under that window again,
with zeros outside. So the window of level i is 2^(i + 1) - 1 samples wide and its weights fall off
linearly.

**Distortion.** D_i is the mean of (mu - mu_hat)^2 + (sigma - sigma_hat)^2 over channels and
positions of level i. A map with 2^-k of the picture's sides has lambda = max(log2_sigma - k, 0) and
the distortion sum over i of max(1 - |lambda - i|, 0) D_i. The result is the sum over the maps.

The authors' PyTorch package, with one sigma for all positions, defines the same distortion. One
thing differs: it computes k from the sides of map and picture. Where 64 divides the picture's sides
this gives the same k. The package itself was not run: tests compare with its operations, written
anew in JAX. Their JAX library starts a scale with the second row or column where that side is even,
and lets its map of log2 sigma fall off towards the borders.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sic_jax.metrics.convnet import (
    Array,
    Features,
    Weights,
    check_images,
    check_same_shape,
    spatial_mean,
)
from sic_jax.metrics.pretrained import on_device
from sic_jax.metrics.vgg import (
    STAGE_CHANNELS,
    load_vgg16_weights,
    normalise,
    stages_from_normalised,
)
from sic_jax.sizes import Size, zero_outside

__all__ = [
    "LOG2_SIGMA",
    "MAX_LOG2_SIGMA",
    "MIN_SIZE",
    "map_distortion",
    "wasserstein",
    "wasserstein_features",
    "wasserstein_from_features",
]

LOG2_SIGMA = 2.0
"""Pooling over about 4 pixels: the default of the authors' PyTorch package."""

MAX_LOG2_SIGMA = 5.0
"""Largest scale of pooling, as in the authors' packages."""

MIN_SIZE = 61
"""Smallest image height and width that leaves VGG16's smallest image at the third scale."""

_NUM_SCALES = 3
_NUM_STAGES = len(STAGE_CHANNELS)
_HALVINGS = (0, *(scale + stage for scale in range(_NUM_SCALES) for stage in range(_NUM_STAGES)))
_WINDOW = (0.25, 0.5, 0.25)


def wasserstein(
    x: Array,
    x_hat: Array,
    *,
    weights: Weights | None = None,
    log2_sigma: float = LOG2_SIGMA,
    size: Size = None,
) -> jax.Array:
    """Wasserstein distortion of two batches of images; 0 for equal images, lower is more alike.

    Differentiable in both arguments; the gradient is finite everywhere, also for equal and flat
    images.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `MIN_SIZE`.
        x_hat: Same shape as `x`.
        weights: From `sic_jax.metrics.vgg.load_vgg16_weights`. None: the packaged ones, read once a
            process. Give them where this is compiled, in training too: they would be constants of
            the program.
        log2_sigma: Base-two logarithm of the scale of pooling in pixels, in [0, `MAX_LOG2_SIGMA`].
            A Python number: another one is another program.
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        ``[B]`` float32.

    Raises:
        TypeError: The images hold integers.
        ValueError: The shapes differ, or are not those of RGB images of at least `MIN_SIZE`; or
            `log2_sigma` is out of its range.
    """
    check_same_shape(x, x_hat)
    if weights is None:
        weights = on_device(load_vgg16_weights)
    return wasserstein_from_features(
        wasserstein_features(x, weights=weights, size=size),
        wasserstein_features(x_hat, weights=weights, size=size),
        log2_sigma=log2_sigma,
        size=size,
    )


def wasserstein_features(x: Array, *, weights: Weights, size: Size = None) -> Features:
    """The normalised image, and VGG16's five stages of it at three scales.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `MIN_SIZE`.
        weights: From `sic_jax.metrics.vgg.load_vgg16_weights`.
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        16 arrays ``[B, h, w, C]``, for `wasserstein_from_features`.

    Raises:
        TypeError: `x` holds integers.
        ValueError: `x` does not have the shape of RGB images of at least `MIN_SIZE`.
    """
    check_images(x, metric="Wasserstein distortion", min_size=MIN_SIZE)
    h = normalise(x, size)
    features = [h]
    for scale, scale_size in enumerate(_scale_sizes(size)):
        if scale > 0:
            h = zero_outside(_low_pass(h)[:, ::2, ::2], scale_size)
        features += stages_from_normalised(
            h, weights=weights, pool=_average_pool, sizes=_stage_sizes(scale_size)
        )
    return tuple(features)


def wasserstein_from_features(
    a: Features, b: Features, *, log2_sigma: float = LOG2_SIGMA, size: Size = None
) -> jax.Array:
    """Distortion of two results of `wasserstein_features` with one size; returns ``[B]`` float32.

    Raises:
        ValueError: `log2_sigma` is out of its range.
    """
    if not 0 <= log2_sigma <= MAX_LOG2_SIGMA:
        raise ValueError(f"log2_sigma must be in [0, {MAX_LOG2_SIGMA:g}], got {log2_sigma}")
    sizes = [size, *(s for scale in _scale_sizes(size) for s in _stage_sizes(scale))]
    distortions = [
        map_distortion(f, g, log2_sigma=max(log2_sigma - halvings, 0.0), size=s)
        for f, g, halvings, s in zip(a, b, _HALVINGS, sizes, strict=True)
    ]
    return jnp.sum(jnp.stack(distortions), axis=0)


def map_distortion(
    f: jax.Array, g: jax.Array, *, log2_sigma: float, size: Size = None
) -> jax.Array:
    """Distortion of two feature maps.

    Args:
        f: ``[B, H, W, C]`` float32, zeros outside the images.
        g: Same shape as `f`.
        log2_sigma: Base-two logarithm of the scale of pooling in samples of the map, at least 0.
        size: Of maps that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        ``[B]`` float32: the mean over positions and channels.
    """
    moments_f, moments_g = (_Moments(h, jnp.zeros_like(h)) for h in (f, g))
    total = jnp.zeros(len(f), jnp.float32)
    for level in range(math.ceil(log2_sigma) + 1):
        if level > 0:
            if level > 1:
                moments_f, moments_g = _every_second(moments_f), _every_second(moments_g)
                size = None if size is None else (size + 1) // 2
            moments_f, moments_g = _pool(moments_f, size), _pool(moments_g, size)
        weight = max(1.0 - abs(log2_sigma - level), 0.0)
        if weight > 0.0:
            squares = jnp.square(moments_f.mean - moments_g.mean) + jnp.square(
                _deviation(moments_f.variance) - _deviation(moments_g.variance)
            )
            total += weight * jnp.mean(spatial_mean(squares, size), axis=-1)
    return total


class _Moments(NamedTuple):
    mean: jax.Array
    variance: jax.Array


def _every_second(moments: _Moments) -> _Moments:
    return _Moments(*(h[:, ::2, ::2] for h in moments))


def _pool(moments: _Moments, size: Size) -> _Moments:
    """Moments of the mixture of the distributions under the window; zeros outside."""
    mean, variance = moments
    for axis in (1, 2):
        means, variances = _neighbours(mean, axis), _neighbours(variance, axis)
        mean = _weighted(means)
        # Mean square less squared mean would cancel in float32, to values below 0 too.
        variance = _weighted(
            [v + jnp.square(m - mean) for m, v in zip(means, variances, strict=True)]
        )
    return _Moments(zero_outside(mean, size), zero_outside(variance, size))


def _low_pass(h: jax.Array) -> jax.Array:
    for axis in (1, 2):
        h = _weighted(_neighbours(h, axis))
    return h


def _neighbours(h: jax.Array, axis: int) -> list[jax.Array]:
    """The sample before, the sample and the sample after, of each; zeros outside the array."""
    padding = [(1, 1) if k == axis else (0, 0) for k in range(h.ndim)]
    length = h.shape[axis]
    h = jnp.pad(h, padding)
    return [jax.lax.slice_in_dim(h, i, i + length, axis=axis) for i in range(len(_WINDOW))]


def _weighted(samples: list[jax.Array]) -> jax.Array:
    terms = [weight * h for weight, h in zip(_WINDOW, samples, strict=True)]
    return functools.reduce(operator.add, terms)


def _deviation(variance: jax.Array) -> jax.Array:
    # The root has no derivative at 0. There the variance has derivative 0, and so has this.
    positive = variance > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def _average_pool(h: jax.Array) -> jax.Array:
    """Means of 2x2 samples; an odd last row or column is dropped."""
    rows, columns = (n // 2 * 2 for n in h.shape[1:3])
    h = h.astype(jnp.float32)
    h = 0.5 * (h[:, 0:rows:2] + h[:, 1:rows:2])
    return 0.5 * (h[:, :, 0:columns:2] + h[:, :, 1:columns:2])


def _scale_sizes(size: Size) -> tuple[Size, ...]:
    """Heights and widths of the image at the scales: halves, rounded up."""
    return tuple(None if size is None else -(-size // 2**k) for k in range(_NUM_SCALES))


def _stage_sizes(size: Size) -> tuple[Size, ...]:
    """Heights and widths of the stages of an image: halves, rounded down."""
    return tuple(None if size is None else size // 2**k for k in range(_NUM_STAGES))
