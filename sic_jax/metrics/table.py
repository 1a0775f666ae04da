"""The metrics that the evaluation knows: what each compares, and how it is shown."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sic_jax.metrics import dists_metric as dists
from sic_jax.metrics import fidelity, vgg
from sic_jax.metrics import lpips_metric as lpips
from sic_jax.metrics import wasserstein_metric as wasserstein
from sic_jax.metrics.convnet import Weights
from sic_jax.sizes import Size

__all__ = ["METRICS", "Metric"]


def _nothing() -> Weights:
    return {}


def _pixels(x: jax.Array, _: Weights, __: Size) -> jax.Array:
    return x


def _same(value: float) -> float:
    return value


class Metric(NamedTuple):
    """A measure of the difference between an image and its reconstruction."""

    name: str
    """In files and on the command line."""
    label: str
    """In plots and tables."""
    higher_is_better: bool
    distance: Callable[[Any, jax.Array, Weights, Size], jax.Array]
    """(features, reconstructions [B, H, W, 3], weights, size) to [B]; the features' first axis is
    B."""
    features: Callable[[jax.Array, Weights, Size], Any] = _pixels
    """What it needs of originals [B, H, W, 3] in [0, 1]; arrays with a first axis of B."""
    load: Callable[[], Weights] = _nothing
    """Weights of its network."""
    min_size: int = 1
    """Smallest height and width of an image that it is defined for."""
    decimals: int = 4
    unit: str = ""
    """Of plots and Bjontegaard deltas."""
    scale: Callable[[float], float] = _same
    """A value in that unit; increasing."""
    default: bool = True
    """Whether it is measured when no metrics are named."""


def _to_decibels(value: float) -> float:
    """-10 log10(1 - value): similarities near 1 on a scale that tells them apart."""
    return -10 * math.log10(1 - value) if value < 1 else math.inf


def _lpips(
    name: str, label: str, net: lpips.Net, load: Callable[[], Weights], min_size: int
) -> Metric:
    def distance(features: Any, x_hat: jax.Array, weights: Weights, size: Size) -> jax.Array:
        found = lpips.lpips_features(x_hat, weights=weights, net=net, size=size)
        return lpips.lpips_from_features(features, found, weights=weights, net=net, size=size)

    return Metric(
        name=name,
        label=label,
        higher_is_better=False,
        distance=distance,
        features=lambda x, weights, size: lpips.lpips_features(
            x, weights=weights, net=net, size=size
        ),
        load=load,
        min_size=min_size,
        # A pass of VGG16 takes seconds on a CPU.
        default=net == "alex",
    )


def _dists_distance(features: Any, x_hat: jax.Array, weights: Weights, size: Size) -> jax.Array:
    found = dists.dists_features(x_hat, weights=weights, size=size)
    return dists.dists_from_features(features, found, weights=weights, size=size)


def _wd_distance(features: Any, x_hat: jax.Array, weights: Weights, size: Size) -> jax.Array:
    found = wasserstein.wasserstein_features(x_hat, weights=weights, size=size)
    return wasserstein.wasserstein_from_features(features, found, size=size)


METRICS = (
    Metric(
        name="psnr",
        label="PSNR",
        higher_is_better=True,
        distance=lambda x, x_hat, _, size: fidelity.psnr(x, x_hat, size=size),
        decimals=2,
        unit="dB",
    ),
    Metric(
        name="ms_ssim",
        label="MS-SSIM",
        higher_is_better=True,
        distance=lambda x, x_hat, _, size: fidelity.ms_ssim(x, x_hat, size=size),
        min_size=fidelity.MS_SSIM_MIN_SIZE,
        unit="dB",
        scale=_to_decibels,
    ),
    _lpips("lpips", "LPIPS (AlexNet)", "alex", lpips.load_alexnet_weights, lpips.MIN_SIZE),
    Metric(
        name="dists",
        label="DISTS",
        higher_is_better=False,
        distance=_dists_distance,
        features=lambda x, weights, size: dists.dists_features(x, weights=weights, size=size),
        load=dists.load_dists_weights,
        min_size=vgg.MIN_SIZE,
        default=False,
    ),
    _lpips("lpips_vgg", "LPIPS (VGG16)", "vgg", vgg.load_vgg16_weights, vgg.MIN_SIZE),
    Metric(
        name="wd",
        label="Wasserstein distortion (VGG16)",
        higher_is_better=False,
        distance=_wd_distance,
        features=lambda x, weights, size: wasserstein.wasserstein_features(
            x, weights=weights, size=size
        ),
        load=vgg.load_vgg16_weights,
        min_size=wasserstein.MIN_SIZE,
        decimals=3,
        default=False,
    ),
    Metric(
        name="ssim",
        label="SSIM",
        higher_is_better=True,
        distance=lambda x, x_hat, _, size: fidelity.ssim(x, x_hat, size=size),
        min_size=fidelity.SSIM_MIN_SIZE,
        unit="dB",
        scale=_to_decibels,
        default=False,
    ),
)
"""All of them, in the order of tables and plots."""
