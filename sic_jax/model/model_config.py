"""Configuration of a model: its levels, its transforms and its entropy model."""

from dataclasses import dataclass

from sic_jax.fields import may_change, require
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.coding_pass import TEMPERATURE_MAX
from sic_jax.model.entropy_models.entropy_model import EntropyModel
from sic_jax.model.levels import LevelConfig
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.transforms.transforms import Transforms


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture: what the parameter shapes depend on, and how latents are rounded and decoded.

    Any transforms go with any entropy model.
    """

    levels: LevelConfig = LevelConfig()
    """Channels of y and their levels."""
    transforms: Transforms = PyramidTransforms()
    """Transforms g_a and g_s."""
    entropy: EntropyModel = CheckerboardEntropy()
    """Entropy model: h_a, h_s, the prior of z, the context model and the details."""
    temperature: float = may_change(0.0, on="init_from")
    """Default temperature of the detail sampler when decoding."""

    def __post_init__(self) -> None:
        """Check the fields."""
        self.transforms.check(self.levels)
        self.entropy.check(self.levels)
        ok = 0 <= self.temperature <= TEMPERATURE_MAX
        require(ok, self, "temperature", self.temperature, f"0 to {TEMPERATURE_MAX}")

    @property
    def stride(self) -> int:
        """Pixels that a latent position covers in each direction."""
        return self.transforms.stride

    @property
    def num_levels(self) -> int:
        """Number of levels, L."""
        return self.levels.num_levels

    @property
    def num_channels(self) -> int:
        """Channels of y, refinements included."""
        return self.levels.num_channels
