"""What a run tells: metrics.jsonl, one line on a terminal or plain lines, TensorBoard."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from sic_jax.progress import Progress
from sic_jax.training.train_config import TrainConfig

_log = logging.getLogger(__name__)


class Reporter:
    """Writes the records of a run; on processes other than the first it writes nothing."""

    def __init__(self, workdir: Path, cfg: TrainConfig, *, tensorboard: bool = False) -> None:
        """Open the files of the run `cfg`.

        Raises:
            ValueError: If TensorBoard is asked for and tensorboardX is not installed.
        """
        self._path = workdir / "metrics.jsonl"
        self._last = "" if cfg.minutes else f"/{cfg.steps}"
        self._first = jax.process_index() == 0
        self._progress = Progress()
        self._board: Any = None
        if tensorboard and self._first:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as e:
                raise ValueError(
                    '--tensorboard needs tensorboardX: pip install "sic_jax[train]"'
                ) from e
            self._board = SummaryWriter(str(workdir / "tensorboard"))

    def drop_after(self, step: int) -> None:
        """Forget records that a killed run wrote after its last checkpoint."""
        if self._first and self._path.exists():
            lines = [s for s in self._path.read_text().splitlines() if _step_of(s) <= step]
            self._path.write_text("".join(s + "\n" for s in lines))

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write a record, and show it."""
        if not self._first:
            return
        with self._path.open("a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        parts = [f"step {step}{self._last}"] + [f"{k} {v:.4g}" for k, v in values.items()]
        text = "  ".join(parts)
        if self._progress.live:
            width = shutil.get_terminal_size().columns - 1
            self._progress.show(text if len(text) <= width else text[: width - 1] + "…")
        else:
            _log.info("%s", text)

    def images(self, step: int, images: dict[str, NDArray[np.uint8]]) -> None:
        """Show pictures [H, W, 3] by name on the board, if there is one."""
        if self._board is not None:
            for name, image in images.items():
                self._board.add_image(name, image, step, dataformats="HWC")
            self._board.flush()

    def close(self) -> None:
        """Leave the terminal's line, and close TensorBoard's file."""
        self._progress.leave()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:  # The run was killed while it wrote this record.
        return math.inf
