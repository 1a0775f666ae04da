"""The coding pass: latents to and from integers, level by level.

Encoder and decoder run the same pass. Only integers cross its boundary: known symbols go in, table
indices and integer means come out, and everything between is exact (`exact`).
"""

from collections.abc import Generator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.entropy.cdf_tables import CdfTables, joined_tables, limited_tables, logistic_tables
from sic_jax.entropy.counter_noise import normal_noise
from sic_jax.model.entropy_models.checkerboard.context import (
    checkerboard,
    complete,
    context_of_group,
    group_parameters,
    group_size,
    is_refinement,
    refinement_rows,
)
from sic_jax.model.entropy_models.checkerboard.detail import REFINEMENT_MEAN_LIMIT
from sic_jax.model.entropy_models.checkerboard.exact import Layers, log_by_table
from sic_jax.model.entropy_models.checkerboard.hyper import hyper_synthesis
from sic_jax.model.entropy_models.coding_pass import Ints, Request
from sic_jax.model.entropy_models.scales import MEAN_BINS, ScaleGrid, table_indices
from sic_jax.model.levels import LevelConfig, level_starts, refinement_limit

EntropyLayers = dict[str, Layers]
"""Integers of the entropy networks, `h_s` and `context`."""


def coding_tables(levels: LevelConfig, scales: ScaleGrid) -> CdfTables:
    """The tables of latents, numbered as by `table_indices` and `refinement_table_indices`."""
    refining = limited_tables(
        scales.sigmas, MEAN_BINS, limit=refinement_limit(levels), mean_limit=REFINEMENT_MEAN_LIMIT
    )
    return joined_tables(logistic_tables(scales.sigmas, MEAN_BINS), refining)


def num_coding_tables(scales: ScaleGrid) -> int:
    """How many tables that are."""
    return scales.num_sigmas * (MEAN_BINS + 2 * REFINEMENT_MEAN_LIMIT + 1)


def refinement_table_indices(
    mean: jax.Array, scale_index: jax.Array, scales: ScaleGrid
) -> tuple[jax.Array, jax.Array]:
    """`table_indices` of refinement channels: the integer mean is 0."""
    rows = refinement_rows(mean, scale_index)
    return scales.num_sigmas * MEAN_BINS + rows, jnp.zeros_like(rows)


class GroupCodingPass:
    """Compiled steps of the coding pass of one model; reused for all images and levels."""

    def __init__(self, levels: LevelConfig, scales: ScaleGrid, layers: EntropyLayers) -> None:
        """Place the entropy networks' integers on the CPU.

        Args:
            levels: Of the model.
            scales: Of the model.
            layers: Integers of the entropy networks.
        """
        self.levels = levels
        self.scales = scales
        self.layers = jax.device_put(layers, jax.devices("cpu")[0])
        self._hyper = jax.jit(hyper_synthesis, static_argnums=2)
        self._context = jax.jit(context_of_group)
        self._logs = jax.jit(log_by_table)
        self._step = jax.jit(self._entropy_step)
        self._complete = jax.jit(partial(complete, levels=levels, scales=scales))

    def noise(self, seed: int, shape: tuple[int, ...]) -> Ints:
        """See `CodingPass`."""
        return normal_noise(seed, shape)

    def hyper(self, z_hat: Ints, shape: tuple[int, int]) -> jax.Array:
        """See `CodingPass`."""
        features: jax.Array = self._hyper(self.layers["h_s"], z_hat.astype(np.float32)[None], shape)
        return features

    def complete(
        self, y_s: Ints, hyper: jax.Array, level: int, noise: Ints, temperature: int
    ) -> jax.Array:
        """See `CodingPass`."""
        y_hat: jax.Array = self._complete(
            self.layers["context"],
            y_s=y_s.astype(np.float32)[None],
            hyper=hyper,
            level=np.array([level], np.int32),
            noise=noise[None],
            temperature=np.array([temperature], np.int32),
        )
        return y_hat

    def _entropy_step(
        self, layers: Layers, g: jax.Array, hyper: jax.Array, context: jax.Array, anchors: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        known = anchors.astype(jnp.float32)[None]
        (mean,), (scale,) = group_parameters(layers, self.scales, g, hyper, context, known)
        found = table_indices(mean, scale)
        refining = is_refinement(self.levels, g)
        index, whole = refinement_table_indices(mean, scale, self.scales)
        return jnp.where(refining, index, found[0]), jnp.where(refining, whole, found[1])

    def run(self, hyper: jax.Array, level: int) -> Generator[Request, Ints, Ints]:
        """See `CodingPass`; group by group, anchors first."""
        levels, layers = self.levels, self.layers["context"]
        h, w = hyper.shape[1:3]
        starts, size = level_starts(levels), group_size(levels)
        anchors_first = checkerboard(h, w)[..., 0]
        y = np.zeros((h, w, levels.num_channels), np.int32)
        logs = np.zeros((1, h, w, levels.num_channels), np.float32)
        for g in range(level):
            count = levels.channels[g]
            channels = slice(int(starts[g]), int(starts[g + 1]))
            group = np.zeros((h, w, size), np.int32)
            context = self._context(layers, g, logs)
            for half in (anchors_first, ~anchors_first):
                index, mean = self._step(layers, g, hyper, context, group)
                indices = np.asarray(index)[half, :count].ravel()
                means = np.asarray(mean)[half, :count].ravel()
                last = half is not anchors_first
                symbols = yield Request(g + 1, indices, means, (half, channels), last)
                group[half, :count] = symbols.reshape(-1, count)
            y[..., channels] = group[..., :count]
            if g + 1 < level:
                logs[0, ..., channels] = self._logs(group.astype(np.float32))[..., :count]
        return y
