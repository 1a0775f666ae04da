import numpy as np
import pytest

from sic_jax.model.detail import detail_words, hash32, normal_noise, uniform_noise

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
    total = (a % 65536) + (a // 65536) + (b % 65536) + (b // 65536)
    normal = (total - 2 * 65535) / ((2**32 - 1) / 3) ** 0.5
    assert normal_noise(9, (2, 3))[1, 2] == np.float32(normal)
    uniform = ((a + 0.5) / 2**32 - 0.5) * 12**0.5
    assert uniform_noise(9, (2, 3))[1, 2] == np.float32(uniform)


@pytest.mark.parametrize(
    ("draw", "bound", "kurtosis"), [(normal_noise, 3.4643, 2.7), (uniform_noise, 3**0.5, 1.8)]
)
def test_moments_and_bounds(draw: type(normal_noise), bound: float, kurtosis: float) -> None:
    x = draw(3, (64, 64, 50)).astype(np.float64)
    n = x.size
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * ((kurtosis - 1) / n) ** 0.5
    assert abs((x**4).mean() - kurtosis) < 0.05
    assert np.abs(x).max() <= bound
    assert np.abs(x).max() > 0.9 * bound
    # Neighbours in either direction and other seeds have nothing to do with each other.
    other = draw(4, x.shape)
    for u, v in ((x[1:], x[:-1]), (x[..., 1:], x[..., :-1]), (x, other)):
        assert abs((u * v).mean()) < 5 / n**0.5


@pytest.mark.parametrize("draw", [normal_noise, uniform_noise])
def test_same_seed_same_noise(draw: type(normal_noise)) -> None:
    a = draw(11, (4, 5, 6))
    assert a.dtype == np.float32
    assert a.shape == (4, 5, 6)
    np.testing.assert_array_equal(a, draw(11, (4, 5, 6)))
    assert not np.array_equal(a, draw(12, (4, 5, 6)))
    # The counter is position * C + channel: more rows do not change the first ones.
    np.testing.assert_array_equal(draw(11, (9, 5, 6))[:4], a)
