"""docs/paper_figures/study_of_m.py: what it compares; its page and plot are of its data."""

import dataclasses
import importlib.util
import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.cli import evaluate
from sic_jax.training.gradients import make_loss
from sic_jax.training.losses import mean_terms
from sic_jax.training.presets import paper_loss
from sic_jax.training.state import create_train_state
from sic_jax.training.step import NEVER, Metrics
from sic_jax.training.train_config import TrainConfig

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "paper_figures" / "study_of_m.py"
_spec = importlib.util.spec_from_file_location("study_of_m", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
study_of_m = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(study_of_m)


@pytest.fixture
def small(tiny_run: TrainConfig, quick: None) -> TrainConfig:
    """The paper's loss on the tiny model, without LPIPS's network: of L = 3, alpha = 1/2."""
    loss = dataclasses.replace(paper_loss(3), lmbda_perc=(0.0,) * 3)
    return dataclasses.replace(tiny_run, loss=loss, warmup_steps=0)


def test_settings_see_as_many_images_or_decode_as_often() -> None:
    stops = {m: study_of_m.measured_steps(m, 320) for m in study_of_m.DRAWS_IN_TRAINING}
    assert stops == {1: [320, 960], 2: [320, 640], 5: [320]}
    assert {m: s[-1] * (1 + m) for m, s in stops.items()} == dict.fromkeys((1, 2, 5), 1920)
    with pytest.raises(ValueError, match="steps is 1: 6 decodings an image of a batch are no"):
        study_of_m.measured_steps(3, 1)


def test_only_m_differs() -> None:
    base = study_of_m.small_run()
    assert base.loss == paper_loss()
    one, five = (study_of_m.with_draws(base, m) for m in (1, 5))
    assert (one.loss.num_samples, five.loss.num_samples) == (1, 5)
    assert study_of_m.with_draws(five, 1) == one


@pytest.mark.thorough
def test_expectation_is_the_mean_over_draws(
    small: TrainConfig, params: dict[str, Any], pictures: NDArray[Any]
) -> None:
    cfg = study_of_m.with_draws(small, 2)
    state = create_train_state(cfg, params)._replace(step=jnp.int32(1))  # Level 3 - 1 mod 3.
    batch = np.round(pictures[:2] * 255).astype(np.uint8)
    loss, (terms, decoded) = jax.jit(make_loss(cfg))(params, state, batch, jnp.arange(2), {})
    assert decoded.plan.level.tolist() == [[3, 3], [2, 2], [2, 2]]
    x_hat = np.asarray(decoded.x_hat)
    assert np.abs(x_hat[1] - x_hat[2]).max() > 1e-3  # Two draws.
    mse = np.square(batch / 255 - x_hat).mean((2, 3, 4))
    means = {name: float(value) for name, value in mean_terms(terms).items()}
    assert means["mse_full"] == pytest.approx(mse[0].mean(), rel=1e-4)
    assert means["mse_low"] == pytest.approx(mse[1:].mean(), rel=1e-4)
    rate, dist = cfg.loss.lmbda_rate, cfg.loss.lmbda_dist
    full = rate[2] * means["bpp_full"] + dist[2] * means["mse_full"]
    synset = rate[1] * means["bpp_low"] + dist[1] * mse[1:].mean(0).mean()
    synonymous = (means["consistency_s_full"] + 2 * means["consistency_s_low"]) / 3
    details = 2 * means["consistency_eps_low"] / 3
    expected = (full + synset) / 2 + synonymous + details
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_runs_of_a_seed_start_alike_and_see_the_same(
    small: TrainConfig, source: list[NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def initial(cfg: TrainConfig, _: Any) -> Any:
        return {"start": jnp.float32(1 + cfg.seed), "pixels": jnp.zeros(()), "place": jnp.zeros(())}

    def counting_step(_: TrainConfig) -> Any:
        """Stands for the step, of which the average tells what it was given."""

        def step(state: Any, batch: Any, rows: Any, _: Any) -> Any:
            pixels = state.ema["pixels"] + batch.astype(jnp.float32).mean()
            place = rows[0].astype(jnp.float32)
            given = {"start": state.params["start"], "pixels": pixels, "place": place}
            return state._replace(ema=given), Metrics({}, jnp.int32(NEVER))

        return step

    def measure(given: dict[str, Any]) -> dict[str, float]:
        values = {k: float(v) for k, v in given.items()}
        named = {"bpp_est": values["start"], "mse": values["pixels"], "psnr": values["place"]}
        return {f"{name}/3": named.get(name, 0.0) for name in study_of_m.Row._fields[5:]}

    monkeypatch.setattr(study_of_m, "initial_params", initial)
    monkeypatch.setattr(study_of_m, "make_train_step", counting_step)
    found = study_of_m.study(
        small, source, measure, steps=2, seeds=(0, 1), draws_in_training=(1, 2), levels=(3,)
    )
    rows = [row for (row,) in found]
    counts = [(r.num_samples, r.seed, r.images, r.decodings) for r in rows]
    # Batches of 2: as many images as M = 2 sees, then as many decodings as it makes.
    one_seed = [(1, 4, 8), (1, 6, 12), (2, 4, 12)]
    assert counts == [(m, seed, i, d) for seed in (0, 1) for m, i, d in one_seed]
    for first, last, other in (rows[:3], rows[3:]):
        assert first.bpp_est == last.bpp_est == other.bpp_est  # The same parameters at first.
        assert first.mse == other.mse < last.mse  # The same crops, then further ones.
    assert (rows[0].bpp_est, rows[3].bpp_est) == (1, 2)
    assert rows[0].mse != rows[3].mse
    assert [r.psnr for r in rows] == [0, 0, 0, 2, 2, 2]  # Other places, other noise.


def row(m: int, seed: int, images: int, level: int, bpp: float, dists: float) -> Any:
    return study_of_m.Row(m, seed, images, images * (1 + m), level, bpp, 0.01, 20.0, 0.5, dists)


def test_curves_are_compared_at_equal_rates() -> None:
    # Of M = 1 DISTS is log2(bpp) + seed; M = 5 has half of it, and a shorter curve.
    rows = [
        row(1, seed, images, k, 2.0**k, k + seed)
        for seed in (0, 1) for images in (60, 180) for k in range(5)
    ]  # fmt: skip
    rows += [row(5, seed, 60, k, 2.0**k, k / 2) for seed in (0, 1) for k in range(1, 5)]
    same_images, same_decodings = study_of_m.comparisons(rows).values()
    for found, images in ((same_images, 60), (same_decodings, 180)):
        assert {m: len(curves) for m, curves in found.items()} == {1: 2, 5: 2}
        assert {r.images for curve in found[1] for r in curve} == {images}
        assert {r.images for curve in found[5] for r in curve} == {60}
    rates = study_of_m.common_rates(rows, 4)
    np.testing.assert_allclose(rates, [2, 4, 8, 16])
    assert study_of_m.at_rates(same_images[1][1], "dists", [2, 6, 16]) == pytest.approx(
        [2, 1 + np.log2(6), 5], abs=0.1
    )
    table = study_of_m.to_table(rows).splitlines()
    assert [line.split(" | ")[1:4] for line in table[2:]] == [
        ["1", "60", "120"], ["5", "60", "360"], ["5, less that of 1", "", ""],
        ["1", "180", "360"], ["5", "60", "360"], ["5, less that of 1", "", ""],
    ]  # fmt: skip
    assert "3.0000 (2.5000 to 3.5000)" in table[2]
    assert "1.2500 (1.2500 to 1.2500)" in table[3]
    assert "-1.7500 (-2.2500 to -1.2500)" in table[4]


def test_loss_of_a_curve_by_hand() -> None:
    # lambda_r, lambda_d and lambda_p: 1, 2048 and 8 at level 16; 8, 1024 and 16 at level 8.
    curve = [row(1, 0, 4, 8, 0.25, 0.1), row(1, 0, 4, 16, 0.5, 0.1)]
    low, high = 8 * 0.25 + 1024 * 0.01 + 16 * 0.5, 0.5 + 2048 * 0.01 + 8 * 0.5
    assert study_of_m.mean_loss_of(curve) == pytest.approx((low + high) / 2)


def test_page_and_plot_are_of_the_data() -> None:
    results = study_of_m.read_results(study_of_m.CSV)
    assert study_of_m.to_text(results) == study_of_m.CSV.read_text()
    about = {line.partition(":")[0] for line in results.about}
    assert about == {"command", "revision", "training", "measured"}
    counts = {(r.num_samples, r.images): 0 for r in results.rows}
    assert len(counts) == 5
    assert len({r.images for r in results.rows if r.num_samples == 5}) == 1
    page = study_of_m.PAGE.read_text()
    hint = "run: python docs/paper_figures/study_of_m.py"
    assert study_of_m.renewed(page, results.rows) == page, hint
    assert study_of_m.PLOT.read_text().endswith(study_of_m.stamp()), hint


def test_commands_of_the_page_parse() -> None:
    lines = study_of_m.PAGE.read_text().splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("python eval.py ")]
    metrics = [evaluate.parse(command).metrics for command in commands]
    assert metrics == [["psnr", "lpips", "dists"]] * 3
