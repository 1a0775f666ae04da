"""The train step: a pure function (state, batch, lpips weights) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sic_jax.config import TrainConfig
from sic_jax.lpips import Weights
from sic_jax.model.params import Params
from sic_jax.model.sic import SicModel
from sic_jax.training.losses import Metrics, draw_levels, svi_loss
from sic_jax.training.state import TrainState, make_optimizer

TrainStep = Callable[[TrainState, jax.Array, Weights | None], tuple[TrainState, Metrics]]


def make_train_step(cfg: TrainConfig) -> TrainStep:
    """The step of a config, not yet compiled.

    The returned function takes the state, crops uint8 [B, P, P, 3] and the LPIPS weights (None
    where every lambda_p is 0). Its randomness is ``fold_in(key(seed), step)``.
    """
    model = SicModel(cfg.model, jnp.bfloat16 if cfg.compute_dtype == "bfloat16" else None)
    optimizer = make_optimizer(cfg)

    def train_step(
        state: TrainState, batch: jax.Array, lpips_weights: Weights | None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
        key_level, key_temperature, key_noise = jax.random.split(key, 3)
        x = batch.astype(jnp.float32) / 255
        size = x.shape[0]
        level = draw_levels(key_level, size, cfg.model.num_levels, cfg.loss.full_share)
        sampled = jax.random.uniform(key_temperature, (size,)) < cfg.loss.sampled_share
        temperature = jnp.where(sampled, cfg.loss.temperature, 0.0)

        def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
            variables = {"params": params}
            out: Any = model.apply(variables, x, level, temperature=temperature, key=key_noise)
            return svi_loss(out, x, level, cfg=cfg.loss, lpips_weights=lpips_weights)

        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first, so that the average forgets the start.
        decay = jnp.minimum(cfg.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state.ema, params)
        metrics["grad_norm"] = _norm(grads)
        metrics["update_norm"] = _norm(updates)
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step


def _norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum((jnp.square(a).sum() for a in jax.tree.leaves(tree)), jnp.zeros(())))
