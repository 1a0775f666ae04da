"""Gradients of a part of a batch: decodings, their comparison, and both networks' losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sic_jax.metrics.convnet import Features
from sic_jax.metrics.lpips_metric import lpips_features
from sic_jax.model.noise import split_keys
from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params
from sic_jax.training.batch_grain import add_grain, measure_grain
from sic_jax.training.discriminator import Discriminator
from sic_jax.training.losses import (
    Compared,
    Decodings,
    PerceptualWeights,
    Terms,
    balance_term,
    consistency_terms,
    discriminator_loss,
    dists_terms,
    generator_loss,
    lpips_terms,
    plan_decodings,
    rate_terms,
    svi_loss,
)
from sic_jax.training.state import DiscriminatorState, TrainState, is_trained
from sic_jax.training.train_config import TrainConfig


class Gradients(NamedTuple):
    """Of a part of a batch: means over its images, and sums."""

    params: Params
    discriminator: Params | None
    terms: Terms


class Decoded(NamedTuple):
    """What the discriminator learns from."""

    x: jax.Array
    """[B, H, W, 3]."""
    x_hat: jax.Array
    """[R, B, H, W, 3], with grain where the loss has it."""
    y_hat: jax.Array
    """What g_s saw, [R, B, h, w, C]."""
    plan: Decodings


def make_gradients(cfg: TrainConfig, model: type[SicModel] = SicModel) -> Callable[..., Gradients]:
    """A function (state, uint8 [B, P, P, 3], places [B], perceptual weights) -> `Gradients`."""
    loss_fn = make_loss(cfg, model)

    def gradients(
        state: TrainState, batch: jax.Array, rows: jax.Array, perceptual: PerceptualWeights
    ) -> Gradients:
        (_, (terms, decoded)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state, batch, rows, perceptual
        )
        d = state.discriminator
        if d is None or not cfg.loss.adversarial_weight:
            return Gradients(grads, None, terms)
        decoded = jax.lax.stop_gradient(decoded)
        loss, d_grads = jax.value_and_grad(_discriminator_loss)(
            d.params, cfg, d, decoded, perceptual
        )
        images = jnp.float32(len(rows))
        return Gradients(grads, d_grads, terms | {"loss_d": (loss * images, images)})

    return gradients


def make_loss(
    cfg: TrainConfig, kind: type[SicModel] = SicModel
) -> Callable[..., tuple[jax.Array, tuple[Terms, Decoded]]]:
    """The model's loss: (parameters, state, batch, places, perceptual weights) -> (loss, aux).

    The batch is uint8 [B, P, P, 3], places are int32 [B], and the loss is a scalar. Of the state it
    reads the step and the discriminator.
    """
    dtype = jnp.bfloat16 if cfg.compute_dtype == "bfloat16" else None
    model: Any = kind(cfg.model, dtype, remat=cfg.remat)
    networks = cfg.model.entropy.networks(cfg.model.levels)
    loss_cfg = cfg.loss

    def decode(
        params: Params, x: jax.Array, plan: Decodings, keys: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        """(rated latents, what g_s sees [R, B, h, w, C], reconstructions [R, B, H, W, 3])."""
        variables = {"params": params}
        r, b = plan.level.shape

        def repeat(a: jax.Array) -> jax.Array:
            return jnp.broadcast_to(a, (r, *a.shape)).reshape(r * b, *a.shape[1:])

        y, z = model.apply(variables, x, method="analyse")
        key_rounded, key_temperature, key_detail = split_keys(split_keys(keys)[2])
        rounded = jax.vmap(jax.random.uniform)(key_rounded) < loss_cfg.rounded_share
        rated = model.apply(variables, y, z, key=keys, rounded=rounded, method="rate")
        uniform = jax.vmap(jax.random.uniform)(key_temperature)
        temperature = jnp.where(uniform < loss_cfg.sampled_share, loss_cfg.temperature, 0.0)
        level = plan.level.reshape(-1)
        y_hat = model.apply(
            variables,
            repeat(rated.y_hat),
            jax.tree.map(repeat, rated.hyper),
            level,
            temperature=repeat(temperature),
            key=_draw_keys(key_detail, r),
            method="complete",
        )
        x_hat = model.apply(variables, y_hat, level, method="synthesise")
        if loss_cfg.clamp:
            x_hat = jnp.clip(x_hat, 0, 1)
        return rated, y_hat.reshape(r, b, *y_hat.shape[1:]), x_hat.reshape(r, *x.shape)

    def loss_fn(
        params: Params, state: TrainState, batch: jax.Array, rows: jax.Array,
        perceptual: PerceptualWeights,
    ) -> tuple[jax.Array, tuple[Terms, Decoded]]:  # fmt: skip
        # Nothing is computed for gradients that nobody needs.
        params = jax.tree.map(
            lambda p, learns: p if learns else jax.lax.stop_gradient(p),
            params,
            is_trained(params, cfg),
        )
        key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
        key_level, key_images = jax.random.split(key)
        keys = jax.vmap(lambda row: jax.random.fold_in(key_images, row))(rows)
        plan = plan_decodings(key_level, state.step, rows, cfg.batch_size, loss_cfg)
        x = batch.astype(jnp.float32) / 255
        pixels = x.shape[1] * x.shape[2]
        rated, y_hat, x_hat = decode(params, x, plan, keys)
        seen = _with_grain(x, x_hat, keys) if loss_cfg.grain else x_hat
        decoded = Decoded(x, seen, y_hat, plan)
        compared = Compared(
            bpp=rate_terms(rated.bits_z, rated.bits_y, plan.level, pixels),
            mse=jnp.square(x[None] - x_hat).mean((2, 3, 4)),
        )
        if "lpips" in perceptual:
            compared = compared._replace(lpips=lpips_terms(x, seen, perceptual["lpips"]))
        if "dists" in perceptual:
            every = loss_cfg.dists_every
            offset = jax.random.randint(jax.random.fold_in(key, 2), (), 0, every)
            dists = dists_terms(x, seen, perceptual["dists"], offset, every)
            compared = compared._replace(dists=dists)
        if state.discriminator is not None and loss_cfg.adversarial_weight:
            d = state.discriminator
            level = plan.level.reshape(-1)
            logits = judge(cfg, d, _flat(seen), _flat(y_hat), level, perceptual)
            compared = compared._replace(
                adv=generator_loss(logits).reshape(plan.level.shape), adv_share=_ramp(cfg, d)
            )
        if loss_cfg.lmbda_balance:
            compared = compared._replace(balance=balance_term(rated.bits_y, pixels))
        if loss_cfg.lmbda_consistency:
            again = model.apply(
                {"params": params}, jnp.clip(_flat(x_hat), 0, 1), method="latents"
            ).reshape(y_hat.shape)
            consistency = consistency_terms(again, y_hat, plan.level, cfg.model.levels)
            compared = compared._replace(consistency=consistency)
        loss, terms = svi_loss(compared, plan, loss_cfg)
        auxiliary: Any = networks.apply({"params": params}, method="auxiliary_loss")
        if auxiliary is not None:
            loss += auxiliary
            terms["auxiliary"] = (auxiliary * len(rows), jnp.float32(len(rows)))
        terms["bpp_z"] = (rated.bits_z.sum() / pixels, jnp.float32(len(rows)))
        return loss, (terms, decoded)

    return loss_fn


def _with_grain(x: jax.Array, x_hat: jax.Array, keys: jax.Array) -> jax.Array:
    """Decodings [R, B, H, W, 3] with the grain of images [B, H, W, 3], drawn for each."""
    own = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys)
    sigma = jnp.broadcast_to(measure_grain(x), x_hat.shape[:2]).reshape(-1)
    return add_grain(_flat(x_hat), sigma, _draw_keys(own, len(x_hat))).reshape(x_hat.shape)


def _draw_keys(keys: jax.Array, count: int) -> jax.Array:
    """A key for each of an image's draws, all images' first ones first: [count * B] of keys [B]."""
    draws: jax.Array = jax.vmap(lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(keys))(
        jnp.arange(count)
    )
    return draws.reshape(-1)


def _ramp(cfg: TrainConfig, state: DiscriminatorState) -> jax.Array | float:
    """Share of the adversarial loss's weight, by the steps that the discriminator has learnt."""
    if not cfg.discriminator.ramp_steps:
        return 1.0
    steps: Any = optax.tree_utils.tree_get(state.opt_state, "count")
    return jnp.minimum(1.0, steps / cfg.discriminator.ramp_steps)


