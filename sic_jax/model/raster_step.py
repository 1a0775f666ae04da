"""Entropy parameters of the paper's model for one step of coding.

At step t = column + 3 * row + 9 * group (`sic_jax.model.raster`) every symbol that the networks
read is known. The results equal those of `all_parameters` up to the rounding of floats, and not to
the bit: encoder and decoder must both walk.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.config import ModelConfig
from sic_jax.model.raster import SIDE, Params, context_kernel, entropy_parameters


class StepLayers(NamedTuple):
    """Weights of the coding steps, arranged once a model by `step_layers`."""

    context: list[jax.Array]
    """Of each group g, the part of the kernel that is not masked: [25 (g + 1) S, 2S]."""
    context_bias: jax.Array
    """[G, 2S]."""
    entropy_parameters: Mapping[str, Mapping[str, jax.Array]]


def step_layers(params: Params, cfg: ModelConfig) -> StepLayers:
    """Arrange the weights for `step_parameters`."""
    kernel = context_kernel(params, cfg)
    size = 2 * cfg.level_channels[0]
    return StepLayers(
        [kernel[:, :, : g + 1, :, g].reshape(-1, size) for g in range(cfg.num_levels)],
        params["context"]["masked"]["bias"].reshape(-1, size),
        params["entropy_parameters"],
    )


def step_parameters(
    layers: StepLayers,
    cfg: ModelConfig,
    y_hat: jax.Array,
    hyper: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(mu, sigma) [K, n, S] at n positions of each of the first K groups.

    Args:
      layers: Of `step_layers`.
      cfg: Of the model.
      y_hat: Integers of one picture with a border of `REACH` zeros: [h + 4, w + 4, C]. Symbols that
        are not decoded yet may have any finite value.
      hyper: `group_features` of the picture's h_s features, [h, w, G, 2S].
      rows: int [K, n], 0 to h - 1; K from 1 to L. Where a group needs fewer than n, the others may
        be any position.
      columns: int [K, n].
    """
    size = cfg.level_channels[0]
    reach = np.arange(SIDE)
    contexts = []
    for g in range(len(rows)):
        window = rows[g, :, None, None] + reach[:, None], columns[g, :, None, None] + reach
        patches = y_hat[..., : (g + 1) * size][window].reshape(rows.shape[1], -1)
        contexts.append(patches @ layers.context[g] + layers.context_bias[g])
    groups = np.arange(len(rows))[:, None]
    features = jnp.concatenate([hyper[rows, columns, groups], jnp.stack(contexts)], axis=-1)
    networks = jax.tree.map(lambda a: a[: len(rows)], layers.entropy_parameters)
    mu, scale = entropy_parameters(networks, features)
    return mu, jnp.maximum(scale, cfg.sigma_min)
