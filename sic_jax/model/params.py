"""Parameters of the model: one tree of arrays under the paper's symbols."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.config import ModelConfig
from sic_jax.model.sic import SicModel

Params = dict[str, Any]


def init_params(model_cfg: ModelConfig, *, seed: int) -> Params:
    """Random parameters of the model, float32."""
    model = SicModel(model_cfg)
    x = jnp.zeros((1, 64, 64, 3))
    level, temperature = jnp.ones((1,), jnp.int32), jnp.zeros((1,))

    def init(key: jax.Array) -> Params:
        return dict(model.init(key, x, level, temperature=temperature, key=key)["params"])

    # The default generator takes XLA half a minute to compile, once a parameter.
    params: Params = jax.jit(init)(jax.random.key(seed, impl="rbg"))
    return params


def num_params(params: Params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params))
