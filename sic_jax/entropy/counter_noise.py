"""Noise of a seed and a counter, in integers that the file format defines.

The number at a place depends on the seed and the place alone, so that a file and a seed give the
same noise everywhere. FORMAT.md has the same definition in words.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

NOISE_BITS: Final = 10
"""Noise counts 2^-10 of its standard deviation."""
# Factors that bring the raw sums to units of 2^-10 standard deviations, times 2^16: the sum of four
# 16-bit words deviates by 37837.2, twice a centred 16-bit word by 37837.2 too.
_NOISE_FACTOR: Final = 1774


def hash32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijective mixing of 32-bit words of any shape (the constants of `lowbias32`)."""
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

    Bounded at +-3.46 deviations, so that a single draw cannot spoil a picture.

    Args:
        seed: 0 to 2^32 - 1.
        shape: Of the noise; its places, row by row, have the counters from `start` on.
        start: First counter.

    Returns:
        int32 of that shape, -3548 to 3548.
    """
    a, b = detail_words(seed, int(np.prod(shape)), start=start)
    total = np.full(a.shape, -2 * 65535, np.int32)
    for word in (a, b):
        total += (word & np.uint32(0xFFFF)).astype(np.int32)
        total += (word >> np.uint32(16)).astype(np.int32)
    return _scaled(total).reshape(shape)


def uniform_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Uniform noise in 1/1024 of its standard deviation, for the paper's details.

    Args:
        seed: 0 to 2^32 - 1.
        shape: Of the noise; its places, row by row, have the counters from 0 on.

    Returns:
        int32 of that shape, -1774 to 1774.
    """
    a, _ = detail_words(seed, int(np.prod(shape)))
    return _scaled(2 * (a >> np.uint32(16)).astype(np.int32) - 65535).reshape(shape)


def _scaled(total: NDArray[np.int32]) -> NDArray[np.int32]:
    total *= _NOISE_FACTOR
    total += 1 << 15
    total >>= 16
    return total
