"""Details: a counter-based noise generator and the draw, in integers that the file format defines.

Only integer arithmetic decides the detail of (seed, position, channel), so that a file and a seed
give the same symbols everywhere; FORMAT.md has the same definition in words.

    noise        in 1/1024 of a standard deviation
    sigma        in 1/4096, rounded once a scale
    temperature  in 1/256
    details      in 1/256:  16 mean + floor(floor(sigma temperature / 2^12) noise / 2^10)
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.cdf_tables import limited_pmfs
from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.checkerboard.exact import FRACTION_BITS
from sic_jax.model.levels import refinement_limit

NOISE_BITS = 10
TEMPERATURE_BITS = 8
TEMPERATURE_MAX = 16
DETAIL_BITS = 8
_SIGMA_BITS = 12
REFINEMENT_MEAN_LIMIT = 4 * 2**FRACTION_BITS
"""Magnitude at which means of refinement channels, in sixteenths, are clipped: further out a mean
changes little about the few values that it is for."""
# Factors that bring the raw sums to units of 2^-10 standard deviations, times 2^16: the sum of four
# 16-bit words deviates by 37837.2, twice a centred 16-bit word by 37837.2 too.
_NOISE_FACTOR = 1774


def hash32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijective mixing of 32-bit words (the constants of the `lowbias32` hash)."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def detail_words(
    seed: int, count: int, *, start: int = 0
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Two words for each of the counters start..start+count-1, modulo 2^32.

    Args:
      seed: 0 to 2^32 - 1.
      count: Number of counters, at most 2^32; a counter is position * C + channel.
      start: First counter.

    Returns:
      Two uint32 arrays [count].
    """
    key = hash32(np.array([seed ^ 0x9E3779B9], np.uint32))
    first = hash32(np.arange(count, dtype=np.uint32) + (key + np.uint32(start % 2**32)))
    return first, hash32(first ^ np.uint32(0x85EBCA6B))


def normal_noise(seed: int, shape: tuple[int, ...], *, start: int = 0) -> NDArray[np.int32]:
    """Near-normal noise in 1/1024 of its standard deviation: the sum of four 16-bit uniforms.

    Bounded at +-3.46 deviations, so that a single draw cannot spoil a picture. The counters run
    from `start`.
    """
    a, b = detail_words(seed, int(np.prod(shape)), start=start)
    total = np.full(a.shape, -2 * 65535, np.int32)
    for word in (a, b):
        total += (word & np.uint32(0xFFFF)).astype(np.int32)
        total += (word >> np.uint32(16)).astype(np.int32)
    return _scaled(total).reshape(shape)


def uniform_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Uniform noise in 1/1024 of its standard deviation, for the paper's details."""
    a, _ = detail_words(seed, int(np.prod(shape)))
    return _scaled(2 * (a >> np.uint32(16)).astype(np.int32) - 65535).reshape(shape)


def _scaled(total: NDArray[np.int32]) -> NDArray[np.int32]:
    total *= _NOISE_FACTOR
    total += 1 << 15
    total >>= 16
    return total


def random_normal_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise for training: as `normal_noise`, but normal and from a key."""
    noise = jax.random.normal(key, shape) * 2**NOISE_BITS
    return jnp.round(jnp.clip(noise, -4 * 2**NOISE_BITS, 4 * 2**NOISE_BITS)).astype(jnp.int32)


def temperature_units(temperature: float) -> int:
    """A temperature in 1/256, rounded.

    Raises:
      ValueError: If it is not in [0, `TEMPERATURE_MAX`].
    """
    if not 0 <= temperature <= TEMPERATURE_MAX:
        raise ValueError(f"temperature must be 0 to {TEMPERATURE_MAX}, got {temperature}")
    return int(np.floor(temperature * 2**TEMPERATURE_BITS + 0.5))


def sigma_grid(cfg: ModelConfig) -> NDArray[np.float64]:
    """Standard deviations of the scale indices, logarithmically spaced: [num_sigmas]."""
    return np.geomspace(cfg.sigma_min, cfg.sigma_max, cfg.num_sigmas)


def prior_sigmas(cfg: ModelConfig) -> NDArray[np.int32]:
    """The same in 1/4096, int32."""
    return _units(sigma_grid(cfg), _SIGMA_BITS)


def limited_moments(cfg: ModelConfig) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Means and standard deviations of refinements.

    What the entropy networks say of a refinement channel counts before its density is cut; these
    are the moments of the values that are left.

    Returns:
      Means in sixteenths and standard deviations in 1/4096 of each scale index and mean, numbered
      as the rows of `limited_tables`: int32 [n] each.
    """
    limit = refinement_limit(cfg)
    mean_limit = REFINEMENT_MEAN_LIMIT
    pmfs = limited_pmfs(sigma_grid(cfg), 2**FRACTION_BITS, limit=limit, mean_limit=mean_limit)
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
    return jnp.right_shift(jnp.asarray(sigmas) * temperature[:, None], _SIGMA_BITS)


def draw_detail(mean: jax.Array, spread: jax.Array, noise: jax.Array) -> jax.Array:
    """Details, multiples of 1/256 as float32.

    Args:
      mean: Integers as float32, in sixteenths.
      spread: int32, from `detail_spreads`.
      noise: int32, from `normal_noise`.
    """
    units: jax.Array = mean.astype(jnp.int32) * 2 ** (DETAIL_BITS - FRACTION_BITS)
    units = units + jnp.right_shift(spread * noise, NOISE_BITS)
    return units.astype(jnp.float32) * 2.0**-DETAIL_BITS


def round_detail(detail: jax.Array) -> jax.Array:
    """The integer nearest to a detail, halves upwards, as the context model sees it."""
    return jnp.floor(detail + 0.5)
