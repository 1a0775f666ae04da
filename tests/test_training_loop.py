"""The training loop on the tiny model: one compiled step for all tests."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_equal, checkerboard_entropy, quick_compilation, write_images
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli.train import main
from sic_jax.codec.bundle import load_bundle
from sic_jax.fields import from_dict
from sic_jax.model.families import FAMILIES
from sic_jax.model.tree import num_params
from sic_jax.training import loop, stages
from sic_jax.training.checkpoints import load_run_params, open_checkpoints, restore
from sic_jax.training.parallel import JitRunner, make_runner
from sic_jax.training.presets import preset
from sic_jax.training.state import TrainState, create_train_state
from sic_jax.training.train_config import TrainConfig

Arrays = dict[str, Any]
Images = list[NDArray[Any]]
_MEASURED = {"images_per_s", "memory_gb"}


class KilledError(Exception):
    """Stands for a signal that cannot be caught."""


def records(workdir: Path) -> list[dict[str, float]]:
    """The records of a run, without what the machine says."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(s).items() if k not in _MEASURED} for s in lines]


def steps(workdir: Path) -> list[float]:
    return [r["step"] for r in records(workdir)]


@pytest.fixture(scope="module")
def runner(tiny_run: TrainConfig) -> JitRunner:
    """The compiled step of the smoke preset."""
    made = make_runner(tiny_run, {})
    assert isinstance(made, JitRunner)
    return made


def patch_loop(patch: pytest.MonkeyPatch, runner: JitRunner, untrained: Arrays) -> None:
    """Let `train` reuse the compiled step and the parameters that exist already."""
    patch.setattr(stages, "make_runner", lambda cfg, weights: runner)
    patch.setattr(loop, "init_params", lambda cfg, *, seed: untrained)


