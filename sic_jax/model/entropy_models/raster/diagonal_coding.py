"""The coding pass of the paper's model, whose entropy networks compute in floats.

Encoder and decoder run the same compiled step on the same diagonals of the same latents, and thus
find the same tables, but only where the arithmetic agrees: with another processor, JAX or number of
threads, sums may be rounded differently, and a file is refused by the checksums of its symbols.
"""

from collections.abc import Generator
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.checkerboard.context import MEAN_BINS, MEAN_LIMIT
from sic_jax.model.entropy_models.checkerboard.detail import (
    NOISE_BITS,
    TEMPERATURE_BITS,
    uniform_noise,
)
from sic_jax.model.entropy_models.checkerboard.group_coding import Ints, Request, table_indices
from sic_jax.model.entropy_models.checkerboard.hyper import medians
from sic_jax.model.entropy_models.raster import networks as raster
from sic_jax.model.entropy_models.raster.wavefront import (
    GROUP_STEP,
    StepLayers,
    by_diagonal,
    empty_board,
    schedule,
    step_layers,
    step_parameters,
    write_symbols,
)
from sic_jax.model.levels import merge_latents
from sic_jax.model.params import Params
from sic_jax.model.sic import SicModel

# Uniform noise counts 1/1024 of its standard deviation, which is 1/sqrt(3) of its bound.
_NOISE_UNIT = 2.0**-NOISE_BITS * 3**-0.5


def quantise_parameters(
    mu: jax.Array, sigma: jax.Array, cfg: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """Means in sixteenths and the indices of the nearest scales, integers as float32.

    Any floats give valid integers.
    """
    mean = jnp.floor(jnp.nan_to_num(mu) * MEAN_BINS + 0.5)
    step = np.log(cfg.sigma_max / cfg.sigma_min) / (cfg.num_sigmas - 1)
    scale = jnp.log(jnp.nan_to_num(sigma, nan=cfg.sigma_min) / cfg.sigma_min) / np.float32(step)
    scale = jnp.clip(jnp.floor(scale + 0.5), 0, cfg.num_sigmas - 1)
    return jnp.clip(mean, -MEAN_LIMIT, MEAN_LIMIT), scale


class FloatCodingPass:
    """Compiled steps of the coding pass of one model; reused for all levels, compiled a size."""

    float_entropy: Final = True
    """What a file's header says."""
    noise: Final = staticmethod(uniform_noise)
    """Noise of the details, int32, of a seed and a shape [h, w, C]."""

    def __init__(self, cfg: ModelConfig, params: Params) -> None:
        """Place the entropy networks on the CPU.

        Args:
          cfg: The model's config.
          params: Its parameters.
        """
        self.cfg = cfg
        networks = {k: v for k, v in params.items() if k not in ("g_a", "g_s", "h_a")}
        networks = jax.device_put(networks, jax.devices("cpu")[0])
        prior: Any = SicModel(cfg).apply({"params": networks}, method="factorized_params")
        self._medians = medians(prior)
        self._networks = networks
        self._layers: StepLayers = jax.jit(partial(step_layers, cfg=cfg))(networks)
        self._hyper = jax.jit(raster.hyper_features, static_argnums=2)
        self._by_diagonal = jax.jit(self._features_by_diagonal)
        self._step = jax.jit(self._entropy_step, static_argnames="width", donate_argnames="board")
        self._complete = jax.jit(self._with_details)

    def hyper(self, z_hat: Ints, shape: tuple[int, int]) -> jax.Array:
        """h_s features [1, h, w, 2C] of z_hat int32 [h/4, w/4, C_z], for latents of `shape`."""
        z = z_hat.astype(np.float32)[None] + self._medians
        features: jax.Array = self._hyper({"h_s": self._networks["h_s"]}, z, shape)
        return features

    def complete(
        self, y_s: Ints, hyper: jax.Array, level: int, noise: Ints, temperature: int
    ) -> jax.Array:
        """Latents for g_s, float32 [1, h, w, C]: y_s int32 [h, w, C] and details above `level`.

        Noise is int32 [h, w, C], `temperature` in 1/256: see `sic_jax.model.entropy_models.checkerboard.detail`.
        """
        y_hat: jax.Array = self._complete(
            y_s.astype(np.float32)[None],
            hyper,
            np.array([level], np.int32),
            noise[None].astype(np.float32) * np.float32(_NOISE_UNIT),
            np.array([temperature], np.float32) / 2**TEMPERATURE_BITS,
        )
        return y_hat

    def _with_details(
        self,
        y_s: jax.Array,
        hyper: jax.Array,
        level: jax.Array,
        u: jax.Array,
        temperature: jax.Array,
    ) -> jax.Array:
        details = raster.uniform_details(self.cfg, hyper, u, temperature)
        return merge_latents(y_s, details, level, self.cfg)

    def _features_by_diagonal(self, hyper: jax.Array, rows: Ints, columns: Ints) -> jax.Array:
        return by_diagonal(raster.group_features(self.cfg, hyper[0]), rows, columns)

    def _entropy_step(
        self,
        layers: StepLayers,
        board: jax.Array,
        hyper: jax.Array,
        symbols: jax.Array,
        step: jax.Array,
        level: jax.Array,
        *,
        width: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The board with the symbols of the step before, and the tables and means of this one."""
        board = write_symbols(board, symbols.astype(jnp.float32), step - 1)
        mu, sigma = step_parameters(layers, self.cfg, board, hyper, step, level, width)
        return board, *table_indices(*quantise_parameters(mu, sigma, self.cfg))

    def run(self, hyper: jax.Array, level: int) -> Generator[Request, Ints, Ints]:
        """Walk the diagonals of levels 1..level, all levels at once.

        Yields requests and expects the symbols of each, int32 [n], by `send`. A level's symbols are
        asked for diagonal by diagonal, row by row within one.

        Args:
          hyper: h_s features [1, h, w, 2C].
          level: 1..L.

        Returns:
          y_s: int32 [h, w, C], zeros above `level`.
        """
        cfg, (h, w) = self.cfg, hyper.shape[1:3]
        size, order = cfg.level_channels[0], schedule(h, w)
        features = self._by_diagonal(hyper, order.rows, order.columns)
        board = empty_board(order, cfg.num_channels, device=jax.devices("cpu")[0])
        y = np.zeros((h, w, cfg.num_channels), np.int32)
        shape = (cfg.num_levels, order.rows.shape[1], size)
        symbols = np.zeros(shape, np.int32)
        for step in range(order.num_steps(level)):
            board, *tables = self._step(
                self._layers,
                board,
                features,
                symbols,
                np.int32(step),
                np.int32(level),
                width=w,
            )
            indices, means = (np.asarray(a) for a in tables)
            symbols = np.zeros(shape, np.int32)
            for g in range(level):
                diagonal = step - GROUP_STEP * g
                if not 0 <= diagonal < len(order.counts):
                    continue
                n = order.counts[diagonal]
                where = (
                    order.rows[diagonal, :n],
                    order.columns[diagonal, :n],
                    slice(g * size, (g + 1) * size),
                )
                last = diagonal == len(order.counts) - 1
                values = yield Request(
                    g + 1, indices[g, :n].ravel(), means[g, :n].ravel(), where, last
                )
                symbols[g, :n] = y[where] = values.reshape(n, size)
        return y
