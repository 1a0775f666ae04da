"""Latent optimisation: latents of one picture, changed until its decodings come nearer to it.

g_a finds latents in one pass and has never seen this picture. With the decoder as it is, the
gradient of a loss of rate, squared error, LPIPS and DISTS (`LatentLossConfig`) with respect to the
integers says which of them to change. The files are files like others; only encoding takes longer.

Every latent has a continuous value v, at first g_a's, and is coded as q = round(v). A step decodes
q at one level and moves v against the gradient g there:

    v  <-  v - eta (m / s + gamma (v - q) / r)

m is the running mean of g; s, a channel's root mean square of g, makes steps of all channels
alike. r is a channel's root mean square of the first v - q. Without the second term noise would
push values over the edge of their interval, one after the other, and bits with them: it keeps those
where they are whose gradient is small or changes sign. Where q changes by d, the channel that
refines it changes by -d times its factor: the sum of both stays what it was, or nearly, as a
refinement keeps to the values that residuals can have.

Levels take turns, so that every prefix of the file gains. Decodings are compared without grain
(`sic_jax.codec.grain`).

Source: this project; latent optimisation: Campos et al. 2019, Yang et al. 2020.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.options import LatentLossConfig
from sic_jax.codec.windows import spans
from sic_jax.compilation_cache import jit_per_shape
from sic_jax.metrics.convnet import Features, Weights
from sic_jax.metrics.dists_metric import dists_features, dists_from_features, load_dists_weights
from sic_jax.metrics.lpips_metric import (
    MIN_SIZE,
    load_alexnet_weights,
    lpips_features,
    lpips_from_features,
)
from sic_jax.model.entropy_models.coding_pass import Floats
from sic_jax.model.levels import LevelConfig, refinement_limit, refinement_sources
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params

WINDOW = 32
"""Positions of a side of what is decoded at once: it bounds the memory."""
_MARGIN = 2
"""Positions next to a window's cut edge that it does not change: their decoding is not true."""
_RATE = 0.02
"""eta, at the first step; it falls to 0.3 times as much."""
_DISTS_EVERY = 2
"""DISTS, whose VGG16 takes most of a step's time, is in the loss of every second one, twice."""
_RETURN = 0.35
"""gamma."""
_MOMENTUM, _SQUARES = 0.9, 0.97
_LONGEST = 4.0
_TINY, _LEAST_REACH = 1e-20, 1e-3
_GOLDEN = (5**0.5 - 1) / 2


class OptimiserState(NamedTuple):
    """Of one window."""

    v: jax.Array
    """[1, h, w, C]."""
    mean: jax.Array
    """Running mean of gradients, of the shape of v."""
    square: jax.Array
    """Running mean of their squares, [C]."""


class _Target(NamedTuple):
    """What a window's decodings are compared with."""

    x: jax.Array
    """[1, H, W, 3] in [0, 1]."""
    lpips: Features
    dists: Features


class _Networks(NamedTuple):
    """Weights of the perceptual networks."""

    lpips: Weights
    dists: Weights


def level_of_step(step: int, level: int) -> int:
    """Which of the levels 1 to `level` a step, from 0, decodes; a few steps in a row are spread."""
    return 1 + int(level * ((step + 1) * _GOLDEN % 1))


