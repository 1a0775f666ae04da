"""Latent optimisation: one step in closed form, what it gains, what it must not touch."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_compilation
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_codec import CFG, LEVELS, picture, tiny_bundle

from sic_jax.cli.demo import SAMPLE
from sic_jax.codec import latent_optimisation as optimisation
from sic_jax.codec.bundle import export_bundle, load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import truncate, unpack
from sic_jax.codec.latent_optimisation import (
    LatentOptimiser,
    OptimiserState,
    descend,
    level_of_step,
)
from sic_jax.codec.options import LatentLossConfig
from sic_jax.metrics.dists_metric import dists, load_dists_weights
from sic_jax.metrics.lpips_metric import load_alexnet_weights, lpips
from sic_jax.model.levels import channel_levels, refinement_sources
from sic_jax.model.model_config import ModelConfig
from sic_jax.training.presets import default_model


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Programs compile quickly in this module."""
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder: Path = tmp_path_factory.mktemp("bundle")
    return Codec.load(tiny_bundle(folder / "tiny", 0))


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_every_level_has_its_turn(level: int, first: int) -> None:
    """The golden ratio's multiples leave no gap of 1 / level among 2 level steps in a row."""
    seen = {level_of_step(first + step, level) for step in range(2 * level)}
    assert seen == set(range(1, level + 1))


def test_weights_are_geometric_in_the_level() -> None:
    optimiser = LatentOptimiser(default_model(), LatentLossConfig(), {})
    np.testing.assert_allclose(optimiser._lmbda_dist[::15], (40, 1200), rtol=1e-6)
    np.testing.assert_allclose(optimiser._lmbda_perc[::15], (0.45, 2.8), rtol=1e-6)
    np.testing.assert_allclose(np.diff(np.log(optimiser._lmbda_dist)), np.log(30) / 15, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"lmbda_dist is \(0\.0, 1\.0\); it must be positive and fin"
    ):
        LatentLossConfig(lmbda_dist=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"weight is -1\.0; it must be at least 0 and finite"):
        LatentLossConfig(dists_weight=-1.0)


def test_a_bundle_keeps_the_weights(tmp_path: Path, codec: Codec) -> None:
    assert codec.bundle.latent_loss == LatentLossConfig()
    loss = LatentLossConfig(lmbda_perc=(1.0, 2.0), dists_weight=2.0)
    export_bundle(tmp_path, codec.bundle.cfg, codec.bundle.params, latent_loss=loss)
    loaded = load_bundle(tmp_path)
    assert loaded.latent_loss == loss
    assert loaded.model_id != codec.bundle.model_id


def step(
    v: Any,
    g: Any,
    keep: Any = None,
    *,
    number: Any = 1,
    eta: Any = 0.02,
    reach: float = 0.3,
    cfg: ModelConfig = CFG,
) -> OptimiserState:
    v, g = (jnp.asarray(a, jnp.float32)[None] for a in (v, g))
    keep = np.ones((*v.shape[:3], 1), bool) if keep is None else keep
    state = OptimiserState(v, jnp.zeros_like(v), jnp.zeros(v.shape[-1]))
    return descend(state, g, number, eta, keep, jnp.full(v.shape[-1], reach), cfg.levels)


def test_the_first_step_is_the_gradient_in_units_of_its_channel() -> None:
    rng = np.random.default_rng(0)
    shape = (3, 5, CFG.num_channels)
    # Not near a half: nothing changes, and no refinement follows. Refinements have their range.
    most = np.where(refinement_sources(CFG.levels) < 0, 3, 1)
    v = rng.integers(-most, most + 1, shape) + rng.uniform(-0.3, 0.3, shape)
    g = rng.normal(size=shape)
    g *= 10.0 ** np.arange(-4, 4)  # Channels of any scale, one of them without a gradient.
    g[..., 5] = 0
    state = step(v, g)
    unit = np.sqrt((g**2).mean((0, 1)))
    unit[5] = 1
    expected = v - 0.02 * np.clip(g / unit + 0.35 * (v - np.round(v)) / 0.301, -4, 4)
    np.testing.assert_allclose(state.v[0], expected, atol=2e-6)
    np.testing.assert_allclose(state.mean[0], 0.1 * g, rtol=1e-5)
    np.testing.assert_allclose(state.square, 0.03 * (g**2).mean((0, 1)), rtol=1e-4)
    # The second step has running means that weigh both as if nothing had been before.
    numbers: Any = 2, 0.02, np.ones((1, 3, 5, 1), bool)
    number, eta, keep = numbers
    again = descend(state, jnp.zeros_like(state.v), number, eta, keep,
                    jnp.full(shape[-1], 1e9), CFG.levels)  # fmt: skip
    m, s = 0.09 * g / 0.19, np.sqrt(0.97 * 0.03 * (g**2).mean((0, 1)) / (1 - 0.97**2))
    s[5] = 1
    np.testing.assert_allclose(again.v - state.v, -0.02 * np.clip(m / s, -4, 4)[None], atol=3e-6)


