"""The checkerboard context model over the level groups, and the details drawn from it.

The means and scales of a group's channels depend on z (through h_s), on all earlier groups in a
3x3 neighbourhood, and, at the second half of the checkerboard ("non-anchors"), on the group's own
first half ("anchors"):

    y_hat of groups < g --3x3--> context_g --+
    h_s(z_hat) ------------------------------+--> 1x1 network of group g --> mean, scale index
    anchors of group g --four neighbours-----+

Everything is exact arithmetic on integers (`exact`). Training evaluates all groups
at once; coding walks group by group, anchors first. Both call `_group`. All groups are padded to
the same number of channels: one compilation serves every level.

Reference: He et al. 2021 (checkerboard), Minnen and Singh 2020 (channel groups), here combined.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.distributions import lower_bound
from sic_jax.model.entropy_models.checkerboard.detail import (
    REFINEMENT_MEAN_LIMIT,
    detail_spreads,
    draw_detail,
    limited_moments,
    prior_sigmas,
    round_detail,
)
from sic_jax.model.entropy_models.checkerboard.exact import (
    ACTIVATION_MAX,
    CROSS,
    LOG_TABLE,
    NEIGHBOURHOOD,
    Layer,
    Layers,
    LayerSpec,
    log_by_table,
    rescale,
    shifted_products,
)
from sic_jax.model.entropy_models.scales import FRACTION_BITS, MEAN_LIMIT, ScaleGrid
from sic_jax.model.levels import LevelConfig, channel_levels, level_starts, merge_latents
from sic_jax.sizes import Size, inside

_SIGMA_ONE = 22 / 2**FRACTION_BITS
"""Initial scale output: index 22 is near sigma = 1 on the default grid."""


def checkerboard(h: int, w: int) -> NDArray[np.bool_]:
    """Anchor positions: bool [h, w, 1], true where row + column is even."""
    board: NDArray[np.bool_] = np.add.outer(np.arange(h), np.arange(w)) % 2 == 0
    return board[..., None]


def group_size(levels: LevelConfig) -> int:
    """Channels of the largest group, to which all are padded."""
    return max(levels.channels)


def context_specs(
    levels: LevelConfig, *, width: int, hyper_width: int, anchor_width: int, head_width: int
) -> dict[str, LayerSpec]:
    """The layers of the context model; those of the groups are stacked on the first axis.

    `context` gathers earlier groups, `anchor` and `linear` read a group's anchors, the former's
    logarithms and the latter's values; `dense_1` to `dense_3` are the 1x1 network.
    """
    count, group, c = levels.num_levels, group_size(levels), levels.num_channels
    features = width + hyper_width + anchor_width
    causal = channel_levels(levels) < np.arange(1, count + 1)[:, None]
    valid = np.arange(group) < np.array(levels.channels)[:, None]
    log_max = int(LOG_TABLE[-1])
    outputs = np.concatenate([valid, valid], axis=1)[:, None]
    scale_start = np.repeat(np.array([0, _SIGMA_ONE], np.float32), group)
    return {
        "context": LayerSpec(
            (count, len(NEIGHBOURHOOD), c, width),
            num_stacked=1,
            input_max=log_max,
            mask=causal[:, None, :, None],
        ),
        "anchor": LayerSpec(
            (count, len(CROSS), group, anchor_width),
            num_stacked=1,
            input_max=log_max,
            mask=valid[:, None, :, None],
        ),
        "linear": LayerSpec(
            (count, len(CROSS), group, group),
            num_stacked=1,
            input_bits=0,
            mask=valid[:, None, :, None] & valid[:, None, None],
            gain=0.0,
        ),
        "dense_1": LayerSpec((count, features, head_width), num_stacked=1),
        "dense_2": LayerSpec((count, head_width, head_width), num_stacked=1),
        "dense_3": LayerSpec(
            (count, head_width, 2 * group), num_stacked=1, mask=outputs, gain=0.02, bias=scale_start
        ),
    }


def context_of_group(layers: Layers, g: jax.Array, logs: jax.Array) -> jax.Array:
    """Context features [B,h,w,F] of group g (0-based, traced).

    Args:
        layers: Of `context_specs`.
        g: Index of the group.
        logs: `log_by_table` symbols [B,h,w,C]; those of group g and later ones are not read.
    """
    layer = _of_group(layers, g)["context"]
    return rescale(shifted_products(logs, layer.kernel), layer)


def _of_group(layers: Layers, g: jax.Array) -> Layers:
    """The layers of one group."""

    def mine(a: jax.Array) -> jax.Array:
        taken: jax.Array = jax.lax.dynamic_index_in_dim(a, g, keepdims=False)
        return taken

    layers_of_g: Layers = jax.tree.map(mine, layers)
    return layers_of_g


def _group(
    layers: Layers,
    scales: ScaleGrid,
    hyper: jax.Array,
    context: jax.Array,
    anchors: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """(mean, scale index) [B,h,w,G] of one group; `anchors` [B,h,w,G] is zero off the anchors.

    Without anchors the result holds at the anchors, and much less is computed.
    """
    features, linear = [context, hyper], jnp.float32(0)
    if anchors is not None:
        second = ~checkerboard(*anchors.shape[1:3])
        own = shifted_products(log_by_table(anchors), layers["anchor"].kernel, CROSS)
        features.append(jnp.where(second, rescale(own, layers["anchor"]), 0))
        raw = jnp.clip(anchors, -ACTIVATION_MAX, ACTIVATION_MAX)
        linear = shifted_products(raw, layers["linear"].kernel, CROSS)
        linear = jnp.where(second, rescale(linear, layers["linear"], limit=MEAN_LIMIT), 0)
    h = jnp.concatenate(features, axis=-1)
    h = rescale(h @ layers["dense_1"].kernel[: h.shape[-1]], layers["dense_1"], leaky=True)
    h = rescale(h @ layers["dense_2"].kernel, layers["dense_2"], leaky=True)
    out = rescale(h @ layers["dense_3"].kernel, layers["dense_3"], limit=MEAN_LIMIT)
    mean, scale = jnp.split(out, 2, axis=-1)
    mean = jnp.clip(mean + linear, -MEAN_LIMIT, MEAN_LIMIT)
    return mean, -lower_bound(-lower_bound(scale, 0.0), 1.0 - scales.num_sigmas)


def group_parameters(
    layers: Layers,
    scales: ScaleGrid,
    g: jax.Array,
    hyper: jax.Array,
    context: jax.Array,
    anchors: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Entropy parameters of group g (0-based, traced), for one step of coding.

    Args:
        layers: Of `context_specs`.
        scales: Of the model.
        g: Index of the group.
        hyper: h_s features [B,h,w,F_h].
        context: `context_of_group` [B,h,w,F].
        anchors: The group's symbols at the anchors, zeros elsewhere, [B,h,w,G]; all zeros or None
            for the first pass, whose result holds at the anchors only.

    Returns:
        (mean, scale index), integers as float32 [B,h,w,G]: the mean in sixteenths, clipped to
        +-2^15, and the index into the grid of scales, 0 to num_sigmas - 1.
    """
    return _group(_of_group(layers, g), scales, hyper, context, anchors)


