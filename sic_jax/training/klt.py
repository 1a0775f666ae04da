"""Start of the linear branches: the Karhunen-Loeve transform of training patches."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sic_jax.config import ModelConfig
from sic_jax.model.levels import refinement_sources


def karhunen_loeve(patches: NDArray[Any], num_components: int) -> NDArray[Any]:
    """Orthonormal components [D, num_components] of patches [N, D], by falling energy.

    The energy is about zero, not about the mean: the transform has no offset. Signs are fixed by
    the largest entry of each component being positive.
    """
    second_moment = (patches.T @ patches).astype(np.float64) / len(patches)
    _, vectors = np.linalg.eigh(second_moment)
    basis = vectors[:, ::-1][:, :num_components]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0)
    signed: NDArray[np.float32] = (basis * np.sign(largest)).astype(np.float32)
    return signed


def channel_steps(cfg: ModelConfig) -> NDArray[Any]:
    """Initial quantisation step of each channel of y, float32 [C]."""
    sources = refinement_sources(cfg)
    steps = np.full(cfg.num_channels, cfg.step, np.float32)
    steps[sources[sources >= 0]] = cfg.coarse_step
    return np.where(sources >= 0, steps[sources] / cfg.refine_factor, steps).astype(np.float32)


def linear_branches(cfg: ModelConfig, basis: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Linear kernels of (g_a, g_s), [D, C_base] and [C, D], for a KLT basis [D, C_base]."""
    sources, steps = refinement_sources(cfg), channel_steps(cfg)
    is_base = sources < 0
    component = (np.cumsum(is_base) - 1)[np.where(is_base, np.arange(cfg.num_channels), sources)]
    return basis / steps[is_base], (basis[:, component] * steps).T


def with_klt(params: dict[str, Any], cfg: ModelConfig, patches: NDArray[Any]) -> dict[str, Any]:
    """Parameters of a `conv` model whose linear branches are the KLT of `patches` [N, 768]."""
    analysis, synthesis = linear_branches(cfg, karhunen_loeve(patches, cfg.num_base_channels))
    return {
        **params,
        "g_a": {**params["g_a"], "linear": analysis},
        "g_s": {**params["g_s"], "linear": synthesis},
    }
