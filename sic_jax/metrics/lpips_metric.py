"""LPIPS v0.1 with AlexNet or VGG16 features, as a pure JAX function.

The distance of Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric" (CVPR 2018), with the pretrained weights of the PyTorch package ``lpips``. The weights are
part of this package; ``weights/README.md`` has their origin and licences.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.metrics.convnet import (
    Array,
    Features,
    Weights,
    check_images,
    check_same_shape,
    conv_relu,
    spatial_mean,
)
from sic_jax.metrics.pretrained import WEIGHTS_FOLDER, load_weights, on_device
from sic_jax.metrics.vgg import load_vgg16_weights, max_pool, vgg16_stages
from sic_jax.sizes import Size, zero_outside

__all__ = [
    "MIN_SIZE",
    "WEIGHTS_FILE",
    "WEIGHT_SHAPES",
    "Features",
    "Net",
    "Weights",
    "load_alexnet_weights",
    "lpips",
    "lpips_features",
    "lpips_from_features",
]

Net = Literal["alex", "vgg"]

MIN_SIZE = 31
"""Smallest image height and width that leaves one sample after AlexNet's second pooling.

For ``net="vgg"`` it is `sic_jax.metrics.vgg.MIN_SIZE`.
"""

WEIGHTS_FILE = WEIGHTS_FOLDER / "lpips_alex.npz"
"""The packaged weights for AlexNet."""

LAYER_CHANNELS = (64, 192, 384, 256, 256)
"""Of the five layers of AlexNet."""

WEIGHT_SHAPES = {
    "conv1_kernel": (11, 11, 3, 64),
    "conv2_kernel": (5, 5, 64, 192),
    "conv3_kernel": (3, 3, 192, 384),
    "conv4_kernel": (3, 3, 384, 256),
    "conv5_kernel": (3, 3, 256, 256),
    **{f"conv{i}_bias": (c,) for i, c in enumerate(LAYER_CHANNELS, 1)},
    **{f"head{i}": (c,) for i, c in enumerate(LAYER_CHANNELS, 1)},
}
"""Names and shapes of the arrays of `load_alexnet_weights`."""

# Mean and deviation of ImageNet's colours for inputs in [-1, 1], as in LPIPS v0.1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_NORM_EPS = 1e-10


def load_alexnet_weights(path: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """Reads the AlexNet features and LPIPS heads.

    Put the result on the device once (``jax.device_put``) and pass it to the jitted function as an
    argument; a closure would compile 10 MB of constants into the program.

    Args:
        path: A file made by `sic_jax.importers.perceptual_weights`; the packaged one when None.

    Returns:
        NumPy float32 arrays of the shapes `WEIGHT_SHAPES`: ``conv1..5_kernel`` (HWIO),
        ``conv1..5_bias`` and ``head1..5``.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or an array is missing, has the wrong shape, holds no floats or
            is not finite.
    """
    return load_weights(WEIGHTS_FILE if path is None else path, WEIGHT_SHAPES)


def lpips(
    x: Array, x_hat: Array, *, weights: Weights | None = None, net: Net = "alex", size: Size = None
) -> jax.Array:
    """LPIPS distance of two batches of images, lower is more alike.

    Differentiable in both arguments; the gradient is finite everywhere, also for equal images.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `MIN_SIZE`.
        x_hat: Same shape as `x`.
        weights: From `load_alexnet_weights`, or for "vgg" `sic_jax.metrics.vgg.load_vgg16_weights`.
            None: the packaged ones, read once a process. Give them where this is compiled, in
            training too: they would be constants of the program.
        net: The network whose features are compared: "alex" or "vgg".
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        ``[B]`` float32.

    Raises:
        TypeError: The images hold integers.
        ValueError: The shapes differ, or are not those of RGB images of at least `MIN_SIZE`; or
            there is no such net.
    """
    check_same_shape(x, x_hat)
    if weights is None:
        weights = on_device(load_vgg16_weights if net == "vgg" else load_alexnet_weights)
    return lpips_from_features(
        lpips_features(x, weights=weights, net=net, size=size),
        lpips_features(x_hat, weights=weights, net=net, size=size),
        weights=weights,
        net=net,
        size=size,
    )


def lpips_features(x: Array, *, weights: Weights, net: Net = "alex", size: Size = None) -> Features:
    """Five layers of AlexNet or VGG16, each scaled to unit length over channels.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1], H and W at least `MIN_SIZE`.
        weights: Those of the net.
        net: "alex" or "vgg".
        size: Of images that do not fill the arrays; `sic_jax.sizes.Size`.

    Returns:
        Five arrays ``[B, h, w, C]``, for `lpips_from_features`.

    Raises:
        TypeError: `x` holds integers.
        ValueError: `x` does not have the shape of RGB images of at least `MIN_SIZE`; or there is
            no such net.
    """
    if net == "vgg":
        sizes = _layer_sizes(size, net)
        layers = vgg16_stages(x, weights=weights, pool=max_pool, metric="LPIPS", sizes=sizes)
    elif net == "alex":
        layers = _alexnet_layers(x, weights=weights, size=size)
    else:
        raise ValueError(f"the net of LPIPS is 'alex' or 'vgg', got {net!r}")
    return tuple(_unit_length(h) for h in layers)


def lpips_from_features(
    a: Features, b: Features, *, weights: Weights, net: Net = "alex", size: Size = None
) -> jax.Array:
    """LPIPS of two results of `lpips_features` with one net and size; returns ``[B]`` float32."""
    layers = [
        jnp.sum(spatial_mean(jnp.square(f - g), s) * weights[f"head{i}"][None], axis=-1)
        for i, (f, g, s) in enumerate(zip(a, b, _layer_sizes(size, net), strict=True), 1)
    ]
    return jnp.sum(jnp.stack(layers), axis=0)


def _layer_sizes(size: Size, net: Net) -> tuple[Size, ...]:
    """Heights and widths of the five layers."""
    if size is None:
        return (None,) * 5
    if net == "vgg":
        return tuple(size // 2**stage for stage in range(5))
    first = (size - 7) // 4 + 1
    second = (first - 1) // 2
    third = (second - 1) // 2
    return first, second, third, third, third


def _alexnet_layers(x: Array, *, weights: Weights, size: Size) -> Features:
    check_images(x, metric="LPIPS", min_size=MIN_SIZE)
    sizes = _layer_sizes(size, "alex")

    def conv(h: jax.Array, layer: int, *, padding: int, stride: int = 1) -> jax.Array:
        h = conv_relu(h, weights, layer, stride=stride, padding=padding)
        return zero_outside(h, sizes[layer - 1])

    def pool(h: jax.Array, layer: int) -> jax.Array:
        return zero_outside(_max_pool(h), sizes[layer - 1])

    shift, scale = (jnp.array(c, jnp.float32)[None, None, None] for c in (_SHIFT, _SCALE))
    h = zero_outside((2.0 * jnp.asarray(x, jnp.float32) - 1.0 - shift) / scale, size)
    h1 = conv(h, 1, stride=4, padding=2)
    h2 = conv(pool(h1, 2), 2, padding=2)
    h3 = conv(pool(h2, 3), 3, padding=1)
    h4 = conv(h3, 4, padding=1)
    h5 = conv(h4, 5, padding=1)
    return tuple(h.astype(jnp.float32) for h in (h1, h2, h3, h4, h5))


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
