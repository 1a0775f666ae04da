"""Checkpoints of a run, by Orbax: written in the background, complete or not there at all.

A checkpoint holds the state (parameters, averages, optimisers, step), and as JSON the config, the
version of the code and what was measured since the last record. The step is the position in the
data too: a batch is a function of the seed and the step.

    WORKDIR/checkpoints/   the newest `keep_last`
    WORKDIR/best/          the one with the lowest validation loss, where there is one
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from sic_jax.model.params import init_params
from sic_jax.model.tree import Params
from sic_jax.training.state import TrainState, create_train_state
from sic_jax.training.train_config import TrainConfig

_log = logging.getLogger(__name__)
NEWEST, BEST = "checkpoints", "best"
_LONGEST_LINE = 300


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState
    info: dict[str, Any]
    """`version`, `config`, and `pending`: measurements since the last record."""


def open_checkpoints(
    workdir: str | Path, *, keep: int = 2, name: str = NEWEST
) -> ocp.CheckpointManager:
    """The checkpoints of a run; the `keep` newest are kept."""
    path = Path(workdir).resolve() / name
    return ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(max_to_keep=keep))


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether a run has a complete checkpoint, damaged or not."""
    steps = (path for name in (NEWEST, BEST) for path in (Path(workdir) / name).glob("*"))
    return any(path.name.isdigit() for path in steps)


def save(manager: ocp.CheckpointManager, step: int, checkpoint: Checkpoint) -> None:
    """Begin to write a checkpoint; all processes take part.

    Raises:
        OSError: If it, or the one before, cannot be written.
    """
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(checkpoint.state._asdict()),
        info=ocp.args.JsonSave(checkpoint.info),
    )
    with _WriteErrors(manager):
        manager.save(step, args=args, force=True)


def wait(manager: ocp.CheckpointManager) -> None:
    """Wait until what was saved is complete.

    Raises:
        OSError: If it cannot be written.
    """
    with _WriteErrors(manager):
        manager.wait_until_finished()


def restore(
    manager: ocp.CheckpointManager, like: Any, *, remove: bool = False
) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None where there is none.

    Args:
        manager: Of `open_checkpoints`.
        like: A `TrainState` of arrays, or of shapes with shardings.
        remove: Remove newer ones that cannot be read, so that the run can go on from this one.

    Raises:
        ValueError: If there are some, but none can be read.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target), info=ocp.args.JsonRestore())
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            with _quiet_reads():
                found = manager.restore(step, args=args)
        except Exception as e:  # Orbax and TensorStore raise many kinds on damaged files.
            _log.warning("checkpoint %d cannot be read: %s", step, _first_line(e))
            reason = e
            continue
        # Only now: if none can be read, all of them stay as they are.
        for newer in steps[: steps.index(step)] if remove else ():
            _log.warning("going on from checkpoint %d; %d is removed", step, newer)
            manager.delete(newer)
        return Checkpoint(TrainState(**found["state"]), dict(found["info"]))
    if not steps:
        return None
    raise ValueError(
        f"no checkpoint in {manager.directory} can be read, or they are of another model or "
        f"version: {_first_line(reason)}"
    ) from reason


def load_run_params(workdir: str | Path, cfg: TrainConfig) -> Params:
    """EMA parameters of the best checkpoint of the run in `workdir`, or else of the newest.

    Raises:
        ValueError: If it has no checkpoint, or none that can be read.
    """
    like = jax.eval_shape(lambda: create_train_state(cfg, init_params(cfg.model, seed=0)))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), like)
    unreadable: ValueError | None = None
    for name in (BEST, NEWEST):
        if (Path(workdir) / name).is_dir():
            try:
                with open_checkpoints(workdir, name=name) as manager:
                    found = restore(manager, like)
            except ValueError as e:
                unreadable = e
                continue
            if found is not None:
                return found.state.ema
    raise unreadable or ValueError(f"no checkpoint in {str(workdir)!r}")


class _WriteErrors:
    """Turns what Orbax raises while it writes into one OSError that says where."""

    def __init__(self, manager: ocp.CheckpointManager) -> None:
        self._where = manager.directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise OSError(
                f"cannot write a checkpoint into {self._where}: {_first_line(error)}; the ones "
                "before are complete, and the same command goes on from there"
            ) from error


@contextlib.contextmanager
def _quiet_reads() -> Iterator[None]:
    """Leaves out thousands of lines about a damaged checkpoint, which one exception tells.

    Reads that are still under way when the first one fails find that Orbax's event loop is closed,
    and TensorStore's threads print a traceback for each, also while the next checkpoint is read.
    Those that had failed too are logged when they are collected.
    """
    before, log = sys.unraisablehook, logging.getLogger("asyncio")

    def hook(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            before(raised)

    def keeps(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    sys.unraisablehook = hook
    log.addFilter(keeps)
    yield  # After an exception both stay: reads end when they end.
    sys.unraisablehook = before
    log.removeFilter(keeps)


def _first_line(e: BaseException) -> str:
    line = (str(e).strip().splitlines() or [type(e).__name__])[0]
    return line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + " ..."
