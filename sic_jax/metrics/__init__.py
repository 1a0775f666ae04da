"""Metrics: bits per pixel, PSNR, SSIM, MS-SSIM, LPIPS, DISTS, Wasserstein distortion, FID and KID.

Those of pictures take two batches of floats in [0, 1], ``[B, H, W, 3]`` (8-bit pictures over 255),
and give one value a picture:

    from sic_jax import metrics
    metrics.lpips(x, x_hat, net="vgg")

The networks' weights are found in the package and read once a process; ``weights=`` takes others,
or the same as an argument of a compiled function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sic_jax.metrics.dists_metric import dists
    from sic_jax.metrics.fidelity import MS_SSIM_MIN_SIZE, SSIM_MIN_SIZE, ms_ssim, psnr, ssim
    from sic_jax.metrics.lpips_metric import lpips
    from sic_jax.metrics.rate import bpp
    from sic_jax.metrics.wasserstein_metric import wasserstein

__all__ = [
    "MS_SSIM_MIN_SIZE",
    "SSIM_MIN_SIZE",
    "bpp",
    "dists",
    "lpips",
    "ms_ssim",
    "psnr",
    "ssim",
    "wasserstein",
]


# Type checkers do not see it: to them it would define every name, wrong ones too.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first used: counting bits needs no JAX."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = {"bpp": "rate"}
        modules |= {metric: f"{metric}_metric" for metric in ("dists", "lpips", "wasserstein")}
        module = importlib.import_module(f"{__name__}.{modules.get(name, 'fidelity')}")
        return getattr(module, name)
