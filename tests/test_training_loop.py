import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_equal, quick_compilation, write_images
from sic_jax.training.data import ImageSource

from sic_jax.codec.bundle import load_bundle
from sic_jax.config import TrainConfig, from_dict
from sic_jax.model.params import entropy_layers, num_params
from sic_jax.training import loop
from sic_jax.training.main import main
from sic_jax.training.state import TrainState, create_train_state
from sic_jax.training.step import make_train_step

Arrays = dict[str, Any]


class KilledError(Exception):
    """Stands for a signal."""


@dataclasses.dataclass(frozen=True)
class DyingSource(ImageSource):
    dies_at: int = 0

    def batch(self, step: int, batch_size: int) -> Any:
        if step == self.dies_at:
            raise KilledError
        return super().batch(step, batch_size)


def records(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(s).items() if k != "images_per_s"} for s in lines]


class Counted(NamedTuple):
    """The train step of the smoke preset and how often it was traced."""

    make: Callable[[TrainConfig], Any]
    traces: list[int]


@pytest.fixture(scope="module")
def counted() -> Counted:
    traces: list[int] = []

    @cache
    def make(cfg: TrainConfig) -> Any:
        step = make_train_step(cfg)

        def train_step(*args: Any) -> Any:
            traces.append(1)
            return step(*args)

        return train_step

    return Counted(make, traces)


def patch_loop(patch: pytest.MonkeyPatch, counted: Counted, untrained: Arrays) -> None:
    """Let `train` reuse the compiled step and the parameters that exist already."""

    def committed(cfg: TrainConfig, params: Arrays) -> TrainState:
        # As a restored state is: XLA would compile the step again for one that is not.
        return jax.device_put(create_train_state(cfg, params), jax.devices()[0])

    patch.setattr(loop, "make_train_step", counted.make)
    patch.setattr(loop, "init_params", lambda cfg, *, seed: untrained)
    patch.setattr(loop, "create_train_state", committed)


@pytest.fixture
def training(
    counted: Counted, untrained: Arrays, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Counted]:
    """`train` with one compiled step for all tests and parameters that exist already."""
    patch_loop(monkeypatch, counted, untrained)
    with quick_compilation():
        yield counted


@pytest.fixture(scope="module")
def finished(
    counted: Counted,
    untrained: Arrays,
    tiny_run: TrainConfig,
    source: ImageSource,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, TrainState]:
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch_loop(patch, counted, untrained)
        return workdir, loop.train(tiny_run, workdir, source)


def test_initial_state(tiny_run: TrainConfig, untrained: Arrays) -> None:
    mine = jax.tree.map(jnp.asarray, untrained)
    state = create_train_state(tiny_run, mine)
    assert int(state.step) == 0
    assert_equal(state.params, untrained)
    assert_equal(state.ema, untrained)
    # The loop donates the state: neither the caller's arrays nor the average may share memory.
    pointers = [
        {a.unsafe_buffer_pointer() for a in jax.tree.leaves(t)}
        for t in (mine, state.params, state.ema)
    ]
    assert not pointers[0] & pointers[1]
    assert not pointers[1] & pointers[2]
    assert num_params(untrained) == sum(a.size for a in jax.tree.leaves(untrained))
    assert not np.any(untrained["g_s"]["Conv_2"]["kernel"])
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(untrained))


def test_thirty_steps_on_one_batch_lower_the_loss(
    training: Counted, tiny_run: TrainConfig, source: ImageSource
) -> None:
    step = jax.jit(training.make(tiny_run), donate_argnums=0)
    state = loop.create_train_state(tiny_run, loop.initial_params(tiny_run, source))
    batch = source.batch(0, tiny_run.batch_size)
    state, metrics = step(state, batch, None)
    # Adam's first moment is a tenth of the clipped gradient: every part of the model learns.
    moments = state.opt_state[1].mu
    assert set(moments) == {"g_a", "g_s", "h_a", "h_s", "prior_z", "context"}
    for name, part in moments.items():
        assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(part)) > 1e-6, name
    values = [float(metrics["loss"])]
    for _ in range(29):
        state, metrics = step(state, batch, None)
        values.append(float(metrics["loss"]))
    assert np.isfinite(values).all()
    assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5])
    assert int(state.step) == 30
    assert len(training.traces) == 1
    assert 0 < float(metrics["update_norm"]) < 1


def test_resumed_run_equals_an_uninterrupted_one(
    training: Counted,
    tiny_run: TrainConfig,
    source: ImageSource,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
) -> None:
    dying = DyingSource(source.images, source.crop_size, source.seed, dies_at=17)
    with pytest.raises(KilledError):
        loop.train(tiny_run, tmp_path, dying)
    assert [r["step"] for r in records(tmp_path)] == [5, 10, 15]
    # Killed while it wrote a record.
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 2')
    state = loop.train(tiny_run, tmp_path, source)
    assert int(state.step) == 20
    assert_equal(state._asdict(), finished[1]._asdict())
    assert records(tmp_path) == records(finished[0])
    assert [r["step"] for r in records(tmp_path)] == [5, 10, 15, 20]
    assert len(training.traces) == 1
    # Nothing is left to do a third time.
    assert_equal(loop.train(tiny_run, tmp_path, source).params, state.params)


