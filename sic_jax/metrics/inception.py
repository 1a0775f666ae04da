"""Inception v3 features for FID and KID, from weights that the user has as a file.

The network of Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (CVPR
2016), in the variant whose 2048 pooled features Heusel et al. (NeurIPS 2017) compare: that of 2015
with 1008 classes, where average pooling leaves the padding out and the last block pools maxima. It
resizes pictures itself, as TensorFlow 1 did (`resize`); torch-fidelity, and so torchmetrics and the
evaluation of MS-ILLM, do the same, while pytorch-fid resizes with a shift of half a pixel. Its
weights are those of the file ``pt_inception-2015-12-05`` of the package pytorch-fid, saved under
the same names as .npz or .safetensors. They are not part of this package and were not at hand when
this was written: architecture, parameter count and parts are tested, but that
`sic_jax.metrics.frechet.fid` of these features equals published FID values was not verified.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import lax
from numpy.typing import NDArray

from sic_jax.metrics.convnet import Array, Weights, check_images
from sic_jax.metrics.pretrained import check_weights, read_npz

__all__ = [
    "INPUT_SIDE",
    "NUM_FEATURES",
    "fold_weights",
    "inception_features",
    "load_inception_weights",
    "resize",
    "stored_shapes",
]

INPUT_SIDE = 299
"""Height and width that images are resized to."""

NUM_FEATURES = 2048

_BN_EPS = 1e-3
_Conv = Callable[..., Any]
"""(input, name, output channels, kernel size, stride=1, padding=(0, 0)) to output."""


def inception_features(x: Array, *, weights: Weights) -> jax.Array:
    """Features of the last pooling.

    Args:
        x: ``[B, H, W, 3]`` in [0, 1]: samples of 8 bits over 255; `resize` makes them `INPUT_SIDE`
            high and wide.
        weights: From `load_inception_weights`.

    Returns:
        ``[B, 2048]`` float32.

    Raises:
        TypeError: `x` holds integers.
        ValueError: `x` does not have the shape of RGB images.
    """
    check_images(x, metric="Inception", min_size=1)

    def conv(
        h: jax.Array,
        name: str,
        channels: int,
        size: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> jax.Array:
        h = lax.conv_general_dilated(
            h,
            jnp.asarray(weights[f"{name}_kernel"]),
            (stride, stride),
            [(p, p) for p in padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            # The default on GPUs and TPUs rounds the operands.
            precision=lax.Precision.HIGHEST,
        )
        active: jax.Array = jax.nn.relu(h + weights[f"{name}_bias"][None, None, None])
        return active

    # The network's own scale: samples of 0 to 255, less 128, over 128.
    h = (255.0 * resize(jnp.asarray(x, jnp.float32), INPUT_SIDE) - 128.0) / 128.0
    return jnp.mean(_network(h, conv), axis=(1, 2))


def resize(x: jax.Array, side: int) -> jax.Array:
    """Bilinear, as TensorFlow 1 resized: sample i lies at i n / side, without a shift of half.

    Behind the last sample its value goes on. There is no antialiasing.

    Args:
        x: ``[B, H, W, C]``.
        side: Height and width of the result.

    Returns:
        ``[B, side, side, C]``.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.arange(side, dtype=np.float32) * np.float32(n / side)
        low = np.minimum(at.astype(np.int32), n - 1)
        part = np.expand_dims(at - low, (0, 3, 3 - axis))
        below, above = (jnp.take(x, i, axis=axis) for i in (low, np.minimum(low + 1, n - 1)))
        x = below + (above - below) * part
    return x