def test_without_a_gradient_values_go_back_to_their_integers() -> None:
    rng = np.random.default_rng(1)
    v = rng.uniform(-0.45, 0.45, (4, 4, CFG.num_channels))
    moved = np.asarray(step(v, np.zeros_like(v)).v[0])
    np.testing.assert_allclose(moved, v * (1 - 0.02 * 0.35 / 0.301), atol=1e-6)


def test_a_refinement_makes_up_for_what_it_refines() -> None:
    sources = refinement_sources(CFG.levels)
    refining = int(np.flatnonzero(sources >= 0)[0])
    base = int(sources[refining])
    v, g = np.zeros((2, 2, CFG.num_channels)), np.zeros((2, 2, CFG.num_channels))
    v[0, :, base], v[0, :, refining] = 0.499, (1.8, 1.2)
    g[0, :, base] = -1.0
    new = np.asarray(step(v, g, reach=1e9).v[0])
    assert (np.round(v[0, 0, base]), np.round(new[0, 0, base])) == (0, 1)
    # Their sum in units of the base channel is what it was, as far as a residual goes.
    assert new[0, 0, refining] == pytest.approx(1.8 - CFG.levels.refine_factor, abs=1e-6)
    assert new[0, 1, refining] == pytest.approx(-1.49, abs=1e-6)
    np.testing.assert_array_equal(new[1], v[1])


def test_positions_that_are_not_kept_do_not_move_and_do_not_count() -> None:
    v, g = np.full((1, 2, CFG.num_channels), 0.2), np.ones((1, 2, CFG.num_channels))
    g[0, 1] = 1e6
    keep = np.array([True, False]).reshape(1, 1, 2, 1)
    new = np.asarray(step(v, g, keep, reach=1e9).v[0])
    np.testing.assert_allclose(new[0, 0], 0.18, atol=1e-6)
    np.testing.assert_array_equal(new[0, 1], np.float32(0.2))


def losses(codec: Codec, x: NDArray[Any], data: bytes) -> NDArray[Any]:
    """The loss of the optimisation at each level, by the bytes of files and decoded pictures."""
    loss, out = LatentLossConfig(), []
    lmbda_dist, lmbda_perc = (np.geomspace(*w, LEVELS) for w in (loss.lmbda_dist, loss.lmbda_perc))
    for level in range(1, LEVELS + 1):
        cut = truncate(data, level)
        a, b = (p[None] / np.float32(255) for p in (x, codec.decompress(cut, temperature=0)))
        near = float(lpips(a, b, weights=load_alexnet_weights())[0])
        alike = float(dists(a, b, weights=load_dists_weights())[0])
        out.append(
            8 * len(cut) / x[..., 0].size
            + lmbda_dist[level - 1] * float(np.square(a - b).mean())
            + lmbda_perc[level - 1] * (near + loss.dists_weight * alike)
        )
    return np.array(out)


