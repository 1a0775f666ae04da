"""The network that ends g_s: what it starts as, what it reads, what it costs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import flat, quick_compilation

from sic_jax.config import ModelConfig
from sic_jax.model.complexity import codec_macs_per_pixel
from sic_jax.model.params import init_params
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms import RestorationFilter, synthesis_margin


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Programs compile quickly in this module."""
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def restored(tiny: ModelConfig) -> ModelConfig:
    """The tiny model with a filter of 4 features."""
    return dataclasses.replace(tiny, restoration_width=4, restoration_blocks=2)


def disturbed(cfg: ModelConfig) -> Any:
    """Parameters of the filter alone, none of them zero."""
    x, level = jnp.zeros((1, 16, 16, 3)), jnp.ones(1, jnp.int32)
    params = RestorationFilter(cfg).init(jax.random.key(0), x, level)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape).astype("f4"), params)


def test_it_starts_as_the_identity(tiny: ModelConfig, restored: ModelConfig) -> None:
    params = init_params(restored, seed=0)
    y_hat = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, tiny.num_channels)), "f4")
    level = jnp.array([1, 3])
    with_filter: Any = SicModel(restored).apply(
        {"params": params}, y_hat, level, method="synthesise"
    )
    del params["g_s"]["restoration"]
    without: Any = SicModel(tiny).apply({"params": params}, y_hat, level, method="synthesise")
    np.testing.assert_array_equal(with_filter, without)


@pytest.mark.parametrize("blocks", [0, 4, 7])
def test_a_pixel_reads_as_far_as_the_margin_says(tiny: ModelConfig, blocks: int) -> None:
    cfg = dataclasses.replace(tiny, restoration_width=4, restoration_blocks=blocks)
    variables = disturbed(cfg)
    x = jax.random.uniform(jax.random.key(1), (1, 112, 112, 3))

    def total(x: jax.Array) -> Any:
        out: Any = RestorationFilter(cfg).apply(variables, x, jnp.ones(1, jnp.int32))
        return jnp.square(out[0, 48:64, 48:64]).sum()

    rows, columns = np.nonzero(np.abs(np.asarray(jax.grad(total)(x)[0])).sum(-1))
    reach = 2 * (blocks + 2)
    for axis in (rows, columns):
        assert (axis.min(), axis.max()) == (48 - reach, 63 + reach)
    without = synthesis_margin(dataclasses.replace(cfg, restoration_width=0))
    assert without is not None
    assert synthesis_margin(cfg) == without + -(-reach // 16)


def test_it_knows_the_level_and_is_the_same_everywhere(restored: ModelConfig) -> None:
    variables = disturbed(restored)

    def run(x: jax.Array, level: int) -> np.ndarray:
        out: Any = RestorationFilter(restored).apply(variables, x, jnp.full(1, level))
        return np.asarray(out)

    x = jax.random.uniform(jax.random.key(2), (1, 64, 64, 3))
    assert np.abs(run(x, 1) - run(x, 2)).max() > 1e-3
    # Shifted by its step of 2 pixels, not only by the 8 and 16 of the blocks before it.
    moved = run(jnp.roll(x, (2, 6), (1, 2)), 1)
    np.testing.assert_allclose(moved[0, 18:48, 18:48], run(x, 1)[0, 16:46, 12:42], atol=1e-5)


def test_cost_and_parameters(tiny: ModelConfig, restored: ModelConfig) -> None:
    width, blocks = restored.restoration_width, restored.restoration_blocks
    a, b = codec_macs_per_pixel(tiny), codec_macs_per_pixel(restored)
    assert b["encode"] == a["encode"]
    macs = 2 * 9 * 12 * width + blocks * (9 + 1) * width**2
    assert b["decode"] - a["decode"] == pytest.approx(macs / 4)
    sizes = [leaf.size for leaf in flat(disturbed(restored)).values()]
    ends = (9 * 12 + 1) * width + (9 * width + 1) * 12
    block = (9 * width + 1) * width + 2 * tiny.num_levels * width + (width + 1) * width
    assert sum(sizes) == ends + blocks * block
