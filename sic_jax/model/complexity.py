"""Multiply-accumulates of a model, as the codec runs it."""

from functools import partial

import jax
import jax.numpy as jnp

from sic_jax.model.macs import count_macs
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import param_shapes
from sic_jax.model.sic import SicModel

_POSITIONS = 16
"""Side of the latents that are counted."""


def codec_macs_per_pixel(cfg: ModelConfig) -> dict[str, float]:
    """Multiply-accumulates a pixel for a file of level L.

    Returns:
        `encode` and `decode`: transforms, hyper networks, and the coding pass on both sides.
    """
    model, networks = SicModel(cfg), cfg.entropy.networks(cfg.levels)
    params = param_shapes(cfg)
    variables = {"params": params}
    side = _POSITIONS * cfg.stride
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    y = jax.ShapeDtypeStruct((1, _POSITIONS, _POSITIONS, cfg.num_channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    shared = cfg.entropy.coding_macs(cfg.levels, params, _POSITIONS)
    hyper_latents = partial(networks.apply, method="hyper_latents")
    encode = count_macs(partial(model.apply, method="latents"), variables, x)
    encode += count_macs(hyper_latents, variables, y)
    decode = count_macs(partial(model.apply, method="synthesise"), variables, y, level)
    return {"encode": (encode + shared) / side**2, "decode": (decode + shared) / side**2}
