"""The paper's entropy networks: h_a, h_s, the masked context model and the entropy parameters.

    y --h_a--> z --round around the median--> z_hat --h_s--> (scale_h | mean_h) --+
    y_hat --5x5 convolution, causal in raster order and in the level groups-------+
                                  1x1 network of each group --> (sigma, mu) <-----+

A symbol's parameters depend on z, on all earlier groups in its 5x5 neighbourhood, and on its own
group at the 12 neighbours that come before it in raster order. Hence the diagonals of

    t = column + 3 * row + 9 * group

can be decoded at once: an own-group neighbour has at most t - 1, and so has one of group - 1.
Training evaluates all symbols at once (`all_parameters`), coding diagonal after diagonal
(`wavefront`), with the same weights.

All functions take `params`, the model's parameter tree, and read `h_s`, `context` and
`entropy_parameters` of it. Everything is float32. Level groups are of equal size. Reference: Liang
et al. 2025; the authors' network, as described in the paper notes 2.3, 2.4 and 2.10.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.distributions import lower_bound, ste_round
from sic_jax.model.float_layers import ConvSpec, torch_uniform
from sic_jax.model.levels import LevelConfig
from sic_jax.model.maps import depth_to_space

Params = Mapping[str, Any]

REACH = 2
"""Positions that the context model sees in each direction."""
SIDE = 2 * REACH + 1
"""Of the context model's kernel."""
_LEAK = 0.01


def raster_specs(
    levels: LevelConfig, *, hyper_channels: int, synthesis_widths: tuple[int, int], head_width: int
) -> dict[str, dict[str, ConvSpec]]:
    """The layers that are applied by functions, by network and name."""
    c, (w_1, w_2) = levels.num_channels, synthesis_widths
    groups, size, hidden = levels.num_levels, levels.channels[0], head_width

    def deconvolution(side: int, inputs: int, outputs: int, gain: float) -> ConvSpec:
        # PyTorch counts the fans of transposed kernels by their first two axes.
        normal = nn.initializers.normal((gain / (inputs * side**2)) ** 0.5)
        bias = torch_uniform(outputs * side**2)
        return ConvSpec((side, side, inputs, outputs), normal, bias)

    def uniform(shape: tuple[int, ...], fan_in: int) -> ConvSpec:
        return ConvSpec(shape, torch_uniform(fan_in), torch_uniform(fan_in))

    return {
        "h_s": {
            "up_1": deconvolution(5, hyper_channels, w_1, 2.0),
            "up_2": deconvolution(5, w_1, w_2, 2.0),
            "last": deconvolution(3, w_2, 2 * c, 1.0),
        },
        "context": {"masked": uniform((SIDE, SIDE, c, 2 * c), SIDE**2 * c)},
        "entropy_parameters": {
            "dense_1": uniform((groups, 4 * size, hidden), 4 * size),
            "dense_2": uniform((groups, hidden, hidden), hidden),
            "dense_3": uniform((groups, hidden, 2 * size), hidden),
        },
    }


class HyperAnalysis(nn.Module):
    """h_a: y [B, h, w, C] to z [B, ceil(h/4), ceil(w/4), C_z], both unquantised.

    The authors pad pictures to multiples of 64, so that 4 divides h and w; any size will do here,
    as h_s is cropped.
    """

    width: int
    channels: int

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """Unquantised z of unquantised y."""
        width, h = self.width, y
        for k, (side, features) in enumerate(((3, width), (5, width), (5, self.channels))):
            gain = 1.0 if k == 2 else 2.0
            h = nn.Conv(
                features,
                (side, side),
                strides=1 if k == 0 else 2,
                padding=side // 2,
                kernel_init=nn.initializers.variance_scaling(gain, "fan_out", "normal"),
                bias_init=torch_uniform(side**2 * h.shape[-1]),
                name=f"conv_{k + 1}",
            )(h)
            if k < 2:
                h = nn.leaky_relu(h, _LEAK)
        return h


