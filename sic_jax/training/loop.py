"""The training loop: resume, step, log, save."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sic_jax.config import TrainConfig, to_dict
from sic_jax.lpips import load_alexnet_weights
from sic_jax.model.params import Params, init_params
from sic_jax.model.transforms import PATCH
from sic_jax.training.data import ImageSource, sample_patches
from sic_jax.training.klt import with_klt
from sic_jax.training.state import TrainState, create_train_state
from sic_jax.training.step import make_train_step

_log = logging.getLogger(__name__)
_PATCHES_PER_IMAGE = 80


def open_checkpoints(workdir: str | Path) -> ocp.CheckpointManager:
    """The checkpoints of a run; the two newest are kept."""
    path = Path(workdir).resolve() / "checkpoints"
    return ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(max_to_keep=2))


def restore(
    manager: ocp.CheckpointManager, like: TrainState, step: int | None = None
) -> TrainState:
    """The state of a checkpoint (default: the newest), shaped as `like`.

    Raises:
      ValueError: If the run has no checkpoint.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        raise ValueError(f"no checkpoint in {manager.directory}")
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
    return TrainState(**manager.restore(step, args=ocp.args.StandardRestore(target)))


def load_run_params(workdir: str | Path, cfg: TrainConfig) -> Params:
    """EMA parameters of the newest checkpoint of the run in `workdir`."""
    like = create_train_state(cfg, init_params(cfg.model, seed=0))
    with open_checkpoints(workdir) as manager:
        return restore(manager, like).ema


def initial_params(cfg: TrainConfig, source: ImageSource) -> Params:
    """Parameters of a run from scratch: random networks, KLT linear branches."""
    params = init_params(cfg.model, seed=cfg.seed)
    patches = sample_patches(source, PATCH, _PATCHES_PER_IMAGE)
    return with_klt(params, cfg.model, patches)


def train(
    cfg: TrainConfig, workdir: str | Path, source: ImageSource, *, params: Params | None = None
) -> TrainState:
    """Train to `cfg.steps`; continue where `workdir` has a checkpoint.

    Args:
      cfg: The run.
      workdir: Receives config.json, metrics.jsonl and checkpoints.
      source: Training images.
      params: Start of a new run; default: `initial_params`. Not used when resuming.

    Raises:
      ValueError: If `workdir` holds a run of another config.
      FloatingPointError: If a loss is not finite; the newest checkpoint is from before it.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    _claim(workdir, cfg)
    needs_lpips = any(cfg.loss.lmbda_perc)
    weights = jax.device_put(load_alexnet_weights()) if needs_lpips else None
    step_fn = jax.jit(make_train_step(cfg), donate_argnums=0)
    with open_checkpoints(workdir) as manager:
        resumed = manager.latest_step() is not None
        start = init_params(cfg.model, seed=cfg.seed) if resumed else params
        state = create_train_state(cfg, initial_params(cfg, source) if start is None else start)
        if resumed:
            state = restore(manager, state)
            _log.info("resumed at step %d", int(state.step))
        first = int(state.step)
        log_path = workdir / "metrics.jsonl"
        _drop_records_after(log_path, first)
        sums: dict[str, jax.Array] | None = None
        since, began = first, time.perf_counter()
        for step in range(first, cfg.steps):
            state, metrics = step_fn(state, source.batch(step, cfg.batch_size), weights)
            sums = metrics if sums is None else jax.tree.map(jax.numpy.add, sums, metrics)
            done = step + 1
            save = done % cfg.save_every == 0 or done == cfg.steps
            # Before a checkpoint always: only finite states are saved, and a resumed run, which
            # starts its averages there, writes the records of an uninterrupted one.
            if save or done % cfg.log_every == 0:
                record = {k: float(v) / (done - since) for k, v in sums.items()}
                elapsed = time.perf_counter() - began
                images_per_s = (done - since) * cfg.batch_size / elapsed
                _write_record(log_path, {"step": done, **record, "images_per_s": images_per_s})
                if not all(map(math.isfinite, record.values())):
                    bad = [k for k, v in record.items() if not math.isfinite(v)]
                    raise FloatingPointError(
                        f"{', '.join(bad)} not finite in steps {since + 1} to {done}"
                    )
                _log.info("%s", _line(done, cfg.steps, record, images_per_s))
                sums, since, began = None, done, time.perf_counter()
            if save:
                manager.save(done, args=ocp.args.StandardSave(state._asdict()))
        manager.wait_until_finished()
    return state


def _claim(workdir: Path, cfg: TrainConfig) -> None:
    """Write config.json, or check that the run in `workdir` has the same config."""
    path = workdir / "config.json"
    mine: dict[str, Any] = json.loads(json.dumps(to_dict(cfg)))
    if path.exists():
        theirs = json.loads(path.read_text())
        changed = sorted(k for k in mine if mine[k] != theirs.get(k))
        if changed:
            raise ValueError(
                f"{str(workdir)!r} holds a run with another {', '.join(changed)}; "
                "choose another workdir, or start from it with --init-from"
            )
    path.write_text(json.dumps(mine, indent=1) + "\n")


def _drop_records_after(path: Path, step: int) -> None:
    """Forget log records that a killed run wrote after its last checkpoint."""
    if path.exists():
        lines = [s for s in path.read_text().splitlines() if _step_of(s) <= step]
        path.write_text("".join(s + "\n" for s in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:  # The run was killed while it wrote this record.
        return math.inf


def _write_record(path: Path, record: dict[str, float]) -> None:
    with path.open("a") as f:
        f.write(json.dumps(record) + "\n")


def _line(done: int, steps: int, record: dict[str, float], images_per_s: float) -> str:
    parts = [f"step {done}/{steps}"] + [f"{k} {v:.4g}" for k, v in record.items()]
    return "  ".join([*parts, f"{images_per_s:.1f} images/s"])
