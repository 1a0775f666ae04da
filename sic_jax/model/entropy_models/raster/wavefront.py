"""The order in which the paper's model is coded, and its entropy parameters for a step of it.

At step t = column + 3 row + 9 group every symbol that the parameters of a symbol depend on is known
(`networks`), so that a decoder needs (w - 1) + 3 (h - 1) + 9 (L - 1) + 1 steps instead
of h w L: 276 instead of 24 576 for 512 x 768 pixels and 16 levels.

A group meets in one step the positions of one diagonal, column + 3 row = d. Latents are kept by
diagonal, so that these positions and their neighbours are slices, not scattered:

    board[MARGIN + d, REACH + row - first row of d, channel]

with zeros where a row has no column on the diagonal, which are the zeros around the picture too. A
diagonal has at most min(h, ceil(w / 3)) positions: the board grows with the latents, not with the
square of their height.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from numpy.typing import NDArray

from sic_jax.entropy.distributions import lower_bound
from sic_jax.model.entropy_models.raster.networks import (
    REACH,
    SIDE,
    Params,
    context_kernel,
    entropy_parameters,
)
from sic_jax.model.levels import LevelConfig

ROW_STEP = 3
"""Steps between a position and the one below it."""
GROUP_STEP = 9
"""Steps between a symbol and the one of the next group at its place."""
MARGIN = (ROW_STEP + 1) * REACH
"""Diagonals that the context model sees in each direction."""
_TAP_ROWS, _TAP_COLUMNS = np.indices((SIDE, SIDE), np.int32).reshape(2, -1)
_TAP_DIAGONALS = ROW_STEP * (_TAP_ROWS - REACH) + _TAP_COLUMNS - REACH


class Schedule(NamedTuple):
    """The positions of each diagonal of latents [h, w], and what follows from them."""

    rows: NDArray[np.int32]
    """Row of each position of a diagonal, [D, n]; rising, and beyond `counts` without meaning."""
    columns: NDArray[np.int32]
    """Column of each position, [D, n]."""
    counts: NDArray[np.int32]
    """Positions of a diagonal, [D]; n at most."""

    def num_steps(self, level: int) -> int:
        """Steps of coding the levels 1 to `level`."""
        return len(self.counts) + GROUP_STEP * (level - 1)


def _first_row(diagonal: jax.Array, width: jax.Array | int) -> jax.Array:
    """Row of the first position of a diagonal."""
    return jnp.maximum(-(-(diagonal - width + 1) // ROW_STEP), 0)


def schedule(height: int, width: int) -> Schedule:
    """The schedule for latents of `height` x `width`, each at least 1."""
    diagonals = np.arange(width + ROW_STEP * (height - 1), dtype=np.int32)
    size = min(height, -(-width // ROW_STEP))
    first = np.maximum(-(-(diagonals - width + 1) // ROW_STEP), 0)
    rows = np.add.outer(first, np.arange(size, dtype=np.int32))
    columns = diagonals[:, None] - ROW_STEP * rows
    counts = ((rows < height) & (columns >= 0)).sum(1, dtype=np.int32)
    return Schedule(rows, columns, counts)


class StepLayers(NamedTuple):
    """Weights of the coding steps, arranged once a model by `step_layers`."""

    context: list[jax.Array]
    """Of each group g, the part of the kernel that is not masked: [25 * (g + 1) * S, 2S]."""
    context_bias: jax.Array
    """[G, 2S]."""
    entropy_parameters: Mapping[str, Mapping[str, jax.Array]]
    """The model's: kernels [G, I, O] and biases [G, O], by layer."""


def step_layers(params: Params, levels: LevelConfig) -> StepLayers:
    """Arrange the weights for `step_parameters`."""
    kernel = context_kernel(params, levels)
    size = 2 * levels.channels[0]
    return StepLayers(
        [kernel[:, :, : g + 1, :, g].reshape(-1, size) for g in range(levels.num_levels)],
        params["context"]["masked"]["bias"].reshape(-1, size),
        params["entropy_parameters"],
    )


def empty_board(order: Schedule, num_channels: int) -> NDArray[np.float32]:
    """No symbols yet: zeros [D + 2 * MARGIN, n + 2 * REACH, C], C channels."""
    diagonals, size = order.rows.shape
    return np.zeros((diagonals + 2 * MARGIN, size + 2 * REACH, num_channels), np.float32)


def by_diagonal(features: jax.Array, rows: ArrayLike, columns: ArrayLike) -> jax.Array:
    """Features [h, w, ...] as [D, n, ...]; anything where a diagonal has fewer positions.

    Rows and columns are those of a `Schedule`.
    """
    return features[jnp.minimum(rows, features.shape[0] - 1), jnp.maximum(columns, 0)]


def write_symbols(board: jax.Array, symbols: jax.Array, step: jax.Array) -> jax.Array:
    """Put the symbols [G, n, S] of a step onto the board; zeros where there is none."""
    groups, _, size = symbols.shape
    last = board.shape[0] - 2 * MARGIN
    for g in range(groups):
        # Beyond the picture the diagonals next to it take the zeros.
        diagonal = jnp.clip(step - GROUP_STEP * g, -1, last)
        place = MARGIN + diagonal, REACH, g * size
        board = lax.dynamic_update_slice(board, symbols[g][None], place)
    return board


def step_parameters(
    layers: StepLayers,
    levels: LevelConfig,
    sigma_min: float,
    board: jax.Array,
    hyper: jax.Array,
    step: jax.Array,
    level: jax.Array,
    width: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """(mu, sigma) [G, n, S] of the symbols of a step.

    Without meaning for groups that have no symbols in the step, or are above the level.

    Args:
        layers: Of `step_layers`.
        levels: Of the model.
        sigma_min: Least standard deviation.
        board: With the symbols of all earlier steps; those of later ones are not read.
        hyper: `by_diagonal` of `group_features`, [D, n, G, 2S].
        step: int.
        level: int, 1 to L.
        width: Of the latents.
    """
    diagonals, n, _, depth = hyper.shape
    size = levels.channels[0]
    features = []
    for g in range(levels.num_levels):
        diagonal = step - GROUP_STEP * g

        def gather(g: int = g, diagonal: jax.Array = diagonal) -> jax.Array:
            known = (g + 1) * size
            # A neighbour is at most REACH places from ours in its diagonal, on either side.
            other = diagonal + _TAP_DIAGONALS
            place = _first_row(diagonal, width) + _TAP_ROWS - _first_row(other, width)
            taps = jax.vmap(
                lambda d, k: lax.dynamic_slice(board, (MARGIN + d, k, 0), (1, n, known))[0]
            )(other, place)
            taps = jnp.moveaxis(taps, 0, 1).reshape(n, -1)
            context = taps @ layers.context[g] + layers.context_bias[g][None]
            own = lax.dynamic_slice(hyper, (diagonal, 0, g, 0), (1, n, 1, depth))
            return jnp.concatenate([own[0, :, 0], context], axis=-1)

        def nothing() -> jax.Array:
            return jnp.zeros((n, 2 * depth))

        active = (diagonal >= 0) & (diagonal < diagonals) & (g < level)
        features.append(lax.cond(active, gather, nothing))
    mu, scale = entropy_parameters(layers.entropy_parameters, jnp.stack(features))
    return mu, lower_bound(scale, sigma_min)
