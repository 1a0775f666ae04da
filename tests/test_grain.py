"""Grain: its integers as FORMAT.md has them, and the noise that pictures end up with."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.codec import grain
from sic_jax.codec.grain import add_grain, grain_units, measure_grain
from sic_jax.entropy.counter_noise import normal_noise
from sic_jax.training import batch_grain as training_grain


def flat(height: int, width: int, deviation: float, *, seed: int = 0) -> NDArray[Any]:
    """A gradient with white noise, the same in all colours."""
    i, j = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).normal(0, deviation, (height, width))
    x = 90 + i / 7 + j / 11 + noise
    out: NDArray[Any] = np.clip(np.repeat(np.round(x)[..., None], 3, -1), 0, 255).astype(np.uint8)
    return out


def by_hand(picture: NDArray[Any], sigma: int, seed: int) -> NDArray[Any]:
    """The section Grain of FORMAT.md in plain integers."""
    height, width = picture.shape[:2]
    luma = [[(77 * r + 150 * g + 29 * b + 32) // 64 for r, g, b in row] for row in picture.tolist()]
    squares = {
        (i, j): (luma[i][j] - luma[i - 1][j] - luma[i][j - 1] + luma[i - 1][j - 1]) ** 2
        for i in range(1, height)
        for j in range(1, width)
    }
    noise = normal_noise(seed ^ 0x47524149, (height, width, 4)).tolist()
    out = np.zeros_like(picture)
    for i in range(height):
        for j in range(width):
            rows = [min(max(i + u, 1), height - 1) for u in range(-8, 9)]
            columns = [min(max(j + v, 1), width - 1) for v in range(-8, 9)]
            energy = sum(squares[place] for place in ((k, m) for k in rows for m in columns))
            amplitude = math.isqrt(max(0, 256 * sigma**2 - 1024 * energy // 289))
            for c in range(3):
                n = (857 * noise[i][j][0] + 561 * noise[i][j][c + 1]) // 1024
                sample = int(picture[i, j, c]) + (amplitude * n + 2**17) // 2**18
                out[i, j, c] = min(max(sample, 0), 255)
    return out


@pytest.mark.parametrize("strip_pixels", [2**18, 100, 1])
@pytest.mark.parametrize("size", [(2, 2), (3, 23), (21, 2), (19, 26)])
def test_the_definition(
    size: tuple[int, int], strip_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grain, "_STRIP_PIXELS", strip_pixels)
    picture = flat(*size, 1.0)
    picture[..., 2] += 1
    picture[:2] = 255
    for sigma in (9, 25, 255):
        got = add_grain(picture, sigma, 7)
        np.testing.assert_array_equal(got, by_hand(picture, sigma, 7))
    assert (got != picture).any()


def test_golden_grain() -> None:
    """Numbers that no later version may change."""
    x = add_grain(np.full((40, 50, 3), 128, np.uint8), 40, 3)
    assert x[0, :4].tolist() == [[132, 130, 131], [131, 127, 130], [126, 125, 127], [130, 133, 132]]
    assert x[-1, -2:].tolist() == [[130, 128, 131], [126, 124, 124]]
    assert int(x.astype(np.int64).sum()) == 767739


def test_extremes_do_not_overflow() -> None:
    """The largest differences that pictures have, and the largest grain."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    busy = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    np.testing.assert_array_equal(add_grain(busy, 255, 0), busy)
    calm = add_grain(np.full((64, 64, 3), 128, np.uint8), 255, 0).astype(float)
    assert calm.std() == pytest.approx(255 / 16, rel=0.03)


def test_variance_is_topped_up_to_the_grain() -> None:
    def luma_deviation(x: NDArray[Any]) -> float:
        y = x @ np.array([0.299, 0.587, 0.114])
        return float((y[1:, 1:] - y[:-1, 1:] - y[1:, :-1] + y[:-1, :-1]).std() / 2)

    # Of the added variance luma has 0.7 + 0.3 (0.299^2 + 0.587^2 + 0.114^2) = 0.834.
    for has, wants in ((0, 2), (1, 2), (2, 3)):
        x = flat(160, 200, has)
        before = luma_deviation(x) ** 2
        after = luma_deviation(add_grain(x, 16 * wants, 1)) ** 2
        assert after - before == pytest.approx(0.834 * (wants**2 - before), rel=0.06)
    # What has more noise already stays.
    x = flat(160, 200, 2)
    np.testing.assert_array_equal(add_grain(x, 20, 1), x)
    np.testing.assert_array_equal(add_grain(x, 0, 1), x)


