"""Means and scales as coding tables know them: sixteenths, and a grid of standard deviations."""

from dataclasses import dataclass
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.fields import MAX_WIDTH, require

FRACTION_BITS: Final = 4
"""Means are multiples of 2^-4."""
MEAN_BINS: Final = 2**FRACTION_BITS
"""Fractions of an integer that a mean can have."""
MEAN_LIMIT: Final = 2**11 * MEAN_BINS
"""Magnitude at which means, in sixteenths, are clipped."""


@dataclass(frozen=True, kw_only=True)
class ScaleGrid:
    """Standard deviations, logarithmically spaced; each has coding tables of its own."""

    sigma_min: float = 0.11
    """Smallest standard deviation. There a symbol is nearly always its rounded mean, and free."""
    sigma_max: float = 64.0
    """Largest standard deviation, below 128."""
    num_sigmas: int = 64
    """Number of standard deviations, both ends included."""

    def __post_init__(self) -> None:
        """Check the fields."""
        ends = (self.sigma_min, self.sigma_max)
        ok = 0 < ends[0] < ends[1] < 128
        require(ok, self, "sigma_min, sigma_max", ends, "rising, in (0, 128)")
        n = self.num_sigmas
        require(2 <= n <= MAX_WIDTH, self, "num_sigmas", n, f"at least 2, at most {MAX_WIDTH}")

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """All of them, [num_sigmas]."""
        return np.geomspace(self.sigma_min, self.sigma_max, self.num_sigmas)

    @property
    def log_step(self) -> float:
        """Logarithm of the ratio of two neighbours."""
        return float(np.log(self.sigma_max / self.sigma_min) / (self.num_sigmas - 1))

    def sigma_of(self, index: jax.Array) -> jax.Array:
        """Standard deviations of scale indices of any shape, which need not be integers."""
        return self.sigma_min * jnp.exp(np.float32(self.log_step) * index)

    def index_of(self, sigma: jax.Array) -> jax.Array:
        """Indices of the nearest scales, integers as float32; any floats give valid ones.

        Both arrays have one shape.
        """
        sigma = jnp.nan_to_num(sigma, nan=self.sigma_min)
        index = jnp.log(sigma / self.sigma_min) / np.float32(self.log_step)
        return jnp.clip(jnp.floor(index + 0.5), 0, self.num_sigmas - 1)


def table_indices(mean: jax.Array, scale_index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coding tables and integer means, int32, of means in sixteenths and scale indices.

    All four arrays have one shape.

    Tables are numbered as `sic_jax.entropy.cdf_tables.logistic_tables` has them, for `MEAN_BINS`
    means.
    """
    fine = mean.astype(jnp.int32)
    whole = jnp.right_shift(fine, FRACTION_BITS)
    scale = scale_index.astype(jnp.int32)
    return scale * MEAN_BINS + fine - whole * MEAN_BINS, whole
