"""Training state: one pytree, and how it begins."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from sic_jax.model.params import init_params
from sic_jax.model.tree import Params, flatten_params, unflatten_params
from sic_jax.training.discriminator import Discriminator, example_inputs
from sic_jax.training.soap import scale_by_soap
from sic_jax.training.train_config import TrainConfig

_LAST = 0.01
"""Rate at the end of a cosine, of the peak."""
_MULTIPLE = 1024
"""The length of a vector of all parameters is a multiple of it, so that devices can share it."""


class DiscriminatorState(NamedTuple):
    """The discriminator of the adversarial stage."""

    params: Params
    batch_stats: Params
    """Vectors of the spectral normalisation."""
    opt_state: optax.OptState


class TrainState(NamedTuple):
    """Everything that a step reads and writes; keys derive from the seed and `step`."""

    step: jax.Array
    """Steps that were taken, an int32 scalar."""
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


def learning_rate(
    cfg: TrainConfig, step: jax.Array, progress: jax.Array | None = None
) -> jax.Array:
    """The rate of a step.

    Args:
        cfg: Of the run.
        step: int scalar, from 0.
        progress: Part of the run that is over, 0 to 1, by the clock; None: the step decides.
    """
    step = step.astype(jnp.float32)
    peak, warmup = cfg.learning_rate, cfg.warmup_steps
    if cfg.decay == "constant":
        rate = optax.linear_schedule(0.0 if warmup else peak, peak, warmup)(step)
    elif progress is None:
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, cfg.steps, _LAST * peak)(step)
    else:
        decayed = _LAST + (1 - _LAST) * (1 + jnp.cos(jnp.pi * progress)) / 2
        rate = peak * decayed * jnp.minimum(1.0, step / max(warmup, 1))
    return jnp.asarray(rate)


def to_vector(tree: Params) -> jax.Array:
    """All leaves of a tree in one vector [n], with zeros at its end.

    An operation on hundreds of small arrays is hundreds of kernels; on a vector it is one.
    """
    return _ravel(tree)[0]


def _ravel(tree: Params) -> tuple[jax.Array, Callable[[jax.Array], Params]]:
    """`to_vector` of a tree, and its inverse."""
    vector, unravel = ravel_pytree(tree)
    return jnp.pad(vector, (0, -vector.size % _MULTIPLE)), lambda v: unravel(v[: vector.size])


def _of_vectors(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A transformation of trees that computes with `to_vector` of them."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> optax.OptState:
        return inner.init(to_vector(params))

    def update(
        updates: Params, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, optax.OptState]:
        of_params = None if params is None else to_vector(params)
        vector, unravel = _ravel(updates)
        changed, new = inner.update(vector, state, of_params, **extra)
        return unravel(changed), new  # type: ignore[arg-type]

    return optax.GradientTransformationExtraArgs(init, update)


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """optax's Adam, which promotes types implicitly: it takes a float to the power of an int32."""
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Params, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, optax.OptState]:
        # The tests forbid that everywhere else.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)  # type: ignore[no-any-return]

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scale_by_learning_rate(cfg: TrainConfig) -> optax.GradientTransformationExtraArgs:
    def init(params: Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: Params,
        state: optax.ScaleByScheduleState,
        params: Params | None = None,
        *,
        progress: jax.Array | None = None,
        **_: Any,
    ) -> tuple[Params, optax.ScaleByScheduleState]:
        factor = -learning_rate(cfg, state.count, progress)
        scaled = jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def make_optimiser(cfg: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """AdamW, or SOAP for kernels and Adam for the rest, with clipping and a schedule of the rate.

    The transforms may scale the rate of a parameter. The entropy model's auxiliary parameters have
    an optimiser of their own at a constant rate, as their loss has nothing to do with the others.
    What does not learn (`is_trained`) has no moments; those of all networks are one vector. With
    `cfg.minutes`, `update` takes `progress`, the part of the run that is over.
    """

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

    def soap_labels(params: Params) -> Any:
        def label(path: tuple[Any, ...], leaf: jax.Array) -> str:
            return "kernels" if path[-1].key == "kernel" and leaf.ndim > 1 else "others"

        return jax.tree_util.tree_map_with_path(label, params)

    clip = optax.clip_by_global_norm(cfg.clip_norm)
    adam: optax.GradientTransformation = _promoting(optax.scale_by_adam(b2=cfg.beta2))
    rest = (
        optax.add_decayed_weights(cfg.weight_decay) if cfg.weight_decay else optax.identity(),
        _scale_by_learning_rate(cfg),
    )
    if cfg.optimiser == "soap":
        soap = scale_by_soap(
            every=cfg.soap_every,
            is_stacked=lambda name: name in cfg.model.entropy.stacked_networks,
        )
        steps = optax.multi_transform({"kernels": soap, "others": _of_vectors(adam)}, soap_labels)
        networks = optax.chain(_of_vectors(clip), steps, _of_vectors(optax.chain(*rest)))
    else:
        networks = _of_vectors(optax.chain(clip, adam, *rest))
    networks = optax.chain(networks, optax.stateless(scaled))
    auxiliary = _promoting(optax.adamw(cfg.auxiliary_learning_rate, weight_decay=cfg.weight_decay))
    transforms = {"networks": networks, "auxiliary": auxiliary}
    if cfg.train_only:
        transforms["fixed"] = optax.set_to_zero()
    return optax.multi_transform(transforms, labels)


def make_discriminator_optimiser(cfg: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """AdamW of the discriminator, at a constant rate."""
    mine = cfg.discriminator
    adam = optax.adamw(mine.learning_rate, weight_decay=mine.weight_decay)
    return _of_vectors(_promoting(adam))


def create_train_state(cfg: TrainConfig, params: Params) -> TrainState:
    """State of step 0 with the given parameters."""
    # A copy, because the loop donates the state: the caller's arrays must stay usable.
    params = jax.tree.map(jnp.array, params)
    copy = jax.tree.map(jnp.copy, params)
    adversarial = any(c.loss.adversarial_weight for c in cfg.stage_configs())
    discriminator = _new_discriminator(cfg) if adversarial else None
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, copy, make_optimiser(cfg).init(params), discriminator)


def state_shapes(cfg: TrainConfig) -> TrainState:
    """Shapes and types of a run's state, without making it."""
    shapes: TrainState = jax.eval_shape(
        lambda: create_train_state(cfg, init_params(cfg.model, seed=0))
    )
    return shapes


def _new_discriminator(cfg: TrainConfig) -> DiscriminatorState:
    network = Discriminator(cfg.discriminator, cfg.model)

    def init(key: jax.Array) -> Any:
        return network.init(key, *example_inputs(cfg.discriminator, cfg.model), update_stats=False)

    variables = jax.jit(init)(jax.random.key(cfg.seed, impl="rbg"))
    params, stats = dict(variables["params"]), dict(variables["batch_stats"])
    return DiscriminatorState(params, stats, make_discriminator_optimiser(cfg).init(params))
