"""SOAP: its steps against NumPy's, kernel by kernel, and its closed form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.typing import NDArray

from sic_jax.model.tree import flatten_params
from sic_jax.training import state
from sic_jax.training.losses import mean_terms
from sic_jax.training.soap import scale_by_soap
from sic_jax.training.state import create_train_state, make_optimiser
from sic_jax.training.step import make_train_step
from sic_jax.training.train_config import TrainConfig

Floats = NDArray[np.float64]
SHAPES = {
    "g_a": {"conv": (2, 1, 3, 6), "other": (2, 1, 3, 6), "dense": (1, 1, 4, 4)},
    "context": {"stacked": (2, 1, 5, 5)},
}


def gradients(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        net: {name: rng.standard_normal(shape).astype(np.float32) for name, shape in leaves.items()}
        for net, leaves in SHAPES.items()
    }


def by_hand(steps: list[Floats], every: int) -> list[Floats]:
    """Updates of one kernel [T, m, n] for its gradients, b1 = 0.9, b2 = 0.8, eps = 1e-8."""
    _, m, n = steps[0].shape
    left, right, q_left, q_right = np.zeros((m, m)), np.zeros((n, n)), np.eye(m), np.eye(n)
    mean, square, out = np.zeros_like(steps[0]), np.zeros_like(steps[0]), []
    for k, g in enumerate(steps):
        left = 0.8 * left + 0.2 * sum(a @ a.T for a in g)
        right = 0.8 * right + 0.2 * sum(a.T @ a for a in g)
        if k % every == 0:
            # Adam's mean is of gradients: it is turned with the bases.
            mean = q_left @ mean @ q_right.T
            q_left, q_right = np.linalg.qr(left @ q_left)[0], np.linalg.qr(right @ q_right)[0]
            mean = q_left.T @ mean @ q_right
        turned = q_left.T @ g @ q_right
        mean = 0.9 * mean + 0.1 * turned
        square = 0.8 * square + 0.2 * turned**2
        scaled = mean / (1 - 0.9 ** (k + 1)) / np.sqrt(square / (1 - 0.8 ** (k + 1)))
        out.append(q_left @ scaled @ q_right.T if k else 0 * scaled)
    return out


@pytest.mark.parametrize("max_rows", [1024, 5], ids=["taps are rows", "taps share"])
def test_steps_are_those_of_numpy(max_rows: int) -> None:
    optimiser = scale_by_soap(
        every=3, b1=0.9, b2=0.8, max_rows=max_rows, is_stacked=lambda name: name == "context"
    )
    found, given = [], [gradients(seed) for seed in range(8)]
    moments = optimiser.init(given[0])
    # Kernels of equal sizes are computed together, those that are stacked too.
    assert sorted(len(group.mean) for group in moments.groups) == [1, 2, 2]
    update = jax.jit(optimiser.update)
    for grads in given:
        updates, moments = update(grads, moments)
        found.append(updates)

    def compare(net: str, name: str, pick: Any) -> None:
        stack = [pick(g[net][name]).astype(np.float64) for g in given]
        *taps, m, n = stack[0].shape
        rows = (1, -1, n) if np.prod(taps) * m <= max_rows else (-1, m, n)
        expected = by_hand([g.reshape(rows) for g in stack], every=3)
        for mine, theirs in zip(found, expected, strict=True):
            got = np.asarray(pick(mine[net][name]))
            np.testing.assert_allclose(got.reshape(rows), theirs, rtol=2e-3, atol=2e-4)

    for name in SHAPES["g_a"]:
        compare("g_a", name, lambda a: a)
    for k in range(2):
        compare("context", "stacked", lambda a, k=k: a[k])


def test_update_for_a_constant_gradient_is_its_polar_factor() -> None:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
    g = (u * [4.0, 2.0, 1.0, 0.5] @ v.T).astype(np.float32)
    optimiser = scale_by_soap(every=1, eps=1e-3)
    moments = optimiser.init({"net": {"kernel": jnp.asarray(g)}})
    update = jax.jit(optimiser.update)
    for _ in range(60):
        updates, moments = update({"net": {"kernel": g}}, moments)
    np.testing.assert_allclose(updates["net"]["kernel"], u @ v.T, atol=5e-3)


def test_a_gradient_of_zero_is_no_step_and_spoils_none() -> None:
    optimiser = scale_by_soap(every=2)
    zeros = {"net": {"kernel": jnp.zeros((3, 3, 2, 4))}}
    updates, moments = optimiser.update(zeros, optimiser.init(zeros))
    assert not np.any(updates["net"]["kernel"])
    some = jax.tree.map(lambda a: a + jnp.arange(4.0)[None, None, None], zeros)
    for _ in range(3):
        updates, moments = optimiser.update(some, moments)
    assert np.isfinite(updates["net"]["kernel"]).all()
    assert np.any(updates["net"]["kernel"])


def test_it_is_a_part_of_a_chain() -> None:
    grads = {"net": {"kernel": jnp.eye(2)}}
    found = []
    for optimiser in (scale_by_soap(), optax.chain(scale_by_soap(), optax.scale(-0.5))):
        moments = optimiser.init(grads)
        for _ in range(2):
            updates, moments = optimiser.update(grads, moments)
        found.append(np.asarray(updates["net"]["kernel"]))
    np.testing.assert_allclose(found[0], np.eye(2), atol=1e-5)
    np.testing.assert_array_equal(found[1], -0.5 * found[0])


@pytest.mark.usefixtures("quick")
def test_a_run_has_soap_for_kernels_and_adam_for_the_rest(
    tiny_run: TrainConfig, untrained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def doubled(*, every: int, is_stacked: Any) -> optax.GradientTransformation:
        asked.append((every, [name for name in untrained if is_stacked(name)]))
        return optax.scale(2.0)

    monkeypatch.setattr(state, "scale_by_soap", doubled)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32) / 100, untrained)
    cfg = dataclasses.replace(
        tiny_run, warmup_steps=0, clip_norm=0.5, learning_rate=1e-3, soap_every=7
    )
    found = {}
    for name in ("adam", "soap"):
        optimiser = make_optimiser(dataclasses.replace(cfg, optimiser=name))
        updates, _ = jax.jit(optimiser.update)(grads, optimiser.init(untrained), untrained)
        found[name] = flatten_params(updates)
    assert asked == [(7, ["context"])]
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
    assert norm > 0.5
    kernels = set()
    for name, g in flatten_params(grads).items():
        if name.endswith("/kernel"):
            kernels.add(name.partition("/")[0])
            np.testing.assert_allclose(found["soap"][name], -2e-3 * 0.5 / norm * g, rtol=1e-5)
        else:
            np.testing.assert_array_equal(found["soap"][name], found["adam"][name], err_msg=name)
    assert kernels == {"g_a", "g_s", "h_a", "h_s", "context"}


@pytest.mark.thorough
def test_a_run_with_soap_learns(
    tiny_run: TrainConfig, params: dict[str, Any], pictures: NDArray[Any]
) -> None:
    cfg = dataclasses.replace(tiny_run, optimiser="soap", batch_size=3, learning_rate=2e-3)
    step = jax.jit(make_train_step(cfg))
    now, losses = create_train_state(cfg, params), []
    crops = np.round(pictures * 255).astype(np.uint8)
    for _ in range(40):
        now, metrics = step(now, crops, jnp.arange(3), {})
        losses.append(float(mean_terms(metrics.terms)["loss"]))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
