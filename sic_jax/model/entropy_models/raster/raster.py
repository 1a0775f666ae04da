"""Config."""

from dataclasses import dataclass

from sic_jax.fields import MAX_WIDTH, require, require_width


@dataclass(frozen=True, kw_only=True)
class RasterConfig:
    """The paper's entropy networks."""

    analysis_width: int = 384
    """Features of h_a."""
    synthesis_widths: tuple[int, int] = (512, 768)
    """Features of h_s at 1/32 and 1/16."""
    head_width: int = 96
    """Hidden features of the entropy-parameter network of a group."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("analysis_width", "head_width"):
            require_width(self, name)
        widths = self.synthesis_widths
        ok = all(0 < w <= MAX_WIDTH for w in widths)
        require(ok, self, "synthesis_widths", widths, f"positive, at most {MAX_WIDTH}")