def all_parameters(
    layers: Layers,
    levels: LevelConfig,
    scales: ScaleGrid,
    y_hat: jax.Array,
    hyper: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(mean, scale index) of all channels, [B,h,w,C], when y_hat [B,h,w,C] is known (training)."""
    starts, size = level_starts(levels), group_size(levels)
    index = starts[:-1, None] + np.arange(size)
    valid = np.arange(size) < np.array(levels.channels)[:, None]
    y_groups = jnp.take(y_hat, jnp.asarray(np.where(valid, index, 0)), axis=-1)
    is_anchor = checkerboard(*y_hat.shape[1:3])[..., None]
    anchors = jnp.moveaxis(jnp.where(is_anchor & valid, y_groups, 0), -2, 0)
    context = jnp.moveaxis(_all_contexts(layers["context"], y_hat), -2, 0)

    def group(p: Layers, context: jax.Array, anchors: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _group(p, scales, hyper, context, anchors)

    mean, scale = jax.vmap(group)(layers, context, anchors)
    order = np.flatnonzero(valid)

    def flatten(a: jax.Array) -> jax.Array:
        a = jnp.moveaxis(a, 0, -2)
        return jnp.take(a.reshape(*a.shape[:-2], -1), jnp.asarray(order), axis=-1)

    return flatten(mean), flatten(scale)


def _all_contexts(layer: Layer, y_hat: jax.Array) -> jax.Array:
    """Context features of all groups, [B,h,w,L,F], by one wide convolution."""
    levels, taps, inputs, width = layer.kernel.shape
    kernel = layer.kernel.transpose(1, 2, 0, 3).reshape(taps, inputs, levels * width)
    flat = Layer(kernel, layer.bias.reshape(-1), layer.scale.reshape(-1))
    out = rescale(shifted_products(log_by_table(y_hat), kernel), flat)
    return out.reshape(*out.shape[:-1], levels, width)


def refinement_rows(mean: jax.Array, scale_index: jax.Array) -> jax.Array:
    """Rows of `limited_tables`, int32, of means in sixteenths and scale indices of one shape."""
    fine = jnp.clip(mean.astype(jnp.int32), -REFINEMENT_MEAN_LIMIT, REFINEMENT_MEAN_LIMIT)
    row: jax.Array = scale_index.astype(jnp.int32) * (2 * REFINEMENT_MEAN_LIMIT + 1) + fine
    return row + REFINEMENT_MEAN_LIMIT


def is_refinement(levels: LevelConfig, g: jax.Array) -> jax.Array:
    """Which channels of group g (0-based, traced) refine others, they come first: bool [G]."""
    refining: jax.Array = jnp.arange(group_size(levels)) < jnp.array(levels.refinements)[g]
    return refining


def complete(
    layers: Layers,
    levels: LevelConfig,
    scales: ScaleGrid,
    y_s: jax.Array,
    hyper: jax.Array,
    level: jax.Array,
    noise: jax.Array,
    temperature: jax.Array,
    size: Size = None,
) -> jax.Array:
    """Draw the channels above `level` from the learned p(y_eps | y_s, z), group by group.

    Args:
        layers: Of `context_specs`.
        levels: Of the model.
        scales: Of the model.
        y_s: Decoded channels, zeros elsewhere, [B,h,w,C].
        hyper: h_s features [B,h,w,F_h].
        level: int [B].
        noise: int32 [B,h,w,C], as `sic_jax.model.entropy_models.checkerboard.detail` defines it.
        temperature: int32 [B], in 1/256; scales sigma; 0 gives the means. g_s gets the draws as
            they are, the context model their rounded values, as it knows only integers.
        size: Of latents that do not fill their array; zeros stay outside.

    Returns:
        y_hat [B,h,w,C]: y_s in its channels, details, multiples of 1/256, in the others. Gradients
        flow through y_s alone.
    """
    group = group_size(levels)
    layers, fixed, hyper = jax.lax.stop_gradient((layers, y_s, hyper))
    starts = jnp.asarray(level_starts(levels))
    counts = jnp.asarray(np.array(levels.channels))
    is_anchor = jnp.asarray(checkerboard(*y_s.shape[1:3]))[None]
    within = True if size is None else inside(y_s, size)
    pad = ((0, 0), (0, 0), (0, 0), (0, group))
    noise = jnp.pad(noise, pad)
    limited_means, limited_sigmas = limited_moments(scales, levels)
    table = detail_spreads(np.concatenate([prior_sigmas(scales), limited_sigmas]), temperature)

    def draw(parameters: tuple[jax.Array, jax.Array], n: jax.Array, g: jax.Array) -> jax.Array:
        mean, scale = parameters
        rows, refining = refinement_rows(mean, scale), is_refinement(levels, g)
        mean = jnp.where(refining, jnp.asarray(limited_means, jnp.float32)[rows], mean)
        index = jnp.where(refining, scales.num_sigmas + rows, scale.astype(jnp.int32))
        spread = jax.vmap(jnp.take)(table, index)
        return draw_detail(mean, spread, n)

    def body(g: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y, logs = carry
        known = (level > g)[:, None, None, None]
        valid = within & (jnp.arange(group) < counts[g])[None, None, None]
        context = context_of_group(layers, g, logs[..., : levels.num_channels])
        old = jax.lax.dynamic_slice_in_dim(y, starts[g], group, axis=-1)
        n = jax.lax.dynamic_slice_in_dim(noise, starts[g], group, axis=-1)
        first = draw(group_parameters(layers, scales, g, hyper, context, None), n, g)
        first = jnp.where(known, old, first)
        anchors = jnp.where(is_anchor & valid, round_detail(first), 0)
        second = draw(group_parameters(layers, scales, g, hyper, context, anchors), n, g)
        new = jnp.where(is_anchor, first, jnp.where(known, old, second))
        new = jnp.where(valid, new, old)
        return (
            jax.lax.dynamic_update_slice_in_dim(y, new, starts[g], axis=-1),
            jax.lax.dynamic_update_slice_in_dim(
                logs, log_by_table(round_detail(new)), starts[g], axis=-1
            ),
        )

    y = jnp.pad(fixed, pad)
    y, _ = jax.lax.fori_loop(jnp.min(level), levels.num_levels, body, (y, log_by_table(y)))
    return merge_latents(y_s, y[..., : levels.num_channels], level, levels)
