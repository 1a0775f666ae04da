"""Multiply-accumulates of the networks, counted from the traced program."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sic_jax.config import ModelConfig
from sic_jax.model.sic import SicModel

_SIDE = 256


def count_macs(jaxpr: Any) -> int:
    """Multiply-accumulates of the matrix products and convolutions of a jaxpr, loops run once."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (lhs_contract, _), _ = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in lhs_contract)
        elif eqn.primitive.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            kernel = eqn.invars[1].aval.shape
            per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            total += math.prod(eqn.outvars[0].aval.shape) * per_output
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += count_macs(inner)
    return total


def codec_macs_per_pixel(cfg: ModelConfig) -> dict[str, float]:
    """Multiply-accumulates a pixel for a file of level L, as the codec runs it.

    Returns:
      `encode` and `decode`: transforms, hyper networks and the coding pass (2 L entropy steps and
      L context updates, on both sides).
    """
    model = SicModel(cfg)
    h = _SIDE // 16
    x = jnp.zeros((1, _SIDE, _SIDE, 3))
    level = jnp.ones((1,), jnp.int32)
    temperature = jnp.zeros((1,))
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda k: model.init(k, x, level, temperature=temperature, key=k), key)

    def macs(method: str, *args: Any) -> int:
        def run(variables: Any, *args: Any) -> Any:
            return model.apply(variables, *args, method=method)

        return count_macs(jax.make_jaxpr(run)(shapes, *args).jaxpr)

    group = max(cfg.level_channels)
    g = jnp.zeros((), jnp.int32)
    y_group = jnp.zeros((1, h, h, group))
    hyper = jnp.zeros((1, h, h, cfg.hyper_width))
    context = jnp.zeros((1, h, h, cfg.num_levels, cfg.context_width))
    pass_macs = cfg.num_levels * (
        2 * macs("group_parameters", g, hyper, context, y_group)
        + macs("context_of_group", g, y_group)
    )
    z_hat = jnp.zeros((1, h // 4, h // 4, cfg.hyper_channels))

    def h_s(variables: Any, z_hat: jax.Array) -> Any:
        return model.apply(variables, z_hat, (h, h), method="hyper_features")

    shared = pass_macs + count_macs(jax.make_jaxpr(h_s)(shapes, z_hat).jaxpr)
    y_hat = jnp.zeros((1, h, h, cfg.num_channels))
    pixels = _SIDE * _SIDE
    return {
        "encode": (macs("analyse", x) + shared) / pixels,
        "decode": (macs("synthesise", y_hat, level) + shared) / pixels,
    }
