"""Configuration of model, loss and runs: frozen dataclasses.

A number that the model or the loss uses is a field here, with the paper's symbol where it has one.
"""

from dataclasses import dataclass

from sic_jax.codec.options import LatentLossConfig
from sic_jax.fields import MAX_WIDTH, require, require_width
from sic_jax.model.entropy_models.raster.raster import RasterConfig
from sic_jax.model.transforms.pyramid import PyramidConfig
from sic_jax.model.transforms.swin import SwinConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture: what the parameter shapes depend on, and how latents are rounded and decoded.

    `transforms` and `context` are chosen independently. Fields say which choice reads them; those
    without a word serve all.
    """

    level_channels: tuple[int, ...] = (5, 3, 4, 5, 7, 8, 10, 10, 12, 14, 16, 18, 20, 24, 24, 28)
    """Channels that each level adds; its length is L, its sum the channels of y."""
    level_refinements: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 8, 8, 8)
    """How many of a level's channels refine earlier ones: they carry `refine_factor` times the
    rounding residual of the first channels that are not refined yet."""
    refine_factor: int = 3
    """Steps into which a refinement channel cuts one quantisation step."""
    deadzone: float = 0.0
    """By how much of a step the encoder brings channels that are never refined nearer to 0 before
    it rounds them."""
    transforms: str = "pyramid"
    """g_a and g_s: `pyramid` (the default) or `swin` (the paper's)."""
    context: str = "checkerboard"
    """h_a, h_s, the prior of z, the context model and the details: `checkerboard` (integer
    arithmetic, two passes a group, logistic densities, details from the learned
    p(y_eps | y_s, z)) or `raster` (the paper's: floats, normal densities, details mu_h + U(-2, 2)).
    """
    pyramid: PyramidConfig = PyramidConfig()
    """Of the transforms `pyramid`."""
    swin: SwinConfig = SwinConfig()
    """Of the transforms `swin`."""
    raster: RasterConfig = RasterConfig()
    """Of the context `raster`."""
    hyper_channels: int = 32
    """Channels of z."""
    hyper_width: int = 96
    """checkerboard: features of h_a and h_s."""
    context_width: int = 32
    """checkerboard: features a group that the context model gathers from earlier groups."""
    anchor_width: int = 32
    """checkerboard: features a group from its own first checkerboard pass."""
    head_width: int = 96
    """checkerboard: hidden features of the entropy-parameter network of a group."""
    sigma_min: float = 0.11
    sigma_max: float = 64.0
    num_sigmas: int = 64
    """Number of logarithmically spaced scales with a coding table."""
    temperature: float = 0.0
    """Default temperature of the detail sampler when decoding."""
    search: LatentLossConfig = LatentLossConfig()
    """Of the encoder's latent optimisation."""

    def __post_init__(self) -> None:
        """Check the fields."""
        lc, lr = self.level_channels, self.level_refinements
        require(0 < len(lc) <= 64, self, "level_channels", lc, "a tuple of 1 to 64 channel counts")
        ok = all(c > 0 for c in lc) and sum(lc) <= MAX_WIDTH
        allowed = f"positive everywhere, {MAX_WIDTH} in all at most"
        require(ok, self, "level_channels", lc, allowed)
        ok = len(lr) == len(lc) and all(0 <= r <= c for r, c in zip(lr, lc, strict=True))
        require(ok, self, "level_refinements", lr, f"{len(lc)} counts, each at most its level's")
        base = 0
        refined = 0
        for c, r in zip(lc, lr, strict=True):
            refined += r
            require(refined <= base, self, "level_refinements", lr, "of channels of earlier levels")
            base += c - r
        sigmas = (self.sigma_min, self.sigma_max)
        require(
            0 < sigmas[0] < sigmas[1] < 128,
            self,
            "sigma_min, sigma_max",
            sigmas,
            "rising, in (0, 128)",
        )
        for name in (
            "hyper_channels",
            "hyper_width",
            "context_width",
            "anchor_width",
            "head_width",
        ):
            require_width(self, name)
        require(0 <= self.deadzone < 0.5, self, "deadzone", self.deadzone, "in [0, 0.5)")
        self._check_choices()
        for name, most in (("num_sigmas", MAX_WIDTH), ("refine_factor", 64)):
            value = getattr(self, name)
            require(2 <= value <= most, self, name, value, f"at least 2, at most {most}")
        require(0 <= self.temperature <= 16, self, "temperature", self.temperature, "0 to 16")

    def _check_choices(self) -> None:
        """Check what the transforms and the context demand of the other fields."""
        ok = self.transforms in ("pyramid", "swin")
        require(ok, self, "transforms", self.transforms, "pyramid or swin")
        ok = self.context in ("checkerboard", "raster")
        require(ok, self, "context", self.context, "checkerboard or raster")
        if self.transforms == "swin":
            heads = self.swin.num_heads
            n, base = self.num_channels, self.num_base_channels
            allowed = f"a multiple of 4 and of swin.num_heads = {heads}"
            require(n % heads == 0 and n % 4 == 0, self, "num_channels", n, allowed)
            allowed = f"a multiple of swin.num_heads = {heads}"
            require(base > 0 and base % heads == 0, self, "num_base_channels", base, allowed)
        if self.context == "raster":
            lc = self.level_channels
            allowed = "equal for all levels with context raster"
            require(len(set(lc)) == 1, self, "level_channels", lc, allowed)

    @property
    def analysis_reach(self) -> int | None:
        """Latent positions beyond its own that a latent depends on; None: on the whole picture."""
        return self.pyramid.analysis_reach if self.transforms == "pyramid" else None

    @property
    def synthesis_reach(self) -> int | None:
        """Latent positions beyond its own that a pixel depends on; None: on all of them."""
        return self.pyramid.synthesis_reach if self.transforms == "pyramid" else None

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.level_channels)

    @property
    def num_channels(self) -> int:
        """Channels of y, refinements included."""
        return sum(self.level_channels)

    @property
    def num_base_channels(self) -> int:
        """Channels that g_a yields."""
        return self.num_channels - sum(self.level_refinements)