def test_checkpoints_between_records(
    training: Counted,
    tiny_run: TrainConfig,
    source: ImageSource,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A record is written, and its terms are checked, before each checkpoint.
    cfg = dataclasses.replace(tiny_run, save_every=7)
    monkeypatch.setattr(loop, "make_train_step", lambda _: training.make(tiny_run))
    dying = DyingSource(source.images, source.crop_size, source.seed, dies_at=9)
    with pytest.raises(KilledError):
        loop.train(cfg, tmp_path / "killed", dying)
    for name in ("killed", "whole"):
        state = loop.train(cfg, tmp_path / name, source)
        assert_equal(state._asdict(), finished[1]._asdict())
        assert [r["step"] for r in records(tmp_path / name)] == [5, 7, 10, 14, 15, 20]
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert len(training.traces) == 1


def test_checkpoints(
    training: Counted, tiny_run: TrainConfig, finished: tuple[Path, TrainState], tmp_path: Path
) -> None:
    workdir, state = finished
    like = create_train_state(tiny_run, jax.tree.map(np.zeros_like, state.params))
    with loop.open_checkpoints(workdir) as manager:
        assert sorted(manager.all_steps()) == [10, 20]
        assert_equal(loop.restore(manager, like)._asdict(), state._asdict())
        assert int(loop.restore(manager, like, 10).step) == 10
    assert_equal(loop.load_run_params(workdir, tiny_run), state.ema)
    assert not np.array_equal(state.ema["g_a"]["linear"], state.params["g_a"]["linear"])
    written = json.loads((workdir / "config.json").read_text())
    assert from_dict(TrainConfig, written) == tiny_run
    with pytest.raises(ValueError, match="no checkpoint in"):
        loop.load_run_params(tmp_path, tiny_run)


def test_another_config_is_refused(
    tiny_run: TrainConfig, source: ImageSource, finished: tuple[Path, TrainState]
) -> None:
    cfg = dataclasses.replace(tiny_run, seed=1, learning_rate=1e-3)
    message = "holds a run with another learning_rate, seed; choose another workdir, or start from"
    with pytest.raises(ValueError, match=message):
        loop.train(cfg, finished[0], source)


def test_divergence_names_the_term(
    training: Counted, tiny_run: TrainConfig, source: ImageSource, untrained: Arrays, tmp_path: Path
) -> None:
    basis = untrained["g_s"]["linear"]
    broken = {**untrained, "g_s": {**untrained["g_s"], "linear": np.full_like(basis, np.nan)}}
    message = r"^bpp_full, .*grad_norm, loss, mse_full, .* not finite in steps 1 to 5$"
    with pytest.raises(FloatingPointError, match=message):
        loop.train(tiny_run, tmp_path, source, params=broken)
    with loop.open_checkpoints(tmp_path) as manager:
        assert manager.latest_step() is None
    assert len(training.traces) == 1


def test_init_from_and_export(
    training: Counted,
    tiny_run: TrainConfig,
    source: ImageSource,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_images(tmp_path / "images", source)
    starts = []
    train = loop.train

    def spy(*args: Any, params: Any) -> TrainState:
        starts.append(params)
        return train(*args, params=params)

    monkeypatch.setattr(loop, "train", spy)
    run, out = tmp_path / "run", tmp_path / "bundle"
    words = ["smoke", "--data", str(tmp_path / "images"), "--init-from", str(finished[0])]
    main([*words, "--workdir", str(run), "--export", str(out)])
    assert_equal(starts[0], finished[1].ema)
    state_ema = loop.load_run_params(run, tiny_run)
    bundle = load_bundle(out)
    for network in ("g_a", "g_s", "h_a", "prior_z"):
        expected = jax.tree.map(lambda a: np.asarray(a).astype(np.float16), state_ema[network])
        assert_equal(bundle.params[network], expected)
    assert_equal(bundle.entropy, entropy_layers(tiny_run.model, state_ema))
    assert bundle.cfg == tiny_run.model
    assert [r["step"] for r in records(run)] == [5, 10, 15, 20]
    # It went on where the first run ended.
    assert records(run)[0]["loss"] < records(finished[0])[0]["loss"]
    with pytest.raises(SystemExit, match=r"init-from .*: its model config differs"):
        main([*words, "--workdir", str(tmp_path / "x"), "--model.width-8", "16"])
    # A bundle is a start too, whatever its default temperature.
    words[-1] = str(out)
    main([*words, "--workdir", str(tmp_path / "y"), "--model.temperature", "0.5"])
    assert_equal(starts[1], bundle.params)
    words[-1] = str(tmp_path)
    with pytest.raises(SystemExit, match=r"train.py: error: no bundle .*: not a bundle's folder"):
        main([*words, "--workdir", str(tmp_path / "x")])
