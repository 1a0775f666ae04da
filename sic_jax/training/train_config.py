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
    """Loss of this stage."""
    share: float
    """Length of the stage as a share of the run's length, more than 0 and less than 1."""

    def __post_init__(self) -> None:
        """Check the fields."""
        require(0 < self.share < 1, self, "share", self.share, "more than 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Fields that `may_change` when it is resumed have no part in what its steps compute.
    """

    model: ModelConfig
    """Architecture of the model."""
    loss: LossConfig
    """Loss of the last stage; the only loss where `stages` is empty."""
    stages: tuple[Stage, ...] = ()
    """Stages that come before the last one, in order. A run with ``--init-from`` skips them."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Discriminator of the adversarial loss."""
    data: DataConfig = DataConfig()
    """Training crops."""
    steps: int = 10_000
    """Length of the run in steps. A finished run goes on when it is started with more."""
    minutes: float = 0.0
    """Length of the run in minutes, from the start of the process until the result is written.
    Stages and decay of the learning rate follow the clock. A resumed run counts the minutes that it
    used up to its last checkpoint. 0: `steps` is the length."""
    steps_per_dispatch: int = may_change(1, on="resume")
    """Steps in one compiled program. More than 1 keeps fast devices from waiting for the host, and
    is slow on CPUs. It must divide `log_every`, `save_every` and `validation_every`."""
    batch_size: int = 8
    """Images per step, over all devices of all hosts."""
    crop_size: int = 128
    """Side of the square crops in pixels; a multiple of the transforms' stride."""
    seed: int = 0
    """Seed of the initial parameters, the crops and all noise."""
    learning_rate: float = 5e-4
    """Peak learning rate, reached after a linear warm-up."""
    decay: str = "cosine"
    """Decay of the learning rate. `cosine`: to a hundredth of the peak at the end; `constant`:
    none."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises from 0 to its peak."""
    optimiser: str = "adam"
    """What turns gradients into steps. `adam`; or `soap` for kernels and Adam for other parameters:
    better after as many steps, which take longer (docs/notebook/15)."""
    soap_every: int = 10
    """Steps from one improvement of SOAP's bases to the next. It takes two QR decompositions for
    every kernel."""
    beta2: float = 0.999
    """Decay of Adam's second moments."""
    weight_decay: float = 0.0
    """Decay of weights, apart from the gradient as in AdamW, of all parameters."""
    auxiliary_learning_rate: float = 1e-3
    """Learning rate of the parameters that only the entropy model's auxiliary loss trains (the
    quantiles of z's prior in `raster`)."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters; greater ones are scaled down to it."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters, which is validated and exported. 0: no
    average, the parameters themselves are used."""
    train_only: tuple[str, ...] = ()
    """Paths of the parameters to train, such as `g_s` or `g_s/Conv_5`. The others stay fixed. None
    given: all are trained."""
    compute_dtype: str = "float32"
    """Type of features: `float32`, or `bfloat16`, which is faster on accelerators. Parameters are
    float32 either way."""
    remat: bool = may_change(False, on="resume")
    """Recompute the activations of the transforms in the backward pass, to save memory."""
    accumulate: int = may_change(1, on="resume")
    """Parts of a batch that are computed one after another, to save memory. Results do not
    change."""
    parallel: str = may_change("jit", on="resume")
    """How devices share a batch: `jit` over a mesh, or `pmap`. Results do not change."""
    fsdp: bool = may_change(False, on="resume")
    """Shard parameters and optimiser state over the devices, too (with `jit` only)."""
    non_finite: str = may_change("stop", on="resume")
    """What follows a step whose loss or gradient is not finite. Such a step changes nothing; `stop`
    ends the run with an error, `skip` counts the step and goes on."""
    log_every: int = may_change(50, on="resume")
    """Steps from one record to the next."""
    save_every: int = may_change(500, on="resume")
    """Steps from one checkpoint to the next; the last step has one too."""
    keep_last: int = may_change(2, on="resume")
    """Number of newest checkpoints that are kept."""
    validation_every: int = may_change(0, on="resume")
    """Steps from one validation (``--validation-data``) to the next; 0: only at the end."""
    validation_images: int = may_change(16, on="resume")
    """Largest number of images that a validation measures."""
    validation_levels: tuple[int, ...] = may_change((), on="resume")
    """Levels that a validation measures. None given: the first, the middle and the last."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("steps", "batch_size", "log_every", "save_every", "keep_last", "accumulate",
                     "steps_per_dispatch", "soap_every"):  # fmt: skip
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
            ("optimiser", ("adam", "soap")),
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