def _discriminator_loss(
    params: Params,
    cfg: TrainConfig,
    state: DiscriminatorState,
    decoded: Decoded,
    perceptual: PerceptualWeights,
) -> jax.Array:
    """Mean over images; the decodings of an image count as in the loss of the model."""
    x, x_hat, y_hat, plan = decoded
    state = state._replace(params=params)
    originals = jnp.broadcast_to(x, x_hat.shape)
    level = plan.level.reshape(-1)
    real = judge(cfg, state, _flat(originals), _flat(y_hat), level, perceptual)
    fake = judge(cfg, state, _flat(x_hat), _flat(y_hat), level, perceptual)
    loss = discriminator_loss(real, fake).reshape(plan.level.shape)
    return (plan.weight * loss).sum(0).mean()


def judge(
    cfg: TrainConfig,
    state: DiscriminatorState,
    x: jax.Array,
    y_hat: jax.Array,
    level: jax.Array,
    perceptual: PerceptualWeights,
) -> tuple[jax.Array, ...]:
    """What the discriminator of a run says of pictures: maps of logits [N, h, w, 1].

    Args:
        cfg: The run.
        state: Its discriminator.
        x: Pictures [N, H, W, 3] in [0, 1].
        y_hat: Their latents [N, H/s, W/s, C], s the model's stride.
        level: Their levels, int [N].
        perceptual: With the weights of LPIPS, where the discriminator judges its layers.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    network: Any = Discriminator(cfg.discriminator, cfg.model)
    seen: jax.Array | Features = x
    if cfg.discriminator.network == "alexnet":
        seen = lpips_features(x, weights=perceptual["lpips"])
    logits: tuple[jax.Array, ...] = network.apply(variables, seen, y_hat, level, update_stats=False)
    return logits


def _flat(a: jax.Array) -> jax.Array:
    return a.reshape(-1, *a.shape[2:])