def load_inception_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Reads a file of float arrays under the names of pytorch-fid.

    ``NAME.conv.weight`` (OIHW) and ``NAME.bn.weight``, ``.bias``, ``.running_mean`` and
    ``.running_var`` of every convolution, for example ``Mixed_5b.branch5x5_1``; others are not
    used. A PyTorch user makes the file with ``numpy.savez(FILE, **{k: v.numpy() for k, v in
    state_dict.items()})``.

    Args:
        path: .npz or .safetensors, with arrays of type float16, float32 or float64.

    Returns:
        ``NAME_kernel`` ``[h, w, I, O]`` and ``NAME_bias`` ``[O]``, float32, with batch
        normalisation folded in.

    Raises:
        OSError: The file cannot be read.
        ValueError: Its name ends in neither, or it is damaged, or an array is missing, has the
            wrong shape or type, is not finite, or is a negative variance.
    """
    if path.suffix == ".npz":
        stored = read_npz(path)
    elif path.suffix == ".safetensors":
        stored = _read_safetensors(path)
    else:
        raise ValueError(f"{path}: Inception weights are a .npz or .safetensors file")
    return fold_weights(stored, source=str(path))


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    data = path.read_bytes()
    try:
        return safetensors.numpy.load(data)
    except KeyError as error:
        reason = f"NumPy has no type {error.args[0]}"
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())  # Names of arrays can hold line breaks.
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error


def fold_weights(stored: Weights, *, source: str) -> dict[str, NDArray[np.float32]]:
    """Convolutions that do the batch normalisation behind them.

    Args:
        stored: Arrays as `stored_shapes` describes them.
        source: Where they are from, for messages.

    Returns:
        ``NAME_kernel`` ``[h, w, I, O]`` and ``NAME_bias`` ``[O]``, float32.

    Raises:
        ValueError: An array is missing, has the wrong shape, holds no floats or is not finite, or a
            variance is negative.
    """
    check_weights(stored, stored_shapes(), source=source)
    for name in stored_shapes():
        if name.endswith("running_var") and np.min(stored[name]) < 0:
            raise ValueError(f"{name} in {source} is negative")
    weights = {}
    for name in (
        n.removesuffix(".conv.weight") for n in stored_shapes() if n.endswith(".conv.weight")
    ):
        kernel, scale, bias, mean, variance = (
            np.asarray(stored[f"{name}.{part}"], np.float64) for part in _PARTS
        )
        scale = scale / np.sqrt(variance + _BN_EPS)
        weights[f"{name}_kernel"] = (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32)
        weights[f"{name}_bias"] = (bias - mean * scale).astype(np.float32)
    return weights


_PARTS = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def _network(h: Any, conv: _Conv) -> Any:
    h = conv(h, "Conv2d_1a_3x3", 32, (3, 3), 2)
    h = conv(h, "Conv2d_2a_3x3", 32, (3, 3))
    h = conv(h, "Conv2d_2b_3x3", 64, (3, 3), 1, (1, 1))
    h = max_pool(h, 2)
    h = conv(h, "Conv2d_3b_1x1", 80, (1, 1))
    h = conv(h, "Conv2d_4a_3x3", 192, (3, 3))
    h = max_pool(h, 2)
    for block, channels in (("5b", 32), ("5c", 64), ("5d", 64)):
        h = _block_35(h, conv, f"Mixed_{block}", channels)
    h = _reduce_35(h, conv, "Mixed_6a")
    for block, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        h = _block_17(h, conv, f"Mixed_{block}", channels)
    h = _reduce_17(h, conv, "Mixed_7a")
    h = _block_8(h, conv, "Mixed_7b", mean_pool)
    return _block_8(h, conv, "Mixed_7c", lambda h: max_pool(h, 1, 1))


def _block_35(h: Any, conv: _Conv, at: str, pool_channels: int) -> Any:
    one = conv(h, f"{at}.branch1x1", 64, (1, 1))
    five = conv(h, f"{at}.branch5x5_1", 48, (1, 1))
    five = conv(five, f"{at}.branch5x5_2", 64, (5, 5), 1, (2, 2))
    three = conv(h, f"{at}.branch3x3dbl_1", 64, (1, 1))
    three = conv(three, f"{at}.branch3x3dbl_2", 96, (3, 3), 1, (1, 1))
    three = conv(three, f"{at}.branch3x3dbl_3", 96, (3, 3), 1, (1, 1))
    pool = conv(mean_pool(h), f"{at}.branch_pool", pool_channels, (1, 1))
    return jnp.concatenate([one, five, three, pool], axis=-1)


def _reduce_35(h: Any, conv: _Conv, at: str) -> Any:
    single = conv(h, f"{at}.branch3x3", 384, (3, 3), 2)
    double = conv(h, f"{at}.branch3x3dbl_1", 64, (1, 1))
    double = conv(double, f"{at}.branch3x3dbl_2", 96, (3, 3), 1, (1, 1))
    double = conv(double, f"{at}.branch3x3dbl_3", 96, (3, 3), 2)
    return jnp.concatenate([single, double, max_pool(h, 2)], axis=-1)


def _block_17(h: Any, conv: _Conv, at: str, channels: int) -> Any:
    row: tuple[Any, ...] = ((1, 7), 1, (0, 3))
    column: tuple[Any, ...] = ((7, 1), 1, (3, 0))
    one = conv(h, f"{at}.branch1x1", 192, (1, 1))
    single = conv(h, f"{at}.branch7x7_1", channels, (1, 1))
    single = conv(single, f"{at}.branch7x7_2", channels, *row)
    single = conv(single, f"{at}.branch7x7_3", 192, *column)
    double = conv(h, f"{at}.branch7x7dbl_1", channels, (1, 1))
    double = conv(double, f"{at}.branch7x7dbl_2", channels, *column)
    double = conv(double, f"{at}.branch7x7dbl_3", channels, *row)
    double = conv(double, f"{at}.branch7x7dbl_4", channels, *column)
    double = conv(double, f"{at}.branch7x7dbl_5", 192, *row)
    pool = conv(mean_pool(h), f"{at}.branch_pool", 192, (1, 1))
    return jnp.concatenate([one, single, double, pool], axis=-1)


def _reduce_17(h: Any, conv: _Conv, at: str) -> Any:
    three = conv(h, f"{at}.branch3x3_1", 192, (1, 1))
    three = conv(three, f"{at}.branch3x3_2", 320, (3, 3), 2)
    seven = conv(h, f"{at}.branch7x7x3_1", 192, (1, 1))
    seven = conv(seven, f"{at}.branch7x7x3_2", 192, (1, 7), 1, (0, 3))
    seven = conv(seven, f"{at}.branch7x7x3_3", 192, (7, 1), 1, (3, 0))
    seven = conv(seven, f"{at}.branch7x7x3_4", 192, (3, 3), 2)
    return jnp.concatenate([three, seven, max_pool(h, 2)], axis=-1)


def _block_8(h: Any, conv: _Conv, at: str, pool: Callable[[Any], Any]) -> Any:
    def both(h: Any, name: str) -> list[Any]:
        return [
            conv(h, f"{name}a", 384, (1, 3), 1, (0, 1)),
            conv(h, f"{name}b", 384, (3, 1), 1, (1, 0)),
        ]

    one = conv(h, f"{at}.branch1x1", 320, (1, 1))
    three = both(conv(h, f"{at}.branch3x3_1", 384, (1, 1)), f"{at}.branch3x3_2")
    double = conv(h, f"{at}.branch3x3dbl_1", 448, (1, 1))
    double = conv(double, f"{at}.branch3x3dbl_2", 384, (3, 3), 1, (1, 1))
    doubles = both(double, f"{at}.branch3x3dbl_3")
    pooled = conv(pool(h), f"{at}.branch_pool", 192, (1, 1))
    return jnp.concatenate([one, *three, *doubles, pooled], axis=-1)


def max_pool(h: jax.Array, stride: int, padding: int = 0) -> jax.Array:
    """Largest of 3x3 samples: ``[B, h, w, C]`` of ``[B, H, W, C]``.

    h = floor((H + 2 padding - 3) / stride) + 1, and w likewise.
    """
    return _windows(h, -jnp.inf, lax.max, stride, padding)


def mean_pool(h: jax.Array) -> jax.Array:
    """Mean of those of 3x3 samples that are inside, at every sample of ``[B, H, W, C]``."""
    inside = jnp.ones((1, *h.shape[1:3], 1), h.dtype)
    return _windows(h, 0.0, lax.add, 1, 1) / _windows(inside, 0.0, lax.add, 1, 1)


def _windows(h: jax.Array, start: float, join: Any, stride: int, padding: int) -> jax.Array:
    around = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    joined: jax.Array = lax.reduce_window(
        h, start, join, (1, 3, 3, 1), (1, stride, stride, 1), around
    )
    return joined


@functools.cache
def stored_shapes() -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the arrays of a weights file, read off the network by tracing it."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(
        h: jax.Array,
        name: str,
        channels: int,
        size: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> jax.Array:
        for part in _PARTS:
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.conv.weight"] = (channels, h.shape[-1], *size)
        sides = (
            (n + 2 * p - k) // stride + 1
            for n, k, p in zip(h.shape[1:3], size, padding, strict=True)
        )
        return jnp.zeros((len(h), *sides, channels))

    jax.eval_shape(lambda h: _network(h, conv), jnp.zeros((1, INPUT_SIDE, INPUT_SIDE, 3)))
    return shapes