@pytest.fixture
def training(
    runner: JitRunner, untrained: Arrays, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """`train` with one compiled step for all tests and parameters that exist already."""
    patch_loop(monkeypatch, runner, untrained)
    with quick_compilation():
        yield monkeypatch


@pytest.fixture(scope="module")
def finished(
    runner: JitRunner,
    untrained: Arrays,
    tiny_run: TrainConfig,
    source: Images,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, TrainState]:
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch_loop(patch, runner, untrained)
        return workdir, loop.train(tiny_run, workdir, source)[0]


def act_before(patch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something before the batch of `step` (from 0) is given out, once."""
    batches = loop.batches  # type: ignore[attr-defined]

    def stream(*args: Any, first_step: int, **kwargs: Any) -> Iterator[Any]:
        for k, batch in enumerate(batches(*args, first_step=first_step, **kwargs), first_step):
            if k == step:
                act()
            yield batch

    patch.setattr(loop, "batches", stream)


def die() -> None:
    raise KilledError


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
    assert not np.any(untrained["g_s"]["Conv_5"]["kernel"])
    assert all(a.dtype == np.float32 for a in jax.tree.leaves(untrained))


def test_thirty_steps_on_one_batch_lower_the_loss(
    training: pytest.MonkeyPatch, runner: JitRunner, tiny_run: TrainConfig, source: Images
) -> None:
    batch = np.stack([image[:64, :64] for image in source[:2]])
    params = loop.initial_params(tiny_run, source)
    state, losses = runner.place(create_train_state(tiny_run, params)), []
    for k in range(30):
        state, metrics = runner.step(state, [batch])
        losses.append(float(metrics.terms["loss"][0]) / 2)
        if k == 0:
            # Adam's first moment is a tenth of the clipped gradient: every part learns.
            vector = state.opt_state.inner_states["networks"].inner_state[0][1].mu
            flat, unravel = ravel_pytree(params)
            assert not vector[flat.size :].any()
            moments = unravel(vector[: flat.size])
            assert set(moments) == {"g_a", "g_s", "h_a", "h_s", "prior_z", "context"}
            for name, part in moments.items():
                largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(part))
                assert largest > 1e-6, name
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    assert int(state.step) == 30
    assert runner.flops is not None
    assert runner.flops > 1e6


def test_resumed_run_equals_an_uninterrupted_one(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    source: Images,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
) -> None:
    # A checkpoint between two records: the sums since the last one are in it.
    cfg = dataclasses.replace(tiny_run, save_every=7)
    with training.context() as patch:
        act_before(patch, 17, die)
        with pytest.raises(KilledError):
            loop.train(cfg, tmp_path, source)
    assert steps(tmp_path) == [5, 10, 15]
    # Killed while it wrote a record.
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"step": 2')
    state, _ = loop.train(cfg, tmp_path, source)
    assert int(state.step) == 20
    assert_equal(state._asdict(), finished[1]._asdict())
    assert records(tmp_path) == records(finished[0])
    assert steps(tmp_path) == [5, 10, 15, 20]
    # Nothing is left to do a third time.
    assert_equal(loop.train(cfg, tmp_path, source)[0].params, state.params)


@pytest.mark.parametrize("save_every", [10, 13])
def test_termination_saves_at_the_very_step(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    source: Images,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
    save_every: int,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cfg = dataclasses.replace(tiny_run, save_every=save_every)
    with training.context() as patch:
        act_before(patch, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
        state, _ = loop.train(cfg, tmp_path, source)
    assert int(state.step) == 13
    assert signal.getsignal(signal.SIGTERM) is before
    with open_checkpoints(tmp_path) as manager:
        assert manager.latest_step() == 13
    state, _ = loop.train(tiny_run, tmp_path, source)
    assert_equal(state._asdict(), finished[1]._asdict())
    assert records(tmp_path) == records(finished[0])


def test_damaged_checkpoint(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    source: Images,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with training.context() as patch:
        act_before(patch, 18, die)
        with pytest.raises(KilledError):
            loop.train(dataclasses.replace(tiny_run, save_every=8), tmp_path, source)
    newest = tmp_path / "checkpoints" / "16" / "state"
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # Another run that starts from this one takes the one before and removes nothing.
    shutil.copytree(newest.parent, tmp_path / "best" / "16")
    load_run_params(tmp_path, tiny_run)
    assert newest.is_dir()
    shutil.rmtree(tmp_path / "best")
    with caplog.at_level("WARNING"):
        state, _ = loop.train(tiny_run, tmp_path, source)
    assert_equal(state._asdict(), finished[1]._asdict())
    assert records(tmp_path) == records(finished[0])
    assert "checkpoint 16 cannot be read" in caplog.text
    assert "going on from checkpoint 8; 16 is removed" in caplog.text


def test_checkpoints(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
) -> None:
    workdir, state = finished
    like = create_train_state(tiny_run, jax.tree.map(np.zeros_like, state.params))
    with open_checkpoints(workdir) as manager:
        assert sorted(manager.all_steps()) == [10, 20]
        found = restore(manager, like)
    assert found is not None
    assert_equal(found.state._asdict(), state._asdict())
    assert found.info["pending"] is None
    assert from_dict(TrainConfig, found.info["config"], FAMILIES) == tiny_run
    assert_equal(load_run_params(workdir, tiny_run), state.ema)
    assert not np.array_equal(state.ema["g_a"]["linear"], state.params["g_a"]["linear"])
    written = json.loads((workdir / "config.json").read_text())
    assert from_dict(TrainConfig, written, FAMILIES) == tiny_run
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_run_params(tmp_path, tiny_run)
    other = {k: v for k, v in state.params.items() if k != "context"}
    with (
        open_checkpoints(workdir) as manager,
        pytest.raises(ValueError, match=r"no checkpoint in .* can be read, or they are of another"),
    ):
        restore(manager, create_train_state(tiny_run, other))
    with open_checkpoints(workdir) as manager:
        assert sorted(manager.all_steps()) == [10, 20]


def test_a_damaged_checkpoint_is_one_line(
    tiny_run: TrainConfig, finished: tuple[Path, TrainState], tmp_path: Path
) -> None:
    """Arrays that are cut short: a traceback was printed for each that was still being read."""
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints" / "20" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    program = (
        "import dataclasses, logging, sys\n"
        "logging.basicConfig(format='%(message)s', stream=sys.stderr)\n"
        "from sic_jax.training.checkpoints import load_run_params\n"
        "from sic_jax.training.presets import preset\n"
        "load_run_params(sys.argv[1], preset('smoke'))\n"
    )
    assert tiny_run == preset("smoke")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        (line,) = done.stderr.splitlines()
        assert line.startswith("checkpoint 20 cannot be read: ")
        assert len(line) < 350


def test_a_folder_without_a_checkpoint_belongs_to_nobody(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    source: Images,
    tmp_path: Path,
) -> None:
    wrong = dataclasses.replace(tiny_run, steps=10, learning_rate=0.5)
    with training.context() as patch:
        act_before(patch, 0, die)
        with pytest.raises(KilledError):
            loop.train(wrong, tmp_path, source)
    assert json.loads((tmp_path / "config.json").read_text())["learning_rate"] == 0.5
    right = dataclasses.replace(wrong, learning_rate=tiny_run.learning_rate)
    assert int(loop.train(right, tmp_path, source)[0].step) == 10
    written = json.loads((tmp_path / "config.json").read_text())
    assert from_dict(TrainConfig, written, FAMILIES) == right
    assert steps(tmp_path) == [5, 10]
    with pytest.raises(ValueError, match="holds a run with another learning_rate"):
        loop.train(wrong, tmp_path, source)


def test_another_config_is_refused(
    tiny_run: TrainConfig, source: Images, finished: tuple[Path, TrainState]
) -> None:
    loss = dataclasses.replace(tiny_run.loss, full_share=0.25)
    cfg = dataclasses.replace(tiny_run, seed=1, learning_rate=1e-3, loss=loss)
    message = "holds a run with another learning_rate, loss.full_share, seed; choose another work"
    with pytest.raises(ValueError, match=message):
        loop.train(cfg, finished[0], source)


def test_a_run_that_cannot_be_leaves_nothing(
    tiny_run: TrainConfig, source: Images, tmp_path: Path
) -> None:
    cfg = dataclasses.replace(tiny_run, train_only=("decoder",))
    with pytest.raises(ValueError, match="train_only: no parameter 'decoder'"):
        loop.train(cfg, tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_prolonged_and_cut_otherwise(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    source: Images,
    tmp_path: Path,
) -> None:
    short = dataclasses.replace(tiny_run, steps=10)
    loop.train(short, tmp_path, source)
    longer = dataclasses.replace(tiny_run, steps=12, log_every=3, accumulate=2, keep_last=5)
    assert int(loop.train(longer, tmp_path, source)[0].step) == 12
    assert steps(tmp_path) == [5, 10, 12]
    with pytest.raises(ValueError, match="holds a run with another steps"):
        loop.train(short, tmp_path, source)


def test_the_paper_s_transforms_start_without_reading_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "init_params", lambda cfg, *, seed: {"seed": seed})
    assert loop.initial_params(preset("paper"), []) == {"seed": 0}


def test_processes_that_see_other_images(
    training: pytest.MonkeyPatch, tiny_run: TrainConfig, source: Images, tmp_path: Path
) -> None:
    training.setattr(jax, "process_count", lambda: 2)
    training.setattr(multihost_utils, "process_allgather", lambda n: np.array([n, n - 1]))
    message = r"all processes must see the same training images, but they see \[3, 2\]"
    with pytest.raises(ValueError, match=message):
        loop.train(tiny_run, tmp_path, source)


def test_divergence_names_step_and_terms(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    source: Images,
    untrained: Arrays,
    tmp_path: Path,
) -> None:
    basis = untrained["g_s"]["linear"]
    broken = {**untrained, "g_s": {**untrained["g_s"], "linear": np.full_like(basis, np.nan)}}
    message = r"^grad_norm, loss, mse_full, .* not finite at step 1$"
    with pytest.raises(FloatingPointError, match=message):
        loop.train(tiny_run, tmp_path, source, params=broken)
    with open_checkpoints(tmp_path) as manager:
        assert manager.latest_step() is None


def test_unwritable_checkpoints(
    training: pytest.MonkeyPatch, tiny_run: TrainConfig, source: Images, tmp_path: Path
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with training.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(OSError, match=r"cannot write a checkpoint into .*No space left"):
            loop.train(tiny_run, tmp_path / "a", source)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        loop.train(tiny_run, tmp_path / "file", source)


class StandIn:
    """Validation whose losses are given."""

    identity = "three"

    def __init__(self, *losses: float) -> None:
        self.losses = losses
        self.seen: list[Any] = []

    def measure(self, params: Arrays) -> dict[str, float]:
        self.seen.append(np.asarray(params["g_a"]["linear"]))
        return {"loss": self.losses[len(self.seen) - 1], "psnr/1": 30.0}

    def pictures(self, params: Arrays) -> dict[str, NDArray[Any]]:
        return {"image_0/original": np.zeros((8, 8, 3), np.uint8)}


def test_validation_images_choose_the_best(
    training: pytest.MonkeyPatch, tiny_run: TrainConfig, source: Images, tmp_path: Path
) -> None:
    cfg = dataclasses.replace(tiny_run, validation_every=8)
    validation = StandIn(3.0, 1.0, 2.0)
    loop.train(cfg, tmp_path, source, validation=validation, tensorboard=True)
    assert steps(tmp_path) == [5, 8, 10, 15, 16, 20]
    found = {r["step"]: r["validation/loss"] for r in records(tmp_path) if "validation/loss" in r}
    assert found == {8: 3.0, 16: 1.0, 20: 2.0}
    with open_checkpoints(tmp_path, name="best") as manager:
        assert list(manager.all_steps()) == [16]
    best_linear = load_run_params(tmp_path, cfg)["g_a"]["linear"]
    np.testing.assert_array_equal(best_linear, validation.seen[1])
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1
    data = events[0].read_bytes()
    assert all(name in data for name in (b"validation/psnr/1", b"grad_norm", b"image_0/original"))

    # The best is one of equal validations: 1.5 on the same images is not, 4 on others is.
    for steps_now, identity, best in ((22, "three", 16), (24, "four", 24)):
        longer = dataclasses.replace(cfg, steps=steps_now)
        validation = StandIn(1.5 if identity == "three" else 4.0)
        validation.identity = identity
        loop.train(longer, tmp_path, source, validation=validation)
        with open_checkpoints(tmp_path, name="best") as manager:
            assert list(manager.all_steps()) == [best]


def test_profile(
    training: pytest.MonkeyPatch, tiny_run: TrainConfig, source: Images, tmp_path: Path
) -> None:
    cfg = dataclasses.replace(tiny_run, steps=6, warmup_steps=2)
    loop.train(cfg, tmp_path, source, profile_steps=(3, 4))
    assert [p for p in (tmp_path / "profile").rglob("*.xplane.pb") if p.stat().st_size > 1000]


def test_init_from_and_export(
    training: pytest.MonkeyPatch,
    tiny_run: TrainConfig,
    source: Images,
    finished: tuple[Path, TrainState],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = tmp_path / "images"
    write_images(images, source)
    Image.fromarray(source[0][..., 0]).save(images / "gray.png")
    Image.fromarray(source[0][:20, :20]).save(images / "small.png")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:20])
    (images / "loop").symlink_to(images)
    starts = []
    train = loop.train

    def spy(*args: Any, params: Any, **kwargs: Any) -> tuple[TrainState, bool]:
        starts.append(params)
        return train(*args, params=params, **kwargs)

    training.setattr(loop, "train", spy)
    run, out = tmp_path / "run", tmp_path / "bundle"
    words = ["smoke", "--data", str(tmp_path / "images"), "--init-from", str(finished[0])]
    with caplog.at_level("INFO"):
        main([*words, "--workdir", str(run), "--export", str(out)])
    for told in (
        "skipped 1 images (cannot be read): cut.png",
        "skipped 1 images (smaller than 64 px): small.png",
        "4 images, 1 devices",
    ):
        assert told in caplog.text
    assert_equal(starts[0], finished[1].ema)
    state_ema = load_run_params(run, tiny_run)
    bundle = load_bundle(out)
    for network in ("g_a", "g_s", "h_a", "prior_z"):
        expected = jax.tree.map(lambda a: np.asarray(a).astype(np.float16), state_ema[network])
        assert_equal(bundle.params[network], expected)
    model = tiny_run.model
    assert_equal(
        bundle.integers, checkerboard_entropy(model).entropy_layers(model.levels, state_ema)
    )
    assert bundle.cfg == tiny_run.model
    assert steps(run) == [5, 10, 15, 20]
    with pytest.raises(SystemExit, match=r"init-from .*: its model config differs"):
        main([*words, "--workdir", str(tmp_path / "x"), "--model.entropy.head-width", "16"])
    # A bundle is a start too, whatever its default temperature.
    words[-1] = str(out)
    main([*words, "--workdir", str(tmp_path / "y"), "--model.temperature", "0.5"])
    assert_equal(starts[1], bundle.params)
    words[-1] = str(tmp_path)
    with pytest.raises(SystemExit, match=r"train.py: error: no bundle .*: not a bundle's folder"):
        main([*words, "--workdir", str(tmp_path / "x")])
