"""Options of encoding and decoding."""

import math
from dataclasses import dataclass

from sic_jax.fields import require


@dataclass(frozen=True, kw_only=True)
class LatentLossConfig:
    """What latent optimisation (`sic_jax.codec.latent_optimisation`) minimises at level l.

    Images are in [0, 1].

        bpp + lmbda_dist(l) MSE + lmbda_perc(l) (LPIPS + dists_weight DISTS)

    The pairs are the weights of the first and the last level; they are geometric in between.
    """

    lmbda_dist: tuple[float, float] = (40.0, 1200.0)
    lmbda_perc: tuple[float, float] = (0.45, 2.8)
    dists_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("lmbda_dist", "lmbda_perc"):
            pair = getattr(self, name)
            ok = all(0 < v < math.inf for v in pair)
            require(ok, self, name, pair, "positive and finite")
        weight = self.dists_weight
        require(0 <= weight < math.inf, self, "dists_weight", weight, "at least 0 and finite")
