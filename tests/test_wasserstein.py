"""Wasserstein distortion: hand-computed maps, values of the published form, its gradient."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpy.typing import NDArray

from sic_jax.metrics.convnet import Weights
from sic_jax.metrics.vgg import STAGE_CHANNELS, load_vgg16_weights, max_pool, vgg16_stages
from sic_jax.metrics.wasserstein_metric import (
    MIN_SIZE,
    map_distortion,
    wasserstein,
    wasserstein_features,
    wasserstein_from_features,
)

SMALL = Path(__file__).parent / "data" / "metrics_small.npz"


@pytest.fixture(scope="module")
def weights() -> Weights:
    found: Weights = jax.device_put(load_vgg16_weights())
    return found


def distortion(f: NDArray[Any], g: NDArray[Any], log2_sigma: float) -> float:
    """Of maps ``[H, W]`` or ``[H, W, C]``."""
    maps = [np.float32(h).reshape(1, *h.shape[:2], -1) for h in (f, g)]
    (value,) = map_distortion(*map(jnp.asarray, maps), log2_sigma=log2_sigma)
    return float(value)


def test_without_pooling_it_is_the_mean_square() -> None:
    f, g = np.random.default_rng(0).random((2, 5, 7, 3))
    assert distortion(f, g, 0) == pytest.approx(np.mean(np.square(f - g)), rel=1e-6)


def test_constant_maps() -> None:
    # Under the window lies a share s of the map: means s a, variances s (1 - s) a^2. So each
    # position has s (a - b)^2. At borders 3/4 of the window are inside, at corners 9/16.
    height, width = 6, 9
    f, g = np.full((height, width), 5.0), np.full((height, width), 3.0)
    wanted = 4.0 * (1 - 0.5 / height) * (1 - 0.5 / width)
    assert distortion(f, g, 1) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("log2_sigma", [1, 2, 3])
def test_what_is_compared_with_zeros_is_the_pooled_square(log2_sigma: float) -> None:
    # mu^2 + sigma^2. One sample of 7 is spread by weights with a sum of 1 over all positions of
    # level 1, and of 4^-(i - 1) over those of level i, which are as many times fewer.
    f = np.zeros((16, 24))
    f[8, 16] = 7.0
    assert distortion(f, 0 * f, log2_sigma) == pytest.approx(49 / (16 * 24), rel=1e-6)


def test_a_texture_may_move() -> None:
    # Columns 0 1 0 1 ... and 1 0 1 0 ...: mean 1/2 and variance 1/4 wherever the window is inside.
    height, width = 8, 12
    f = np.arange(width) % 2 * np.ones((height, 1))
    assert distortion(f, 1 - f, 0) == 1.0

    # First and last column: mean and mean square are 1/4 there and 1/2 here, times 3/4 in corners.
    def side(s: float) -> float:
        deviations = np.sqrt(s / 4 - (s / 4) ** 2), np.sqrt(s / 2 - (s / 2) ** 2)
        out: float = (s / 4 - s / 2) ** 2 + (deviations[0] - deviations[1]) ** 2
        return out

    wanted = 2 / width * ((height - 2) * side(1) + 2 * side(0.75)) / height
    assert distortion(f, 1 - f, 1) == pytest.approx(wanted, rel=1e-5)
    assert wanted < 0.012


def test_scales_between_levels_are_blends() -> None:
    f, g = np.random.default_rng(1).random((2, 17, 22, 2))
    levels = [distortion(f, g, i) for i in range(4)]
    assert levels == sorted(levels, reverse=True)
    for scale, wanted in ((0.25, 0.75 * levels[0] + 0.25 * levels[1]),
                          (2.5, 0.5 * levels[2] + 0.5 * levels[3])):  # fmt: skip
        assert distortion(f, g, scale) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("log2_sigma", "wanted"),
    [(0, 0.168492), (0.5, 0.106050), (1, 0.0436072), (2, 0.0204110), (2.25, 0.0188714),
     (5, 0.00390386)],
)  # fmt: skip
def test_map_distortion_of_the_published_form(log2_sigma: float, wanted: float) -> None:
    """Values of the operations of the authors' PyTorch package, written in JAX."""
    i, j, c = np.mgrid[:21, :18, :4]
    f, g = (37 * i + 101 * j + 17 * c) ** 2 % 97 / 97, (29 * i + 53 * j + 71 * c) ** 2 % 89 / 89
    g[..., 0] = f[..., 0] / 2
    assert distortion(f, g, log2_sigma) == pytest.approx(wanted, rel=1e-5)


