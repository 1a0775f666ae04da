"""The training loop: start or resume, step, record, validate, save.

Where the weights of a run come from, first match wins:

1. the newest checkpoint in its own work directory that can be read (exactly as it was left),
2. ``params``, the weights of another run or of a bundle,
3. scratch: random networks, and the Karhunen-Loeve transform for the linear branches.

Nothing in the loop waits for a step but records, validation and checkpoints.
"""

import contextlib
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

import sic_jax
from sic_jax.data.batches import batches
from sic_jax.data.samples import sample_patches
from sic_jax.data.source import Source
from sic_jax.fields import changed, to_dict
from sic_jax.files import write_atomic
from sic_jax.model.params import init_params
from sic_jax.model.tree import Params
from sic_jax.training.checkpoints import (
    BEST,
    Checkpoint,
    has_checkpoint,
    open_checkpoints,
    restore,
    save,
    wait,
)
from sic_jax.training.meters import Clock, Pending
from sic_jax.training.metrics_log import Reporter
from sic_jax.training.parallel import check_same_everywhere, local_rows
from sic_jax.training.stages import Budget, Programs
from sic_jax.training.state import TrainState, create_train_state, state_shapes
from sic_jax.training.step import Metrics
from sic_jax.training.train_config import TrainConfig, load_config

_log = logging.getLogger(__name__)
_PATCHES_PER_IMAGE = 80


class Validation(Protocol):
    """What tells how good a run's parameters are, by images that are not trained on."""

    identity: str
    """Losses of validations with the same identity are comparable."""

    def measure(self, params: Params) -> dict[str, float]:
        """Named values, the same on every process; `loss` tells which parameters are best."""

    def pictures(self, params: Params) -> dict[str, NDArray[np.uint8]]:
        """Named reconstructions [H, W, 3] of fixed images."""


def initial_params(cfg: TrainConfig, source: Source) -> Params:
    """Parameters of a run from scratch: random, and what the transforms make of patches."""

    def patches(size: int) -> NDArray[np.float32]:
        return sample_patches(source, size, _PATCHES_PER_IMAGE, seed=cfg.seed)

    params = init_params(cfg.model, seed=cfg.seed)
    return cfg.model.transforms.start(params, cfg.model.levels, patches)


