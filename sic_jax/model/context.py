"""Checkerboard context model over the level groups and the prior sampler of the details.

The means and scales of a group's channels depend on z (through h_s), on all earlier groups in a
3x3 neighbourhood, and, at the second half of the checkerboard ("non-anchors"), on the group's own
first half ("anchors"):

    y_hat of groups < g --3x3--> context_g --+
    h_s(z_hat) ------------------------------+--> 1x1 network of group g --> mu, sigma
    anchors of group g ---3x3----------------+

Training evaluates all groups at once; coding walks group by group, anchors first. Both call
`_group`, and the context is a sum over earlier groups, so that the walk adds each group once.
All groups are padded to the same number of channels: one compilation serves every level.

Reference: He et al. 2021 (checkerboard), Minnen and Singh 2020 (channel groups), here combined.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.config import ModelConfig
from sic_jax.entropy.distributions import lower_bound
from sic_jax.model.levels import channel_levels, level_starts
from sic_jax.model.transforms import log_compress

Params = Mapping[str, jax.Array]


def checkerboard(h: int, w: int) -> NDArray[np.bool_]:
    """Anchor positions: bool [h, w, 1], true where row + column is even."""
    board: NDArray[np.bool_] = np.add.outer(np.arange(h), np.arange(w)) % 2 == 0
    return board[..., None]


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution with zero padding as nine shifted products: [B,h,w,I] by [9,I,O].

    Products instead of a convolution primitive, so that no backend can choose an algorithm that
    computes with other numbers.
    """
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    total = shifts[0] @ kernel[0]
    for shifted, k in zip(shifts[1:], kernel[1:], strict=True):
        total = total + shifted @ k
    return total


