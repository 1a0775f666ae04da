from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.entropy.counter_noise import detail_words, hash32, normal_noise, uniform_noise
from sic_jax.model.entropy_models.checkerboard.detail import (
    detail_spreads,
    draw_detail,
    prior_sigmas,
    random_normal_noise,
    round_detail,
)
from sic_jax.model.entropy_models.coding_pass import temperature_units
from sic_jax.model.entropy_models.scales import ScaleGrid

# Written with plain Python integers from the definition (see `words` below).
GOLDEN = {
    0: [("0xae6f80f1", "0x90b942ff"), ("0xa07c7a97", "0xad40a667"), ("0xfca3732c", "0xb41e8b1e")],
    1: [("0x8e374fe0", "0x352fb7da"), ("0xa290702b", "0xaa3dcf17"), ("0xe80e9316", "0x33a1ea30")],
    2**32 - 1: [
        ("0xbc67388e", "0x8d2d12b"),
        ("0x17a7d32", "0x47febec9"),
        ("0xd63b3e3d", "0x84dff6b"),
    ],
}


def words(seed: int, counter: int) -> tuple[int, int]:
    """The generator's definition in plain integers modulo 2^32."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    first = mix((counter + mix(seed ^ 0x9E3779B9)) % 2**32)
    return first, mix(first ^ 0x85EBCA6B)


@pytest.mark.parametrize("seed", GOLDEN)
def test_golden_words(seed: int) -> None:
    first, second = detail_words(seed, 3)
    assert first.dtype == second.dtype == np.uint32
    got = [(hex(a), hex(b)) for a, b in zip(first, second, strict=True)]
    assert got == GOLDEN[seed]
    far = detail_words(seed, 5000)
    for counter in (3, 1000, 4999):
        assert (int(far[0][counter]), int(far[1][counter])) == words(seed, counter)


def test_words_are_a_permutation_of_the_counters() -> None:
    first, second = detail_words(7, 1 << 16)
    assert len(np.unique(first)) == len(np.unique(second)) == 1 << 16
    assert hash32(np.zeros(1, np.uint32)).tolist() == [0]


def test_noise_by_hand() -> None:
    a, b = words(9, 5)
    total = (a % 65536) + (a // 65536) + (b % 65536) + (b // 65536) - 2 * 65535
    assert normal_noise(9, (2, 3))[1, 2] == (total * 1774 + 2**15) // 2**16
    assert uniform_noise(9, (2, 3))[1, 2] == ((2 * (a // 65536) - 65535) * 1774 + 2**15) // 2**16
    # In units of 1/1024 of the standard deviation: of four 16-bit words, and of one.
    assert normal_noise(9, (2, 3))[1, 2] == pytest.approx(
        total / ((2**32 - 1) / 3) ** 0.5 * 1024, abs=1
    )
    assert uniform_noise(9, (2, 3))[1, 2] == pytest.approx(
        ((a + 0.5) / 2**32 - 0.5) * 12**0.5 * 1024, abs=1
    )


@pytest.mark.parametrize(
    ("draw", "bound", "kurtosis"), [(normal_noise, 3.465, 2.7), (uniform_noise, 1.7327, 1.8)]
)
def test_moments_and_bounds(
    draw: Callable[..., NDArray[Any]], bound: float, kurtosis: float
) -> None:
    x = draw(3, (64, 64, 50)) / 1024
    n = x.size
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * ((kurtosis - 1) / n) ** 0.5
    assert abs((x**4).mean() - kurtosis) < 0.05
    assert np.abs(x).max() <= bound
    assert np.abs(x).max() > 0.9 * bound
    # Neighbours in either direction and other seeds have nothing to do with each other.
    other = draw(4, x.shape) / 1024
    for u, v in ((x[1:], x[:-1]), (x[..., 1:], x[..., :-1]), (x, other)):
        assert abs((u * v).mean()) < 5 / n**0.5


@pytest.mark.parametrize("draw", [normal_noise, uniform_noise])
def test_same_seed_same_noise(draw: Callable[..., NDArray[Any]]) -> None:
    a = draw(11, (4, 5, 6))
    assert a.dtype == np.int32
    assert a.shape == (4, 5, 6)
    np.testing.assert_array_equal(a, draw(11, (4, 5, 6)))
    assert not np.array_equal(a, draw(12, (4, 5, 6)))
    # The counter is position * C + channel: more rows do not change the first ones.
    np.testing.assert_array_equal(draw(11, (9, 5, 6))[:4], a)


def test_training_noise_has_the_codec_units() -> None:
    x = np.asarray(random_normal_noise(jax.random.key(0), (100, 1000)))
    assert x.dtype == np.int32
    x = x / 1024
    assert abs(x.mean()) < 0.01
    assert abs(x.var() - 1) < 0.02
    assert abs((x**4).mean() - 3) < 0.1
    assert np.abs(x).max() <= 4


def test_details_by_hand() -> None:
    sigmas = prior_sigmas(ScaleGrid())
    # 0.11, its 64 steps up to 64, in 1/4096.
    assert sigmas[[0, 1, 22, 63]].tolist() == [451, 498, 4161, 262144]
    temperature = jnp.array([temperature_units(t) for t in (0, 0.25, 1, 16)])
    assert temperature.tolist() == [0, 64, 256, 4096]
    spreads = np.asarray(detail_spreads(sigmas, temperature))
    assert spreads[:, [0, 22, 63]].tolist() == [
        [0, 0, 0], [7, 65, 4096], [28, 260, 16384], [451, 4161, 262144]
    ]  # fmt: skip
    # The largest sigma, temperature and noise do not overflow: 64 * 16 * 3.46 = 3546.4.
    mean = jnp.array([8.0, -8.0, -32768.0])
    drawn = draw_detail(mean, jnp.array([64, 64, 262144]), jnp.array([1024, -1025, -3547]))
    assert drawn.tolist() == [0.5 + 0.25, -0.5 - 65 / 256, -2048 - 3547.0]
    assert round_detail(jnp.array([0.5, -0.5, 1.49, -1.51])).tolist() == [1, 0, 1, -2]
    for bad in (-0.1, 16.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature must be 0 to 16, got {bad}"):
            temperature_units(bad)
