"""Computes metrics of 8-bit pictures, one compiled program for many sizes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.compilation_cache import jit_per_shape
from sic_jax.metrics.convnet import Weights
from sic_jax.metrics.table import Metric
from sic_jax.sizes import bucket

Pixels = NDArray[np.uint8]


class Measurer:
    """Computes metrics of reconstructions.

    Compiles once for each `bucket` of sizes and each set of metrics that small images leave, on
    first use: images are padded up to it, and their size is an argument of the program, which
    gives the values of the images as they are. The programs of the last few sizes are kept.
    `sic_jax.compilation_cache.enable_compilation_cache` says where the next run finds programs.
    """

    def __init__(self, wanted: Sequence[Metric], batch_size: int = 1) -> None:
        """Load the weights of the metrics.

        Args:
            wanted: The metrics.
            batch_size: Reconstructions that are measured at once.

        Raises:
            OSError, ValueError: If weights cannot be loaded.
            ValueError: If `batch_size` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.metrics = tuple(wanted)
        self.batch_size = batch_size
        self._weights = {m.name: jax.device_put(m.load()) for m in self.metrics}

        def extract(
            x: jax.Array,
            size: jax.Array,
            weights: Mapping[str, Weights],
            defined: tuple[int, ...],
        ) -> dict[str, Any]:
            found = {}
            for metric in (self.metrics[k] for k in defined):
                found[metric.name] = metric.features(x, weights[metric.name], size)
            return found

        def compare(
            features: Mapping[str, Any],
            x_hat: jax.Array,
            size: jax.Array,
            weights: Mapping[str, Weights],
        ) -> dict[str, jax.Array]:
            def repeat(a: jax.Array) -> jax.Array:
                return jnp.broadcast_to(a, (len(x_hat), *a.shape[1:]))

            return {
                metric.name: metric.distance(
                    jax.tree.map(repeat, features[metric.name]),
                    x_hat,
                    weights[metric.name],
                    repeat(size),
                )
                for metric in self.metrics
                if metric.name in features
            }

        self._extract = jit_per_shape(extract, static_argnames="defined")
        self._compare = jit_per_shape(compare)

    def features(self, image: Pixels, names: Sequence[str] | None = None) -> dict[str, Any]:
        """What metrics need of an original; once an image.

        Args:
            image: uint8 [H, W, 3] or [H, W].
            names: Of the metrics; all when None.

        Returns:
            By the name of the metric; None where it is not defined for images so small.
        """
        size = min(image.shape[:2])
        chosen = {m.name: m for m in self.metrics if names is None or m.name in names}
        defined = tuple(
            k for k, m in enumerate(self.metrics) if m.name in chosen and size >= m.min_size
        )
        x = _to_batch(image)
        found: dict[str, Any] = self._extract(*x.shape[1:3])(
            x, _size_of(image), self._weights, defined=defined
        )
        return {name: found.get(name) for name in chosen}

    def distances(
        self, features: Mapping[str, Any], images_hat: Sequence[Pixels]
    ) -> dict[str, list[float | None]]:
        """Metrics of reconstructions of one original.

        Args:
            features: Of the original, from `features`.
            images_hat: uint8, each [H, W, 3] or [H, W].

        Returns:
            Of each metric that there are features of, one value a reconstruction; None where it is
            not finite or not defined.
        """
        values: dict[str, list[float | None]] = {name: [] for name in features}
        features = {name: found for name, found in features.items() if found is not None}
        for start in range(0, len(images_hat), self.batch_size):
            some = list(images_hat[start : start + self.batch_size])
            # A batch that is not full repeats its last picture, so that it compiles no program.
            full = some + some[-1:] * (self.batch_size - len(some))
            x_hat = np.concatenate([_to_batch(image) for image in full])
            compare = self._compare(*x_hat.shape[1:3])
            found = compare(features, x_hat, _size_of(full[0]), self._weights)
            for name, known in values.items():
                batch = np.asarray(found[name]) if name in found else np.full(len(full), np.nan)
                known += [
                    float(value) if math.isfinite(value) else None for value in batch[: len(some)]
                ]
        return values


def _size_of(image: Pixels) -> NDArray[np.int32]:
    return np.array([image.shape[:2]], np.int32)


def _to_batch(image: Pixels) -> NDArray[np.float32]:
    """An 8-bit picture [H, W] or [H, W, 3] as RGB in [0, 1], with zeros up to its bucket's size.

    In NumPy, since XLA may scale the two pictures of a comparison with different roundings.
    """
    height, width = image.shape[:2]
    rows, columns = bucket(-(-height // 16), -(-width // 16))
    batch = np.zeros((1, 16 * rows, 16 * columns, 3), np.float32)
    rgb = image if image.ndim == 3 else image[..., None]
    batch[0, :height, :width] = rgb.astype(np.float32) / np.float32(255)
    return batch
