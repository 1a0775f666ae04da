"""Details: the draw of what is not coded, in integers that the file format defines.

Only integer arithmetic decides the detail of (seed, position, channel), so that a file and a seed
give the same symbols everywhere; FORMAT.md has the same definition in words.

    noise        in 1/1024 of a standard deviation (`sic_jax.entropy.counter_noise`)
    sigma        in 1/4096, rounded once a scale
    temperature  in 1/256
    details      in 1/256:  16 mean + floor(floor(sigma temperature / 2^12) noise / 2^10)
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.cdf_tables import limited_pmfs
from sic_jax.entropy.counter_noise import NOISE_BITS
from sic_jax.model.entropy_models.scales import FRACTION_BITS, ScaleGrid
from sic_jax.model.levels import LevelConfig, refinement_limit

DETAIL_BITS = 8
_SIGMA_BITS = 12
REFINEMENT_MEAN_LIMIT = 4 * 2**FRACTION_BITS
"""Magnitude at which means of refinement channels, in sixteenths, are clipped: further out a mean
changes little about the few values that it is for."""


def random_normal_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise for training, int32 of a shape: as `normal_noise`, but normal and from a key.

    It is cut at 4 standard deviations, -4096 to 4096.
    """
    noise = jax.random.normal(key, shape) * 2**NOISE_BITS
    return jnp.round(jnp.clip(noise, -4 * 2**NOISE_BITS, 4 * 2**NOISE_BITS)).astype(jnp.int32)


def prior_sigmas(scales: ScaleGrid) -> NDArray[np.int32]:
    """Standard deviations of the scale indices in 1/4096: int32 [num_sigmas]."""
    return _units(scales.sigmas, _SIGMA_BITS)


def limited_moments(
    scales: ScaleGrid, levels: LevelConfig
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Means and standard deviations of refinements.

    What the entropy networks say of a refinement channel counts before its density is cut; these
    are the moments of the values that are left.

    Returns:
        Means in sixteenths and standard deviations in 1/4096 of each scale index and mean, numbered
        as the rows of `limited_tables`: int32 [n] each.
    """
    limit = refinement_limit(levels)
    mean_limit = REFINEMENT_MEAN_LIMIT
    pmfs = limited_pmfs(scales.sigmas, 2**FRACTION_BITS, limit=limit, mean_limit=mean_limit)
    values = np.arange(-limit, limit + 1)
    mean = (pmfs * values).sum(-1)
    deviation = np.sqrt((pmfs * (values - mean[..., None]) ** 2).sum(-1))
    return _units(mean.ravel(), FRACTION_BITS), _units(deviation.ravel(), _SIGMA_BITS)


def _units(a: NDArray[np.float64], bits: int) -> NDArray[np.int32]:
    """In units of 2^-bits, rounded."""
    rounded: NDArray[np.int32] = np.floor(a * 2**bits + 0.5).astype(np.int32)
    return rounded


def detail_spreads(sigmas: NDArray[np.int32], temperature: jax.Array) -> jax.Array:
    """Standard deviations of details in 1/256: int32 [B, S].

    Args:
        sigmas: In 1/4096, [S].
        temperature: In 1/256, int32 [B].
    """
    return jnp.right_shift(jnp.asarray(sigmas)[None] * temperature[:, None], _SIGMA_BITS)


def draw_detail(mean: jax.Array, spread: jax.Array, noise: jax.Array) -> jax.Array:
    """Details, multiples of 1/256 as float32.

    Args:
        mean: Integers as float32 of any shape, in sixteenths.
        spread: int32 of that shape, from `detail_spreads`.
        noise: int32 of that shape, from `normal_noise`.
    """
    units: jax.Array = mean.astype(jnp.int32) * 2 ** (DETAIL_BITS - FRACTION_BITS)
    units = units + jnp.right_shift(spread * noise, NOISE_BITS)
    return units.astype(jnp.float32) * 2.0**-DETAIL_BITS


def round_detail(detail: jax.Array) -> jax.Array:
    """Integers nearest to details of any shape, halves upwards, as the context model sees them."""
    return jnp.floor(detail + 0.5)
