"""The authors' forward pass by this package's functions, tensor by tensor."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.distributions import deep_factorised_bits, normal_bits
from sic_jax.model.entropy_models.prior import quantise_hyper
from sic_jax.model.entropy_models.raster import networks as raster
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.levels import merge_latents
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params

_MIN_LIKELIHOOD = 1e-9
"""At which the authors clamp likelihoods."""


def reference_forward(
    cfg: ModelConfig, params: Params, x: NDArray[np.float32], *, level: int, u: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the authors' forward pass, by this package's functions.

    Args:
        cfg: Of a converted model.
        params: Of a converted model.
        x: Images [B, 3, H, W] in [0, 1], H and W multiples of 64.
        level: 1 to L.
        u: Uniform draw in [0, 1) of the details, [B, C_eps, H/16, W/16].

    Returns:
        Float32 arrays with the channels second: `y`, `z`, `z_hat`, `z_likelihoods`, `hyper_params`,
        `y_hat`, `context_params`, `scales_hat` (before the lower bound), `means_hat`,
        `y_likelihoods`, `y_eps`, `x_hat_full_unclipped`, `x_hat_level_unclipped`, `y_reverse`.
    """
    assert isinstance(cfg.entropy, RasterEntropy)
    sigma_min = cfg.entropy.scales.sigma_min
    model, networks = SicModel(cfg), cfg.entropy.networks(cfg.levels)
    variables = {"params": params}
    levels = jnp.full(len(x), level)

    def of(module: Any, method: str) -> Callable[..., Any]:
        return jax.jit(partial(module.apply, variables, method=method))

    def entropy(y_hat: jax.Array, z_hat: jax.Array) -> dict[str, jax.Array]:
        hyper = raster.hyper_features(params, z_hat, (y_hat.shape[1], y_hat.shape[2]))
        mu, scale = raster.unbounded_parameters(params, cfg.levels, y_hat, hyper)
        bits_z = deep_factorised_bits(of(networks, "prior")(), z_hat)
        bits_y = normal_bits(y_hat, mu, jnp.maximum(scale, sigma_min))
        return {
            "z_likelihoods": _likelihood(bits_z),
            "hyper_params": hyper,
            "context_params": _halves(raster.context_features(params, cfg.levels, y_hat)),
            "scales_hat": scale,
            "means_hat": mu,
            "y_likelihoods": _likelihood(bits_y),
        }

    with jax.default_matmul_precision("highest"):
        g_a, g_s = of(model, "latents"), of(model, "synthesise")
        y = g_a(np.moveaxis(x, 1, -1))
        z = of(networks, "hyper_latents")(y)
        y_hat, z_hat = jnp.round(y), quantise_hyper(of(networks, "prior")(), z)
        out = jax.jit(entropy)(y_hat, z_hat)
        coded = cfg.num_channels - u.shape[1]
        noise = np.pad(np.moveaxis(2 * u - 1, 1, -1), ((0, 0), (0, 0), (0, 0), (coded, 0)))
        details = raster.uniform_details(
            cfg.levels, out["hyper_params"], jnp.asarray(noise), jnp.ones(len(x))
        )
        x_hat = g_s(merge_latents(y_hat, details, levels, cfg.levels), levels)
        out |= {
            "y": y,
            "z": z,
            "y_hat": y_hat,
            "z_hat": z_hat,
            "y_eps": details[..., coded:],
            "x_hat_full_unclipped": g_s(y_hat, levels),
            "x_hat_level_unclipped": x_hat,
            "y_reverse": g_a(jnp.clip(x_hat, 0, 1)),
        }
    return {name: np.moveaxis(np.asarray(a), -1, 1) for name, a in out.items()}


def _likelihood(bits: jax.Array) -> jax.Array:
    return jnp.clip(jnp.exp2(-bits), _MIN_LIKELIHOOD, 1)


def _halves(context: jax.Array) -> jax.Array:
    """Context features [B, h, w, G, 2S] as [B, h, w, 2C]: the first S of all groups come first."""
    halves = context.reshape(*context.shape[:-1], 2, -1)
    return jnp.moveaxis(halves, -2, -3).reshape(*context.shape[:-2], -1)
