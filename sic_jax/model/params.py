"""Parameters of a model: how they begin, and which there must be."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import NDArray

from sic_jax.model.model_config import ModelConfig
from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params, flatten_params


def init_params(cfg: ModelConfig, *, seed: int, model: type[SicModel] = SicModel) -> Params:
    """Random parameters of the model, float32."""
    # The default generator takes XLA half a minute to compile, once a parameter.
    params: Params = jax.jit(_initialiser(cfg, model))(jax.random.key(seed, impl="rbg"))
    return params


def param_shapes(cfg: ModelConfig) -> Params:
    """The model's parameter tree as shapes and types, without making it."""
    # Nothing is computed, not even a key: each small program of its own would be compiled.
    key = jax.eval_shape(jax.random.key, 0)
    shapes: Params = jax.eval_shape(_initialiser(cfg, SicModel), key)
    return shapes


def _initialiser(cfg: ModelConfig, kind: type[SicModel]) -> Callable[[jax.Array], Params]:
    model = kind(cfg)
    side = cfg.entropy.hyper_stride * cfg.stride

    def init(key: jax.Array) -> Params:
        x = jnp.zeros((1, side, side, 3))
        level = jnp.ones((1,), jnp.int32)
        return dict(model.init(key, x, level, method="initialise")["params"])

    return init


def check_params(cfg: ModelConfig, leaves: Mapping[str, NDArray[Any]]) -> None:
    """Check that a model has the parameters `leaves`, by path, and in these shapes.

    Raises:
        ValueError: If one is missing, unknown or of another shape.
    """
    wanted = {path: leaf.shape for path, leaf in flatten_params(param_shapes(cfg)).items()}
    if missing := sorted(set(wanted) - set(leaves)):
        raise ValueError(f"parameter {missing[0]} is missing")
    if unknown := sorted(set(leaves) - set(wanted)):
        raise ValueError(f"parameter {unknown[0]} is not one of this model")
    for path, leaf in leaves.items():
        if leaf.shape != wanted[path]:
            raise ValueError(f"parameter {path} has shape {leaf.shape}, not {wanted[path]}")
