"""Metrics of images that do not fill their arrays: the values of the images cut out."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from conftest import quick_compilation
from jax import Array
from numpy.typing import NDArray

from sic_jax import metrics
from sic_jax.evaluation.measurer import Measurer
from sic_jax.metrics.dists_metric import load_dists_weights
from sic_jax.metrics.lpips_metric import load_alexnet_weights, lpips
from sic_jax.metrics.table import METRICS
from sic_jax.sizes import bucket_side
from sic_jax.training.losses import PerceptualWeights


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Programs compile quickly in this module."""
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def weights() -> PerceptualWeights:
    found: PerceptualWeights = jax.device_put(
        {"alex": load_alexnet_weights(), "vgg": load_dists_weights()}
    )
    return found


def quick_ones(
    x: Array, x_hat: Array, weights: PerceptualWeights, size: Any = None
) -> dict[str, Array]:
    return {
        "psnr": metrics.psnr(x, x_hat, size=size),
        "ssim": metrics.ssim(x, x_hat, size=size),
        "ms_ssim": metrics.ms_ssim(x, x_hat, size=size),
        "lpips": lpips(x, x_hat, weights=weights["alex"], size=size),
    }


def vgg_ones(
    x: Array, x_hat: Array, weights: PerceptualWeights, size: Any = None
) -> dict[str, Array]:
    return {
        "lpips_vgg": lpips(x, x_hat, weights=weights["vgg"], net="vgg", size=size),
        "dists": metrics.dists(x, x_hat, weights=weights["vgg"], size=size),
    }


def wasserstein(
    x: Array, x_hat: Array, weights: PerceptualWeights, size: Any = None
) -> dict[str, Array]:
    if size is None:
        return {"wd": metrics.wasserstein(x, x_hat, weights=weights["vgg"])}
    (wd,) = (metric for metric in METRICS if metric.name == "wd")
    features = wd.features(x, weights["vgg"], size)
    return {"wd": wd.distance(features, x_hat, weights["vgg"], size)}


def image_pair(seed: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """An image and a noisy version of it, float32 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:height, :width][..., None] / 9
    x = np.clip(0.5 + 0.3 * np.sin(i + rng.random(3) * j) + rng.normal(0, 0.05, (height, width, 3)),
                0, 1)  # fmt: skip
    x_hat = np.clip(x + rng.normal(0, 0.05, x.shape), 0, 1)
    return x.astype(np.float32), x_hat.astype(np.float32)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("functions", "sides", "sizes"),
    [
        (quick_ones, (192, 224), [(161, 203), (191, 218)]),
        (vgg_ones, (64, 64), [(51, 64), (49, 57)]),
        (wasserstein, (80, 96), [(75, 87)]),
    ],
)
def test_values_are_those_of_the_images_cut_out(
    functions: Callable[..., Any],
    sides: tuple[int, int],
    sizes: list[tuple[int, int]],
    weights: PerceptualWeights,
) -> None:
    # Sizes that are odd at different scales; what lies outside must not matter.
    pairs = [image_pair(seed, *size) for seed, size in enumerate(sizes)]
    padded = np.full((2, len(sizes), *sides, 3), 0.7, np.float32)
    padded[1] = 0.1
    for k, pair in enumerate(pairs):
        for whole, image in zip(padded, pair, strict=True):
            whole[k, : image.shape[0], : image.shape[1]] = image
    found = jax.jit(functions)(*padded, weights, np.array(sizes, np.int32))
    for k, (x, x_hat) in enumerate(pairs):
        for name, value in jax.jit(functions)(x[None], x_hat[None], weights).items():
            assert found[name][k] == pytest.approx(float(value[0]), rel=1e-5, abs=1e-7), name


@pytest.mark.thorough
def test_sizes_of_one_bucket_share_programs(weights: PerceptualWeights) -> None:
    chosen = [metric for metric in METRICS if metric.name in ("psnr", "lpips_vgg", "dists")]
    measurer = Measurer(chosen)
    for seed, size in enumerate([(51, 60), (64, 64), (49, 57)]):
        x, x_hat = (np.round(image * 255).astype(np.uint8) for image in image_pair(seed, *size))
        found = measurer.distances(measurer.features(x), [x_hat])
        if seed == 0:
            pair = (image[None].astype(np.float32) / 255 for image in (x, x_hat))
            for name, value in jax.jit(vgg_ones)(*pair, weights).items():
                assert found[name][0] == pytest.approx(float(value[0]), rel=1e-5, abs=1e-7), name
    assert measurer._extract(256, 256)._cache_size() == 1
    assert measurer._compare(256, 256)._cache_size() == 1
    measurer.features(np.zeros((257, 64, 3), np.uint8), ["psnr"])
    assert measurer._extract.cache_info().currsize == 2


def test_buckets() -> None:
    found = [bucket_side(side) for side in range(1, 3000)]
    for side, bucket in enumerate(found, 1):
        assert side <= bucket < max(1.25 * side, side + 8)
    assert found == sorted(found)
    assert [b for b in sorted(set(found)) if 128 <= b <= 1024] == [
        128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024
    ]  # fmt: skip
    assert all(b % 8 == 0 for b in found)


def test_ms_ssim_needs_even_arrays() -> None:
    x = np.zeros((1, 170, 176, 3), np.float32)
    size: Any = np.array([[165, 165]])
    with pytest.raises(ValueError, match="sides that 16 divides"):
        metrics.ms_ssim(x, x, size=size)