def low_passed(h: NDArray[Any]) -> NDArray[Any]:
    """``[H, W, ...]`` in float64 under [1 2 1] / 4 along both axes, with zeros outside."""
    h = np.pad(h.astype(np.float64), [(1, 1), (1, 1)] + [(0, 0)] * (h.ndim - 2))
    h = (h[:-2] + 2 * h[1:-1] + h[2:]) / 4
    out: NDArray[Any] = (h[:, :-2] + 2 * h[:, 1:-1] + h[:, 2:]) / 4
    return out


def test_deviations_do_not_drown_in_the_mean() -> None:
    # The square of 1000 has steps of 1/16 in float32; these variances are near 2e-4 and 5e-5.
    noise = np.random.default_rng(2).normal(0, 0.03, (12, 14))
    f, g = ((1000 + a).astype(np.float32) for a in (noise, noise / 2))
    means = [low_passed(h) for h in (f, g)]
    squares = [low_passed(np.square(h.astype(np.float64))) for h in (f, g)]
    deviations = [np.sqrt(p - m**2) for p, m in zip(squares, means, strict=True)]
    wanted = np.mean((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2)
    assert distortion(f, g, 1) == pytest.approx(wanted, rel=0.01)


def gradients(f: NDArray[Any], g: NDArray[Any], log2_sigma: float) -> tuple[Array, Array]:
    def total(f: Array, g: Array) -> Array:
        return jnp.sum(map_distortion(f, g, log2_sigma=log2_sigma))

    out: tuple[Array, Array] = jax.grad(total, argnums=(0, 1))(f, g)
    return out


@pytest.mark.usefixtures("quick")
def test_maps_that_do_not_fill_their_arrays() -> None:
    sizes = [(17, 22), (24, 11), (5, 1)]
    whole = np.zeros((2, 3, 24, 22, 2), np.float32)
    rng = np.random.default_rng(7)
    for k, (height, width) in enumerate(sizes):
        whole[:, k, :height, :width] = rng.random((2, height, width, 2))
    found = jax.jit(partial(map_distortion, log2_sigma=2.5))(*whole, size=np.array(sizes))
    for k, (height, width) in enumerate(sizes):
        f, g = whole[:, k, :height, :width]
        wanted = distortion(f, g, 2.5)
        assert found[k] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e-6, 1.0, 1e6])
def test_gradients_of_maps_are_finite(scale: float) -> None:
    noise = jnp.asarray(np.random.default_rng(3).normal(size=(1, 9, 8, 1)), jnp.float32) * scale
    flat = jnp.full((1, 9, 8, 1), 0.5, jnp.float32)
    compiled = jax.jit(partial(gradients, log2_sigma=1.5))
    for f, g in ((noise, noise), (noise, flat), (flat, flat + noise), (0 * flat, noise)):
        assert np.isfinite(compiled(f, g)).all()


@pytest.mark.usefixtures("quick")
def test_gradient_agrees_with_finite_differences() -> None:
    f, g = np.random.default_rng(4).random((2, 1, 9, 8, 2), np.float32)
    _, gradient = jax.jit(partial(gradients, log2_sigma=1.5))(f, g)
    step = 0.01 * gradient / np.linalg.norm(gradient)
    compiled = jax.jit(partial(map_distortion, log2_sigma=1.5))
    above, below = (compiled(f, g + s)[0] for s in (step, -step))
    assert above - below == pytest.approx(float(np.sum(2 * step * gradient)), rel=0.01)


