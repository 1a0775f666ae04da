"""The one definition of levels: which channels of y a level adds, and the split y = (y_s, y_eps).

Channels are ordered by level; level l (1-based) codes the channels with ``channel_levels <= l``.
Within a level, refinement channels come first. A refinement channel carries the scaled rounding
residual of an earlier channel, so that low levels quantise coarsely and high levels finely.
`level` may be a traced integer or an array of one level an image.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.distributions import ste_round
from sic_jax.fields import MAX_WIDTH, may_change, require


@dataclass(frozen=True, kw_only=True)
class LevelConfig:
    """The channels of y, cut into levels."""

    channels: tuple[int, ...] = (5, 3, 4, 5, 7, 8, 10, 10, 12, 14, 16, 18, 20, 24, 24, 28)
    """Channels that each level adds. L is their number; their sum is the number of channels of
    y."""
    refinements: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 8, 8, 8)
    """Number of each level's channels that refine earlier ones. Such a channel carries
    `refine_factor` times the rounding residual of the first channel that is not refined yet."""
    refine_factor: int = 3
    """Number of parts into which a refinement channel cuts a quantisation step."""
    deadzone: float = may_change(0.0, on="init_from")
    """Dead zone of the encoder's rounding, in quantisation steps: latents that nothing refines move
    so much nearer to 0 before they are rounded. 0: none."""

    def __post_init__(self) -> None:
        """Check the fields."""
        lc, lr = self.channels, self.refinements
        require(0 < len(lc) <= 64, self, "channels", lc, "a tuple of 1 to 64 channel counts")
        ok = all(c > 0 for c in lc) and sum(lc) <= MAX_WIDTH
        allowed = f"positive everywhere, {MAX_WIDTH} in all at most"
        require(ok, self, "channels", lc, allowed)
        ok = len(lr) == len(lc) and all(0 <= r <= c for r, c in zip(lr, lc, strict=True))
        require(ok, self, "refinements", lr, f"{len(lc)} counts, each at most its level's")
        base = 0
        refined = 0
        for c, r in zip(lc, lr, strict=True):
            refined += r
            require(refined <= base, self, "refinements", lr, "of channels of earlier levels")
            base += c - r
        factor = self.refine_factor
        require(2 <= factor <= 64, self, "refine_factor", factor, "at least 2, at most 64")
        require(0 <= self.deadzone < 0.5, self, "deadzone", self.deadzone, "in [0, 0.5)")

    @property
    def num_levels(self) -> int:
        """Number of levels, L."""
        return len(self.channels)

    @property
    def num_channels(self) -> int:
        """Channels of y, refinements included."""
        return sum(self.channels)

    @property
    def num_base_channels(self) -> int:
        """Channels that g_a yields."""
        return self.num_channels - sum(self.refinements)


def channel_levels(cfg: LevelConfig) -> NDArray[np.int32]:
    """Level (1-based) of each channel of y: int32 [C], non-decreasing."""
    levels = np.arange(1, cfg.num_levels + 1, dtype=np.int32)
    return np.repeat(levels, np.array(cfg.channels))


def level_starts(cfg: LevelConfig) -> NDArray[np.int32]:
    """First channel of each level and, last, C: int32 [L + 1]."""
    return np.concatenate([[0], np.cumsum(cfg.channels)]).astype(np.int32)


def refinement_sources(cfg: LevelConfig) -> NDArray[np.int32]:
    """For each channel of y the channel that it refines, or -1: int32 [C]."""
    sources: list[int] = []
    base: list[int] = []
    refined = 0
    for count, refinements in zip(cfg.channels, cfg.refinements, strict=True):
        sources += base[refined : refined + refinements]
        refined += refinements
        new = range(len(sources), len(sources) + count - refinements)
        base += new
        sources += [-1] * len(new)
    return np.array(sources, dtype=np.int32)


def refinement_limit(cfg: LevelConfig) -> int:
    """Largest magnitude of a refinement symbol: half of `refine_factor`, rounded down."""
    return cfg.refine_factor // 2


def add_refinements(y_base: jax.Array, cfg: LevelConfig) -> jax.Array:
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
    """Latents of any shape, nearer to 0, so that rounding has a wider zero: a dead-zone quantiser.

    By `deadzone` from 1/2 on, below proportionally less, so that gradients are nowhere 0. With
    peaked densities such a quantiser saves more bits than it costs error (Sullivan 1996).
    """
    return y - 2 * deadzone * jnp.clip(y, -0.5, 0.5)


def level_mask(level: jax.Array | int, cfg: LevelConfig) -> jax.Array:
    """Which channels are coded at `level`: bool [C], or [B, 1, 1, C] for levels of shape [B]."""
    level, first = jnp.asarray(level), jnp.asarray(channel_levels(cfg))
    if level.ndim:
        return first[None, None, None] <= level[:, None, None, None]
    return first <= level


def split_latents(
    y: jax.Array, level: jax.Array | int, cfg: LevelConfig
) -> tuple[jax.Array, jax.Array]:
    """Split y [..., C] into (y_s, y_eps), each of y's shape with zeros in the other's channels.

    Reference: Liang et al. 2025, section 3 (synonymous and detail part of the latent).
    """
    mask = level_mask(level, cfg)
    return jnp.where(mask, y, 0), jnp.where(mask, 0, y)


def merge_latents(
    y_s: jax.Array, y_eps: jax.Array, level: jax.Array | int, cfg: LevelConfig
) -> jax.Array:
    """The inverse of `split_latents`: channels of `level` from y_s, the others from y_eps.

    All have the shape [..., C]; for levels of shape [B] it is [B, h, w, C].
    """
    return jnp.where(level_mask(level, cfg), y_s, y_eps)
