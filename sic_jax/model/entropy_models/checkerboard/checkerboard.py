"""The entropy model `checkerboard`, the default: integers, two passes a group, learned details.

Logistic densities; details are drawn from the learned p(y_eps | y_s, z). Bundles keep h_s and the
context model as the integers that coding computes with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.cdf_tables import CdfTables
from sic_jax.entropy.distributions import NO_REACH, FactorisedParams, logistic_bits
from sic_jax.fields import require_width
from sic_jax.model.entropy_models.checkerboard.context import (
    all_parameters,
    complete,
    context_of_group,
    context_specs,
    group_parameters,
    group_size,
)
from sic_jax.model.entropy_models.checkerboard.detail import random_normal_noise
from sic_jax.model.entropy_models.checkerboard.exact import (
    ExactLayers,
    Layer,
    LayerSpec,
    check_layer,
    dequantise,
)
from sic_jax.model.entropy_models.checkerboard.group_coding import (
    EntropyLayers,
    GroupCodingPass,
    coding_tables,
    num_coding_tables,
)
from sic_jax.model.entropy_models.checkerboard.hyper import (
    HYPER_STRIDE,
    HyperAnalysis,
    hyper_synthesis,
    hyper_synthesis_specs,
)
from sic_jax.model.entropy_models.coding_pass import TEMPERATURE_BITS
from sic_jax.model.entropy_models.entropy_model import EntropyModel, EntropyNetworks, Leaves, Stored
from sic_jax.model.entropy_models.prior import FactorisedPrior
from sic_jax.model.entropy_models.scales import MEAN_BINS, ScaleGrid
from sic_jax.model.levels import LevelConfig, refinement_limit, refinement_sources, split_latents
from sic_jax.model.macs import count_macs
from sic_jax.model.noise import draw_each
from sic_jax.sizes import Size

_STORED = (("kernel", "|i1"), ("bias", "<i4"), ("shift", "|u1"))
"""Arrays of a layer in a bundle, and their types."""


@dataclass(frozen=True, kw_only=True)
class CheckerboardEntropy(EntropyModel):
    """Sizes of the networks."""

    kind: ClassVar[str] = "checkerboard"
    exact: ClassVar[bool] = True
    hyper_stride: ClassVar[int] = HYPER_STRIDE
    sized: ClassVar[bool] = True
    stacked_networks: ClassVar[tuple[str, ...]] = ("context",)

    hyper_width: int = 96
    """Width of h_a and h_s, in features."""
    context_width: int = 32
    """Features per group that the context model computes from earlier groups of channels."""
    anchor_width: int = 32
    """Features per group that the context model computes from the first half of the
    checkerboard."""
    head_width: int = 96
    """Hidden width of the entropy-parameter network of a group, in features."""
    scales: ScaleGrid = ScaleGrid()
    """Standard deviations that latents are coded with."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        for name in ("hyper_width", "context_width", "anchor_width", "head_width"):
            require_width(self, name)

    def networks(self, levels: LevelConfig) -> "CheckerboardNetworks":
        """See `EntropyModel`."""
        return CheckerboardNetworks(levels, self)

    def num_coding_tables(self, levels: LevelConfig) -> int:
        """See `EntropyModel`."""
        return num_coding_tables(self.scales)

    def coding_tables(self, levels: LevelConfig) -> CdfTables:
        """See `EntropyModel`."""
        return coding_tables(levels, self.scales)

    def coding_pass(
        self, levels: LevelConfig, params: Mapping[str, Any], integers: Any = None
    ) -> GroupCodingPass:
        """See `EntropyModel`."""
        layers = self.entropy_layers(levels, params) if integers is None else integers
        return GroupCodingPass(levels, self.scales, layers)

    def coding_macs(self, levels: LevelConfig, params: Any, side: int) -> int:
        """See `EntropyModel`: 2 L entropy steps, L contexts and h_s."""

        def features(count: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((1, side, side, count), jnp.float32)

        layers: Any = jax.eval_shape(lambda p: self.entropy_layers(levels, p), params)
        g = jax.ShapeDtypeStruct((), jnp.int32)
        z_side = -(-side // HYPER_STRIDE)
        z_hat = jax.ShapeDtypeStruct((1, z_side, z_side, self.hyper_channels), jnp.float32)
        step = count_macs(
            lambda layers, *args: group_parameters(layers, self.scales, *args),
            layers["context"],
            g,
            features(self.hyper_width),
            features(self.context_width),
            features(group_size(levels)),
        )
        gather = count_macs(context_of_group, layers["context"], g, features(levels.num_channels))
        hyper = count_macs(lambda p, z: hyper_synthesis(p, z, (side, side)), layers["h_s"], z_hat)
        return hyper + levels.num_levels * (2 * step + gather)

    def layer_specs(self, levels: LevelConfig) -> dict[str, dict[str, LayerSpec]]:
        """The layers of h_s and the context model, by network and name."""
        return {
            "h_s": hyper_synthesis_specs(self.hyper_width, self.hyper_channels),
            "context": context_specs(
                levels,
                width=self.context_width,
                hyper_width=self.hyper_width,
                anchor_width=self.anchor_width,
                head_width=self.head_width,
            ),
        }

    def entropy_layers(self, levels: LevelConfig, params: Mapping[str, Any]) -> EntropyLayers:
        """The integers of a model with float parameters."""
        layers: Any = self.networks(levels).apply({"params": params}, method="entropy_layers")
        return dict(layers)

    def to_stored(self, levels: LevelConfig, params: Mapping[str, Any]) -> Leaves:
        """See `EntropyModel`: kernels are int8, biases int32 and shifts uint8."""
        leaves: dict[str, NDArray[Any]] = {}
        specs = self.layer_specs(levels)
        for network, layers in self.entropy_layers(levels, params).items():
            for name, layer in layers.items():
                path = f"{network}/{name}"
                _check(path, layer, specs[network][name])
                kernel, bias, scale = (np.asarray(a) for a in layer)
                arrays = (kernel, bias, -np.log2(scale))
                for (part, kind), array in zip(_STORED, arrays, strict=True):
                    leaves[f"{path}/{part}"] = array.astype(kind)
        return leaves

    def from_stored(self, levels: LevelConfig, leaves: dict[str, NDArray[Any]]) -> Stored:
        """See `EntropyModel`."""
        floats: dict[str, NDArray[np.float32]] = {}
        entropy: EntropyLayers = {}
        for network, specs in self.layer_specs(levels).items():
            entropy[network] = {}
            for name, spec in specs.items():
                path = f"{network}/{name}"
                arrays = [leaves.pop(f"{path}/{part}") for part, _ in _STORED]
                if [a.dtype.str for a in arrays] != [kind for _, kind in _STORED]:
                    types = tuple(a.dtype.str for a in arrays)
                    raise ValueError(f"{path} has types {types}, not int8, int32 and uint8")
                arrays[2] = np.float32(2.0) ** -arrays[2].astype(np.float32)
                layer = Layer(*(jnp.asarray(a, jnp.float32) for a in arrays))
                _check(path, layer, spec)
                entropy[network][name] = layer
                floats[f"{path}/kernel"], floats[f"{path}/bias"] = dequantise(layer, spec)
        return Stored(floats, entropy)


def _check(path: str, layer: Layer, spec: LayerSpec) -> None:
    try:
        check_layer(layer, spec)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


class CheckerboardNetworks(EntropyNetworks):
    """See `EntropyNetworks`."""

    cfg: CheckerboardEntropy

    def setup(self) -> None:
        """Create the networks under the paper's symbols."""
        cfg = self.cfg
        self.h_a = HyperAnalysis(cfg.hyper_width, cfg.hyper_channels)
        self.prior_z = FactorisedPrior(cfg.hyper_channels)
        specs = cfg.layer_specs(self.levels)
        self.h_s = ExactLayers(specs["h_s"])
        self.context = ExactLayers(specs["context"])

    def hyper_latents(self, y: jax.Array, size: Size = None) -> jax.Array:
        """See `EntropyNetworks`; `size` is that of y, if it does not fill its array."""
        z: jax.Array = self.h_a(y, size)
        return z

    def prior(self) -> FactorisedParams:
        """See `EntropyNetworks`."""
        return self.prior_z()

    def entropy_layers(self) -> EntropyLayers:
        """Integers of h_s and the context model: all that coding needs."""
        return {"h_s": self.h_s(), "context": self.context()}

    def hyper_features(self, z_hat: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """See `EntropyNetworks`."""
        return hyper_synthesis(self.h_s(), z_hat, shape)

    def symbol_bits(
        self, y_rated: jax.Array, y_hat: jax.Array, hyper: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `EntropyNetworks`."""
        levels, scales = self.levels, self.cfg.scales
        mean, index = all_parameters(self.context(), levels, scales, y_hat, hyper)
        mu = mean / MEAN_BINS
        free = (refinement_sources(levels) < 0)[None, None, None]
        reach = np.where(free, NO_REACH, refinement_limit(levels) + 0.5).astype(np.float32)
        return logistic_bits(y_rated, mu, scales.sigma_of(index), jnp.asarray(reach)), mu

    def complete(
        self,
        y_hat: jax.Array,
        hyper: jax.Array,
        level: jax.Array,
        *,
        temperature: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """See `EntropyNetworks`; gradients flow through y_s alone."""
        noise = jnp.zeros(y_hat.shape, jnp.int32)
        if key is None:
            temperature = jnp.zeros_like(temperature)
        else:
            noise = draw_each(random_normal_noise, key, y_hat.shape)
        y_s, _ = split_latents(y_hat, level, self.levels)
        units = jnp.round(temperature * 2**TEMPERATURE_BITS).astype(jnp.int32)
        return complete(
            self.context(), self.levels, self.cfg.scales, y_s, hyper, level, noise, units
        )

    def initialise(self, y: jax.Array, z: jax.Array) -> None:
        """See `EntropyNetworks`."""
        self.prior()
        self.entropy_layers()