class ContextModel(nn.Module):
    """Entropy parameters of y, group by group. See the module's docstring."""

    cfg: ModelConfig

    def setup(self) -> None:
        """Create the parameters; those of the groups are stacked on the first axis."""
        cfg = self.cfg
        levels, group = cfg.num_levels, self.group_size
        width, hidden = cfg.context_width, cfg.head_width
        features = width + cfg.hyper_width + cfg.anchor_width

        def normal(fan_in: float) -> nn.initializers.Initializer:
            return nn.initializers.normal((2.0 / fan_in) ** 0.5)

        zeros = nn.initializers.zeros
        c = cfg.num_channels
        self.context_kernel = self.param("context_kernel", normal(9.0 * c), (9, c, levels * width))
        self.groups = {
            "anchor": self.param(
                "anchor_kernel", normal(4.0 * group), (levels, 9, group, cfg.anchor_width)
            ),
            "linear": self.param("linear_kernel", zeros, (levels, 9, group, group)),
            "w1": self.param("w1", normal(features), (levels, features, hidden)),
            "b1": self.param("b1", zeros, (levels, hidden)),
            "w2": self.param("w2", normal(hidden), (levels, hidden, hidden)),
            "b2": self.param("b2", zeros, (levels, hidden)),
            "w3": self.param("w3", normal(100.0 * hidden), (levels, hidden, 2 * group)),
            "b3": self.param("b3", zeros, (levels, 2 * group)),
        }

    @property
    def group_size(self) -> int:
        """Channels of the largest group, to which all are padded."""
        return max(self.cfg.level_channels)

    def _kernel(self) -> jax.Array:
        """Context kernel [9, C, L * F] with every path from a group to itself or before cut."""
        cfg = self.cfg
        targets = np.repeat(np.arange(1, cfg.num_levels + 1), cfg.context_width)
        causal = channel_levels(cfg)[:, None] < targets[None, :]
        return jnp.where(causal, self.context_kernel, 0)

    def context(self, y_hat: jax.Array) -> jax.Array:
        """Context of all groups, [B,h,w,L,F], from y_hat [B,h,w,C] (zeros where unknown)."""
        out = conv3x3(log_compress(y_hat), self._kernel())
        return out.reshape(*out.shape[:-1], self.cfg.num_levels, self.cfg.context_width)

    def context_of_group(self, g: jax.Array, y_group: jax.Array) -> jax.Array:
        """What group g (0-based) adds to `context`; y_group [B,h,w,G], zero beyond its size."""
        kernel = jnp.pad(self._kernel(), ((0, 0), (0, self.group_size), (0, 0)))
        start = jnp.asarray(level_starts(self.cfg))[g]
        part = jax.lax.dynamic_slice_in_dim(kernel, start, self.group_size, axis=1)
        out = conv3x3(log_compress(y_group), part)
        return out.reshape(*out.shape[:-1], self.cfg.num_levels, self.cfg.context_width)

    def _group(
        self, p: Params, hyper: jax.Array, context: jax.Array, anchors: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(mu, sigma) [B,h,w,G] of one group; `anchors` [B,h,w,G] is zero off the anchors."""
        second = ~checkerboard(*anchors.shape[1:3])
        own = jnp.where(second, conv3x3(log_compress(anchors), p["anchor"]), 0)
        linear = jnp.where(second, conv3x3(anchors, p["linear"]), 0)
        h = jnp.concatenate([context, hyper, own], axis=-1)
        h = nn.leaky_relu(h @ p["w1"] + p["b1"], 0.1)
        h = nn.leaky_relu(h @ p["w2"] + p["b2"], 0.1)
        mu, log_sigma = jnp.split(h @ p["w3"] + p["b3"], 2, axis=-1)
        log_sigma = lower_bound(log_sigma, float(np.log(self.cfg.sigma_min)))
        log_sigma = -lower_bound(-log_sigma, -float(np.log(self.cfg.sigma_max)))
        return mu + linear, jnp.exp(log_sigma)

    def group_parameters(
        self, g: jax.Array, hyper: jax.Array, context: jax.Array, anchors: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(mu, sigma) [B,h,w,G] of group g (0-based, traced) for one step of coding.

        Args:
          g: Index of the group.
          hyper: h_s features [B,h,w,F_h].
          context: Sum of the earlier groups' contexts [B,h,w,L,F].
          anchors: The group's symbols at the anchors, zeros elsewhere, [B,h,w,G]; all zeros for
            the first pass, whose result holds at the anchors only.
        """
        p = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, g, keepdims=False), self.groups)
        mine = jax.lax.dynamic_index_in_dim(context, g, axis=-2, keepdims=False)
        return self._group(p, hyper, mine, anchors)

    def __call__(self, y_hat: jax.Array, hyper: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mu, sigma) of all channels, [B,h,w,C], when y_hat [B,h,w,C] is known (training)."""
        cfg = self.cfg
        starts, size = level_starts(cfg), self.group_size
        index = starts[:-1, None] + np.arange(size)
        valid = np.arange(size) < np.array(cfg.level_channels)[:, None]
        y_groups = jnp.take(y_hat, jnp.asarray(np.where(valid, index, 0)), axis=-1)
        is_anchor = checkerboard(*y_hat.shape[1:3])[..., None]
        anchors = jnp.moveaxis(jnp.where(is_anchor & valid, y_groups, 0), -2, 0)
        context = jnp.moveaxis(self.context(y_hat), -2, 0)
        mu, sigma = jax.vmap(self._group, (0, None, 0, 0))(self.groups, hyper, context, anchors)
        order = np.flatnonzero(valid)

        def flatten(a: jax.Array) -> jax.Array:
            a = jnp.moveaxis(a, 0, -2)
            return jnp.take(a.reshape(*a.shape[:-2], -1), jnp.asarray(order), axis=-1)

        return flatten(mu), flatten(sigma)

    def sample_details(
        self,
        y_s: jax.Array,
        hyper: jax.Array,
        level: jax.Array,
        noise: jax.Array,
        temperature: jax.Array,
    ) -> jax.Array:
        """Draw the channels above `level` from the learned p(y_eps | y_s, z), group by group.

        Args:
          y_s: Decoded channels, zeros elsewhere, [B,h,w,C].
          hyper: h_s features [B,h,w,F_h].
          level: int [B].
          noise: Standard normal (or alike) [B,h,w,C].
          temperature: [B], scales sigma; 0 gives the means. g_s gets the draws as they are, the
            context model their rounded values, as it knows only integers.

        Returns:
          y_hat [B,h,w,C]: y_s in its channels, details in the others. No gradient flows.
        """
        cfg, size = self.cfg, self.group_size
        y_s, hyper, noise = map(jax.lax.stop_gradient, (y_s, hyper, noise))
        starts = jnp.asarray(level_starts(cfg))
        counts = jnp.asarray(np.array(cfg.level_channels))
        is_anchor = jnp.asarray(checkerboard(*y_s.shape[1:3]))
        pad = ((0, 0), (0, 0), (0, 0), (0, size))
        noise = jnp.pad(noise, pad)
        temperature = temperature[:, None, None, None]

        def draw(mu: jax.Array, sigma: jax.Array, n: jax.Array) -> jax.Array:
            return mu + temperature * sigma * n

        def body(g: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            y, context = carry
            known = (level > g)[:, None, None, None]
            valid = jnp.arange(size) < counts[g]
            old = jax.lax.dynamic_slice_in_dim(y, starts[g], size, axis=-1)
            n = jax.lax.dynamic_slice_in_dim(noise, starts[g], size, axis=-1)
            nothing = jnp.zeros_like(old)
            first = draw(*self.group_parameters(g, hyper, context, nothing), n)
            first = jnp.where(known, old, first)
            anchors = jnp.where(is_anchor & valid, jnp.round(first), 0)
            second = draw(*self.group_parameters(g, hyper, context, anchors), n)
            new = jnp.where(is_anchor, first, jnp.where(known, old, second))
            new = jnp.where(valid, new, old)
            added = jnp.where(valid & ~known, jnp.round(new), 0)
            context = context + self.context_of_group(g, added)
            return jax.lax.dynamic_update_slice_in_dim(y, new, starts[g], axis=-1), context

        start = (jnp.pad(y_s, pad), self.context(y_s))
        first_open = jnp.min(level)
        y, _ = jax.lax.fori_loop(first_open, cfg.num_levels, body, jax.lax.stop_gradient(start))
        y_hat: jax.Array = jax.lax.stop_gradient(y[..., : cfg.num_channels])
        return y_hat
