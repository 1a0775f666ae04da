from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sic_jax.metrics.lpips_metric import LAYER_CHANNELS
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.training.discriminator import Discriminator, DiscriminatorConfig, example_inputs
from sic_jax.training.presets import paper_model

CFG = DiscriminatorConfig(features=(4, 4, 6, 8), condition_features=3)
MODEL = ModelConfig(levels=LevelConfig(channels=(2, 3), refinements=(0, 0)))


@pytest.fixture(scope="module")
def variables() -> Any:
    return jax.jit(initialise)(jax.random.key(0, impl="rbg"))


def initialise(key: jax.Array) -> Any:
    x, y_hat = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 4, 4, 5))
    return network().init(key, x, y_hat, jnp.ones((1,), jnp.int32), update_stats=False)


def network() -> Any:
    return Discriminator(CFG, MODEL)


@jax.jit
def logits(variables: Any, x: Any, y_hat: Any, level: Any) -> jax.Array:
    out: tuple[jax.Array, ...] = network().apply(variables, x, y_hat, level, update_stats=False)
    (only,) = out
    return only


def arguments(n: int = 2) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.random((n, 64, 64, 3), np.float32)
    return x, rng.standard_normal((n, 4, 4, 5)).astype(np.float32)


def test_logits_at_a_sixteenth(variables: Any) -> None:
    x, y_hat = arguments()
    assert logits(variables, x, y_hat, jnp.array([1, 2])).shape == (2, 4, 4, 1)


def test_condition_is_y_s_of_the_level(variables: Any) -> None:
    x, y_hat = arguments()
    changed = y_hat.copy()
    changed[..., 2:] += 1
    before, after = (logits(variables, x, a, jnp.array([1, 2])) for a in (y_hat, changed))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-4
    # A head a level: the same latents say something else at another level.
    other = logits(variables, x, y_hat, jnp.array([2, 1]))
    assert np.abs(other - before).max() > 1e-4


def test_no_gradient_reaches_the_latents(variables: Any) -> None:
    x, y_hat = arguments()
    level = jnp.array([2, 2])
    g_x, g_y = jax.grad(lambda *a: logits(variables, *a, level).sum(), argnums=(0, 1))(x, y_hat)
    assert np.abs(g_x).max() > 1e-6
    assert not np.any(g_y)


def test_spectral_norms_become_one(variables: Any) -> None:
    x, y_hat = arguments(1)
    stats = variables["batch_stats"]

    @jax.jit
    def step(stats: Any) -> Any:
        changed = {"params": variables["params"], "batch_stats": stats}
        level = jnp.ones((1,), jnp.int32)
        return network().apply(
            changed, x, y_hat, level, update_stats=True, mutable=["batch_stats"]
        )[1]["batch_stats"]

    for _ in range(60):
        stats = step(stats)
    for k in range(4):
        kernel = np.asarray(variables["params"][f"Conv_{k}"]["kernel"])
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        estimate = stats[f"SpectralNorm_{k}"][f"Conv_{k}/kernel/sigma"]
        assert float(estimate) == pytest.approx(largest, rel=1e-2)


def test_paper_size() -> None:
    shapes = jax.eval_shape(
        lambda key: Discriminator(DiscriminatorConfig(), paper_model()).init(
            key, jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 4, 4, 512)), jnp.ones((1,), jnp.int32),
            update_stats=False,
        ),
        jax.random.key(0),
    )["params"]  # fmt: skip
    widths = (15, 64, 128, 256, 512)
    for k, (a, b) in enumerate(pairwise(widths)):
        assert shapes[f"Conv_{k}"]["kernel"].shape == (4, 4, a, b)
    assert shapes["Conv_4"]["kernel"].shape == (1, 1, 512, 1)
    assert shapes["condition_kernel"].shape == (16, 3, 3, 512, 12)


# On the layers of AlexNet.

ON_LAYERS = DiscriminatorConfig(network="alexnet", head_width=4, condition_features=3)
SIDES = (15, 7, 3, 3, 3)


@pytest.fixture(scope="module")
def of_layers() -> Any:
    def init(key: jax.Array) -> Any:
        network = Discriminator(ON_LAYERS, MODEL)
        return network.init(key, *example_inputs(ON_LAYERS, MODEL), update_stats=False)

    return jax.jit(init)(jax.random.key(0, impl="rbg"))


@jax.jit
def layer_logits(variables: Any, x: Any, y_hat: Any, level: Any) -> tuple[jax.Array, ...]:
    network: Any = Discriminator(ON_LAYERS, MODEL)
    out: tuple[jax.Array, ...] = network.apply(variables, x, y_hat, level, update_stats=False)
    return out


def layers() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    shapes = [(2, side, side, n) for side, n in zip(SIDES, LAYER_CHANNELS, strict=True)]
    unit = [a / np.linalg.norm(a, axis=-1, keepdims=True) for a in map(rng.standard_normal, shapes)]
    y_hat = rng.standard_normal((2, 4, 4, 5))
    return tuple(a.astype(np.float32) for a in unit), y_hat.astype(np.float32)


def test_logits_of_each_layer(of_layers: Any) -> None:
    x, y_hat = layers()
    found = layer_logits(of_layers, x, y_hat, jnp.array([1, 2]))
    assert [a.shape for a in found] == [(2, side, side, 1) for side in SIDES]
    # A layer's logits depend on that layer and on y_s only.
    changed = (x[0] * -1, *x[1:])
    after = layer_logits(of_layers, changed, y_hat, jnp.array([1, 2]))
    assert np.abs(found[0] - after[0]).max() > 1e-3
    for a, b in zip(found[1:], after[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_layers_are_judged_given_y_s_of_the_level(of_layers: Any) -> None:
    x, y_hat = layers()
    changed = y_hat.copy()
    changed[..., 2:] += 1
    before, after = (layer_logits(of_layers, x, a, jnp.array([1, 2])) for a in (y_hat, changed))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert np.abs(a[1] - b[1]).max() > 1e-5


def test_gradient_reaches_the_layers_and_not_the_latents(of_layers: Any) -> None:
    def total(x: Any, y_hat: Any) -> jax.Array:
        found = layer_logits(of_layers, x, y_hat, jnp.array([2, 2]))
        return jnp.stack([a.sum() for a in found]).sum()

    x, y_hat = layers()
    g_x, g_y = jax.grad(total, argnums=(0, 1))(x, y_hat)
    assert all(np.abs(g).max() > 1e-6 for g in g_x)
    assert not np.any(g_y)


def test_unknown_network() -> None:
    with pytest.raises(ValueError, match="network is 'vgg'; it must be patch or alexnet"):
        DiscriminatorConfig(network="vgg")