def train(
    cfg: TrainConfig,
    workdir: str | Path,
    source: Source,
    *,
    params: Params | None = None,
    validation: Validation | None = None,
    tensorboard: bool = False,
    profile_steps: tuple[int, int] | None = None,
    programs: Programs | None = None,
    began: float | None = None,
) -> tuple[TrainState, bool]:
    """Train to `cfg.steps`, or for `cfg.minutes`; continue where `workdir` has a checkpoint.

    Args:
        cfg: The run.
        workdir: Receives config.json, metrics.jsonl and checkpoints.
        source: Training images.
        params: Start of a new run; default: `initial_params`. Not used when resuming.
        validation: Done every `cfg.validation_every` steps and at the end.
        tensorboard: Write records for TensorBoard too.
        profile_steps: First and last step of which a trace is written into WORKDIR/profile, with
            all of the dispatches that they are in.
        programs: Of `cfg`, where they are being compiled already.
        began: `time.monotonic()` from which `cfg.minutes` count; default: now.

    Returns:
        The state, of global arrays, and whether the run is complete: it is not after a SIGTERM,
        which saves and ends the loop.

    Raises:
        ValueError: If `cfg.train_only` names no parameter, `workdir` holds a run of another config,
            no checkpoint can be read, processes do not see the same number of images, or the
            minutes are over before the first step.
        OSError: If the work directory or a checkpoint cannot be written.
        FloatingPointError: If a loss or gradient is not finite (`cfg.non_finite` = "stop").
    """
    workdir = Path(workdir)
    began = time.monotonic() if began is None else began
    shapes = state_shapes(cfg)
    _claim(workdir, cfg)
    check_same_everywhere(len(source), "training images")
    programs = Programs(cfg) if programs is None else programs
    runner = programs.layout
    with (
        contextlib.closing(programs),
        contextlib.closing(Reporter(workdir, cfg, tensorboard=tensorboard)) as reporter,
        open_checkpoints(workdir, keep=cfg.keep_last) as manager,
        open_checkpoints(workdir, keep=1, name=BEST) as best_manager,
        _termination() as terminated,
    ):
        found = restore(manager, runner.shapes(shapes), remove=True)
        best, pending, step = math.inf, Pending(), 0
        if found is None:
            start = initial_params(cfg, source) if params is None else params
            # Those of process 0: every process computed or read its own.
            state = create_train_state(cfg, multihost_utils.broadcast_one_to_all(start))
            budget = Budget(cfg, began)
        else:
            state, step = found.state, int(found.state.step)
            pending = Pending.from_json(found.info["pending"])
            # Losses on other images or at other levels are not comparable.
            if validation is not None and found.info.get("best_on") == validation.identity:
                best = found.info["best"]
            info = found.info
            # Of a prolonged run, less is over.
            share = info["config"].get("minutes", 0.0) / (cfg.minutes or 1.0)
            progress = info.get("progress", 0.0) * share
            budget = Budget(cfg, began, used=info.get("used", 0.0), progress=progress)
            _log.info("resumed at step %d", step)
        reporter.drop_after(step)
        state = runner.place(state)
        clock = Clock(cfg.batch_size, list(runner.mesh.devices.flat))
        stop = cfg.non_finite == "stop"

        def checkpoint() -> Checkpoint:
            info = {"version": sic_jax.__version__, "config": to_dict(cfg), "best": best}
            info |= {"best_on": None if validation is None else validation.identity}
            if cfg.minutes:
                info |= {"used": budget.used(), "progress": progress}
            return Checkpoint(runner.whole(state), info | {"pending": pending.to_json()})

        def validate() -> dict[str, float]:
            assert validation is not None
            ema = jax.block_until_ready(runner.whole(state).ema)
            asked = time.monotonic()
            values = validation.measure(ema)
            budget.reserve(time.monotonic() - asked)
            return values

        stream = batches(
            source,
            crop_size=cfg.crop_size,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            data=cfg.data,
            first_step=step,
            rows=local_rows(cfg.batch_size),
        )
        with contextlib.closing(stream), _Profile(workdir, profile_steps) as profile:
            dispatches = 0
            running: Metrics | None = None
            progress = budget.progress(step)
            stage = cfg.stage_at(progress)
            last = progress >= 1
            if not last:
                programs.begin(stage)
                runner = programs.runner(stage)
                if cfg.minutes and validation is not None:
                    for _ in range(2):  # The first time it is compiled.
                        validate()
                budget.start()
                last = budget.progress(step) >= 1
            while not last:
                due = cfg.stage_at(progress)
                if due > stage:
                    # By the clock, no time is lost with waiting for a program.
                    stage = programs.ready(stage, due) if cfg.minutes else due
                    runner = programs.runner(stage)
                count = _steps_of_dispatch(cfg, step, due)
                profile.before(step + 1, step + count)
                state, metrics = runner.step(
                    state,
                    [next(stream) for _ in range(count)],
                    progress if cfg.minutes else None,
                )
                pending.add(metrics)
                if dispatches:
                    clock.tick(count)
                else:
                    jax.block_until_ready(metrics)
                    clock.start()
                dispatches += 1
                step += count
                profile.after(step, metrics)
                if cfg.minutes:
                    # The host is ahead by one dispatch, no more: what it began, it waits for.
                    jax.block_until_ready(running)
                    running = metrics
                progress = budget.progress(step)
                last = progress >= 1
                saves = last or step % cfg.save_every == 0
                validates = last or (cfg.validation_every > 0 and step % cfg.validation_every == 0)
                validates &= validation is not None
                if validates or last or step % cfg.log_every == 0:
                    values = pending.flush(stop=stop) | clock.lap(runner.flops)
                    if validation is not None and validates:
                        validated = validate()
                        values |= {f"validation/{k}": v for k, v in validated.items()}
                        if tensorboard:
                            pictures = validation.pictures(runner.whole(state).ema)
                            reporter.images(step, pictures)
                        if validated["loss"] < best:
                            best = validated["loss"]
                            if step not in best_manager.all_steps():
                                save(best_manager, step, checkpoint())
                    if cfg.minutes:
                        values |= {"progress": progress}
                    reporter.record(step, values)
                    clock.start()
                elif saves:
                    pending.check(stop=stop)
                # Asked at every dispatch: several processes learn of it at one of them only.
                ends = terminated(dispatches)
                if saves or ends:
                    save(manager, step, checkpoint())
                    clock.start()
                if ends and not last:
                    _log.info("terminated: saved at step %d; the same command goes on", step)
                    break
        if step == 0:
            raise ValueError(f"the {cfg.minutes:g} minutes were over before the first step")
        if last and dispatches and stage < len(cfg.stages):
            _log.warning("the run ended in stage %d of %d", stage + 1, len(cfg.stages) + 1)
        wait(manager)
        wait(best_manager)
        return runner.whole(state), last


def _steps_of_dispatch(cfg: TrainConfig, step: int, stage: int) -> int:
    """Steps of the next dispatch: several where none of them is of another stage or too many."""
    several = cfg.steps_per_dispatch
    if step % several:
        return 1
    if cfg.minutes:
        return several
    fits = step + several <= cfg.steps
    fits &= cfg.stage_at((step + several - 1) / cfg.steps) == stage
    return several if fits else 1


class _Profile:
    """A trace of some steps, of the dispatches that they are in."""

    def __init__(self, workdir: Path, steps: tuple[int, int] | None) -> None:
        self._folder = str(workdir / "profile")
        self._steps = steps or (0, 0)
        self._running = False

    def __enter__(self) -> "_Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def before(self, first: int, last: int) -> None:
        if first <= self._steps[0] <= last:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Metrics) -> None:
        if self._running and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._running = False


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the number of dispatches: whether the run was told to end (SIGTERM).

    With several processes all of them agree on one, by JAX's preemption service: it names a number
    to come, so that none may be left out.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # Not the main thread: whoever runs the loop handles signals.
        yield lambda step: False
        return
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def _claim(workdir: Path, cfg: TrainConfig) -> None:
    """Write config.json, or check that the run in `workdir` is this one."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    # What failed before its first checkpoint holds nothing that another run could spoil.
    if path.exists() and has_checkpoint(workdir):
        theirs = load_config(path, like=cfg)
        differing = sorted(changed(cfg, theirs, on="resume"))
        longer = {"steps": cfg.steps > theirs.steps, "minutes": 0 < theirs.minutes < cfg.minutes}
        if len(differing) == 1 and longer.get(differing[0]):
            of = differing[0]
            _log.info("prolonged from %g to %g %s", getattr(theirs, of), getattr(cfg, of), of)
        elif differing:
            raise ValueError(
                f"{str(workdir)!r} holds a run with another {', '.join(differing)}; "
                "choose another workdir, or start from it with --init-from"
            )
    if jax.process_index() == 0:
        write_atomic(path, (json.dumps(to_dict(cfg), indent=1) + "\n").encode())
