"""The model: image to latents to rates and reconstructions, as one Flax module."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sic_jax.config import ModelConfig
from sic_jax.entropy.distributions import (
    FactorizedParams,
    deep_factorized_bits,
    normal_bits,
    ste_round,
)
from sic_jax.model.context import ContextModel
from sic_jax.model.hyper import FactorizedPrior, HyperAnalysis, HyperSynthesis
from sic_jax.model.levels import add_refinements, channel_levels, merge_latents, split_latents
from sic_jax.model.transforms import AnalysisTransform, SynthesisTransform

_ESCAPE_BITS = 18.0
"""What an outlier costs in a file, whatever the tail of its distribution says: the escape has at
least 2^-16 of a table's mass, and 2 bits follow it, 2 more for each doubling of the distance."""


class SicOutput(NamedTuple):
    """Result of a forward pass over B images."""

    x_hat: jax.Array
    """Reconstructions [B, H, W, 3], not clipped."""
    bits_z: jax.Array
    """Estimated bits of z_hat, [B]."""
    bits_y: jax.Array
    """Estimated bits of each level of y_hat, [B, L]."""
    y: jax.Array
    """Unquantised latents [B, H/16, W/16, C]."""
    y_hat: jax.Array
    """What g_s saw: quantised latents, details drawn above the level."""


class SicModel(nn.Module):
    """Synonymous Image Compression with the `conv` transforms.

        x -> g_a -> y -> round -> y_hat = (y_s | drawn y_eps) -> g_s(level) -> x_hat
                    y -> h_a -> z -> round -> z_hat -> h_s -> context model -> p(y_hat | z_hat)

    Reference: Liang et al. 2025; Balle et al. 2018 for the hyperprior.
    """

    cfg: ModelConfig
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Create the networks under the paper's symbols."""
        self.g_a = AnalysisTransform(self.cfg, self.dtype)
        self.g_s = SynthesisTransform(self.cfg, self.dtype)
        self.h_a = HyperAnalysis(self.cfg)
        self.h_s = HyperSynthesis(self.cfg)
        self.prior_z = FactorizedPrior(self.cfg.hyper_channels)
        self.context = ContextModel(self.cfg)
        if self.cfg.detail == "uniform":
            self.detail_mean = nn.Dense(self.cfg.num_channels)

    def analyse(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Unquantised (y, z) of images [B, H, W, 3] in [0, 1] with sides a multiple of 16."""
        y = add_refinements(self.g_a(x), self.cfg)
        return y, self.h_a(y)

    def hyper_features(self, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """h_s features [B, h, w, F_h] for latents of `shape` = (h, w)."""
        return self.h_s(z_hat, shape)

    def synthesise(self, y_hat: jax.Array, level: jax.Array) -> jax.Array:
        """Images [B, H, W, 3], not clipped, from latents and their levels int [B]."""
        return self.g_s(y_hat, level)

    def factorized_params(self) -> FactorizedParams:
        """Parameters of the prior of z."""
        return self.prior_z()

    def group_parameters(
        self, g: jax.Array, hyper: jax.Array, context: jax.Array, anchors: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `ContextModel.group_parameters`."""
        return self.context.group_parameters(g, hyper, context, anchors)

    def context_of_group(self, g: jax.Array, y_group: jax.Array) -> jax.Array:
        """See `ContextModel.context_of_group`."""
        return self.context.context_of_group(g, y_group)

    def complete(
        self,
        y_s: jax.Array,
        hyper: jax.Array,
        level: jax.Array,
        noise: jax.Array,
        temperature: jax.Array,
    ) -> jax.Array:
        """Fill the channels above `level` with details; gradients flow through y_s only.

        Args:
          y_s: Synonymous part, zeros elsewhere, [B, h, w, C].
          hyper: h_s features.
          level: int [B].
          noise: [B, h, w, C] of zero mean and unit variance, whichever sampler is used.
          temperature: [B]; 0 gives the mean of the details.
        """
        if self.cfg.detail == "uniform":
            # The paper's mu_h + U(-2, 2); a unit-variance uniform is U(-sqrt 3, sqrt 3).
            spread = temperature[:, None, None, None] * (2 / 3**0.5) * noise
            details = ste_round(self.detail_mean(hyper) + spread)
        else:
            details = self.context.sample_details(y_s, hyper, level, noise, temperature)
        return merge_latents(y_s, details, level, self.cfg)

    def __call__(
        self,
        x: jax.Array,
        level: jax.Array,
        *,
        temperature: jax.Array,
        key: jax.Array | None = None,
    ) -> SicOutput:
        """Encode, rate and decode a batch.

        Args:
          x: Images [B, H, W, 3] in [0, 1], sides a multiple of 16.
          level: int [B], 1..L, one an image.
          temperature: [B], of the details.
          key: With a key, rates are the noisy upper bound and details are random (training);
            without, rates are those of the rounded latents (evaluation) and details the mean.
        """
        cfg = self.cfg
        y, z = self.analyse(x)
        if key is None:
            y_rated, z_rated = jnp.round(y), jnp.round(z)
            noise, temperature = jnp.zeros_like(y), jnp.zeros_like(temperature)
        else:
            key_y, key_z, key_detail = jax.random.split(key, 3)
            y_rated = y + jax.random.uniform(key_y, y.shape, minval=-0.5, maxval=0.5)
            z_rated = z + jax.random.uniform(key_z, z.shape, minval=-0.5, maxval=0.5)
            if cfg.detail == "uniform":
                edge = 3**0.5
                noise = jax.random.uniform(key_detail, y.shape, minval=-edge, maxval=edge)
            else:
                noise = jax.random.normal(key_detail, y.shape)
        y_hat, z_hat = ste_round(y), ste_round(z)
        hyper = self.h_s(z_hat, (y.shape[1], y.shape[2]))
        mu, sigma = self.context(y_hat, hyper)
        bits = normal_bits(y_rated, mu, sigma)
        if key is None:
            distance = jnp.maximum(jnp.abs(y_rated - mu), 1.0)
            bits = jnp.minimum(bits, _ESCAPE_BITS + 2 * jnp.log2(distance))
        bits = bits.sum((1, 2))
        to_level = jax.nn.one_hot(channel_levels(cfg) - 1, cfg.num_levels)
        bits_z = deep_factorized_bits(self.prior_z(), z_rated).sum((1, 2, 3))
        y_s, _ = split_latents(y_hat, level, cfg)
        y_hat = self.complete(y_s, hyper, level, noise, temperature)
        return SicOutput(self.g_s(y_hat, level), bits_z, bits @ to_level, y, y_hat)
