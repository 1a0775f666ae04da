"""Training state: one pytree, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sic_jax.model.tree import Params, flatten_params, unflatten_params
from sic_jax.training.discriminator import Discriminator, example_inputs
from sic_jax.training.train_config import TrainConfig


class DiscriminatorState(NamedTuple):
    """The discriminator of the adversarial stage."""

    params: Params
    batch_stats: Params
    """Vectors of the spectral normalisation."""
    opt_state: optax.OptState


class TrainState(NamedTuple):
    """Everything that a step reads and writes; keys derive from the seed and `step`."""

    step: jax.Array
    params: Params
    ema: Params
    """Exponential moving average of `params`: what is evaluated and shipped."""
    opt_state: optax.OptState
    discriminator: DiscriminatorState | None
    """None but in the adversarial stage."""


def is_trained(params: Params, cfg: TrainConfig) -> Params:
    """Which leaves of a parameter tree learn, as a tree of bools.

    Raises:
        ValueError: If `cfg.train_only` has a path that no parameter has.
    """
    leaves = flatten_params(params)
    if not cfg.train_only:
        return unflatten_params(dict.fromkeys(leaves, True))

    def below(leaf: str, path: str) -> bool:
        return f"{leaf}/".startswith(f"{path.strip('/')}/")

    for path in cfg.train_only:
        if not any(below(leaf, path) for leaf in leaves):
            raise ValueError(f"train_only: no parameter {path!r}; the networks are {list(params)}")
    return unflatten_params(
        {leaf: any(below(leaf, path) for path in cfg.train_only) for leaf in leaves}
    )


def make_optimiser(cfg: TrainConfig) -> optax.GradientTransformation:
    """AdamW with clipping, warm-up and decay of the rate.

    The transforms may scale the rate of a parameter. The entropy model's auxiliary parameters have
    an optimiser of their own at a constant rate, as their loss has nothing to do with the others.
    What does not learn (`is_trained`) has no moments.
    """
    if cfg.decay == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, cfg.learning_rate, cfg.warmup_steps, cfg.steps, 0.01 * cfg.learning_rate
        )
    else:
        schedule = optax.linear_schedule(
            0.0 if cfg.warmup_steps else cfg.learning_rate, cfg.learning_rate, cfg.warmup_steps
        )

    def scaled(updates: Params, _: Params | None = None) -> Params:
        def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            factor = cfg.model.transforms.learning_rate_scale("/".join(p.key for p in path))
            return update if factor == 1 else factor * update

        of_parameters: Params = jax.tree_util.tree_map_with_path(scale, updates)
        return of_parameters

    def labels(params: Params) -> Any:
        auxiliary = cfg.model.entropy.auxiliary_params

        def label(path: tuple[Any, ...], learns: bool) -> str:
            if not learns:
                return "fixed"
            return "auxiliary" if path[-1].key in auxiliary else "networks"

        return jax.tree_util.tree_map_with_path(label, is_trained(params, cfg))

    networks = optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(cfg.weight_decay) if cfg.weight_decay else optax.identity(),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(schedule),
    )
    auxiliary = optax.adamw(cfg.auxiliary_learning_rate, weight_decay=cfg.weight_decay)
    transforms = {"networks": networks, "auxiliary": auxiliary}
    if cfg.train_only:
        transforms["fixed"] = optax.set_to_zero()
    return optax.multi_transform(transforms, labels)


def make_discriminator_optimiser(cfg: TrainConfig) -> optax.GradientTransformation:
    """AdamW of the discriminator, at a constant rate."""
    mine = cfg.discriminator
    return optax.adamw(mine.learning_rate, weight_decay=mine.weight_decay)


def create_train_state(cfg: TrainConfig, params: Params) -> TrainState:
    """State of step 0 with the given parameters."""
    # A copy, because the loop donates the state: the caller's arrays must stay usable.
    params = jax.tree.map(jnp.array, params)
    copy = jax.tree.map(jnp.copy, params)
    discriminator = _new_discriminator(cfg) if cfg.loss.adversarial_weight else None
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, copy, make_optimiser(cfg).init(params), discriminator)


def _new_discriminator(cfg: TrainConfig) -> DiscriminatorState:
    network = Discriminator(cfg.discriminator, cfg.model)

    def init(key: jax.Array) -> Any:
        return network.init(key, *example_inputs(cfg.model), update_stats=False)

    variables = jax.jit(init)(jax.random.key(cfg.seed, impl="rbg"))
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    return DiscriminatorState(params, stats, make_discriminator_optimiser(cfg).init(params))
