"""What the pretrained convolutional networks of the perceptual metrics share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpy.typing import NDArray

from sic_jax.devices import check_process
from sic_jax.sizes import Size, zero_outside

__all__ = [
    "Array",
    "Features",
    "Weights",
    "check_images",
    "check_same_shape",
    "conv_relu",
    "spatial_mean",
]

Array = jax.Array | NDArray[Any]
Weights = Mapping[str, Array]
Features = tuple[jax.Array, ...]


def check_images(x: Array, *, metric: str, min_size: int) -> None:
    """Checks a batch ``[B, H, W, 3]`` of floating-point images.

    Raises:
        TypeError: `x` holds integers.
        ValueError: `x` does not have the shape of RGB images of at least `min_size`.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{metric} needs floating-point images in [0, 1], got {x.dtype}")
    if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < min_size:
        raise ValueError(
            f"{metric} needs images [B, H, W, 3] with H and W at least {min_size}, got {x.shape}"
        )


def check_same_shape(x: Array, x_hat: Array) -> None:
    """Checks that two batches have one shape, and can be compared here.

    Raises:
        RuntimeError: This process was forked after JAX had started.
        ValueError: Their shapes differ.
    """
    check_process()
    if x.shape != x_hat.shape:
        raise ValueError(f"images to compare must have one shape, got {x.shape} and {x_hat.shape}")


def conv_relu(
    h: jax.Array, weights: Weights, layer: int, *, padding: int, stride: int = 1
) -> jax.Array:
    """Convolution with ``conv{layer}_kernel`` (HWIO) and ``conv{layer}_bias``, then ReLU.

    It makes ``[B, h, w, O]`` of ``[B, H, W, I]``, where h = floor((H + 2 padding - k) / stride) + 1
    for a kernel of k x k, and w likewise. It computes in the kernel's type: float32 exactly,
    bfloat16 on the tensor cores.
    """
    kernel = jnp.asarray(weights[f"conv{layer}_kernel"])
    h = lax.conv_general_dilated(
        h.astype(kernel.dtype),
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        # The default on GPUs and TPUs rounds the operands, which moves the distances visibly.
        precision=lax.Precision.HIGHEST,
    )
    bias = jnp.asarray(weights[f"conv{layer}_bias"], h.dtype)
    activations: jax.Array = jax.nn.relu(h + bias[None, None, None])
    return activations


def spatial_mean(h: jax.Array, size: Size) -> jax.Array:
    """Means ``[B, C]`` over the samples ``[B, H, W, C]`` of the images."""
    if size is None:
        return jnp.mean(h, axis=(1, 2))
    total = jnp.sum(zero_outside(h, size), axis=(1, 2))
    return total / jnp.prod(size, axis=1).astype(jnp.float32)[:, None]
