"""What a family of entropy models is: networks that rate latents, and a pass that codes them.

A config (`EntropyModel`) builds a Flax module (`EntropyNetworks`) for training and estimates, and a
coding pass (`CodingPass`) for files. Both must say the same of every symbol.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.cdf_tables import CdfTables
from sic_jax.entropy.distributions import FactorisedParams, deep_factorised_bits, ste_round
from sic_jax.fields import Family, require_width
from sic_jax.model.entropy_models.coding_pass import CodingPass
from sic_jax.model.entropy_models.prior import quantise_hyper
from sic_jax.model.levels import LevelConfig, channel_levels
from sic_jax.model.noise import draw_each, split_keys, unit_noise
from sic_jax.sizes import Size, zero_outside

Leaves = Mapping[str, NDArray[Any]]
"""Arrays by path, such as ``h_s/first/kernel``."""

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
    """What `complete` needs of z_hat: `EntropyNetworks.hyper_features`, [B, h, w, F]."""


class EntropyNetworks(nn.Module):
    """h_a, the prior of z, h_s, the context model and the details, as one module.

    A family defines the methods that are not implemented here. Its submodules share the scope of
    the model: their parameters lie beside those of g_a and g_s, ``h_s/...``.
    """

    levels: LevelConfig

    def hyper_latents(self, y: jax.Array) -> jax.Array:
        """h_a: unquantised z [B, ceil(h/s), ceil(w/s), C_z] of unquantised y [B, h, w, C].

        s is the family's `hyper_stride`.
        """
        raise NotImplementedError

    def prior(self) -> FactorisedParams:
        """Parameters of the prior of z."""
        raise NotImplementedError

    def hyper_features(self, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """h_s: features [B, h, w, F] of z_hat, for latents of `shape` (h, w)."""
        raise NotImplementedError

    def symbol_bits(
        self, y_rated: jax.Array, y_hat: jax.Array, hyper: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Bits of each latent of `y_rated` [B, h, w, C], and the means that they are coded with.

        Args:
            y_rated: The latents that are rated, rounded or noisy.
            y_hat: Rounded latents, which the context model sees.
            hyper: Of `hyper_features`.
        """
        raise NotImplementedError

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
            hyper: Of `hyper_features`.
            level: int [B], 1 to L.
            temperature: [B], of the details; 0 gives their mean.
            key: Of the details, one or [B]; without one they are their mean.

        Returns:
            What g_s sees, [B, h, w, C].
        """
        raise NotImplementedError

    def auxiliary_loss(self) -> jax.Array | None:
        """A scalar that parameters learn beside the rate; None where there is nothing to learn.

        It must have gradients for `EntropyModel.auxiliary_params` alone.
        """
        return None

    def initialise(self, y: jax.Array, z: jax.Array) -> None:
        """Use every parameter but h_a's once, to make it; a family may do so more cheaply.

        Args:
            y: Unquantised latents [B, h, w, C].
            z: Of `hyper_latents`.
        """
        rated = self.rate(y, z)
        one = jnp.ones(len(y))
        self.complete(rated.y_hat, rated.hyper, one.astype(jnp.int32), temperature=one)
        self.auxiliary_loss()

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
        prior = self.prior()
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
        bits_z = deep_factorised_bits(prior, z_rated).sum((1, 2, 3))
        return Rated(bits_z, bits_y, y_hat, hyper)

    def level_bits(
        self,
        y_rated: jax.Array,
        y_hat: jax.Array,
        hyper: jax.Array,
        *,
        escapes: bool = True,
        size: Size = None,
    ) -> jax.Array:
        """Estimated bits of each level of `y_rated`, float32 [B, L].

        Args:
            y_rated: As in `symbol_bits`, and so are the next two.
            y_hat: Rounded latents.
            hyper: Of `hyper_features`.
            escapes: Whether outliers cost no more than they do in a file.
            size: Of latents that do not fill their array; `y_hat` is zero outside.
        """
        bits, mu = self.symbol_bits(y_rated, y_hat, hyper)
        if escapes:
            distance = jnp.maximum(jnp.abs(y_rated - mu), 1.0)
            bits = jnp.minimum(bits, _ESCAPE_BITS + 2 * jnp.log2(distance))
        to_level = jax.nn.one_hot(channel_levels(self.levels) - 1, self.levels.num_levels)
        return zero_outside(bits, size).sum((1, 2)) @ to_level


class Stored(NamedTuple):
    """What an entropy model reads from a bundle in a form of its own."""

    params: dict[str, NDArray[np.float32]]
    """Parameters by path, as floats in the model's shapes."""
    integers: Any
    """For `EntropyModel.coding_pass`; None where the pass is made of the floats."""


@dataclass(frozen=True, kw_only=True)
class EntropyModel(Family, ABC):
    """Config of an entropy model; it builds the networks and the coding pass."""

    exact: ClassVar[bool]
    """Whether coding tables are found in integers, so that files decode on every machine."""
    hyper_stride: ClassVar[int]
    """Latent positions that a position of z covers in each direction."""
    sized: ClassVar[bool] = False
    """Whether `EntropyNetworks.hyper_latents` takes one more argument, the sizes of latents that do
    not fill their array (`sic_jax.sizes.Size`). Then a bucket of sizes shares a program of it."""
    auxiliary_params: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that learn from `EntropyNetworks.auxiliary_loss` alone."""
    stacked_networks: ClassVar[tuple[str, ...]] = ()
    """Names of the networks whose parameters are those of several, stacked on the first axis."""

    hyper_channels: int = 32
    """Channels of z."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require_width(self, "hyper_channels")

    def check(self, levels: LevelConfig) -> None:
        """Check that the model can code these levels.

        Raises:
            ValueError: If it cannot.
        """

    @abstractmethod
    def networks(self, levels: LevelConfig) -> EntropyNetworks:
        """The module of training and estimates."""

    @abstractmethod
    def num_coding_tables(self, levels: LevelConfig) -> int:
        """How many tables `coding_tables` gives."""

    @abstractmethod
    def coding_tables(self, levels: LevelConfig) -> CdfTables:
        """The tables of y, numbered as the requests of the coding pass have them."""

    @abstractmethod
    def coding_pass(
        self, levels: LevelConfig, params: Mapping[str, Any], integers: Any = None
    ) -> CodingPass:
        """The pass of a model.

        Args:
            levels: The channels of y.
            params: Of the model.
            integers: Of `from_stored`, where the parameters come from a bundle.
        """

    @abstractmethod
    def coding_macs(self, levels: LevelConfig, params: Any, side: int) -> int:
        """Multiply-accumulates of coding all levels of latents [side, side, C], h_s included.

        Args:
            levels: The channels of y.
            params: Shapes and types of the model's parameters.
            side: Of the latents.
        """

    def to_stored(self, levels: LevelConfig, params: Mapping[str, Any]) -> Leaves:
        """The arrays by path that a bundle keeps in a form of its own.

        A bundle keeps float16 values of the networks that are not among these.

        Raises:
            ValueError: If a value cannot be kept.
        """
        return {}

    def from_stored(self, levels: LevelConfig, leaves: dict[str, NDArray[Any]]) -> Stored:
        """The inverse of `to_stored`. Nothing in `leaves` is trusted.

        Args:
            levels: The channels of y.
            leaves: All arrays of a bundle by path, of any shape. Those of the form are taken out
                of it.

        Raises:
            KeyError: If an array is missing.
            ValueError: If it has not the type, the shape or the values that it must have.
        """
        return Stored({}, None)
