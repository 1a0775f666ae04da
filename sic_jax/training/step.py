"""The train step: a pure function (state, batch, rows, perceptual weights) -> (state, metrics)."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params
from sic_jax.training.discriminator import Discriminator, example_inputs
from sic_jax.training.gradients import Gradients, make_gradients
from sic_jax.training.losses import PerceptualWeights, Terms
from sic_jax.training.state import (
    DiscriminatorState,
    TrainState,
    make_discriminator_optimiser,
    make_optimiser,
    to_vector,
)
from sic_jax.training.train_config import TrainConfig

NEVER = 2**31 - 1
"""`Metrics.first_bad` where every step was finite."""


class Metrics(NamedTuple):
    """What a step, or several, measured."""

    terms: Terms
    first_bad: jax.Array
    """First step whose loss or gradient was not finite, or `NEVER`: an int32 scalar."""


class TrainStep(Protocol):
    """A step, or several."""

    def __call__(
        self,
        state: TrainState,
        batch: jax.Array,
        rows: jax.Array,
        perceptual: PerceptualWeights,
        progress: jax.Array | None = None,
    ) -> tuple[TrainState, Metrics]:
        """The next state and what was measured.

        `batch` is uint8 [B, P, P, 3], or [K, B, P, P, 3] for K steps, and `rows` int32 [B].
        """


def make_train_step(
    cfg: TrainConfig, *, model: type[SicModel] = SicModel, axis_name: str | None = None
) -> TrainStep:
    """The step of a config, not yet compiled.

    The returned function takes the state, crops uint8 [B, P, P, 3], their places in the whole batch
    int32 [B], and the weights of `load_perceptual_weights` ({} where every lambda_p is 0). Its
    randomness depends on the seed, the step and an image's place, so the numbers do not depend on
    how the batch is cut: over devices by the partitioner, over `axis_name` of a `pmap`, or in
    `accumulate` parts. With `cfg.minutes` it takes `progress`, as `learning_rate` does. `model` may
    be a class of one's own that changes a part of `SicModel`.
    """
    optimiser = make_optimiser(cfg)
    gradients = make_gradients(cfg, model)

    def train_step(
        state: TrainState,
        batch: jax.Array,
        rows: jax.Array,
        perceptual: PerceptualWeights,
        progress: jax.Array | None = None,
    ) -> tuple[TrainState, Metrics]:
        grads = _accumulate(
            lambda images, at: gradients(state, images, at, perceptual),
            batch,
            rows,
            cfg.accumulate,
        )
        if axis_name is not None:
            params, discriminator = jax.lax.pmean((grads.params, grads.discriminator), axis_name)
            grads = Gradients(params, discriminator, jax.lax.psum(grads.terms, axis_name))
        updates, opt_state = optimiser.update(
            grads.params, state.opt_state, state.params, progress=progress
        )
        params = optax.apply_updates(state.params, updates)
        # A short memory at first, so that the average forgets the start.
        # Not optax.incremental_update, which rounds otherwise: runs would give other numbers.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(cfg.ema_decay, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state.ema, params)
        discriminator = state.discriminator
        if grads.discriminator is not None and discriminator is not None:
            discriminator = _update_discriminator(cfg, discriminator, grads.discriminator)
        norms = {
            "grad_norm": jnp.linalg.norm(to_vector(grads.params)),
            "update_norm": jnp.linalg.norm(to_vector(updates)),
            "param_norm": jnp.linalg.norm(to_vector(params)),
        }
        if grads.discriminator is not None:
            norms["grad_norm_d"] = jnp.linalg.norm(to_vector(grads.discriminator))
        measured = grads.terms | {k: (v, jnp.ones(())) for k, v in norms.items()}
        loss = measured["loss"][0]
        ok = jnp.isfinite(jnp.stack([loss, *norms.values()])).all()
        new = TrainState(state.step, params, ema, opt_state, discriminator)
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
        if cfg.non_finite == "skip":
            measured = jax.tree.map(lambda a: jnp.where(ok, a, 0), measured)
            measured["skipped"] = ((~ok).astype(jnp.float32), jnp.zeros(()))
        first_bad = jnp.where(ok, NEVER, state.step + 1)
        return new._replace(step=state.step + 1), Metrics(measured, first_bad)

    return train_step


def make_train_steps(cfg: TrainConfig, *, axis_name: str | None = None) -> TrainStep:
    """As `make_train_step`, for several steps after one another, with batches [K, B, P, P, 3].

    What they measured is added up.
    """
    step = make_train_step(cfg, axis_name=axis_name)

    def train_steps(
        state: TrainState,
        batch: jax.Array,
        rows: jax.Array,
        perceptual: PerceptualWeights,
        progress: jax.Array | None = None,
    ) -> tuple[TrainState, Metrics]:
        # Not a loop of one: compiled for CPUs, the body of a loop is slow.
        if len(batch) == 1:
            return step(state, batch[0], rows, perceptual, progress)
        state, metrics = jax.lax.scan(
            lambda state, batch: step(state, batch, rows, perceptual, progress), state, batch
        )
        terms = jax.tree.map(lambda a: a.sum(0), metrics.terms)
        return state, Metrics(terms, metrics.first_bad.min(0))

    return train_steps


def add_metrics(a: Metrics, b: Metrics) -> Metrics:
    """Metrics of two runs of steps together; a term that one of them lacks is 0 there."""
    nothing = (jnp.zeros(()), jnp.zeros(()))
    terms = {}
    for name in a.terms | b.terms:
        (x, n), (y, m) = a.terms.get(name, nothing), b.terms.get(name, nothing)
        terms[name] = (x + y, n + m)
    return Metrics(terms, jnp.minimum(a.first_bad, b.first_bad))


def _accumulate(
    gradients: Callable[[jax.Array, jax.Array], Gradients],
    batch: jax.Array,
    rows: jax.Array,
    parts: int,
) -> Gradients:
    """Gradients of a batch, in `parts` one after another: means of means, sums of sums."""
    if parts == 1:
        return gradients(batch, rows)

    def cut(a: jax.Array) -> jax.Array:
        # Every parts-th image, so that each part is spread over the devices as the whole is.
        return a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1)

    def add(total: Gradients, part: tuple[jax.Array, jax.Array]) -> tuple[Gradients, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    shapes = jax.eval_shape(gradients, batch[: len(batch) // parts], rows[: len(rows) // parts])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (cut(batch), cut(rows)))
    params, discriminator = jax.tree.map(lambda a: a / parts, (total.params, total.discriminator))
    return Gradients(params, discriminator, total.terms)


def _update_discriminator(
    cfg: TrainConfig, state: DiscriminatorState, grads: Params | None
) -> DiscriminatorState:
    """A step of the discriminator, and of its spectral normalisation's power iteration."""
    optimiser = make_discriminator_optimiser(cfg)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params: Params = optax.apply_updates(state.params, updates)  # type: ignore[assignment]
    stats = spectral_step(cfg, params, state.batch_stats)
    return DiscriminatorState(params, stats, opt_state)


def spectral_step(cfg: TrainConfig, params: Params, batch_stats: Params) -> Params:
    """A step of the power iteration: it depends on the kernels only, not on pictures."""
    network = Discriminator(cfg.discriminator, cfg.model)
    variables = {"params": params, "batch_stats": batch_stats}
    _, changed = network.apply(
        variables,
        *example_inputs(cfg.discriminator, cfg.model),
        update_stats=True,
        mutable=["batch_stats"],
    )
    return dict(changed["batch_stats"])
