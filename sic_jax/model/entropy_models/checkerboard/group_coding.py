"""The coding pass: latents to and from integers, level by level.

Encoder and decoder run the same pass. Only integers cross its boundary: known symbols go in, table
indices and integer means come out, and everything between is exact (`exact`). Latents of many sizes
share a program (`sic_jax.sizes.bucket`): what is beside them is zero wherever a neighbour reads it,
so that the integers are those of the latents alone.
"""

from collections.abc import Generator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.compilation_cache import jit_per_shape
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
from sic_jax.model.entropy_models.checkerboard.hyper import HYPER_STRIDE, hyper_synthesis
from sic_jax.model.entropy_models.coding_pass import Floats, Ints, Request
from sic_jax.model.entropy_models.scales import MEAN_BINS, ScaleGrid, table_indices
from sic_jax.model.levels import LevelConfig, level_starts, refinement_limit
from sic_jax.sizes import bucket, fill

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
    """`table_indices` of refinement channels, of the same shape: the integer mean is 0."""
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
        self._hyper = jit_per_shape(hyper_synthesis, static_argnames="shape")
        self._step = jit_per_shape(self._entropy_step)
        self._complete = jit_per_shape(partial(complete, levels=levels, scales=scales))

    def noise(self, seed: int, shape: tuple[int, ...]) -> Ints:
        """See `CodingPass`."""
        return normal_noise(seed, shape)

    def hyper(self, z_hat: Ints, shape: tuple[int, int]) -> Floats:
        """See `CodingPass`."""
        whole = bucket(*shape)
        z = fill(z_hat.astype(np.float32), (whole[0] // HYPER_STRIDE, whole[1] // HYPER_STRIDE))
        features = self._hyper(*whole)(
            self.layers["h_s"], z[None], shape=whole, size=np.array([shape], np.int32)
        )
        return np.asarray(features)[:, : shape[0], : shape[1]]

    def complete(
        self, y_s: Ints, hyper: Floats, level: int, noise: Ints, temperature: int
    ) -> Floats:
        """See `CodingPass`."""
        shape = y_s.shape[:2]
        y = y_s.astype(np.float32)
        if level == self.levels.num_levels:
            return y[None]
        whole = bucket(*shape)
        y_hat = self._complete(*whole)(
            self.layers["context"],
            y_s=fill(y, whole)[None],
            hyper=fill(np.asarray(hyper[0]), whole)[None],
            level=np.array([level], np.int32),
            noise=fill(noise, whole)[None],
            temperature=np.array([temperature], np.int32),
            size=np.array([shape], np.int32),
        )
        return np.asarray(y_hat)[:, : shape[0], : shape[1]]

    def _entropy_step(
        self,
        layers: Layers,
        g: jax.Array,
        first: jax.Array,
        hyper: jax.Array,
        y: jax.Array,
        anchors: jax.Array,
        context: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tables and means of a half of group g, and the group's context, found at its first half.

        Args:
            layers: Of the context model.
            g: Index of the group.
            first: Whether its anchors are asked for.
            hyper: h_s features [1, h, w, F_h].
            y: Symbols of earlier groups, [h, w, C].
            anchors: Those of the group, [h, w, G]; all zeros for the first half.
            context: What the first half returned, for the second.
        """
        context = jax.lax.cond(
            first,
            lambda: context_of_group(layers, g, log_by_table(y.astype(jnp.float32)[None])),
            lambda: context,
        )
        known = anchors.astype(jnp.float32)[None]
        (mean,), (scale,) = group_parameters(layers, self.scales, g, hyper, context, known)
        found = table_indices(mean, scale)
        refining = is_refinement(self.levels, g)
        index, whole = refinement_table_indices(mean, scale, self.scales)
        index, whole = (
            jnp.where(refining, a, b) for a, b in zip((index, whole), found, strict=True)
        )
        return index, whole, context

    def run(
        self, hyper: Floats, level: int, known: int = 0, y_s: Ints | None = None
    ) -> Generator[Request, Ints, Ints]:
        """See `CodingPass`; group by group, anchors first."""
        levels, layers = self.levels, self.layers["context"]
        shape = hyper.shape[1:3]
        whole = bucket(*shape)
        step, size = self._step(*whole), group_size(levels)
        starts = level_starts(levels)
        anchors_first = checkerboard(*shape)[..., 0]
        context: Floats = np.zeros((1, *whole, layers["context"].bias.shape[-1]), np.float32)
        # Both on the device from the start: as NumPy's, the first context would be another program.
        features, context = jax.device_put(
            (fill(np.asarray(hyper[0]), whole)[None], context), jax.devices("cpu")[0]
        )
        board = np.zeros((*whole, levels.num_channels), np.int32)
        y = board[: shape[0], : shape[1]]
        if y_s is not None:
            y[:] = y_s
        for g in range(known, level):
            count = levels.channels[g]
            channels = slice(int(starts[g]), int(starts[g + 1]))
            anchors = np.zeros((*whole, size), np.int32)
            group = anchors[: shape[0], : shape[1]]
            for half in (anchors_first, ~anchors_first):
                last = half is not anchors_first
                index, mean, context = step(
                    layers, np.int32(g), not last, features, board, anchors, context
                )
                indices = np.asarray(index)[: shape[0], : shape[1]][half, :count].ravel()
                means = np.asarray(mean)[: shape[0], : shape[1]][half, :count].ravel()
                symbols = yield Request(g + 1, indices, means, (half, channels), last)
                group[half, :count] = symbols.reshape(-1, count)
            y[..., channels] = group[..., :count]
        return y
