"""Training state: one pytree, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sic_jax.config import ModelConfig, TrainConfig
from sic_jax.model.sic import SicModel

Params = dict[str, Any]


class TrainState(NamedTuple):
    """Everything that a step reads and writes; keys derive from the seed and `step`."""

    step: jax.Array
    params: Params
    ema: Params
    """Exponential moving average of `params`: what is evaluated and shipped."""
    opt_state: optax.OptState


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


def make_optimizer(cfg: TrainConfig) -> optax.GradientTransformation:
    """Adam with clipping, warm-up and cosine decay; the linear branches learn ten times slower."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, cfg.learning_rate, cfg.warmup_steps, cfg.steps, 0.01 * cfg.learning_rate
    )

    def is_linear(params: Params) -> Any:
        def check(path: tuple[Any, ...], _: Any) -> bool:
            return path[-1].key == "linear" and path[0].key in ("g_a", "g_s")

        return jax.tree_util.tree_map_with_path(check, params)

    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.scale_by_adam(),
        optax.masked(optax.scale(0.1), is_linear),
        optax.scale_by_learning_rate(schedule),
    )


def create_train_state(cfg: TrainConfig, params: Params) -> TrainState:
    """State of step 0 with the given parameters."""
    # A copy, because the loop donates the state: the caller's arrays must stay usable.
    params = jax.tree.map(jnp.array, params)
    copy = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, copy, make_optimizer(cfg).init(params))


def num_params(params: Params) -> int:
    """Number of scalars in a parameter tree."""
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params))
