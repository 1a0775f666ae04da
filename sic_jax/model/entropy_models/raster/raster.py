"""The entropy model `raster`, the paper's: floats, symbol after symbol, uniform details.

Normal densities; details are mu_h + U(-2, 2). Files decode only where the arithmetic is that of
their encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sic_jax.entropy.cdf_tables import CdfTables, gaussian_tables
from sic_jax.entropy.distributions import FactorisedParams, normal_bits, quantile_loss
from sic_jax.fields import MAX_WIDTH, require, require_width
from sic_jax.model.entropy_models.entropy_model import EntropyModel, EntropyNetworks
from sic_jax.model.entropy_models.prior import FactorisedPrior
from sic_jax.model.entropy_models.raster.diagonal_coding import DiagonalCodingPass
from sic_jax.model.entropy_models.raster.networks import (
    HyperAnalysis,
    Params,
    all_parameters,
    hyper_features,
    raster_specs,
    uniform_details,
)
from sic_jax.model.entropy_models.raster.wavefront import (
    empty_board,
    schedule,
    step_layers,
    step_parameters,
)
from sic_jax.model.entropy_models.scales import MEAN_BINS, ScaleGrid
from sic_jax.model.float_layers import ConvLayers
from sic_jax.model.levels import LevelConfig, merge_latents
from sic_jax.model.macs import count_macs
from sic_jax.model.noise import draw_each, unit_noise


@dataclass(frozen=True, kw_only=True)
class RasterEntropy(EntropyModel):
    """Sizes of the paper's entropy networks."""

    kind: ClassVar[str] = "raster"
    exact: ClassVar[bool] = False
    hyper_stride: ClassVar[int] = 4
    auxiliary_params: ClassVar[tuple[str, ...]] = ("quantiles",)

    analysis_width: int = 384
    """Width of h_a, in features."""
    synthesis_widths: tuple[int, int] = (512, 768)
    """Widths of h_s at 1/32 and 1/16 of the resolution, in features."""
    head_width: int = 96
    """Hidden width of the entropy-parameter network of a group, in features."""
    scales: ScaleGrid = ScaleGrid()
    """Standard deviations that latents are coded with."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        for name in ("analysis_width", "head_width"):
            require_width(self, name)
        widths = self.synthesis_widths
        ok = all(0 < w <= MAX_WIDTH for w in widths)
        require(ok, self, "synthesis_widths", widths, f"positive, at most {MAX_WIDTH}")

    def check(self, levels: LevelConfig) -> None:
        """See `EntropyModel`."""
        allowed = "equal for all levels with the entropy model raster"
        require(len(set(levels.channels)) == 1, levels, "channels", levels.channels, allowed)

    def networks(self, levels: LevelConfig) -> "RasterNetworks":
        """See `EntropyModel`."""
        return RasterNetworks(levels, self)

    def num_coding_tables(self, levels: LevelConfig) -> int:
        """See `EntropyModel`."""
        return self.scales.num_sigmas * MEAN_BINS

    def coding_tables(self, levels: LevelConfig) -> CdfTables:
        """See `EntropyModel`; refinements have no tables of their own."""
        return gaussian_tables(self.scales.sigmas, MEAN_BINS)

    def coding_pass(
        self, levels: LevelConfig, params: Mapping[str, Any], integers: Any = None
    ) -> DiagonalCodingPass:
        """See `EntropyModel`."""
        names = ("prior_z", "h_s", "context", "entropy_parameters")
        return DiagonalCodingPass(levels, self.scales, {name: params[name] for name in names})

    def coding_macs(self, levels: LevelConfig, params: Any, side: int) -> int:
        """See `EntropyModel`: each symbol's parameters once, and h_s."""
        z_side = -(-side // self.hyper_stride)
        z_hat = jax.ShapeDtypeStruct((1, z_side, z_side, self.hyper_channels), jnp.float32)
        hyper = count_macs(lambda p, z: hyper_features(p, z, (side, side)), params, z_hat)
        layers: Any = jax.eval_shape(lambda p: step_layers(p, levels), params)
        # The only position of the smallest picture, whose neighbours count all the same.
        board = jax.eval_shape(lambda: empty_board(schedule(1, 1), levels.num_channels))
        shape = (1, 1, levels.num_levels, 2 * levels.channels[0])
        number = jax.ShapeDtypeStruct((), jnp.int32)
        step = count_macs(
            lambda layers, *args: step_parameters(layers, levels, self.scales.sigma_min, *args),
            layers,
            board,
            jax.ShapeDtypeStruct(shape, jnp.float32),
            number,
            number,
            number,
        )
        return hyper + side * side * step


class RasterNetworks(EntropyNetworks):
    """See `EntropyNetworks`."""

    cfg: RasterEntropy

    def setup(self) -> None:
        """Create the networks under the paper's symbols."""
        cfg = self.cfg
        self.h_a = HyperAnalysis(cfg.analysis_width, cfg.hyper_channels)
        self.prior_z = FactorisedPrior(cfg.hyper_channels, (3, 3, 3, 3), learns_quantiles=True)
        specs = raster_specs(
            self.levels,
            hyper_channels=cfg.hyper_channels,
            synthesis_widths=cfg.synthesis_widths,
            head_width=cfg.head_width,
        )
        self.h_s = ConvLayers(specs["h_s"])
        self.context = ConvLayers(specs["context"])
        self.entropy_parameters = ConvLayers(specs["entropy_parameters"])

    def hyper_latents(self, y: jax.Array) -> jax.Array:
        """See `EntropyNetworks`."""
        z: jax.Array = self.h_a(y)
        return z

    def prior(self) -> FactorisedParams:
        """See `EntropyNetworks`."""
        return self.prior_z()

    def float_params(self) -> Params:
        """Parameters that the functions of `networks` take."""
        return {
            "h_s": self.h_s(),
            "context": self.context(),
            "entropy_parameters": self.entropy_parameters(),
        }

    def hyper_features(self, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """See `EntropyNetworks`."""
        return hyper_features({"h_s": self.h_s()}, z_hat, shape)

    def symbol_bits(
        self, y_rated: jax.Array, y_hat: jax.Array, hyper: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `EntropyNetworks`."""
        sigma_min = self.cfg.scales.sigma_min
        mu, sigma = all_parameters(self.float_params(), self.levels, sigma_min, y_hat, hyper)
        return normal_bits(y_rated, mu, sigma), mu

    def complete(
        self,
        y_hat: jax.Array,
        hyper: jax.Array,
        level: jax.Array,
        *,
        temperature: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """See `EntropyNetworks`."""
        u = jnp.zeros(y_hat.shape)
        if key is None:
            temperature = jnp.zeros_like(temperature)
        else:
            u = 2 * draw_each(unit_noise, key, y_hat.shape)
        details = uniform_details(self.levels, hyper, u, temperature)
        return merge_latents(y_hat, details, level, self.levels)

    def auxiliary_loss(self) -> jax.Array:
        """See `EntropyNetworks`: the quantiles learn to be those of the prior of z."""
        return quantile_loss(self.prior())

    def initialise(self, y: jax.Array, z: jax.Array) -> None:
        """See `EntropyNetworks`."""
        self.prior()
        self.float_params()
