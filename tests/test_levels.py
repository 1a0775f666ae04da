import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sic_jax.model.levels import (
    LevelConfig,
    add_refinements,
    channel_levels,
    level_mask,
    level_starts,
    merge_latents,
    refinement_sources,
    shrink,
    split_latents,
)

CFG = LevelConfig(channels=(3, 2, 4), refinements=(0, 1, 3), refine_factor=5)
C = CFG.num_channels
QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def test_channels_of_levels() -> None:
    assert channel_levels(CFG).tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert level_starts(CFG).tolist() == [0, 3, 5, 9]
    assert channel_levels(CFG).dtype == level_starts(CFG).dtype == np.int32


def test_refinement_sources() -> None:
    # Level 2: one refinement (of channel 0), channel 4 new. Level 3: of 1, 2 and 4, channel 8 new.
    assert refinement_sources(CFG).tolist() == [-1, -1, -1, 0, -1, 1, 2, 4, -1]
    none = LevelConfig(channels=(1, 2), refinements=(0, 0))
    assert refinement_sources(none).tolist() == [-1, -1, -1]
    everything = LevelConfig(channels=(2, 2), refinements=(0, 2))
    assert refinement_sources(everything).tolist() == [-1, -1, 0, 1]


def test_refinements_of_the_default_model() -> None:
    cfg = LevelConfig()
    sources, levels = refinement_sources(cfg), channel_levels(cfg)
    refining = np.flatnonzero(sources >= 0)
    base = np.flatnonzero(sources < 0)
    assert len(refining) == 48
    # Each in turn, the first channels first, and only channels that an earlier level codes.
    assert sources[refining].tolist() == base[:48].tolist()
    assert (levels[sources[refining]] < levels[refining]).all()


@given(arrays(np.float32, (2, 1, 1, C), elements=st.floats(-100, 100, width=32)), st.data())
@QUICK
def test_split_and_merge_are_inverse(y: Any, data: st.DataObject) -> None:
    level: Any = np.array(data.draw(st.tuples(*[st.integers(1, 3)] * 2)), np.int32)
    y_s, y_eps = split_latents(y, level, CFG)
    np.testing.assert_array_equal(merge_latents(y_s, y_eps, level, CFG), y)
    np.testing.assert_array_equal(np.asarray(y_s) + np.asarray(y_eps), y)
    for b in range(2):
        coded = level_starts(CFG)[level[b]]
        np.testing.assert_array_equal(y_s[b, ..., :coded], y[b, ..., :coded])
        assert not np.any(y_s[b, ..., coded:])
        assert not np.any(y_eps[b, ..., :coded])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_split_at_one_level_for_all(level: int) -> None:
    y: Any = np.arange(1, C + 1, dtype=np.float32)
    y_s, y_eps = split_latents(y, level, CFG)
    coded = [3, 5, 9][level - 1]
    assert np.asarray(y_s).tolist() == [*range(1, coded + 1), *[0] * (C - coded)]
    assert np.asarray(y_eps).tolist() == [*[0] * coded, *range(coded + 1, C + 1)]


def test_masks() -> None:
    assert np.asarray(level_mask(2, CFG)).tolist() == [True] * 5 + [False] * 4
    mask: Any = jax.jit(lambda level: level_mask(level, CFG))
    for level, coded in ((1, 3), (2, 5), (3, 9)):
        got = np.asarray(mask(jnp.int32(level)))
        assert got.shape == (C,)
        assert got.sum() == coded
    assert mask._cache_size() == 1
    many = np.asarray(mask(jnp.array([3, 1, 2])))
    assert many.shape == (3, 1, 1, C)
    assert many.sum((1, 2, 3)).tolist() == [9, 3, 5]


@given(arrays(np.float32, (4, CFG.num_base_channels), elements=st.floats(-50, 50, width=32)))
@QUICK
def test_refinements_refine(y_base: Any) -> None:
    y = np.asarray(add_refinements(y_base, CFG))
    sources = refinement_sources(CFG)
    np.testing.assert_array_equal(y[:, sources < 0], y_base)
    y_hat = np.round(y)
    for c in np.flatnonzero(sources >= 0):
        fine = y_hat[:, sources[c]] + y_hat[:, c] / CFG.refine_factor
        # Half a fine step, and the rounding of float32 numbers near 50.
        assert np.abs(fine - y[:, sources[c]]).max() <= 0.5 / CFG.refine_factor + 1e-5
        assert np.abs(y[:, c]).max() <= CFG.refine_factor / 2


def test_refinements_by_hand() -> None:
    y_base = jnp.array([1.25, -0.75, 3.0, 0.125, 7.5])
    expected = [1.25, -0.75, 3.0, 1.25, 0.125, 1.25, 0.0, 0.625, 7.5]
    assert np.asarray(add_refinements(y_base, CFG)).tolist() == expected


def test_dead_zone_of_channels_that_nothing_refines() -> None:
    cfg = dataclasses.replace(CFG, deadzone=0.125)
    y_base = jnp.array([1.25, -0.75, 3.0, 0.25, -7.5])
    # The first four are refined later; what refines them does not know of the dead zone.
    expected = [1.25, -0.75, 3.0, 1.25, 0.25, 1.25, 0.0, 1.25, -7.375]
    assert np.asarray(add_refinements(y_base, cfg)).tolist() == expected
    slope = jax.grad(lambda y: add_refinements(y, cfg)[-1])
    assert slope(y_base).tolist() == [0, 0, 0, 0, 1]
    assert slope(y_base.at[-1].set(-0.25)).tolist() == [0, 0, 0, 0, 0.75]


@given(
    st.floats(-30, 30, width=32, allow_subnormal=False),
    st.floats(0, 0.484375, width=32, allow_subnormal=False),
)
@QUICK
def test_shrink_moves_the_first_threshold(y: float, deadzone: float) -> None:
    shrunk = float(shrink(jnp.float32(y), deadzone))
    assert abs(shrunk) <= abs(y)
    threshold = 0.5 + deadzone  # What rounds to 1 or more.
    assume(abs(abs(y) - threshold) > 1e-4)
    assert (round(shrunk) != 0) == (abs(y) > threshold)


def test_gradient_of_refinements() -> None:
    y_base = jnp.array([1.25, -0.75, 3.25, 0.125, 7.75])
    jacobian = np.asarray(jax.jacobian(lambda y: add_refinements(y, CFG))(y_base))
    sources = refinement_sources(CFG)
    np.testing.assert_array_equal(jacobian[sources < 0], np.eye(5))
    np.testing.assert_array_equal(jacobian[sources >= 0], np.zeros((4, 5)))
