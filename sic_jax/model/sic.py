"""The model: image to latents to rates and reconstructions, as one Flax module."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from sic_jax.entropy.distributions import (
    NO_REACH,
    FactorizedParams,
    deep_factorized_bits,
    logistic_bits,
    normal_bits,
    ste_round,
)
from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.checkerboard.context import (
    MEAN_BINS,
    EntropyLayers,
    all_parameters,
    complete,
    entropy_specs,
    sigmas_of,
)
from sic_jax.model.entropy_models.checkerboard.detail import TEMPERATURE_BITS, random_normal_noise
from sic_jax.model.entropy_models.checkerboard.exact import ExactLayers
from sic_jax.model.entropy_models.checkerboard.hyper import (
    FactorizedPrior,
    HyperAnalysis,
    hyper_synthesis,
)
from sic_jax.model.entropy_models.raster import networks as raster
from sic_jax.model.float_layers import ConvLayers
from sic_jax.model.levels import (
    add_refinements,
    channel_levels,
    merge_latents,
    refinement_limit,
    refinement_sources,
    split_latents,
)
from sic_jax.model.noise import draw_each, split_keys, unit_noise
from sic_jax.model.transforms.pyramid import PyramidAnalysis, PyramidSynthesis
from sic_jax.model.transforms.swin import SwinAnalysis, SwinSynthesis

_ESCAPE_BITS = 18.0
"""What an outlier costs in a file, whatever the tail of its distribution says: the escape has at
least 2^-16 of a table's mass, and 2 bits follow it, 2 more for each doubling of the distance."""


class Rated(NamedTuple):
    """Quantised latents of B images and their bits."""

    bits_z: jax.Array
    """Estimated bits of z_hat, [B]."""
    bits_y: jax.Array
    """Estimated bits of each level of y_hat, [B, L]."""
    y_hat: jax.Array
    """Rounded latents [B, h, w, C], with straight-through gradients."""
    hyper: jax.Array
    """What `SicModel.complete` needs of z_hat, batch first."""


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


def quantise_hyper(prior: FactorizedParams, z: jax.Array) -> jax.Array:
    """z_hat: z [..., C_z] rounded around the medians, if any, with straight-through gradients."""
    if "quantiles" not in prior:
        return ste_round(z)
    medians = prior["quantiles"][:, 1]
    return ste_round(z - medians) + medians


