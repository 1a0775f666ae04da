"""The model: image to latents to rates and reconstructions, as one Flax module."""

from typing import NamedTuple

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from sic_jax.model.entropy_models.entropy_model import Rated
from sic_jax.model.levels import add_refinements
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.noise import split_keys
from sic_jax.sizes import Size


class SicOutput(NamedTuple):
    """Result of a forward pass over B images."""

    x_hat: jax.Array
    """Reconstructions [B, H, W, 3], not clipped."""
    bits_z: jax.Array
    """Estimated bits of z_hat, [B]."""
    bits_y: jax.Array
    """Estimated bits of each level of y_hat, [B, L]."""
    y: jax.Array
    """Unquantised latents [B, h, w, C]."""
    y_hat: jax.Array
    """What g_s saw: quantised latents [B, h, w, C], details drawn above the level."""


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

    The transforms are g_a and g_s; all else belongs to the entropy model, whose parameters lie
    beside theirs. Pictures have sides that are multiples of the transforms' stride.

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
        self.g_a = cfg.transforms.analysis(cfg.levels, self.dtype, self.remat)
        self.g_s = cfg.transforms.synthesis(cfg.levels, self.dtype, self.remat)
        self.entropy = cfg.entropy.networks(cfg.levels)
        nn.share_scope(self, self.entropy)

    def analyse(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Unquantised (y, z) of images [B, H, W, 3] in [0, 1]."""
        y = self.latents(x)
        return y, self.entropy.hyper_latents(y)

    def latents(self, x: jax.Array, size: Size = None) -> jax.Array:
        """Unquantised y [B, h, w, C] of images; `size` only for transforms that are `sized`."""
        return add_refinements(self.g_a(x) if size is None else self.g_a(x, size), self.cfg.levels)

    def synthesise(self, y_hat: jax.Array, level: jax.Array, size: Size = None) -> jax.Array:
        """Images [B, H, W, 3], not clipped, from latents and their levels int [B].

        `size` as for `latents`.
        """
        x_hat: jax.Array
        x_hat = self.g_s(y_hat, level) if size is None else self.g_s(y_hat, level, size)
        return x_hat

    def rate(
        self,
        y: jax.Array,
        z: jax.Array,
        *,
        key: jax.Array | None = None,
        rounded: jax.Array | None = None,
    ) -> Rated:
        """See `EntropyNetworks.rate`."""
        return self.entropy.rate(y, z, key=key, rounded=rounded)

    def complete(
        self,
        y_hat: jax.Array,
        hyper: jax.Array,
        level: jax.Array,
        *,
        temperature: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """See `EntropyNetworks.complete`."""
        return self.entropy.complete(y_hat, hyper, level, temperature=temperature, key=key)

    def initialise(self, x: jax.Array, level: jax.Array) -> None:
        """Use every parameter once, to make it; cheaper to trace than a forward pass.

        Args:
            x: Images [B, H, W, 3].
            level: int [B].
        """
        y, z = self.analyse(x)
        self.synthesise(y, level)
        self.entropy.initialise(y, z)

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
            x: Images [B, H, W, 3] in [0, 1].
            level: int [B], 1 to L, one an image.
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
