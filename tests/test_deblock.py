import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sic_jax.config import ModelConfig
from sic_jax.model.deblock import deblock
from sic_jax.model.transforms import synthesis_margin


def _step(size: float) -> jax.Array:
    """Two flat patches side by side, `size` apart."""
    row = jnp.repeat(jnp.array([0.5, 0.5 + size]), 16)
    return jnp.broadcast_to(row[:, None], (1, 16, 32, 3))


@pytest.mark.parametrize("turned", [False, True])
def test_a_jump_becomes_a_ramp(turned: bool) -> None:
    d, jump = 0.02, 0.06
    x = _step(d)
    x = x.swapaxes(1, 2) if turned else x
    y = deblock(x, jump, 0.04)
    y = y.swapaxes(1, 2) if turned else y
    weight = np.exp(-((d / jump) ** 2))
    expected = np.repeat([0.5, 0.5 + d], 16)
    for i in range(8):
        expected[15 - i] += weight * d * (1 - (i + 0.5) / 8) / 2
        expected[16 + i] -= weight * d * (1 - (i + 0.5) / 8) / 2
    np.testing.assert_allclose(y, np.broadcast_to(expected[:, None], y.shape), atol=1e-6)


def test_edges_and_textures_stay() -> None:
    edge = _step(0.4)
    np.testing.assert_allclose(deblock(edge, 0.06, 0.04), edge, atol=1e-6)
    stripes = _step(0.02) + 0.2 * (jnp.arange(32) % 2)[:, None]
    np.testing.assert_allclose(deblock(stripes, 0.06, 0.04), stripes, atol=1e-4)


def test_channels_share_the_weight_of_the_worst() -> None:
    x = _step(0.02).at[..., 16:, 0].add(0.4)
    np.testing.assert_allclose(deblock(x, 0.06, 0.04), x, atol=1e-6)


@given(st.floats(0, 1, width=32), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_flat_pictures_and_single_patches_stay(value: float, rows: int, columns: int) -> None:
    x = jnp.full((1, 16 * rows, 16 * columns, 3), value)
    np.testing.assert_allclose(deblock(x, 0.06, 0.04), x, atol=1e-6)


def test_a_pixel_reads_its_own_and_the_neighbouring_patches() -> None:
    x = jax.random.uniform(jax.random.key(0), (1, 80, 80, 3), minval=0.49, maxval=0.51)
    reads = jax.grad(lambda x: deblock(x, 0.06, 0.04)[0, 32:48, 32:48].sum())(x)
    assert np.isfinite(reads).all()
    rows, columns = np.nonzero(np.abs(np.asarray(reads[0])).sum(-1))
    assert min(rows.min(), columns.min()) >= 16
    assert max(rows.max(), columns.max()) < 64
    plain, filtered = ModelConfig(), ModelConfig(deblock_jump=0.06)
    assert synthesis_margin(filtered) == synthesis_margin(plain) + 1  # type: ignore[operator]
