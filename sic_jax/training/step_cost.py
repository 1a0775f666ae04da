"""What the parts of a training step cost on the device at hand."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sic_jax.model.params import init_params
from sic_jax.model.sic import SicModel
from sic_jax.training.batch_grain import add_grain, measure_grain
from sic_jax.training.gradients import judge
from sic_jax.training.losses import (
    discriminator_loss,
    dists_terms,
    generator_loss,
    load_perceptual_weights,
    lpips_terms,
)
from sic_jax.training.parallel import cost_of
from sic_jax.training.state import create_train_state, make_optimiser
from sic_jax.training.step import make_train_step
from sic_jax.training.train_config import TrainConfig

_REPEATS = 5


class Cost(NamedTuple):
    """Of one part of a step: forward and backward, where a step goes through it backward."""

    part: str
    """`step` is the whole."""
    seconds: float
    """The shortest of five runs."""
    flops: float
    """Floating-point operations as XLA counts them, loops once; 0 where it does not say."""
    bytes: float
    """Bytes that its operations read and write, by the same count."""


def step_costs(cfg: TrainConfig) -> Iterator[Cost]:
    """Time the parts of a step, the whole step first, each as a program of its own.

    Within a step XLA fuses parts, so that they need not add up. Pictures are noise.

    Args:
        cfg: A run; its last stage is measured.
    """
    cfg = cfg.stage_configs()[-1]
    b, p = cfg.batch_size, cfg.crop_size
    params = init_params(cfg.model, seed=0)
    state = create_train_state(cfg, params)
    weights = jax.device_put(load_perceptual_weights(cfg.loss, cfg.compute_dtype))
    crops = jax.random.randint(jax.random.key(0), (b, p, p, 3), 0, 256).astype(jnp.uint8)
    at = jnp.float32(0.5) if cfg.minutes else None
    yield _cost("step", make_train_step(cfg), state, crops, jnp.arange(b), weights, at)

    dtype = jnp.bfloat16 if cfg.compute_dtype == "bfloat16" else None
    model: Any = SicModel(cfg.model, dtype, remat=cfg.remat)
    x = crops.astype(jnp.float32) / 255
    keys = jax.random.split(jax.random.key(1), b)
    level = 1 + jnp.arange(b) % cfg.model.num_levels
    variables = {"params": params}

    def apply(method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return lambda params, *inputs: model.apply(
            {"params": params}, *inputs, *args, **kwargs, method=method
        )

    analyse, synthesise = apply("analyse"), apply("synthesise", level)
    rate = apply("rate", key=keys, rounded=jnp.zeros(b, bool))
    yield _cost("g_a, h_a", _backward(analyse, 1), params, x)
    y, z = jax.jit(analyse)(params, x)
    yield _cost("rate", _backward(rate, 3), params, y, z)
    rated = jax.jit(rate)(params, y, z)
    yield _cost(
        "details",
        lambda variables, y_hat, hyper: model.apply(
            variables, y_hat, hyper, level, temperature=jnp.ones(b), key=keys, method="complete"
        ),
        variables,
        rated.y_hat,
        rated.hyper,
    )
    yield _cost("g_s", _backward(synthesise, 2), params, rated.y_hat)
    # The originals are arguments, so that their features are not computed by the compiler.
    if "lpips" in weights:
        lpips = jax.grad(lambda a, x, w: lpips_terms(x, a, w).sum())
        yield _cost("LPIPS", lpips, x[None], x, weights["lpips"])
    if "dists" in weights:
        every, first = cfg.loss.dists_every, jnp.int32(0)
        dists = jax.grad(lambda a, x, w: dists_terms(x, a, w, first, every).sum())
        yield _cost("DISTS", dists, x[None], x, weights["dists"])
    d = state.discriminator
    if d is not None:

        def adversarial(
            params: Any, x_hat: jax.Array, x: jax.Array, y_hat: jax.Array, w: Any
        ) -> jax.Array:
            real, fake = (
                judge(cfg, d._replace(params=params), a, y_hat, level, w) for a in (x, x_hat)
            )
            return (generator_loss(fake) + discriminator_loss(real, fake)).sum()

        both = jax.grad(adversarial, (0, 1))
        yield _cost("D", both, d.params, x, x, rated.y_hat, weights)
    if cfg.loss.grain:
        yield _cost("grain", lambda a: add_grain(a, measure_grain(a), keys), x)
    optimiser = make_optimiser(cfg)

    def update(grads: Any, opt_state: Any, params: Any) -> Any:
        updates, opt_state = optimiser.update(grads, opt_state, params, progress=at)
        return optax.apply_updates(params, updates), opt_state

    yield _cost("optimiser", update, params, state.opt_state, params)


def describe_costs(costs: Iterator[Cost]) -> Iterator[str]:
    """A table, line by line; shares are of the whole step."""
    yield f"{'part':10}{'ms':>10}{'share':>8}{'GFLOP':>10}{'MB':>10}"
    whole = 0.0
    for cost in costs:
        whole = whole or cost.seconds
        yield (
            f"{cost.part:10}{cost.seconds * 1e3:10.2f}{cost.seconds / whole:8.1%}"
            f"{cost.flops / 1e9:10.1f}{cost.bytes / 1e6:10.0f}"
        )


def _backward(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The gradients of the sum of all that a function gives, by its first `count` arguments."""

    def total(*args: Any) -> jax.Array:
        leaves = jax.tree.leaves(function(*args))
        return jnp.stack([leaf.sum(dtype=jnp.float32) for leaf in leaves]).sum()

    gradients: Callable[..., Any] = jax.grad(total, tuple(range(count)))
    return gradients


def _cost(part: str, function: Callable[..., Any], *args: Any) -> Cost:
    program = jax.jit(function).lower(*args).compile()
    counted = cost_of(program)
    jax.block_until_ready(program(*args))
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        seconds.append(time.perf_counter() - began)
    flops, moved = (max(counted.get(k, 0.0), 0.0) for k in ("flops", "bytes accessed"))
    return Cost(part, min(seconds), flops, moved)
