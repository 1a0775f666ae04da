"""The one definition of levels: which channels of y a level adds, and the split y = (y_s, y_eps).

Channels are ordered by level; level l (1-based) codes the channels with ``channel_levels <= l``.
Within a level, refinement channels come first. A refinement channel carries the scaled rounding
residual of an earlier channel, so that low levels quantise coarsely and high levels finely.
`level` may be a traced integer or an array of one level an image.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.distributions import ste_round
from sic_jax.model.config import ModelConfig


def channel_levels(cfg: ModelConfig) -> NDArray[np.int32]:
    """Level (1-based) of each channel of y: int32 [C], non-decreasing."""
    levels = np.arange(1, cfg.num_levels + 1, dtype=np.int32)
    return np.repeat(levels, np.array(cfg.level_channels))


def level_starts(cfg: ModelConfig) -> NDArray[np.int32]:
    """First channel of each level and, last, C: int32 [L + 1]."""
    return np.concatenate([[0], np.cumsum(cfg.level_channels)]).astype(np.int32)


def refinement_sources(cfg: ModelConfig) -> NDArray[np.int32]:
    """For each channel of y the channel that it refines, or -1: int32 [C]."""
    sources: list[int] = []
    base: list[int] = []
    refined = 0
    for count, refinements in zip(cfg.level_channels, cfg.level_refinements, strict=True):
        sources += base[refined : refined + refinements]
        refined += refinements
        new = range(len(sources), len(sources) + count - refinements)
        base += new
        sources += [-1] * len(new)
    return np.array(sources, dtype=np.int32)


def refinement_limit(cfg: ModelConfig) -> int:
    """Largest magnitude of a refinement symbol: half of `refine_factor`, rounded down."""
    return cfg.refine_factor // 2


def add_refinements(y_base: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Spread g_a's channels [..., C_base] to y [..., C] and fill in the refinement channels.

    A refinement channel is ``refine_factor * (y_c - round(y_c))`` of its source c. `shrink` has
    been applied to channels that nothing refines.
    """
    sources = refinement_sources(cfg)
    is_base = sources < 0
    base_index = np.cumsum(is_base) - 1
    source_index = base_index[np.where(is_base, np.arange(cfg.num_channels), sources)]
    y = jnp.take(y_base, jnp.asarray(source_index), axis=-1)
    alone = is_base & ~np.isin(np.arange(cfg.num_channels), sources)
    base = jnp.where(alone, shrink(y, cfg.deadzone), y)
    return jnp.where(is_base, base, cfg.refine_factor * (y - ste_round(y)))


def shrink(y: jax.Array, deadzone: float) -> jax.Array:
    """Y brought nearer to 0, so that rounding has a wider zero: a dead-zone quantiser.

    By `deadzone` from 1/2 on, below proportionally less, so that gradients are nowhere 0. With
    peaked densities such a quantiser saves more bits than it costs error (Sullivan 1996).
    """
    return y - 2 * deadzone * jnp.clip(y, -0.5, 0.5)


def level_mask(level: jax.Array | int, cfg: ModelConfig) -> jax.Array:
    """Which channels are coded at `level`: bool [C], or [B, 1, 1, C] for levels of shape [B]."""
    level = jnp.asarray(level)
    if level.ndim:
        level = level[:, None, None, None]
    return jnp.asarray(channel_levels(cfg)) <= level


def split_latents(
    y: jax.Array, level: jax.Array | int, cfg: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """Split y [..., C] into (y_s, y_eps), each of y's shape with zeros in the other's channels.

    Reference: Liang et al. 2025, section 3 (synonymous and detail part of the latent).
    """
    mask = level_mask(level, cfg)
    return jnp.where(mask, y, 0), jnp.where(mask, 0, y)


def merge_latents(
    y_s: jax.Array, y_eps: jax.Array, level: jax.Array | int, cfg: ModelConfig
) -> jax.Array:
    """The inverse of `split_latents`: channels of `level` from y_s, the others from y_eps."""
    return jnp.where(level_mask(level, cfg), y_s, y_eps)