@jax.jit
def value_and_gradient(x: Array, x_hat: Array, weights: Weights) -> tuple[Array, Array]:
    def total(x_hat: Array) -> Array:
        return jnp.sum(wasserstein(x, x_hat, weights=weights))

    return jax.value_and_grad(total)(x_hat)


@pytest.mark.thorough
@pytest.mark.usefixtures("quick")
def test_gradients_of_images_are_finite(weights: Weights) -> None:
    noise = np.random.default_rng(5).random((1, MIN_SIZE, MIN_SIZE, 3), np.float32)
    flat = np.full_like(noise, 0.5)
    for x, x_hat in ((noise, noise), (flat, flat), (0 * flat, 0 * flat), (flat, noise)):
        value, gradient = value_and_gradient(x, x_hat, weights)
        assert np.isfinite(gradient).all()
        if x is flat and x_hat is noise:
            assert value > 1.0
            assert np.abs(gradient).max() > 1e-4
        else:
            assert value == 0.0
            np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.thorough
@pytest.mark.usefixtures("quick")
def test_value_of_a_picture() -> None:
    """The operations of the authors' PyTorch package, written in JAX, gave 3.03728."""
    with np.load(SMALL, allow_pickle=False) as stored:
        x, x_hat = (stored[k][:1, :64, :128] / np.float32(255) for k in ("reference", "distorted"))
    found = jax.jit(wasserstein)(x, x_hat)  # With the packaged weights.
    np.testing.assert_allclose(found, [3.03728], rtol=2e-4)


def test_features(weights: Weights) -> None:
    x = jax.ShapeDtypeStruct((2, 75, 61, 3), jnp.float32)
    features = jax.eval_shape(wasserstein_features, x, weights=weights)
    assert [f.shape[1:3] for f in features] == [
        (75, 61),
        (75, 61), (37, 30), (18, 15), (9, 7), (4, 3),
        (38, 31), (19, 15), (9, 7), (4, 3), (2, 1),
        (19, 16), (9, 8), (4, 4), (2, 2), (1, 1),
    ]  # fmt: skip
    assert [f.shape[-1] for f in features] == [3, *(3 * STAGE_CHANNELS)]


@pytest.mark.usefixtures("quick")
def test_the_second_scale_is_every_second_pixel_of_the_low_passed_picture(weights: Weights) -> None:
    x = np.random.default_rng(6).random((1, MIN_SIZE, MIN_SIZE + 1, 3), np.float32)
    mean = np.array([0.485, 0.456, 0.406])
    half = (mean + low_passed(x[0] - mean)[::2, ::2]).astype(np.float32)[None]

    @jax.jit
    def first_stages(x: Array, half: Array, weights: Weights) -> tuple[Array, Array]:
        stages = vgg16_stages(half, weights=weights, pool=max_pool, metric="")
        return wasserstein_features(x, weights=weights)[6], stages[0]

    found, wanted = first_stages(x, half, weights)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.max(wanted))


@pytest.mark.parametrize("shape", [(1, 60, 64, 3), (1, 64, 60, 3), (1, 64, 64, 1), (64, 64, 3)])
def test_unusable_shapes_are_named(shape: tuple[int, ...], weights: Weights) -> None:
    image = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=rf"at least {MIN_SIZE}, got \(\d+"):
        wasserstein(image, image, weights=weights)


def test_unusable_pairs_and_scales_are_named(weights: Weights) -> None:
    image = np.zeros((1, 64, 72, 3), np.float32)
    with pytest.raises(ValueError, match=r"got \(1, 64, 72, 3\) and \(1, 72, 64, 3\)"):
        wasserstein(image, image.transpose(0, 2, 1, 3), weights=weights)
    whole = image.astype(np.uint8)
    with pytest.raises(TypeError, match=r"floating-point images in \[0, 1\], got uint8"):
        wasserstein(whole, whole, weights=weights)
    for scale in (-0.5, 5.5, float("nan")):
        with pytest.raises(ValueError, match=rf"log2_sigma must be in \[0, 5\], got {scale}"):
            wasserstein_from_features((), (), log2_sigma=scale)
