"""Hyper-analysis h_a, hyper-synthesis h_s and the prior of z."""

import math
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp

from sic_jax.entropy.distributions import FactorizedParams
from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.checkerboard.exact import (
    ACTIVATION_MAX,
    Layers,
    LayerSpec,
    rescale,
    shifted_products,
)
from sic_jax.model.transforms.base import depth_to_space, log_compress, space_to_depth

HYPER_PATCH = 4
"""Latent positions that one position of z covers in each direction."""


class HyperAnalysis(nn.Module):
    """h_a: y [B, h, w, C] to z [B, ceil(h/4), ceil(w/4), C_z]; sides are padded by repetition."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, y: jax.Array) -> jax.Array:
        """Y: unquantised latents."""
        pad_h, pad_w = -y.shape[1] % HYPER_PATCH, -y.shape[2] % HYPER_PATCH
        y = jnp.pad(y, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)), mode="edge")
        h = nn.Conv(self.cfg.hyper_width, (3, 3))(log_compress(y))
        for _ in range(2):
            h = nn.Conv(self.cfg.hyper_width, (1, 1))(space_to_depth(nn.leaky_relu(h, 0.1), 2))
        return nn.Conv(self.cfg.hyper_channels, (1, 1))(nn.leaky_relu(h, 0.1))


def hyper_synthesis_specs(cfg: ModelConfig) -> dict[str, LayerSpec]:
    """The layers of h_s."""
    width = cfg.hyper_width
    up = LayerSpec((width, 4 * width))
    return {
        "first": LayerSpec((9, cfg.hyper_channels, width), input_bits=0),
        "up_1": up,
        "up_2": up,
        "last": LayerSpec((9, width, width)),
    }


def hyper_synthesis(layers: Layers, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """h_s: z_hat to features [B, h, w, F] at the latents' resolution, in exact arithmetic.

    Args:
      layers: Of `hyper_synthesis_specs`.
      z_hat: Integers [B, ceil(h/4), ceil(w/4), C_z]; clipped to what the arithmetic allows.
      shape: (h, w), to which the features are cropped.
    """
    first, last = layers["first"], layers["last"]
    z_hat = jnp.clip(z_hat, -ACTIVATION_MAX, ACTIVATION_MAX)
    h = rescale(shifted_products(z_hat, first.kernel), first, leaky=True)
    for up in (layers["up_1"], layers["up_2"]):
        h = depth_to_space(rescale(h @ up.kernel, up, leaky=True), 2)
    h = rescale(shifted_products(h, last.kernel), last)
    return h[:, : shape[0], : shape[1]]


def _centred_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)


class FactorizedPrior(nn.Module):
    """Parameters of the deep factorised density of z, TensorFlow Compression's initial values."""

    channels: int
    filters: tuple[int, ...] = (3, 3)
    init_scale: float = 10.0
    learns_quantiles: bool = False
    """Whether z is rounded around a learned median, as in CompressAI."""

    @nn.compact
    def __call__(self) -> FactorizedParams:
        """The parameters as `deep_factorized_bits` takes them."""
        sizes = (1, *self.filters, 1)
        scale = self.init_scale ** (1 / (len(self.filters) + 1))
        matrices, biases, factors = [], [], []
        for k, (d_in, d_out) in enumerate(pairwise(sizes)):
            value = math.log(math.expm1(1 / scale / d_out))
            shape = (self.channels, d_out, 1)
            const = nn.initializers.constant(value)
            matrices.append(self.param(f"matrix_{k}", const, (self.channels, d_out, d_in)))
            biases.append(self.param(f"bias_{k}", _centred_uniform, shape))
            if k < len(self.filters):
                factors.append(self.param(f"factor_{k}", nn.initializers.zeros, shape))
        params: FactorizedParams = {"matrices": matrices, "biases": biases, "factors": factors}
        if self.learns_quantiles:
            start = jnp.array([-self.init_scale, 0.0, self.init_scale])
            params["quantiles"] = self.param(
                "quantiles", lambda _: jnp.tile(start, (self.channels, 1))
            )
        return params


def medians(prior: FactorizedParams) -> jax.Array:
    """Medians [C_z] of z, around which it is rounded; zeros if the prior has none."""
    if "quantiles" in prior:
        return prior["quantiles"][:, 1]
    return jnp.zeros(prior["matrices"][0].shape[0])
