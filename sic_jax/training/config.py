"""Configuration of a training run."""

from dataclasses import dataclass

from sic_jax.data.crops import DataConfig
from sic_jax.fields import require
from sic_jax.model.config import ModelConfig
from sic_jax.training.discriminator import DiscriminatorConfig
from sic_jax.training.losses import LossConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig
    loss: LossConfig
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    data: DataConfig = DataConfig()
    steps: int = 10_000
    batch_size: int = 8
    """Images a step, over all devices of all hosts."""
    crop_size: int = 128
    """Side of the square crops in pixels; a multiple of 16."""
    seed: int = 0
    learning_rate: float = 5e-4
    """Peak, after a linear warm-up."""
    decay: str = "cosine"
    """`cosine`: down to a hundredth at the last step; `constant`: none."""
    warmup_steps: int = 100
    weight_decay: float = 0.0
    """Of AdamW, on all parameters."""
    quantile_learning_rate: float = 1e-3
    """Of the quantiles of z's prior, where the model has them (context `raster`)."""
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    """Of the average of the parameters; 0: the parameters themselves are evaluated and shipped."""
    train_only: tuple[str, ...] = ()
    """Paths of the parameters that learn, such as `g_s` or `g_s/Conv_5`, the others stay as they
    are; none given: all learn."""
    compute_dtype: str = "float32"
    """`bfloat16` on accelerators halves memory traffic; parameters stay float32."""
    remat: bool = False
    """Compute activations of the transforms again in the backward pass instead of keeping them."""
    accumulate: int = 1
    """Parts into which a batch is cut, one after another, to save memory; same numbers."""
    parallel: str = "jit"
    """How the devices share a batch: `jit` over a mesh of them, or `pmap`; same numbers."""
    fsdp: bool = False
    """Spread parameters and optimiser state over the devices too (with `jit`)."""
    non_finite: str = "stop"
    """A step whose loss or gradient is not finite changes nothing; then `stop` ends the run with
    an error, `skip` counts it and goes on."""
    log_every: int = 50
    save_every: int = 500
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    validation_every: int = 0
    """Steps from one validation (``--validation-data``) to the next; 0: only at the end."""
    validation_images: int = 16
    """Most images that are measured."""
    validation_levels: tuple[int, ...] = ()
    """Levels that are measured; none given: the first, the middle and the last."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("steps", "batch_size", "log_every", "save_every", "keep_last", "accumulate"):
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        ok = self.crop_size > 0 and self.crop_size % 16 == 0
        require(ok, self, "crop_size", self.crop_size, "a positive multiple of 16")
        require(0 <= self.ema_decay < 1, self, "ema_decay", self.ema_decay, "in [0, 1)")
        for name in ("learning_rate", "clip_norm", "quantile_learning_rate", "validation_images"):
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        for name in ("seed", "weight_decay", "validation_every"):
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
        n, levels = len(self.loss.lmbda_rate), self.model.num_levels
        require(n == levels, self, "loss", f"weights for {n} levels", f"for {levels} levels")