@pytest.mark.thorough
def test_decoded_files_are_better_and_prefixes_too(codec: Codec) -> None:
    x = picture(64, 96)
    told: list[tuple[int, int]] = []
    plain = codec.compress(x)
    optimised = codec.compress(x, optimise_steps=24, on_step=lambda *step: told.append(step))
    assert told == [(i + 1, 24) for i in range(24)]
    before, after = losses(codec, x, plain), losses(codec, x, optimised)
    assert (after < before).all(), (before, after)
    # A file like any other, whose symbols are those of the optimisation.
    encoded = codec.encode_latents(x, optimise_steps=24)
    decoded = codec.decode_latents(unpack(optimised))
    np.testing.assert_array_equal(decoded.y_s, encoded.y_s)
    np.testing.assert_array_equal(decoded.z_hat, codec.encode_latents(x).z_hat)


@pytest.mark.thorough
def test_levels_above_that_of_the_file_only_follow_what_they_refine(codec: Codec) -> None:
    x = picture(64, 96)
    plain, optimised = codec.encode_latents(x), codec.encode_latents(x, level=1, optimise_steps=12)
    above = channel_levels(CFG.levels) > 1
    low = (plain.y_s != optimised.y_s)[..., ~above]
    assert low.any()
    sources = refinement_sources(CFG.levels)
    for c in np.flatnonzero(above):
        changed = (plain.y_s != optimised.y_s)[..., c]
        if sources[c] < 0:
            assert not changed.any()
        elif not above[sources[c]]:
            np.testing.assert_array_equal(changed, low[..., sources[c]])


@pytest.mark.parametrize("size", [(16, 200), (1, 1)])
def test_small_pictures_are_coded_without(codec: Codec, size: tuple[int, int]) -> None:
    x = picture(*size)
    assert codec.compress(x, optimise_steps=5) == codec.compress(x)


@pytest.mark.thorough
def test_gray(codec: Codec) -> None:
    x = picture(60, 90)[..., 1]
    data = codec.compress(x, optimise_steps=16)
    assert codec.decompress(data).shape == (60, 90)
    assert data != codec.compress(x)


def test_windows_cover_the_picture(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position is optimised once, and only it is taken from its window."""
    monkeypatch.setattr(optimisation, "WINDOW", 6)
    x = picture(64, 200)
    seen = []

    def stub(
        x: NDArray[Any],
        y: NDArray[Any],
        keep: NDArray[Any],
        hyper: Any,
        level: int,
        steps: int,
        report: Callable[[], None],
    ) -> NDArray[Any]:
        assert x.shape == (16 * y.shape[0], 16 * y.shape[1], 3)
        assert max(y.shape[:2]) <= 6
        assert hyper.shape[1:3] == y.shape[:2] == keep.shape[1:3]
        seen.append(int(keep.sum()))
        for _ in range(steps):
            report()
        return y + 7

    find = optimisation.LatentOptimiser(CFG, LatentLossConfig(), codec.bundle.params)
    monkeypatch.setattr(find, "_optimise", stub)
    y = np.random.default_rng(0).normal(size=(4, 13, CFG.num_channels)).astype(np.float32)
    x, hyper = np.pad(x, ((0, 0), (0, 8), (0, 0))), jnp.zeros((1, 4, 13, 3))
    told = []
    found = find(x, y, hyper, level=1, steps=2, on_step=lambda *step: told.append(step))
    assert len(seen) > 2
    assert sum(seen) == 4 * 13
    assert told == [(i + 1, 2 * len(seen)) for i in range(2 * len(seen))]
    np.testing.assert_array_equal(found, np.round(y + 7))


def test_negative_steps(codec: Codec) -> None:
    with pytest.raises(ValueError, match="optimise_steps must be at least 0, got -1"):
        codec.compress(picture(32, 32), optimise_steps=-1)


@pytest.mark.slow
def test_what_the_default_bundle_gains() -> None:
    with Image.open(SAMPLE) as im:
        x = np.asarray(im.convert("RGB"))[128:256, 128:320]
    codec = Codec.load("default")
    plain, optimised = codec.compress(x), codec.compress(x, optimise_steps=12)
    weights = load_dists_weights()
    for level in (8, 12, 16):
        a, b = truncate(plain, level), truncate(optimised, level)
        assert len(b) < 1.08 * len(a)
        before, after = (
            float(dists(x[None] / np.float32(255), p[None] / np.float32(255), weights=weights)[0])
            for p in (codec.decompress(a), codec.decompress(b))
        )
        assert after < 0.95 * before, (level, before, after)
