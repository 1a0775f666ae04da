"""Metrics: bits per pixel, PSNR, SSIM, MS-SSIM, LPIPS, DISTS, FID and KID."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sic_jax.metrics.dists_metric import dists
    from sic_jax.metrics.fidelity import MS_SSIM_MIN_SIZE, SSIM_MIN_SIZE, ms_ssim, psnr, ssim
    from sic_jax.metrics.lpips_metric import lpips
    from sic_jax.metrics.rate import bpp

__all__ = [
    "MS_SSIM_MIN_SIZE",
    "SSIM_MIN_SIZE",
    "bpp",
    "dists",
    "lpips",
    "ms_ssim",
    "psnr",
    "ssim",
]


# Type checkers do not see it: to them it would define every name, wrong ones too.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first used: counting bits needs no JAX."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = {"bpp": "rate", "dists": "dists_metric", "lpips": "lpips_metric"}
        module = importlib.import_module(f"{__name__}.{modules.get(name, 'fidelity')}")
        return getattr(module, name)