def test_colours_share_most_of_it() -> None:
    x = add_grain(np.full((200, 300, 3), 128, np.uint8), 64, 9).astype(float) - 128
    correlation = np.corrcoef(x.reshape(-1, 3).T)
    assert correlation[np.triu_indices(3, 1)] == pytest.approx([0.7] * 3, abs=0.02)
    assert abs(x.mean()) < 0.05
    assert abs(np.corrcoef(x[1:].ravel(), x[:-1].ravel())[0, 1]) < 0.01
    other = add_grain(np.full((200, 300, 3), 128, np.uint8), 64, 10) - 128.0
    assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 0.01


def test_a_row_of_pixels_has_none() -> None:
    for size in ((1, 40), (40, 1), (1, 1)):
        x = np.full((*size, 3), 100, np.uint8)
        np.testing.assert_array_equal(add_grain(x, 100, 0), x)


@pytest.mark.parametrize("deviation", [1.0, 2.0, 3.0])
def test_measured_grain_is_the_noise(deviation: float) -> None:
    # The calmest tenth of the blocks is a little calmer than all.
    measured = measure_grain(flat(256, 320, deviation)) / 16
    assert 0.85 * deviation < measured < 1.0 * deviation + 0.05
    edges = flat(256, 320, deviation)
    edges[:, ::9] = 200  # in every block
    edges[:96] = flat(96, 320, deviation)
    assert measure_grain(edges) / 16 == pytest.approx(measured, rel=0.1)


def test_what_has_no_grain() -> None:
    assert measure_grain(flat(64, 64, 0)) < 10
    assert measure_grain(np.full((64, 64, 3), 100, np.uint8)) == 0
    noise: Any = np.random.default_rng(0).integers(0, 9, (64, 64, 3)).astype(np.uint8)
    assert measure_grain(noise) == 0  # black
    assert measure_grain(255 - noise) == 0  # white
    assert measure_grain(flat(15, 400, 3)) == 0  # no whole block
    assert measure_grain(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)) == 48


def test_units() -> None:
    assert [grain_units(s) for s in (0, 1, 1.03, 1.04, 15.9375)] == [0, 16, 16, 17, 255]
    for bad in (-0.1, 16, float("nan")):
        with pytest.raises(ValueError, match=r"grain must be 0 to 15.9375, got"):
            grain_units(bad)


def test_training_measures_the_same_grain() -> None:
    rng = np.random.default_rng(0)
    textured = flat(96, 128, 0.5)
    textured[:, 32:] = rng.integers(50, 200, (96, 96, 3))
    images = [flat(96, 128, 0.7), flat(96, 128, 2.5), flat(96, 128, 5), textured]
    images += [np.zeros((96, 128, 3), np.uint8), np.full((96, 128, 3), 60, np.uint8)]
    found = np.asarray(training_grain.measure_grain(jnp.asarray(np.stack(images)) / 255)) * 255 * 16
    assert found == pytest.approx([measure_grain(x) for x in images], abs=1)
    assert found[3] < 0.5 * found[1]


def test_training_draws_as_much_grain() -> None:
    x = np.stack([flat(160, 160, 0.5), flat(160, 160, 2), flat(160, 160, 0)])
    sigma = np.array([2, 1, 1.5], np.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = training_grain.add_grain(jnp.asarray(x) / 255, jnp.asarray(sigma / 255), keys)
    added = np.asarray(drawn) * 255 - x
    expected = [
        add_grain(a, int(16 * s), k) - a.astype(float)
        for k, (a, s) in enumerate(zip(x, sigma, strict=True))
    ]
    for k in (0, 2):
        a, b = added[k], expected[k]
        assert a.var() + 1 / 12 == pytest.approx(b.var(), rel=0.05)  # Rounding adds a twelfth.
        got, wanted = (np.corrcoef(c.reshape(-1, 3).T)[0, 1] for c in (a, b))
        assert got == pytest.approx(wanted, abs=0.08)
    assert not expected[1].any()
    assert np.abs(added[1]).max() < 1e-4
    again = training_grain.add_grain(
        jnp.asarray(x[2:]) / 255, jnp.asarray(sigma[2:] / 255), keys[2:]
    )
    np.testing.assert_allclose(again[0], drawn[2], atol=1e-6)


def test_grain_is_constant_for_gradients() -> None:
    x = jnp.asarray(flat(32, 32, 1)[None]) / 255
    weight = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)

    def loss(a: jax.Array) -> jax.Array:
        drawn = training_grain.add_grain(
            a, jnp.array([3 / 255]), jax.random.split(jax.random.key(1), 1)
        )
        return (weight * drawn).sum()

    np.testing.assert_array_equal(jax.grad(loss)(x), weight)