class LatentOptimiser:
    """The compiled optimiser of one model."""

    def __init__(self, cfg: ModelConfig, loss: LatentLossConfig, params: Params) -> None:
        """Load the networks of LPIPS and DISTS.

        Args:
            cfg: The model's config.
            loss: Weights.
            params: The model's parameters, better on the device already.
        """
        self._cfg = cfg
        self._loss = loss
        self._variables = {"params": params}
        levels = cfg.num_levels
        self._lmbda_dist = np.geomspace(*loss.lmbda_dist, levels).astype(np.float32)
        self._lmbda_perc = np.geomspace(*loss.lmbda_perc, levels).astype(np.float32)
        self._networks = jax.device_put(_Networks(load_alexnet_weights(), load_dists_weights()))
        self._target = jit_per_shape(_target)
        self._step = jit_per_shape(
            self._optimise_step, donate_argnames="state", static_argnames="dists"
        )

    def __call__(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.float32],
        hyper: Floats,
        *,
        level: int,
        steps: int,
        on_step: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.int32]:
        """Integers y_hat [h, w, C] for a picture.

        Args:
            x: uint8 [H, W, 3], sides multiples of the stride.
            y: g_a's latents [h, w, C], not rounded.
            hyper: h_s features [1, h, w, F_h] of the picture's z_hat, which stays as it is.
            level: Highest level that is looked at; channels above it come back as round(y), but for
                those that refine a channel that changed.
            steps: Of each window. With none, and for pictures less than 32 pixels high or wide, for
                which LPIPS is not defined, the result is round(y).
            on_step: Called after each step with the number of those that are done and of all.
        """
        out = np.array(y)
        if not steps or min(x.shape[:2]) < MIN_SIZE:
            return np.round(out).astype(np.int32)
        margin = None if self._cfg.transforms.synthesis_reach is None else _MARGIN
        rows, columns = (spans(n, WINDOW, margin) for n in y.shape[:2])
        windows = list(itertools.product(rows, columns))
        done = itertools.count(1)

        def report() -> None:
            if on_step is not None:
                on_step(next(done), len(windows) * steps)

        for row, column in windows:
            at = slice(row.start, row.stop), slice(column.start, column.stop)
            keep = np.zeros((1, row.stop - row.start, column.stop - column.start, 1), np.bool_)
            keep[:, row.inside, column.inside] = True
            stride = self._cfg.stride
            pixels = tuple(slice(stride * s.start, stride * s.stop) for s in at)
            # What windows before this one found is rounded already, and stays so.
            v = self._optimise(x[pixels], out[at], keep, hyper[:, *at], level, steps, report)
            kept = out[row.keep, column.keep]
            kept[...] = np.round(v[row.inside, column.inside])
        return out.astype(np.int32)

    def _optimise(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.float32],
        keep: NDArray[np.bool_],
        hyper: Floats,
        level: int,
        steps: int,
        report: Callable[[], None],
    ) -> NDArray[np.float32]:
        """The v [h, w, C] of a window, not rounded."""
        shape, v = y.shape[:2], y[None]
        target = self._target(*shape)(x[None], self._networks)
        reach = np.sqrt(np.square(v - np.round(v)).mean((0, 1, 2)))
        nothing = np.zeros_like(v)
        state = OptimiserState(*jax.device_put((v, nothing, nothing[0, 0, 0])))
        step_of_size = self._step(*shape)
        for step in range(steps):
            k = np.array([level_of_step(step, level)], np.int32)
            eta = np.float32(_RATE * (1 - 0.7 * step / steps))
            state = step_of_size(
                state, np.float32(step + 1), eta, k, target, hyper, keep, reach,
                self._variables, self._networks, dists=step % _DISTS_EVERY == 0,
            )  # fmt: skip
            jax.block_until_ready(state.v)  # Else steps are reported before they are computed.
            report()
        found: NDArray[np.float32] = np.asarray(state.v)[0]
        return found

    def _optimise_step(
        self,
        state: OptimiserState,
        number: jax.Array,
        eta: jax.Array,
        level: jax.Array,
        target: _Target,
        hyper: jax.Array,
        keep: jax.Array,
        reach: jax.Array,
        variables: Any,
        networks: _Networks,
        *,
        dists: bool,
    ) -> OptimiserState:
        """The state after step `number`, counted from 1, with or without DISTS in its loss."""
        q = jnp.round(state.v)
        g = jax.grad(self._loss_of)(q, level, target, hyper, variables, networks, dists)
        return descend(state, g, number, eta, keep, reach, self._cfg.levels)

    def _loss_of(
        self,
        q: jax.Array,
        level: jax.Array,
        target: _Target,
        hyper: jax.Array,
        variables: Any,
        networks: _Networks,
        dists: bool,
    ) -> jax.Array:
        """The loss of latents q [1, h, w, C] of a window, decoded at `level`, int [1].

        A window that starts at an odd position takes one half of the checkerboard for the other:
        its bits are not quite those of the file.
        """
        cfg = self._cfg
        model: Any = SicModel(cfg)
        entropy: Any = cfg.entropy.networks(cfg.levels)
        bits = entropy.apply(variables, q, q, hyper, method="level_bits")
        temperature = jnp.zeros(1)
        y_hat = model.apply(variables, q, hyper, level, temperature=temperature, method="complete")
        x_hat = model.apply(variables, y_hat, level, method="synthesise")
        coded = jnp.arange(1, self._cfg.num_levels + 1) <= level
        bpp = jnp.where(coded, bits[0], 0).sum() / (q.shape[1] * q.shape[2] * self._cfg.stride**2)
        lpips, vgg = networks
        features = lpips_features(x_hat, weights=lpips)
        perceptual = lpips_from_features(target.lpips, features, weights=lpips)
        if dists:
            features = dists_features(x_hat, weights=vgg)
            share = _DISTS_EVERY * self._loss.dists_weight
            perceptual += share * dists_from_features(target.dists, features, weights=vgg)
        lmbda_dist = jnp.array(self._lmbda_dist, jnp.float32)
        lmbda_perc = jnp.array(self._lmbda_perc, jnp.float32)
        distortion = lmbda_dist[level - 1] * jnp.square(target.x - x_hat).mean()
        loss: jax.Array = bpp + distortion + lmbda_perc[level - 1] * perceptual
        return loss.sum()


