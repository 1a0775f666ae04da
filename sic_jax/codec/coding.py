"""The coding pass: latents to and from integers, level by level.

Encoder and decoder run the same pass. Only integers cross its boundary: known symbols go in, table
indices and integer means come out. Everything between is float32 on the CPU backend, the same
compiled functions on both sides.
"""

from collections.abc import Generator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.config import ModelConfig
from sic_jax.model.context import checkerboard
from sic_jax.model.levels import level_starts
from sic_jax.model.sic import SicModel

Ints = NDArray[np.int32]


class Request(NamedTuple):
    """What the pass asks for: the next n symbols of a level, in coding order."""

    level: int
    indices: Ints
    """Coding table of each symbol, [n]."""
    means: Ints
    """Integer part of each mean, [n]: the coded value is symbol - mean."""
    where: tuple[NDArray[Any], slice]
    """Index of the symbols in y [h, w, C]: mask over positions, channels."""


def table_indices(mu: jax.Array, sigma: jax.Array, cfg: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Coding table and integer mean of means and scales, int32 arrays of their shape.

    The scale snaps to the nearest of the logarithmic grid, the mean to multiples of
    1 / num_mean_bins.
    """
    step = np.log(cfg.sigma_max / cfg.sigma_min) / (cfg.num_sigmas - 1)
    scale = jnp.round(jnp.log(sigma / cfg.sigma_min) / step).astype(jnp.int32)
    scale = jnp.clip(scale, 0, cfg.num_sigmas - 1)
    limit = 2.0**20
    fine = jnp.round(jnp.clip(mu, -limit, limit) * cfg.num_mean_bins).astype(jnp.int32)
    mean = fine // cfg.num_mean_bins
    return scale * cfg.num_mean_bins + fine - mean * cfg.num_mean_bins, mean


class CodingPass:
    """Compiled steps of the coding pass of one model; reused for all images and levels."""

    def __init__(self, cfg: ModelConfig, params: Any) -> None:
        """Place the entropy networks' parameters on the CPU.

        Args:
          cfg: The model's config.
          params: The model's parameters; h_s and the context model are used.
        """
        self.cfg = cfg
        cpu = jax.devices("cpu")[0]
        kept = {k: v for k, v in params.items() if k in ("h_s", "context", "detail_mean")}
        self.variables = jax.device_put({"params": kept}, cpu)
        self._model = SicModel(cfg)
        self.hyper = jax.jit(self._hyper, static_argnums=2)
        self._step = jax.jit(self._entropy_step)
        self._update = jax.jit(self._context_update, donate_argnums=1)
        self.complete = jax.jit(partial(self._model.apply, method="complete"))

    def _hyper(self, variables: Any, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
        z = z_hat.astype(jnp.float32)[None]
        out: Any = self._model.apply(variables, z, shape, method="hyper_features")
        features: jax.Array = out
        return features

    def _entropy_step(
        self, variables: Any, g: jax.Array, hyper: jax.Array, context: jax.Array, anchors: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        known = anchors.astype(jnp.float32)[None]
        out: Any = self._model.apply(variables, g, hyper, context, known, method="group_parameters")
        index, mean = table_indices(out[0][0], out[1][0], self.cfg)
        return index, mean

    def _context_update(
        self, variables: Any, context: jax.Array, g: jax.Array, y_group: jax.Array
    ) -> jax.Array:
        y = y_group.astype(jnp.float32)[None]
        added: Any = self._model.apply(variables, g, y, method="context_of_group")
        total: jax.Array = context + added
        return total

    def run(self, hyper: jax.Array, level: int) -> Generator[Request, Ints, Ints]:
        """Walk the groups of levels 1..level, anchors first.

        Yields requests and expects the symbols of each, int32 [n], by `send`.

        Args:
          hyper: h_s features [1, h, w, F_h].
          level: 1..L.

        Returns:
          y_s: int32 [h, w, C], zeros above `level`.
        """
        cfg = self.cfg
        h, w = hyper.shape[1:3]
        starts, size = level_starts(cfg), max(cfg.level_channels)
        anchors_first = checkerboard(h, w)[..., 0]
        y = np.zeros((h, w, cfg.num_channels), np.int32)
        context: Any = np.zeros((1, h, w, cfg.num_levels, cfg.context_width), np.float32)
        for g in range(level):
            count = cfg.level_channels[g]
            channels = slice(int(starts[g]), int(starts[g + 1]))
            group = np.zeros((h, w, size), np.int32)
            for half in (anchors_first, ~anchors_first):
                index, mean = self._step(self.variables, g, hyper, context, group)
                indices = np.asarray(index)[half, :count].ravel()
                means = np.asarray(mean)[half, :count].ravel()
                symbols = yield Request(g + 1, indices, means, (half, channels))
                group[half, :count] = symbols.reshape(-1, count)
            y[..., channels] = group[..., :count]
            if g + 1 < level:
                context = self._update(self.variables, context, g, group)
        return y
