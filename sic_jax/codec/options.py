"""Options of encoding and decoding."""

import math
from dataclasses import dataclass

from sic_jax.fields import require


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What the encoder's search (`sic_jax.codec.latent_optimisation`) minimises at level l, images in [0, 1].

        bpp + lmbda_dist(l) MSE + lmbda_perc(l) (LPIPS + lmbda_dists DISTS)

    The pairs are the weights of the first and the last level; they are geometric in between.
    """

    lmbda_dist: tuple[float, float] = (40.0, 1200.0)
    """Weights of the squared error."""
    lmbda_perc: tuple[float, float] = (0.45, 2.8)
    """Weights of LPIPS and DISTS together."""
    lmbda_dists: float = 1.0
    """Weight of DISTS beside LPIPS."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("lmbda_dist", "lmbda_perc"):
            pair = getattr(self, name)
            ok = all(0 < v < math.inf for v in pair)
            require(ok, self, name, pair, "positive and finite")
        weight = self.lmbda_dists
        require(0 <= weight < math.inf, self, "lmbda_dists", weight, "at least 0 and finite")
