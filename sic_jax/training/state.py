"""Training state: one pytree, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sic_jax.config import TrainConfig
from sic_jax.model.params import Params


class TrainState(NamedTuple):
    """Everything that a step reads and writes; keys derive from the seed and `step`."""

    step: jax.Array
    params: Params
    ema: Params
    """Exponential moving average of `params`: what is evaluated and shipped."""
    opt_state: optax.OptState


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
