"""Configuration of a training run, and how that of an earlier one is read."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sic_jax.data.crops import DataConfig
from sic_jax.fields import Family, Kinds, from_dict, kinds_of, may_change, require
from sic_jax.model.families import FAMILIES
from sic_jax.model.model_config import ModelConfig
from sic_jax.training.discriminator import DiscriminatorConfig
from sic_jax.training.losses import LossConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run that has a loss of its own."""

    loss: LossConfig
    share: float
    """Of the run's length, more than 0 and less than 1."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(0 < self.share < 1, self, "share", self.share, "more than 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Fields that `may_change` when it is resumed have no part in what its steps compute.
    """

    model: ModelConfig
    loss: LossConfig
    stages: tuple[Stage, ...] = ()
    """Parts of the run that come first, in order; `loss` is that of the rest, and so are the flags
    below it. ``--init-from`` leaves them out."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    data: DataConfig = DataConfig()
    steps: int = 10_000
    """Length of the run; more of them prolong it, with stages and decay of a run so long."""
    minutes: float = 0.0
    """Length of the run by the clock instead, from the start of the process until the result is
    written: stages and decay follow the time, whatever the speed. Resumed runs count what they
    used up to their last checkpoint. 0: `steps` counts."""
    steps_per_dispatch: int = may_change(1, on="resume")
    """Steps that the devices do without the host: fast ones do not wait for it. Divides
    `log_every`, `save_every` and `validation_every`. With more than 1, programs for CPUs are slow.
    """
    batch_size: int = 8
    """Images a step, over all devices of all hosts."""
    crop_size: int = 128
    """Side of the square crops in pixels; a multiple of the transforms' stride."""
    seed: int = 0
    """Of the initial parameters, the crops and all noise."""
    learning_rate: float = 5e-4
    """Peak, after a linear warm-up."""
    decay: str = "cosine"
    """`cosine`: down to a hundredth at the end; `constant`: none."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises from 0."""
    beta2: float = 0.999
    """Decay of Adam's second moments."""
    weight_decay: float = 0.0
    """Of AdamW, on all parameters."""
    auxiliary_learning_rate: float = 1e-3
    """Of the parameters that learn from the entropy model's auxiliary loss, where it has one (the
    quantiles of z's prior in `raster`)."""
    clip_norm: float = 1.0
    """Gradients of a greater norm, over all parameters, are scaled down to it."""
    ema_decay: float = 0.999
    """Of the average of the parameters; 0: the parameters themselves are evaluated and shipped."""
    train_only: tuple[str, ...] = ()
    """Paths of the parameters that learn, such as `g_s` or `g_s/Conv_5`, the others stay as they
    are; none given: all learn."""
    compute_dtype: str = "float32"
    """`bfloat16` on accelerators halves memory traffic; parameters stay float32."""
    remat: bool = may_change(False, on="resume")
    """Compute activations of the transforms again in the backward pass instead of keeping them."""
    accumulate: int = may_change(1, on="resume")
    """Parts into which a batch is cut, one after another, to save memory; same numbers."""
    parallel: str = may_change("jit", on="resume")
    """How the devices share a batch: `jit` over a mesh of them, or `pmap`; same numbers."""
    fsdp: bool = may_change(False, on="resume")
    """Spread parameters and optimiser state over the devices too (with `jit`)."""
    non_finite: str = may_change("stop", on="resume")
    """A step whose loss or gradient is not finite changes nothing; then `stop` ends the run with
    an error, `skip` counts it and goes on."""
    log_every: int = may_change(50, on="resume")
    """Steps from one record to the next."""
    save_every: int = may_change(500, on="resume")
    """Steps from one checkpoint to the next; the last step has one too."""
    keep_last: int = may_change(2, on="resume")
    """Newest checkpoints that are kept."""
    validation_every: int = may_change(0, on="resume")
    """Steps from one validation (``--validation-data``) to the next; 0: only at the end."""
    validation_images: int = may_change(16, on="resume")
    """Most images that are measured."""
    validation_levels: tuple[int, ...] = may_change((), on="resume")
    """Levels that are measured; none given: the first, the middle and the last."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("steps", "batch_size", "log_every", "save_every", "keep_last", "accumulate",
                     "steps_per_dispatch"):  # fmt: skip
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        stride = self.model.stride
        ok = self.crop_size > 0 and self.crop_size % stride == 0
        require(ok, self, "crop_size", self.crop_size, f"a positive multiple of {stride}")
        for name in ("ema_decay", "beta2"):
            require(0 <= getattr(self, name) < 1, self, name, getattr(self, name), "in [0, 1)")
        for name in ("log_every", "save_every", "validation_every"):
            value, several = getattr(self, name), self.steps_per_dispatch
            allowed = f"a multiple of steps_per_dispatch = {several}"
            require(value % several == 0, self, name, value, allowed)
        for name in ("learning_rate", "clip_norm", "auxiliary_learning_rate", "validation_images"):
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        for name in ("seed", "weight_decay", "validation_every", "minutes"):
            require(getattr(self, name) >= 0, self, name, getattr(self, name), "at least 0")
        allowed = f"0 to steps - 1 = {self.steps - 1}"
        ok = 0 <= self.warmup_steps < self.steps
        require(ok, self, "warmup_steps", self.warmup_steps, allowed)
        for name, values in (
            ("compute_dtype", ("float32", "bfloat16")),
            ("decay", ("cosine", "constant")),
            ("parallel", ("jit", "pmap")),
            ("non_finite", ("stop", "skip")),
        ):
            value = getattr(self, name)
            require(value in values, self, name, value, " or ".join(values))
        ok = self.batch_size % self.accumulate == 0
        allowed = f"a divisor of batch_size = {self.batch_size}"
        require(ok, self, "accumulate", self.accumulate, allowed)
        ok = not (self.fsdp and self.parallel == "pmap")
        require(ok, self, "fsdp", self.fsdp, "false with parallel = 'pmap'")
        ok = all(1 <= v <= self.model.num_levels for v in self.validation_levels)
        allowed = f"levels 1 to {self.model.num_levels}"
        require(ok, self, "validation_levels", self.validation_levels, allowed)
        losses = {f"stages[{k}].loss": stage.loss for k, stage in enumerate(self.stages)}
        for name, loss in (losses | {"loss": self.loss}).items():
            n, levels = len(loss.lmbda_rate), self.model.num_levels
            require(n == levels, self, name, f"weights for {n} levels", f"for {levels} levels")
        total = sum(stage.share for stage in self.stages)
        require(total < 1, self, "stages", f"shares of {total:g} together", "less than 1 together")

    def stage_at(self, progress: float) -> int:
        """Number of the stage, from 0, when this much of the run, 0 to 1, is over."""
        # Rounded, because a sum of shares may lie just beside the step that it means.
        ends = itertools.accumulate(stage.share for stage in self.stages)
        return sum(progress > end - 1e-9 for end in ends)

    def stage_configs(self) -> tuple["TrainConfig", ...]:
        """The run's config in each stage: with its loss and no other stage."""
        losses = (*(stage.loss for stage in self.stages), self.loss)
        return tuple(dataclasses.replace(self, loss=loss, stages=()) for loss in losses)


def used_kinds(config: Any) -> Kinds:
    """Classes of the families that a config holds, at any depth, by their kinds.

    Raises:
        ValueError: If two have the same kind.
    """
    return kinds_of(*_families_in(config))


def _families_in(config: Any) -> Iterator[type[Family]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Family):
            yield type(value)
        if dataclasses.is_dataclass(value):
            yield from _families_in(value)


def load_config(path: str | Path, *, like: TrainConfig) -> TrainConfig:
    """The config of an earlier run.

    Args:
        path: Its config.json.
        like: A config whose families it may hold, besides `FAMILIES`.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no config, or has a kind that is not known.
    """
    kinds = {**FAMILIES, **used_kinds(like)}
    try:
        return from_dict(TrainConfig, json.loads(Path(path).read_text()), kinds)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
