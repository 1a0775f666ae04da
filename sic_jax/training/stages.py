"""How much of a run is over, and the programs of its stages."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sic_jax.training.losses import load_perceptual_weights
from sic_jax.training.parallel import Runner, make_runner
from sic_jax.training.state import state_shapes
from sic_jax.training.train_config import TrainConfig

_ENDING = 20.0
"""Seconds of `minutes` that the last checkpoint and the bundle may take."""
_ENDING_SHARE = 0.1
"""No more than this part of them."""


class Budget:
    """How much of a run is over, 0 to 1: by its steps, or by the clock (`TrainConfig.minutes`).

    By the clock it goes on from where a checkpoint left it, and is 1 when what remains of the time
    is needed to end the run. Until the first step nothing is over. All processes follow the first
    one's clock; asking for it makes them wait for the steps before.
    """

    def __init__(
        self, cfg: TrainConfig, began: float, *, used: float = 0.0, progress: float = 0.0
    ) -> None:
        """Begin.

        Args:
            cfg: Of the run.
            began: `time.monotonic()` when this process began with it.
            used: Seconds that earlier processes took.
            progress: Where they left it.
        """
        self._cfg = cfg
        self._began, self._used = began, used
        self._first: float | None = None
        self._at_first = progress
        self._validation = 0.0

    def start(self) -> None:
        """The first step begins now."""
        self._first = time.monotonic()

    def reserve(self, seconds: float) -> None:
        """Leave time at the end for a validation, which took so long the last time."""
        self._validation = seconds

    def used(self) -> float:
        """Seconds of the run until now, those of earlier processes too."""
        return self._used + time.monotonic() - self._began

    def progress(self, step: int) -> float:
        """How much is over after this many steps; float32 by the clock."""
        cfg = self._cfg
        if not cfg.minutes:
            return step / cfg.steps
        if self._first is None:
            return self._at_first
        ending = min(_ENDING, _ENDING_SHARE * 60 * cfg.minutes) + self._validation
        end = self._began + 60 * cfg.minutes - self._used - ending
        over = (time.monotonic() - self._first) / (end - self._first) if end > self._first else 1.0
        progress = np.float32(min(self._at_first + (1 - self._at_first) * over, 1.0))
        if jax.process_count() > 1:
            progress = multihost_utils.broadcast_one_to_all(progress)
        return float(progress)


class Programs:
    """The runners of a run's stages, and a thread that compiles them, one after the other."""

    def __init__(self, cfg: TrainConfig) -> None:
        """Put what the stages need on the devices.

        Raises:
            ValueError: If the batch cannot be spread over the devices.
        """
        self._cfg = cfg
        self._runners: list[Runner] = [
            make_runner(c, load_perceptual_weights(c.loss, c.compute_dtype))
            for c in cfg.stage_configs()
        ]
        # One: two compilations at once disturb each other's measurements on a GPU.
        self._thread = ThreadPoolExecutor(1, "compile")
        self._compiling: dict[int, Future[None]] = {}

    @property
    def layout(self) -> Runner:
        """A runner that says where arrays lie, which is the same in all stages."""
        return self._runners[0]

    def begin(self, first: int) -> None:
        """Compile the programs of a stage and of all later ones in the background."""
        for stage in range(first, len(self._runners)):
            if stage not in self._compiling:
                self._compiling[stage] = self._thread.submit(self._compile, self._runners[stage])

    def ready(self, stage: int, due: int) -> int:
        """The last of the stages from `stage` to `due` that needs no waiting, on any process."""
        done = [stage, *(k for k in range(stage + 1, due + 1) if self._is_done(k))]
        if jax.process_count() == 1 or stage == due:
            return done[-1]
        return int(multihost_utils.process_allgather(np.int32(done[-1])).min())

    def runner(self, stage: int) -> Runner:
        """The runner of a stage, whose compilation has begun; waits for it."""
        self._compiling[stage].result()
        return self._runners[stage]

    def close(self) -> None:
        """Compile nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _is_done(self, stage: int) -> bool:
        return stage in self._compiling and self._compiling[stage].done()

    def _compile(self, runner: Runner) -> None:
        shapes: Any = runner.shapes(state_shapes(self._cfg))
        runner.compile(shapes, self._cfg.steps_per_dispatch)
