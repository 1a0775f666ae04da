"""PSNR, SSIM and MS-SSIM: functions of ``[B, H, W, C]`` in [0, 1], one value an image."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sic_jax.devices import check_process
from sic_jax.metrics.convnet import spatial_mean
from sic_jax.sizes import Size, zero_outside

__all__ = [
    "MS_SSIM_MIN_SIZE",
    "SSIM_MIN_SIZE",
    "ms_ssim",
    "psnr",
    "ssim",
]

MS_SSIM_MIN_SIZE = 161
"""Smallest height and width for which the window fits into the coarsest of the five scales."""

SSIM_MIN_SIZE = 11
"""Smallest height and width for which the window fits into the image."""

_WINDOW_SIZE, _WINDOW_SIGMA = SSIM_MIN_SIZE, 1.5
_SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_C1, _C2 = 0.01**2, 0.03**2


def psnr(x: ArrayLike, x_hat: ArrayLike, *, size: Size = None) -> jax.Array:
    """Peak signal-to-noise ratio in dB, over all pixels and channels of each image.

    Args:
        x: ``[B, H, W, C]`` in [0, 1]; for 8-bit images divide by 255.
        x_hat: Same shape as `x`.
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        ``[B]`` float32, infinite for equal images.

    Raises:
        TypeError: The images hold integers.
        ValueError: The shapes differ or do not have four axes.
    """
    x, x_hat = _image_pair(x, x_hat)
    mse = jnp.mean(spatial_mean(jnp.square(x - x_hat), size), axis=-1)
    return -10.0 * jnp.log10(mse)


def ssim(x: ArrayLike, x_hat: ArrayLike, *, size: Size = None) -> jax.Array:
    """Structural similarity, the mean over pixels and channels; 1 for equal images.

    Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity" (2004): one scale, 11x11 Gaussian window without padding.

    Args:
        x: ``[B, H, W, C]`` in [0, 1], H and W at least `SSIM_MIN_SIZE`.
        x_hat: Same shape as `x`.
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        ``[B]`` float32 in [-1, 1].

    Raises:
        TypeError: The images hold integers.
        ValueError: The shapes differ, or the images are too small.
    """
    x, x_hat = _image_pair(x, x_hat)
    if min(x.shape[1:3]) < SSIM_MIN_SIZE:
        raise ValueError(f"SSIM needs height and width of at least {SSIM_MIN_SIZE}, got {x.shape}")
    luminance, contrast = _ssim_terms(x, x_hat)
    return jnp.mean(_window_mean(luminance * contrast, size), axis=-1)


def ms_ssim(x: ArrayLike, x_hat: ArrayLike, *, size: Size = None) -> jax.Array:
    """Multi-scale structural similarity, the mean over channels; 1 for equal images.

    Wang, Simoncelli and Bovik, "Multiscale Structural Similarity for Image Quality Assessment"
    (2003): five scales, 11x11 Gaussian window without padding, negative terms set to 0.

    Args:
        x: ``[B, H, W, C]`` in [0, 1], H and W at least `MS_SSIM_MIN_SIZE`.
        x_hat: Same shape as `x`.
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        ``[B]`` float32.

    Raises:
        TypeError: The images hold integers.
        ValueError: The shapes differ, or the images are too small; or there is a size and the sides
            of the arrays are not multiples of 16.
    """
    x, x_hat = _image_pair(x, x_hat)
    if min(x.shape[1:3]) < MS_SSIM_MIN_SIZE:
        raise ValueError(
            f"MS-SSIM needs height and width of at least {MS_SSIM_MIN_SIZE}, got {x.shape}"
        )
    if size is not None and (x.shape[1] % 16 or x.shape[2] % 16):
        raise ValueError(f"MS-SSIM with a size needs sides that 16 divides, got {x.shape}")
    x, x_hat = zero_outside(x, size), zero_outside(x_hat, size)
    result = jnp.ones((), jnp.float32)
    for scale, exponent in enumerate(_SCALE_EXPONENTS):
        if scale > 0:
            x, x_hat = _halve(x, size), _halve(x_hat, size)
            size = None if size is None else (size + 1) // 2
        luminance, contrast = _ssim_terms(x, x_hat)
        last = scale == len(_SCALE_EXPONENTS) - 1
        term = _window_mean(luminance * contrast if last else contrast, size)
        # The power has no derivative at 0: terms that are not positive skip it.
        positive = term > 0.0
        result *= jnp.where(positive, jnp.where(positive, term, 1.0) ** exponent, 0.0)
    return jnp.mean(result, axis=-1)


def _image_pair(x: ArrayLike, x_hat: ArrayLike) -> tuple[jax.Array, jax.Array]:
    check_process()
    x, x_hat = jnp.asarray(x), jnp.asarray(x_hat)
    for image in (x, x_hat):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise TypeError(f"need floating-point images in [0, 1], got {image.dtype}")
    if x.shape != x_hat.shape or x.ndim != 4:
        raise ValueError(
            f"images to compare must have one shape [B, H, W, C], got {x.shape} and {x_hat.shape}"
        )
    return x.astype(jnp.float32), x_hat.astype(jnp.float32)


def _ssim_terms(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    mu_x, mu_y, xx, yy, xy = _blur(jnp.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y, covariance = xx - mu_x * mu_x, yy - mu_y * mu_y, xy - mu_x * mu_y
    luminance = (2.0 * mu_x * mu_y + _C1) / (mu_x * mu_x + mu_y * mu_y + _C1)
    contrast = (2.0 * covariance + _C2) / (var_x + var_y + _C2)
    return luminance, contrast


def _blur(x: jax.Array) -> jax.Array:
    at = np.arange(_WINDOW_SIZE) - _WINDOW_SIZE // 2
    window = np.exp(-np.square(at) / (2.0 * _WINDOW_SIGMA**2))
    window = (window / window.sum()).astype(np.float32)
    height, width = (n - _WINDOW_SIZE + 1 for n in x.shape[-3:-1])
    # Sums of shifted images: much faster than a depthwise convolution on CPUs, and exact on GPUs
    # and TPUs, where convolutions round their operands.
    rows = [g * x[..., i : i + height, :, :] for i, g in enumerate(window)]
    x = functools.reduce(operator.add, rows)
    columns = [g * x[..., i : i + width, :] for i, g in enumerate(window)]
    blurred: jax.Array = functools.reduce(operator.add, columns)
    return blurred


def _window_mean(terms: jax.Array, size: Size) -> jax.Array:
    """Means ``[B, C]`` over the windows that lie in the images."""
    return spatial_mean(terms, None if size is None else size - (_WINDOW_SIZE - 1))


def _halve(x: jax.Array, size: Size) -> jax.Array:
    """Means of 2x2 pixels; a row and column of zeros goes before odd sides, as in PyTorch's."""
    if size is not None:
        # Even arrays: behind an odd side is a row or column of zeros, which goes before.
        for axis in (1, 2):
            odd = (size[:, axis - 1] % 2 == 1)[:, None, None, None]
            x = jnp.where(odd, jnp.roll(x, 1, axis), x)
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (height % 2, 0), (width % 2, 0), (0, 0)))
    x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return jnp.mean(x, axis=(2, 4))
