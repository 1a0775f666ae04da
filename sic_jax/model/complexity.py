"""Multiply-accumulates of the networks, counted from the traced program."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.checkerboard.context import (
    context_of_group,
    group_parameters,
    group_size,
)
from sic_jax.model.entropy_models.checkerboard.hyper import hyper_synthesis
from sic_jax.model.entropy_models.raster.networks import hyper_features
from sic_jax.model.entropy_models.raster.wavefront import (
    empty_board,
    schedule,
    step_layers,
    step_parameters,
)
from sic_jax.model.params import param_shapes
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms.base import PATCH

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
      `encode` and `decode`: transforms, hyper networks and the coding pass on both sides (2 L
      entropy steps and L contexts; with context raster each symbol's parameters once).
    """
    model, params = SicModel(cfg), param_shapes(cfg)
    h = _SIDE // PATCH
    pixels = _SIDE * _SIDE

    def array(shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Any:
        return jax.eval_shape(lambda: jnp.zeros(shape, dtype))

    def macs(function: Callable[..., Any], *args: Any) -> float:
        return count_macs(jax.make_jaxpr(function)(*args).jaxpr) / pixels

    def method(name: str) -> Callable[..., Any]:
        return partial(model.apply, method=name)

    variables = {"params": params}
    z_hat = array((1, h // 4, h // 4, cfg.hyper_channels))
    y_hat = array((1, h, h, cfg.num_channels))
    if cfg.context == "raster":
        shared = macs(lambda p, z: hyper_features(p, z, (h, h)), params, z_hat)
        layers: Any = jax.eval_shape(lambda p: step_layers(p, cfg), params)
        # The only position of the smallest picture, whose neighbours count all the same.
        board = jax.eval_shape(lambda: empty_board(schedule(1, 1), cfg.num_channels))
        hyper, number = array((1, 1, cfg.num_levels, 2 * group_size(cfg))), array((), jnp.int32)
        shared += h * h * macs(
            lambda layers, *args: step_parameters(layers, cfg, *args),
            layers, board, hyper, number, number, number,
        )  # fmt: skip
    else:
        layers = jax.eval_shape(method("entropy_layers"), variables)
        g = array((), jnp.int32)
        hyper, group = array((1, h, h, cfg.hyper_width)), array((1, h, h, group_size(cfg)))
        context = array((1, h, h, cfg.context_width))
        step = macs(
            lambda *args: group_parameters(args[0], cfg, *args[1:]),
            layers["context"], g, hyper, context, group,
        )  # fmt: skip
        gather = macs(context_of_group, layers["context"], g, y_hat)
        shared = macs(lambda p, z: hyper_synthesis(p, z, (h, h)), layers["h_s"], z_hat)
        shared += cfg.num_levels * (2 * step + gather)
    x = array((1, _SIDE, _SIDE, 3))
    level = array((1,), jnp.int32)
    return {
        "encode": macs(method("analyse"), variables, x) + shared,
        "decode": macs(method("synthesise"), variables, y_hat, level) + shared,
    }
