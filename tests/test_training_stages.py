"""Stages, several steps a dispatch, and runs by the clock."""

import dataclasses
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_equal, quick_compilation
from numpy.typing import NDArray

from sic_jax.data.batches import batches
from sic_jax.training import loop, stages
from sic_jax.training.checkpoints import open_checkpoints, restore
from sic_jax.training.discriminator import DiscriminatorConfig
from sic_jax.training.parallel import make_runner
from sic_jax.training.stages import Budget, Programs
from sic_jax.training.state import create_train_state, learning_rate, state_shapes
from sic_jax.training.train_config import Stage, TrainConfig

Images = list[NDArray[Any]]


class FakeTime:
    """A clock that goes on by `tick` seconds whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 100.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def by_clock(tiny_run: TrainConfig) -> TrainConfig:
    return dataclasses.replace(tiny_run, minutes=1.0, steps=1000, warmup_steps=4)


def test_stage_at(tiny_run: TrainConfig) -> None:
    other = dataclasses.replace(tiny_run.loss, temperature=0.5)
    cfg = dataclasses.replace(
        tiny_run, stages=tuple(Stage(loss=other, share=s) for s in (0.1, 0.2))
    )
    # 0.1 + 0.2 is a little more than 0.3.
    found = [cfg.stage_at(step / 10) for step in range(11)]
    assert found == [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]
    first, second, third = cfg.stage_configs()
    assert first == second == dataclasses.replace(tiny_run, loss=other)
    assert third == tiny_run


def test_learning_rate_by_the_clock(by_clock: TrainConfig) -> None:
    cfg = dataclasses.replace(by_clock, learning_rate=0.1)

    def rate(step: int, progress: float) -> float:
        return float(learning_rate(cfg, jnp.int32(step), jnp.float32(progress)))

    assert rate(4, 0.0) == pytest.approx(0.1)
    assert rate(1, 0.0) == pytest.approx(0.025)
    assert rate(500, 0.5) == pytest.approx(0.1 * (0.01 + 0.99 / 2))
    assert rate(500, 1.0) == pytest.approx(0.001)
    # By steps: as before, the decay begins after the warm-up.
    steps = dataclasses.replace(cfg, minutes=0.0, steps=104)
    assert float(learning_rate(steps, jnp.int32(54))) == pytest.approx(0.1 * (0.01 + 0.99 / 2))


def test_budget(by_clock: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime(0.0)
    monkeypatch.setattr(stages, "time", clock)
    budget = Budget(by_clock, began=90.0, used=4.0, progress=0.2)
    # Ten seconds are needed until the first step, in which nothing is over.
    assert budget.progress(0) == 0.2
    budget.start()
    assert budget.progress(0) == pytest.approx(0.2)
    assert budget.used() == pytest.approx(14)
    # A tenth of the minute is for the end.
    end = 90 + 60 - 4 - 6
    clock.now = (100 + end) / 2
    assert budget.progress(0) == pytest.approx(0.6)
    clock.now = end - 0.01
    assert budget.progress(0) < 1
    clock.now = end
    assert budget.progress(0) == 1
    # A validation comes after the last step; the last one tells how long it takes.
    budget.reserve(20.0)
    budget.reserve(5.0)
    clock.now = end - 5.01
    assert budget.progress(0) < 1
    clock.now = end - 5
    assert budget.progress(0) == 1


def test_nothing_is_left_of_a_budget(
    by_clock: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeTime(0.0)
    monkeypatch.setattr(stages, "time", clock)
    budget = Budget(by_clock, began=30.0)
    budget.start()
    assert budget.progress(0) == 1


def test_sizes_of_dispatches(tiny_run: TrainConfig) -> None:
    cfg = dataclasses.replace(
        tiny_run, steps=23, steps_per_dispatch=5, stages=(Stage(loss=tiny_run.loss, share=0.5),)
    )

    def dispatches(cfg: TrainConfig, step: int, end: int) -> list[int]:
        found = []
        while step < end:
            due = cfg.stage_at(step / cfg.steps) if not cfg.minutes else 0
            found.append(loop._steps_of_dispatch(cfg, step, due))
            step += found[-1]
        assert step == end
        return found

    # The second stage begins at step 12; three steps are left at the end.
    assert dispatches(cfg, 0, 23) == [5, 5, 1, 1, 1, 1, 1, 5, 1, 1, 1]
    # A run that was saved at any step falls into step again.
    by_clock = dataclasses.replace(cfg, minutes=1.0)
    assert dispatches(by_clock, 13, 30) == [1, 1, 5, 5, 5]


@pytest.mark.thorough
def test_several_steps_a_dispatch(
    tiny_run: TrainConfig, untrained: dict[str, Any], source: Images, quick: None
) -> None:
    first = batches(
        source, crop_size=64, batch_size=2, seed=0, data=tiny_run.data, first_step=0,
        rows=slice(0, 2),
    )  # fmt: skip
    four = [next(first) for _ in range(4)]
    runner = make_runner(tiny_run, {})
    one = runner.place(create_train_state(tiny_run, untrained))
    total = 0.0
    for batch in four:
        one, metrics = runner.step(one, [batch])
        total += float(metrics.terms["loss"][0])
    runner.compile(runner.shapes(state_shapes(tiny_run)), 4)
    start = runner.place(create_train_state(tiny_run, untrained))
    together, metrics = runner.step(start, four)
    assert int(together.step) == 4
    assert float(metrics.terms["loss"][0]) == pytest.approx(total, rel=1e-5)
    assert float(metrics.terms["loss"][1]) == 8
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(together.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.thorough
def test_stages_follow_one_another(
    tiny_run: TrainConfig, untrained: dict[str, Any], source: Images, tmp_path: Path, quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loop, "init_params", lambda cfg, *, seed: untrained)
    monkeypatch.setattr(loop, "sample_patches", lambda *_, **__: np.zeros((10, 768), np.float32))
    heavy = dataclasses.replace(tiny_run.loss, lmbda_dist=(1e4,) * 3)
    cfg = dataclasses.replace(
        tiny_run, stages=(Stage(loss=heavy, share=0.5),), steps=4, warmup_steps=1, log_every=2,
        save_every=4,
    )  # fmt: skip
    start = loop.initial_params(cfg, source)
    runners = [make_runner(part, {}) for part in cfg.stage_configs()]
    made = iter(runners)
    monkeypatch.setattr(stages, "make_runner", lambda cfg, weights: next(made))
    state, complete = loop.train(cfg, tmp_path / "run", source, params=start)
    assert complete
    # The same by hand: two steps with each loss.
    stream = batches(
        source, crop_size=64, batch_size=2, seed=0, data=cfg.data, first_step=0, rows=slice(0, 2)
    )
    by_hand: Any = create_train_state(cfg, start)
    for runner in runners:
        by_hand = runner.place(by_hand)
        for _ in range(2):
            by_hand, _ = runner.step(by_hand, [next(stream)])
    assert_equal(state._asdict(), by_hand._asdict())
    losses = [
        json.loads(s)["loss"] for s in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert losses[0] > 3 * losses[1]


@pytest.mark.thorough
def test_a_discriminator_learns_in_its_stage_only(
    tiny_run: TrainConfig, untrained: dict[str, Any], source: Images, tmp_path: Path, quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    adversarial = dataclasses.replace(tiny_run.loss, lmbda_perc=(1.0,) * 3, adversarial_weight=0.1)
    cfg = dataclasses.replace(
        tiny_run, stages=(Stage(loss=tiny_run.loss, share=0.5),), loss=adversarial, steps=6,
        warmup_steps=1, save_every=6,
        discriminator=DiscriminatorConfig(features=(2, 2, 2, 2), condition_features=1),
    )  # fmt: skip
    # Without AlexNet: the discriminator judges pictures.
    monkeypatch.setattr(stages, "load_perceptual_weights", lambda *_: {})
    start = create_train_state(cfg, untrained).discriminator
    state, complete = loop.train(cfg, tmp_path / "run", source, params=untrained)
    assert complete
    assert start is not None
    assert state.discriminator is not None
    assert optax.tree_utils.tree_get(state.discriminator.opt_state, "count") == 3
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), start.params, state.discriminator.params
    )
    # Three steps of Adam at 2e-4 move a parameter by 6e-4 at most, but for the decay.
    assert all(0 < m < 6.1e-4 for m in jax.tree.leaves(moved))


@pytest.mark.thorough
def test_a_run_by_the_clock(
    by_clock: TrainConfig, untrained: dict[str, Any], source: Images, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cfg = dataclasses.replace(by_clock, save_every=5)
    with quick_compilation():
        runner = make_runner(cfg, {})
        monkeypatch.setattr(stages, "make_runner", lambda cfg, weights: runner)
        clock = FakeTime(0.5)
        monkeypatch.setattr(stages, "time", clock)
        fake = SimpleNamespace(monotonic=lambda: clock.now)
        monkeypatch.setattr(loop, "time", fake)
        state, complete = loop.train(cfg, tmp_path, source, params=untrained)
        steps = int(state.step)
        assert complete
        # The clock is read once a step, and a few times more for checkpoints.
        assert 80 < steps < 110
        assert 50 < clock.now - 100 < 60
        records = [json.loads(s) for s in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        progress = [r["progress"] for r in records]
        assert progress == sorted(progress)
        assert progress[-1] > 0.9
        with open_checkpoints(tmp_path) as manager:
            found = restore(manager, runner.shapes(state_shapes(cfg)))
        assert found is not None
        assert found.info["progress"] == 1
        assert found.info["used"] == pytest.approx(clock.now - 100, abs=2)
        # Nothing is left to do; a longer run goes on with what is left of its time.
        again, complete = loop.train(cfg, tmp_path, source)
        assert complete
        assert int(again.step) == steps
        longer = dataclasses.replace(cfg, minutes=2.0)
        before = clock.now
        state, complete = loop.train(longer, tmp_path, source)
        assert complete
        assert int(state.step) > steps + 80
        assert clock.now - before < 60
        # Start-up took all of the time.
        short = dataclasses.replace(cfg, minutes=0.02)
        with pytest.raises(ValueError, match=r"the 0\.02 minutes were over before the first step"):
            loop.train(short, tmp_path / "short", source, params=untrained, began=clock.now - 2)


class FakeRunner:
    """A runner whose compilation waits until it may."""

    def __init__(self, cfg: TrainConfig) -> None:
        self.cfg = cfg
        self.may = threading.Event()
        self.compiled: list[int] = []

    def shapes(self, like: Any) -> Any:
        return like

    def compile(self, like: Any, count: int) -> None:
        assert self.may.wait(60)
        self.compiled.append(count)


def test_programs_are_compiled_ahead(
    tiny_run: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners: list[FakeRunner] = []

    def make(cfg: TrainConfig, weights: Any) -> FakeRunner:
        runners.append(FakeRunner(cfg))
        return runners[-1]

    monkeypatch.setattr(stages, "make_runner", make)
    stage = Stage(loss=dataclasses.replace(tiny_run.loss, temperature=0.5), share=0.25)
    cfg = dataclasses.replace(tiny_run, stages=(stage,) * 2, steps_per_dispatch=5)
    programs: Any = Programs(cfg)
    assert [r.cfg for r in runners] == list(cfg.stage_configs())
    runners[0].may.set()
    programs.begin(0)
    programs.begin(0)
    assert programs.runner(0) is runners[0]
    assert runners[0].compiled == [5]
    # The next ones are not ready, so the first goes on, whatever is due.
    assert programs.ready(0, 1) == programs.ready(0, 2) == 0
    runners[1].may.set()
    assert programs.runner(1) is runners[1]
    assert (programs.ready(0, 1), programs.ready(0, 2)) == (1, 1)
    runners[2].may.set()
    assert programs.runner(2) is runners[2]
    assert (programs.ready(0, 1), programs.ready(0, 2), programs.ready(1, 2)) == (1, 2, 2)
    assert runners[2].compiled == [5]
    programs.close()
