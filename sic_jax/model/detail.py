"""Detail noise: a counter-based generator that the file format defines, the same everywhere.

Only integer arithmetic modulo 2^32 decides the draw of (seed, position, channel); FORMAT.md has the
same definition in words.
"""

import numpy as np
from numpy.typing import NDArray

_UNIFORM_SCALE = 12**0.5 / 2.0**32
_NORMAL_MEAN = 2 * 65535
_NORMAL_STD = float(np.sqrt((2.0**32 - 1) / 3))


def hash32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijective mixing of 32-bit words (the constants of the `lowbias32` hash)."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def detail_words(seed: int, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Two words for each of the counters 0..count-1.

    Args:
      seed: 0 to 2^32 - 1.
      count: Number of counters, at most 2^32; a counter is position * C + channel.

    Returns:
      Two uint32 arrays [count].
    """
    key = hash32(np.array([seed ^ 0x9E3779B9], np.uint32))
    first = hash32(np.arange(count, dtype=np.uint32) + key)
    return first, hash32(first ^ np.uint32(0x85EBCA6B))


def normal_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Near-normal noise of zero mean and unit variance: the sum of four 16-bit uniforms.

    Bounded at +-3.46, so that a single draw cannot spoil a picture.
    """
    a, b = detail_words(seed, int(np.prod(shape)))
    total = sum((w & np.uint32(0xFFFF)).astype(np.int32) + (w >> np.uint32(16)) for w in (a, b))
    noise = (np.asarray(total, np.float64) - _NORMAL_MEAN) / _NORMAL_STD
    return noise.astype(np.float32).reshape(shape)


def uniform_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uniform noise of zero mean and unit variance."""
    a, _ = detail_words(seed, int(np.prod(shape)))
    noise = (a.astype(np.float64) + 0.5 - 2.0**31) * _UNIFORM_SCALE
    return noise.astype(np.float32).reshape(shape)