def descend(
    state: OptimiserState,
    g: jax.Array,
    number: jax.Array,
    eta: jax.Array,
    keep: jax.Array,
    reach: jax.Array,
    levels: LevelConfig,
) -> OptimiserState:
    """One step of v against a gradient.

    Args:
        state: Before the step.
        g: Gradient with respect to round(v), [1, h, w, C].
        number: Of the step, from 1.
        eta: Its length.
        keep: bool [1, h, w, 1], the positions that move.
        reach: r of each channel, [C].
        levels: The channels of y.
    """
    q = jnp.round(state.v)
    g = jnp.where(keep, g, 0)
    mean = _MOMENTUM * state.mean + (1 - _MOMENTUM) * g
    square = jnp.square(g).sum((0, 1, 2)) / keep.sum(dtype=jnp.float32)
    square = _SQUARES * state.square + (1 - _SQUARES) * square
    # Running means that begin with zeros are too small by these factors.
    m = mean / (1 - _MOMENTUM**number)
    s = jnp.sqrt(square / (1 - _SQUARES**number))[None, None, None]
    reach = reach[None, None, None]
    move = m / jnp.maximum(s, _TINY) + _RETURN * (state.v - q) / (reach + _LEAST_REACH)
    v = state.v - jnp.where(keep, eta * jnp.clip(move, -_LONGEST, _LONGEST), 0)
    sources = refinement_sources(levels)
    refining = np.flatnonzero(sources >= 0)
    changed = (jnp.round(v) - q)[..., sources[refining]]
    # Beyond its limit a refinement would cost an escape, for the sake of one of its steps.
    limit = refinement_limit(levels) + 0.49
    refined = v[..., refining] - levels.refine_factor * changed
    v = v.at[..., refining].set(jnp.clip(refined, -limit, limit))
    return OptimiserState(v, mean, square)


def _target(x: jax.Array, networks: _Networks) -> _Target:
    x = x.astype(jnp.float32) / 255
    lpips, dists = networks
    return _Target(x, lpips_features(x, weights=lpips), dists_features(x, weights=dists))