def hyper_features(params: Params, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """h_s: z_hat to [B, h, w, 2C], the scale half first, then the mean half.

    Args:
        params: Of the model.
        z_hat: [B, ceil(h/4), ceil(w/4), C_z], integers plus the medians.
        shape: (h, w), to which the features are cropped.
    """
    layers = params["h_s"]
    h = nn.relu(_double(layers["up_1"], z_hat))
    h = nn.relu(_double(layers["up_2"], h))
    # A transposed convolution of stride 1 is a convolution with the kernel turned round.
    last = layers["last"]
    bias = last["bias"][None, None, None]
    features: jax.Array = _convolution(h, last["kernel"][::-1, ::-1]) + bias
    return features[:, : shape[0], : shape[1]]


def _double(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Transposed 5x5 convolution of stride 2 (padding 2, output padding 1): sides double.

    Output 2m + a is the sum over d in (-1, 0, 1) of x[m + d] with the tap a + 2 - 2d: one 3x3
    convolution for the four parities together.
    """
    kernel = jnp.pad(layer["kernel"], ((0, 1), (0, 1), (0, 0), (0, 0)))
    taps = np.array([[4, 5], [2, 3], [0, 1]])  # The sixth is the padding.
    kernel = kernel[taps[:, None, :, None], taps[None, :, None, :]]
    inputs, outputs = kernel.shape[-2:]
    kernel = kernel.transpose(0, 1, 4, 2, 3, 5).reshape(3, 3, inputs, 4 * outputs)
    return depth_to_space(_convolution(x, kernel), 2) + layer["bias"][None, None, None]


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _context_mask(num_groups: int) -> NDArray[np.bool_]:
    """What a group of outputs may read: bool [tap row, tap column, input group, output group]."""
    inputs, outputs = np.ogrid[:num_groups, :num_groups]
    tap = np.arange(SIDE**2).reshape(SIDE, SIDE, 1, 1)
    causal = tap < SIDE**2 // 2
    return np.where(inputs == outputs, causal, inputs < outputs)


def context_kernel(params: Params, levels: LevelConfig) -> jax.Array:
    """The masked kernel [5, 5, G, S, G, 2S] of G groups of S channels: input, then output group."""
    groups, size = levels.num_levels, levels.channels[0]
    kernel = params["context"]["masked"]["kernel"]
    kernel = kernel.reshape(SIDE, SIDE, groups, size, groups, 2 * size)
    masked: jax.Array = jnp.where(_context_mask(groups)[:, :, :, None, :, None], kernel, 0)
    return masked


def context_features(params: Params, levels: LevelConfig, y_hat: jax.Array) -> jax.Array:
    """Context features of all groups, [B, h, w, G, 2S], of y_hat [B, h, w, C]."""
    c = levels.num_channels
    kernel = context_kernel(params, levels).reshape(SIDE, SIDE, c, 2 * c)
    bias = params["context"]["masked"]["bias"][None, None, None]
    features: jax.Array = _convolution(y_hat, kernel) + bias
    return features.reshape(*features.shape[:-1], levels.num_levels, -1)


def group_features(levels: LevelConfig, hyper: jax.Array) -> jax.Array:
    """h_s features [..., 2C] by group: [..., G, 2S], the scale part first."""
    halves = hyper.reshape(*hyper.shape[:-1], 2, levels.num_levels, -1)
    halves = jnp.moveaxis(halves, -3, -2)
    return halves.reshape(*halves.shape[:-2], -1)


def entropy_parameters(
    layers: Mapping[str, Mapping[str, jax.Array]], features: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The entropy-parameter network.

    Args:
        layers: `entropy_parameters` of the model's parameters, or a slice of some groups.
        features: h_s and context features [G, n, 4S].

    Returns:
        (mu, scale) [G, n, S]; sigma is the scale, bounded from below.
    """
    h = features
    for name in ("dense_1", "dense_2", "dense_3"):
        h = h @ layers[name]["kernel"] + layers[name]["bias"][:, None]
        if name != "dense_3":
            h = nn.leaky_relu(h, _LEAK)
    scale, mu = jnp.split(h, 2, axis=-1)
    return mu, scale


def all_parameters(
    params: Params, levels: LevelConfig, sigma_min: float, y_hat: jax.Array, hyper: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(mu, sigma) of all channels, [B, h, w, C], when y_hat is known (training).

    Args:
        params: Of the model.
        levels: Of the model.
        sigma_min: Least standard deviation.
        y_hat: Integers [B, h, w, C].
        hyper: `hyper_features` [B, h, w, 2C].
    """
    mu, scale = unbounded_parameters(params, levels, y_hat, hyper)
    return mu, lower_bound(scale, sigma_min)


def unbounded_parameters(
    params: Params, levels: LevelConfig, y_hat: jax.Array, hyper: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(mu, scale) of `all_parameters`, [B, h, w, C] each, before sigma is bounded."""
    context = context_features(params, levels, y_hat)
    features = jnp.concatenate([group_features(levels, hyper), context], axis=-1)
    by_group = jnp.moveaxis(features, -2, 0).reshape(levels.num_levels, -1, features.shape[-1])
    mu, scale = entropy_parameters(params["entropy_parameters"], by_group)

    def flatten(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a, 0, 1).reshape(y_hat.shape)

    return flatten(mu), flatten(scale)


def uniform_details(
    levels: LevelConfig, hyper: jax.Array, u: jax.Array, temperature: jax.Array
) -> jax.Array:
    """The paper's details: mu_h + U(-2, 2), rounded, around the mean half of h_s.

    Args:
        levels: Of the model.
        hyper: `hyper_features` [B, h, w, 2C].
        u: Uniform in [-1, 1], [B, h, w, C].
        temperature: [B], 1 in the paper; it scales the spread, 0 gives the rounded mean.

    Returns:
        Integers [B, h, w, C] with straight-through gradients to `hyper`.
    """
    mean = hyper[..., levels.num_channels :]
    return ste_round(mean + 2 * temperature[:, None, None, None] * u)
