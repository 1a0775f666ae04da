"""The coding pass of the paper's model, whose entropy networks compute in floats.

Encoder and decoder run the same compiled step on the same diagonals of the same latents, and thus
find the same tables, but only where the arithmetic agrees: with another processor, JAX or number of
threads, sums may be rounded differently, and a file is refused by the checksums of its symbols.
"""

from collections.abc import Generator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.compilation_cache import jit_per_shape
from sic_jax.entropy.counter_noise import NOISE_BITS, uniform_noise
from sic_jax.model.entropy_models.coding_pass import TEMPERATURE_BITS, Floats, Ints, Request
from sic_jax.model.entropy_models.prior import medians
from sic_jax.model.entropy_models.raster.networks import (
    Params,
    group_features,
    hyper_features,
    uniform_details,
)
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
from sic_jax.model.entropy_models.scales import MEAN_BINS, MEAN_LIMIT, ScaleGrid, table_indices
from sic_jax.model.levels import LevelConfig, merge_latents

# Uniform noise counts 1/1024 of its standard deviation, which is 1/sqrt(3) of its bound.
_NOISE_UNIT = 2.0**-NOISE_BITS * 3**-0.5


def quantise_parameters(
    mu: jax.Array, sigma: jax.Array, scales: ScaleGrid
) -> tuple[jax.Array, jax.Array]:
    """Means in sixteenths and the indices of the nearest scales, integers as float32.

    Any floats give valid integers. All four arrays have one shape.
    """
    mean = jnp.floor(jnp.nan_to_num(mu) * MEAN_BINS + 0.5)
    return jnp.clip(mean, -MEAN_LIMIT, MEAN_LIMIT), scales.index_of(sigma)


class DiagonalCodingPass:
    """Compiled steps of the coding pass of one model; reused for all levels.

    Each size of pictures is compiled; the programs of the last few are kept.
    """

    def __init__(self, levels: LevelConfig, scales: ScaleGrid, networks: Params) -> None:
        """Place the entropy networks on the CPU.

        Args:
            levels: Of the model.
            scales: Of the model.
            networks: Parameters of the prior of z, `h_s`, `context` and `entropy_parameters`.
        """
        self.levels = levels
        self.scales = scales
        networks = jax.device_put(networks, jax.devices("cpu")[0])
        self._medians = np.asarray(medians(networks["prior_z"]))
        self._networks = networks
        self._layers: StepLayers = jax.jit(partial(step_layers, levels=levels))(networks)
        self._hyper = jit_per_shape(hyper_features, static_argnames="shape")
        self._by_diagonal = jit_per_shape(self._features_by_diagonal)
        self._step = jit_per_shape(
            self._entropy_step, static_argnames="width", donate_argnames="board"
        )
        self._complete = jit_per_shape(self._with_details)

    def noise(self, seed: int, shape: tuple[int, ...]) -> Ints:
        """See `CodingPass`."""
        return uniform_noise(seed, shape)

    def hyper(self, z_hat: Ints, shape: tuple[int, int]) -> jax.Array:
        """See `CodingPass`; features [1, h, w, 2C]."""
        z = z_hat.astype(np.float32)[None] + self._medians
        networks = {"h_s": self._networks["h_s"]}
        features: jax.Array = self._hyper(*shape)(networks, z, shape=shape)
        return features

    def complete(
        self, y_s: Ints, hyper: Floats, level: int, noise: Ints, temperature: int
    ) -> Floats:
        """See `CodingPass`."""
        y_hat: jax.Array = self._complete(*y_s.shape[:2])(
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
        details = uniform_details(self.levels, hyper, u, temperature)
        return merge_latents(y_s, details, level, self.levels)

    def _features_by_diagonal(self, hyper: jax.Array, rows: Ints, columns: Ints) -> jax.Array:
        return by_diagonal(group_features(self.levels, hyper[0]), rows, columns)

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
        mu, sigma = step_parameters(
            layers, self.levels, self.scales.sigma_min, board, hyper, step, level, width
        )
        return board, *table_indices(*quantise_parameters(mu, sigma, self.scales))

    def run(
        self, hyper: Floats, level: int, known: int = 0, y_s: Ints | None = None
    ) -> Generator[Request, Ints, Ints]:
        """See `CodingPass`; diagonal by diagonal, all levels at once, row by row within one.

        Known levels pass by with the others, and are not asked for: what is summed stays the same.
        """
        levels, (h, w) = self.levels, hyper.shape[1:3]
        size, order = levels.channels[0], schedule(h, w)
        step_of_size = self._step(h, w)
        features = self._by_diagonal(h, w)(hyper, order.rows, order.columns)
        board: jax.Array = jax.device_put(
            empty_board(order, levels.num_channels), jax.devices("cpu")[0]
        )
        y = np.zeros((h, w, levels.num_channels), np.int32) if y_s is None else y_s.copy()
        shape = (levels.num_levels, order.rows.shape[1], size)
        symbols = np.zeros(shape, np.int32)
        for step in range(order.num_steps(level)):
            board, *tables = step_of_size(
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
                if g < known:
                    symbols[g, :n] = y[where]
                    continue
                last = diagonal == len(order.counts) - 1
                values = yield Request(
                    g + 1, indices[g, :n].ravel(), means[g, :n].ravel(), where, last
                )
                symbols[g, :n] = y[where] = values.reshape(n, size)
        return y