class SicModel(nn.Module):
    """Synonymous Image Compression.

        x -> g_a -> y -> round -> y_hat = (y_s | drawn y_eps) -> g_s(level) -> x_hat
                    y -> h_a -> z -> round -> z_hat -> h_s -> context model -> p(y_hat | z_hat)

    The pictures that a receiver may take for x form a synset. The synonymous part y_s, the channels
    up to the level, tells which synset it is and is all that a file holds; the detail part y_eps
    tells the members apart, and any draw of it decodes to one. The posterior of the quantised
    latents is a uniform density of unit width, so that it costs nothing: what is left of the
    variational bound is the rate of y_s and z and what the drawn members' reconstructions cost
    (`sic_jax.training.losses`).

    Reference: Liang et al. 2025, section 3; Balle et al. 2018 for the hyperprior.
    """

    cfg: ModelConfig
    dtype: DTypeLike | None = None
    """Of the transforms' features; parameters stay float32, and so do the entropy networks."""
    remat: bool = False
    """Whether gradients recompute the blocks of the transforms instead of keeping them."""

    def setup(self) -> None:
        """Create the networks under the paper's symbols."""
        cfg = self.cfg
        if cfg.transforms == "swin":
            self.g_a: nn.Module = SwinAnalysis(cfg, self.dtype, self.remat)
            self.g_s: nn.Module = SwinSynthesis(cfg, self.dtype, self.remat)
        else:
            self.g_a = PyramidAnalysis(cfg.pyramid, cfg.num_base_channels, self.dtype, self.remat)
            self.g_s = PyramidSynthesis(cfg.pyramid, cfg.num_levels, self.dtype, self.remat)
        if cfg.context == "raster":
            self.h_a: nn.Module = raster.HyperAnalysis(cfg)
            filters = (3, 3, 3, 3)
            self.prior_z = FactorizedPrior(cfg.hyper_channels, filters, learns_quantiles=True)
            convs = raster.raster_specs(cfg)
            self.h_s: nn.Module = ConvLayers(convs["h_s"])
            self.context: nn.Module = ConvLayers(convs["context"])
            self.entropy_parameters = ConvLayers(convs["entropy_parameters"])
        else:
            self.h_a = HyperAnalysis(cfg)
            self.prior_z = FactorizedPrior(cfg.hyper_channels)
            specs = entropy_specs(cfg)
            self.h_s = ExactLayers(specs["h_s"])
            self.context = ExactLayers(specs["context"])

    def analyse(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Unquantised (y, z) of images [B, H, W, 3] in [0, 1] with sides a multiple of 16."""
        y = self.latents(x)
        return y, self.hyper_latents(y)

    def latents(self, x: jax.Array) -> jax.Array:
        """Unquantised y [B, H/16, W/16, C] of images."""
        return add_refinements(self.g_a(x), self.cfg)

    def hyper_latents(self, y: jax.Array) -> jax.Array:
        """Unquantised z of unquantised y."""
        z: jax.Array = self.h_a(y)
        return z

    def entropy_layers(self) -> EntropyLayers:
        """Integers of the entropy networks: all that coding needs; none with context raster."""
        if self.cfg.context == "raster":
            return {}
        return {"h_s": self.h_s(), "context": self.context()}

    def raster_params(self) -> raster.Params:
        """Parameters that the functions of `sic_jax.model.entropy_models.raster.networks` take."""
        return {
            "h_s": self.h_s(),
            "context": self.context(),
            "entropy_parameters": self.entropy_parameters(),
        }

    def touch(self, x: jax.Array, level: jax.Array) -> None:
        """Use every parameter once, to initialise them; cheaper to trace than a forward pass."""
        y, _ = self.analyse(x)
        self.synthesise(y, level)
        self.factorized_params()
        if self.cfg.context == "raster":
            self.raster_params()
        else:
            self.entropy_layers()

    def synthesise(self, y_hat: jax.Array, level: jax.Array) -> jax.Array:
        """Images [B, H, W, 3], not clipped, from latents and their levels int [B]."""
        x_hat: jax.Array = self.g_s(y_hat, level)
        return x_hat

    def factorized_params(self) -> FactorizedParams:
        """Parameters of the prior of z."""
        return self.prior_z()

    def rate(
        self,
        y: jax.Array,
        z: jax.Array,
        *,
        key: jax.Array | None = None,
        rounded: jax.Array | None = None,
    ) -> Rated:
        """Quantise latents and estimate their bits, at all levels.

        Args:
          y: Unquantised latents [B, h, w, C].
          z: Unquantised hyper latents, of `hyper_latents`.
          key: With a key, or keys [B], bits are the noisy upper bound (training); without, those
            of the rounded latents (evaluation).
          rounded: bool [B]: images whose bits are those of the rounded latents even with a key,
            with straight-through gradients.
        """
        prior = self.prior_z()
        z_hat = quantise_hyper(prior, z)
        if key is None:
            y_rated, z_rated = jnp.round(y), z_hat
        else:
            key_y, key_z, _ = split_keys(key)  # The third is that of the details.
            y_rated = y + draw_each(unit_noise, key_y, y.shape)
            z_rated = z + draw_each(unit_noise, key_z, z.shape)
        y_hat = ste_round(y)
        if rounded is not None:
            at = rounded[:, None, None, None]
            y_rated, z_rated = jnp.where(at, y_hat, y_rated), jnp.where(at, z_hat, z_rated)
        hyper = self.hyper_features(z_hat, (y_hat.shape[1], y_hat.shape[2]))
        bits_y = self.level_bits(y_rated, y_hat, hyper, escapes=key is None)
        bits_z = deep_factorized_bits(prior, z_rated).sum((1, 2, 3))
        return Rated(bits_z, bits_y, y_hat, hyper)

    def hyper_features(self, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """What h_s makes of z_hat for latents of `shape`, batch first."""
        if self.cfg.context == "raster":
            return raster.hyper_features(self.raster_params(), z_hat, shape)
        return hyper_synthesis(self.entropy_layers()["h_s"], z_hat, shape)

    def level_bits(
        self, y_rated: jax.Array, y_hat: jax.Array, hyper: jax.Array, *, escapes: bool = True
    ) -> jax.Array:
        """Estimated bits of each level of `y_rated` [B, h, w, C], float32 [B, L].

        Args:
          y_rated: The latents that are rated, rounded or noisy.
          y_hat: Rounded latents, which the context model sees.
          hyper: Of `hyper_features`.
          escapes: Whether outliers cost no more than they do in a file.
        """
        cfg = self.cfg
        if cfg.context == "raster":
            mu, sigma = raster.all_parameters(self.raster_params(), cfg, y_hat, hyper)
            bits = normal_bits(y_rated, mu, sigma)
        else:
            mean, index = all_parameters(self.entropy_layers()["context"], cfg, y_hat, hyper)
            mu, sigma = mean / MEAN_BINS, sigmas_of(index, cfg)
            reach = np.where(refinement_sources(cfg) < 0, NO_REACH, refinement_limit(cfg) + 0.5)
            bits = logistic_bits(y_rated, mu, sigma, jnp.asarray(reach, jnp.float32))
        if escapes:
            distance = jnp.maximum(jnp.abs(y_rated - mu), 1.0)
            bits = jnp.minimum(bits, _ESCAPE_BITS + 2 * jnp.log2(distance))
        to_level = jax.nn.one_hot(channel_levels(cfg) - 1, cfg.num_levels)
        return bits.sum((1, 2)) @ to_level

    def complete(
        self,
        y_hat: jax.Array,
        hyper: jax.Array,
        level: jax.Array,
        *,
        temperature: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Keep the synonymous part of latents and draw the channels above `level` as details.

        For M samples of each image repeat all arguments M times along the first axis.

        Args:
          y_hat: Quantised latents [B, h, w, C]; only the channels of `level` are read.
          hyper: Of `rate`.
          level: int [B], 1..L.
          temperature: [B], of the details.
          key: Of the details, one or [B]; without one they are their mean.

        Returns:
          What g_s sees, [B, h, w, C].
        """
        cfg = self.cfg
        if key is None:
            temperature = jnp.zeros_like(temperature)
        if cfg.context == "raster":
            u = jnp.zeros(y_hat.shape)
            if key is not None:
                u = 2 * draw_each(unit_noise, key, y_hat.shape)
            details = raster.uniform_details(cfg, hyper, u, temperature)
            return merge_latents(y_hat, details, level, cfg)
        noise = jnp.zeros(y_hat.shape, jnp.int32)
        if key is not None:
            noise = draw_each(random_normal_noise, key, y_hat.shape)
        y_s, _ = split_latents(y_hat, level, cfg)
        units = jnp.round(temperature * 2**TEMPERATURE_BITS).astype(jnp.int32)
        context = self.entropy_layers()["context"]
        return complete(context, cfg, y_s, hyper, level, noise, units)

    def __call__(
        self,
        x: jax.Array,
        level: jax.Array,
        *,
        temperature: jax.Array,
        key: jax.Array | None = None,
    ) -> SicOutput:
        """Encode, rate and decode a batch: `analyse`, `rate`, `complete` and `synthesise`.

        Args:
          x: Images [B, H, W, 3] in [0, 1], sides a multiple of 16.
          level: int [B], 1..L, one an image.
          temperature: [B], of the details.
          key: With a key, rates are the noisy upper bound and details are random (training);
            without, rates are those of the rounded latents (evaluation) and details the mean.
        """
        y, z = self.analyse(x)
        rated = self.rate(y, z, key=key)
        key_detail = None if key is None else split_keys(key)[2]
        y_hat = self.complete(
            rated.y_hat, rated.hyper, level, temperature=temperature, key=key_detail
        )
        x_hat = self.synthesise(y_hat, level)
        return SicOutput(x_hat, rated.bits_z, rated.bits_y, y, y_hat)
