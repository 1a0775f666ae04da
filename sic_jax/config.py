"""Configuration: frozen dataclasses, JSON in and out, unknown fields refused.

A number that the model or the loss uses is a field here, with the paper's symbol where it has one.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_MAX_WIDTH = 2**14
"""Far above any use; a forged config would make the reader allocate what it claims."""


def _require(ok: bool, cls: object, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{type(cls).__name__}.{name} is {value!r}; it must be {allowed}")


def _require_width(cls: object, name: str) -> None:
    value = getattr(cls, name)
    _require(0 < value <= _MAX_WIDTH, cls, name, value, f"positive, at most {_MAX_WIDTH}")


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """The paper's transforms; their narrowest features, at 1/16, are the channels of y.

    A stage is a resolution: g_a works at 1/2, 1/4, 1/8 and 1/16, g_s at 1/16, 1/8, 1/4 and 1/2.
    """

    analysis_widths: tuple[int, int, int] = (256, 384, 512)
    """Features of g_a's first three stages."""
    analysis_depths: tuple[int, int, int, int] = (1, 2, 2, 3)
    """Blocks of g_a's stages; every second one has shifted windows."""
    synthesis_widths: tuple[int, int, int] = (512, 384, 256)
    """Features of g_s's last three stages."""
    synthesis_depths: tuple[int, int, int, int] = (3, 2, 2, 1)
    num_heads: int = 16
    """Of all attentions."""
    window: int = 8
    """Side of an attention window, in positions; even."""
    mlp_ratio: int = 4
    """Hidden features of a block's MLP, in widths of the block."""

    def __post_init__(self) -> None:
        """Check the fields."""
        heads = self.num_heads
        _require_width(self, "num_heads")
        for name in ("analysis_widths", "synthesis_widths"):
            widths = getattr(self, name)
            ok = all(0 < w <= _MAX_WIDTH and w % heads == 0 for w in widths)
            allowed = f"positive multiples of num_heads = {heads}, at most {_MAX_WIDTH}"
            _require(ok, self, name, widths, allowed)
        widths = self.synthesis_widths
        _require(
            all(w % 4 == 0 for w in widths), self, "synthesis_widths", widths, "multiples of 4"
        )
        for name in ("analysis_depths", "synthesis_depths"):
            depths = getattr(self, name)
            _require(all(0 <= d <= 64 for d in depths), self, name, depths, "0 to 64 each")
        ok = 2 <= self.window <= 64 and self.window % 2 == 0
        _require(ok, self, "window", self.window, "even, 2 to 64")
        _require(
            0 < self.mlp_ratio <= 64, self, "mlp_ratio", self.mlp_ratio, "positive, at most 64"
        )


@dataclass(frozen=True, kw_only=True)
class RasterConfig:
    """The paper's entropy networks."""

    analysis_width: int = 384
    """Features of h_a."""
    synthesis_widths: tuple[int, int] = (512, 768)
    """Features of h_s at 1/32 and 1/16."""
    head_width: int = 96
    """Hidden features of the entropy-parameter network of a group."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("analysis_width", "head_width"):
            _require_width(self, name)
        widths = self.synthesis_widths
        ok = all(0 < w <= _MAX_WIDTH for w in widths)
        _require(ok, self, "synthesis_widths", widths, f"positive, at most {_MAX_WIDTH}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture: what the parameter shapes depend on, and how latents are rounded and decoded.

    `transforms` and `context` are chosen independently. Fields say which choice reads them; those
    without a word serve all.
    """

    level_channels: tuple[int, ...] = (5, 3, 4, 5, 7, 8, 10, 10, 12, 14, 16, 18, 20, 24, 24, 28)
    """Channels that each level adds; its length is L, its sum the channels of y."""
    level_refinements: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 8, 8, 8)
    """How many of a level's channels refine earlier ones: they carry `refine_factor` times the
    rounding residual of the first channels that are not refined yet."""
    refine_factor: int = 3
    """Steps into which a refinement channel cuts one quantisation step."""
    step: float = 0.25
    """conv: initial quantisation step of the linear branch, for images in [0, 1]."""
    coarse_step: float = 0.4
    """conv: initial step of the channels that later levels refine."""
    deadzone: float = 0.0
    """By how much of a step the encoder brings channels that are never refined nearer to 0 before
    it rounds them."""
    deblock_jump: float = 0.0
    """conv: jumps at the borders of patches, up to about this size for images in [0, 1], are spread
    over half a patch on either side (`sic_jax.model.deblock`); 0: none."""
    deblock_activity: float = 0.04
    """conv: mean deviation of the pixels beside a border, in one row, at which they are taken for
    texture and left alone."""
    restoration_width: int = 0
    """conv: features of the network that ends g_s, at half resolution; 0: there is none."""
    restoration_blocks: int = 4
    """conv: residual blocks of that network."""
    transforms: str = "conv"
    """g_a and g_s: `conv` (fast on CPUs) or `swin` (the paper's)."""
    context: str = "checkerboard"
    """h_a, h_s, the prior of z and the context model: `checkerboard` (integer arithmetic, two
    passes a group) or `raster` (the paper's, in floats)."""
    swin: SwinConfig = SwinConfig()
    """Of the transforms `swin`."""
    raster: RasterConfig = RasterConfig()
    """Of the context `raster`."""
    width_8: int = 128
    """conv: features of g_a and g_s at 1/8 resolution."""
    width_16: int = 192
    """conv: features of g_a and g_s at 1/16 resolution."""
    analysis_blocks: tuple[int, int] = (3, 3)
    """conv: residual blocks of g_a at 1/8 and at 1/16."""
    synthesis_blocks: tuple[int, int] = (6, 4)
    """conv: residual blocks of g_s at 1/8 and at 1/16."""
    hyper_channels: int = 32
    """Channels of z."""
    hyper_width: int = 96
    """checkerboard: features of h_a and h_s."""
    context_width: int = 32
    """checkerboard: features a group that the context model gathers from earlier groups."""
    anchor_width: int = 32
    """checkerboard: features a group from its own first checkerboard pass."""
    head_width: int = 96
    """checkerboard: hidden features of the entropy-parameter network of a group."""
    sigma_min: float = 0.11
    sigma_max: float = 64.0
    num_sigmas: int = 64
    """Number of logarithmically spaced scales with a coding table."""
    density: str = "normal"
    """checkerboard: what the latents' bits and coding tables come from. `normal`; or `logistic`, of
    heavier tails, with which refinement channels have no other values than residuals can have."""
    detail: str = "prior"
    """Detail sampler: `prior` (checkerboard only: the learned p(y_eps | y_s, z)) or `uniform` (the
    paper's mu_h + U(-2, 2))."""
    temperature: float = 0.0
    """Default temperature of the detail sampler when decoding."""

    def __post_init__(self) -> None:
        """Check the fields."""
        lc, lr = self.level_channels, self.level_refinements
        _require(0 < len(lc) <= 64, self, "level_channels", lc, "a tuple of 1 to 64 channel counts")
        ok = all(c > 0 for c in lc) and sum(lc) <= _MAX_WIDTH
        allowed = f"positive everywhere, {_MAX_WIDTH} in all at most"
        _require(ok, self, "level_channels", lc, allowed)
        ok = len(lr) == len(lc) and all(0 <= r <= c for r, c in zip(lr, lc, strict=True))
        _require(ok, self, "level_refinements", lr, f"{len(lc)} counts, each at most its level's")
        base = 0
        refined = 0
        for c, r in zip(lc, lr, strict=True):
            refined += r
            _require(
                refined <= base, self, "level_refinements", lr, "of channels of earlier levels"
            )
            base += c - r
        _require(
            self.detail in ("prior", "uniform"), self, "detail", self.detail, "prior or uniform"
        )
        densities = ("normal", "logistic") if self.context == "checkerboard" else ("normal",)
        allowed = f"one of {densities} with the context {self.context}"
        _require(self.density in densities, self, "density", self.density, allowed)
        sigmas = (self.sigma_min, self.sigma_max)
        _require(
            0 < sigmas[0] < sigmas[1] < 128,
            self,
            "sigma_min, sigma_max",
            sigmas,
            "rising, in (0, 128)",
        )
        for name in ("analysis_blocks", "synthesis_blocks"):
            blocks = getattr(self, name)
            _require(all(0 <= b <= 64 for b in blocks), self, name, blocks, "0 to 64 each")
        blocks_at_2 = self.restoration_blocks
        _require(0 <= blocks_at_2 <= 64, self, "restoration_blocks", blocks_at_2, "0 to 64")
        width, allowed = self.restoration_width, f"0 to {_MAX_WIDTH}"
        _require(0 <= width <= _MAX_WIDTH, self, "restoration_width", width, allowed)
        names = ("width_8", "width_16", "hyper_channels", "hyper_width", "context_width")
        for name in (*names, "anchor_width", "head_width"):
            _require_width(self, name)
        for name in ("step", "coarse_step"):
            _require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        _require(0 <= self.deblock_jump <= 1, self, "deblock_jump", self.deblock_jump, "in [0, 1]")
        activity = self.deblock_activity
        _require(0 < activity <= 1, self, "deblock_activity", activity, "in (0, 1]")
        _require(0 <= self.deadzone < 0.5, self, "deadzone", self.deadzone, "in [0, 0.5)")
        self._check_choices()
        for name, most in (("num_sigmas", _MAX_WIDTH), ("refine_factor", 64)):
            value = getattr(self, name)
            _require(2 <= value <= most, self, name, value, f"at least 2, at most {most}")
        _require(0 <= self.temperature <= 16, self, "temperature", self.temperature, "0 to 16")

    def _check_choices(self) -> None:
        """Check what the transforms and the context demand of the other fields."""
        ok = self.transforms in ("conv", "swin")
        _require(ok, self, "transforms", self.transforms, "conv or swin")
        ok = self.context in ("checkerboard", "raster")
        _require(ok, self, "context", self.context, "checkerboard or raster")
        if self.transforms == "swin":
            heads = self.swin.num_heads
            n, base = self.num_channels, self.num_base_channels
            allowed = f"a multiple of 4 and of swin.num_heads = {heads}"
            _require(n % heads == 0 and n % 4 == 0, self, "num_channels", n, allowed)
            allowed = f"a multiple of swin.num_heads = {heads}"
            _require(base > 0 and base % heads == 0, self, "num_base_channels", base, allowed)
        if self.context == "raster":
            lc = self.level_channels
            allowed = "equal for all levels with context raster"
            _require(len(set(lc)) == 1, self, "level_channels", lc, allowed)
            ok = self.detail == "uniform"
            _require(ok, self, "detail", self.detail, "uniform with context raster")

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.level_channels)

    @property
    def num_channels(self) -> int:
        """Channels of y, refinements included."""
        return sum(self.level_channels)

    @property
    def num_base_channels(self) -> int:
        """Channels that g_a yields."""
        return self.num_channels - sum(self.level_refinements)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the SVI loss as functions of the level (index 0 is level 1)."""

    lmbda_rate: tuple[float, ...]
    """lambda_r of each level, times bits per pixel."""
    lmbda_dist: tuple[float, ...]
    """lambda_d of each level, times the mean squared error of images in [0, 1]."""
    lmbda_perc: tuple[float, ...]
    """lambda_p of each level, times LPIPS (AlexNet); 0 leaves LPIPS out of the program."""
    levels: str = "mixed"
    """`mixed`: each image of a batch is decoded at a level of its own. `cyclic` (the paper's code):
    every image is decoded at level L and at l = L - step mod L, the same for the whole batch."""
    full_share: float = 0.5
    """Weight of level L (the paper's 1 - alpha). `mixed`: share of a batch's images that are
    decoded at L, while the others draw a level. `cyclic`: weight of the decoding at L."""
    num_samples: int = 1
    """M: how often the details of an image are drawn, and what is drawn decoded and compared."""
    temperature: float = 0.0
    """Temperature of the sampled details."""
    sampled_share: float = 1.0
    """Share of images whose details are drawn at `temperature`; the others use the mean."""
    rounded_share: float = 0.0
    """Share of images whose rate is that of rounded latents, as in a file, with straight-through
    gradients; the others' is the noisy upper bound."""
    grain: bool = False
    """Perceptual terms are those of decodings with the grain that a decoder would draw on them, as
    strong as each crop's own (`sic_jax.codec.grain`)."""
    clamp: bool = False
    """Clip reconstructions to [0, 1] before they are compared: no gradient outside."""
    lmbda_consistency: float = 0.0
    """Weight of the latent consistency terms ("reverse compress")."""
    lmbda_dists: float = 0.0
    """Weight of DISTS beside LPIPS, lambda_p(l) * (LPIPS + lmbda_dists * DISTS)."""
    dists_every: int = 4
    """DISTS is taken of every n-th image of a batch, from a random one on, and counts n times
    there: VGG16 costs five times what the model does. Divides the images of each part that a batch
    is cut into; which images it is depends on `accumulate`."""
    lmbda_adv: float = 0.0
    """Weight of the adversarial loss G beside LPIPS, lambda_p(l) * (LPIPS + lmbda_adv * G); 0: no
    discriminator."""
    lmbda_balance: float = 0.0
    """Warm-up: weight of (standard deviation - minimum) over levels of each level's own bpp."""

    def __post_init__(self) -> None:
        """Check the fields."""
        n = len(self.lmbda_rate)
        same = len(self.lmbda_dist) == n and len(self.lmbda_perc) == n
        _require(
            same and n > 0,
            self,
            "lmbda_*",
            (n, len(self.lmbda_dist), len(self.lmbda_perc)),
            "of one length",
        )
        _require(0 <= self.full_share <= 1, self, "full_share", self.full_share, "in [0, 1]")
        for name in ("sampled_share", "rounded_share"):
            share = getattr(self, name)
            _require(0 <= share <= 1, self, name, share, "in [0, 1]")
        _require(self.levels in ("mixed", "cyclic"), self, "levels", self.levels, "mixed or cyclic")
        _require(self.num_samples > 0, self, "num_samples", self.num_samples, "positive")
        names = ("temperature", "lmbda_consistency", "lmbda_dists", "lmbda_adv", "lmbda_balance")
        for name in names:
            _require(getattr(self, name) >= 0, self, name, getattr(self, name), "at least 0")
        ok = any(self.lmbda_perc) or not (self.lmbda_dists or self.lmbda_adv)
        allowed = "not 0 everywhere where lmbda_dists or lmbda_adv is not 0"
        _require(ok, self, "lmbda_perc", self.lmbda_perc, allowed)
        _require(self.dists_every > 0, self, "dists_every", self.dists_every, "positive")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The conditional PatchGAN of the adversarial stage; made where `lmbda_adv` is not 0."""

    features: tuple[int, ...] = (64, 128, 256, 512)
    """Of its four convolutions, each of stride 2."""
    condition_features: int = 12
    """What y_s is mapped to, beside the picture's three channels."""
    learning_rate: float = 2e-4
    weight_decay: float = 5e-5

    def __post_init__(self) -> None:
        """Check the fields."""
        f = self.features
        _require(len(f) == 4 and all(n > 0 for n in f), self, "features", f, "four positive counts")
        n = self.condition_features
        _require(n > 0, self, "condition_features", n, "positive")
        _require(self.learning_rate > 0, self, "learning_rate", self.learning_rate, "positive")
        _require(self.weight_decay >= 0, self, "weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How crops are made of training images, and how they are read ahead."""

    flip: bool = True
    """Exchange left and right of every second crop, at random."""
    transpose: float = 0.25
    """Probability with which the rows and columns of a crop are exchanged."""
    scale_jitter: float = 0.0
    """s: crops are scaled by a factor drawn from [1 - s, 1], log-uniform; never below crop_size."""
    workers: int = 0
    """Processes that read images ahead; 0: threads of this process, as many as it has cores."""
    prefetch: int = 8
    """Batches read ahead, by each worker process; also the most threads without them."""

    def __post_init__(self) -> None:
        """Check the fields."""
        _require(0 <= self.transpose <= 1, self, "transpose", self.transpose, "in [0, 1]")
        ok = 0 <= self.scale_jitter < 1
        _require(ok, self, "scale_jitter", self.scale_jitter, "in [0, 1)")
        _require(self.workers >= 0, self, "workers", self.workers, "at least 0")
        _require(self.prefetch > 0, self, "prefetch", self.prefetch, "positive")


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
    """Paths of the parameters that learn, such as `g_s` or `g_s/restoration`, the others stay as
    they are; none given: all learn."""
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
    eval_every: int = 0
    """Steps between evaluations on held-out images (``--eval-data``); 0: only at the end."""
    eval_images: int = 16
    eval_levels: tuple[int, ...] = ()
    """Levels that are evaluated; none given: the first, the middle and the last."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("steps", "batch_size", "log_every", "save_every", "keep_last", "accumulate"):
            _require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        ok = self.crop_size > 0 and self.crop_size % 16 == 0
        _require(ok, self, "crop_size", self.crop_size, "a positive multiple of 16")
        _require(0 <= self.ema_decay < 1, self, "ema_decay", self.ema_decay, "in [0, 1)")
        for name in ("learning_rate", "clip_norm", "quantile_learning_rate", "eval_images"):
            _require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        for name in ("seed", "weight_decay", "eval_every"):
            _require(getattr(self, name) >= 0, self, name, getattr(self, name), "at least 0")
        allowed = f"0 to steps - 1 = {self.steps - 1}"
        ok = 0 <= self.warmup_steps < self.steps
        _require(ok, self, "warmup_steps", self.warmup_steps, allowed)
        for name, values in (
            ("compute_dtype", ("float32", "bfloat16")),
            ("decay", ("cosine", "constant")),
            ("parallel", ("jit", "pmap")),
            ("non_finite", ("stop", "skip")),
        ):
            value = getattr(self, name)
            _require(value in values, self, name, value, " or ".join(values))
        ok = self.batch_size % self.accumulate == 0
        allowed = f"a divisor of batch_size = {self.batch_size}"
        _require(ok, self, "accumulate", self.accumulate, allowed)
        ok = not (self.fsdp and self.parallel == "pmap")
        _require(ok, self, "fsdp", self.fsdp, "false with parallel = 'pmap'")
        ok = all(1 <= v <= self.model.num_levels for v in self.eval_levels)
        allowed = f"levels 1 to {self.model.num_levels}"
        _require(ok, self, "eval_levels", self.eval_levels, allowed)
        n, levels = len(self.loss.lmbda_rate), self.model.num_levels
        _require(n == levels, self, "loss", f"weights for {n} levels", f"for {levels} levels")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON-ready dicts, lists and scalars."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """The inverse of `to_dict`.

    Raises:
      ValueError: For an unknown field or a value of the wrong type, naming it.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{cls.__name__} must be a JSON object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {sorted(hints)}")
    values = {k: _convert(hints[k], v, f"{cls.__name__}.{k}") for k, v in data.items()}
    try:
        return cls(**values)
    except TypeError as e:
        raise ValueError(f"{cls.__name__}: {e}") from e


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        args = typing.get_args(hint)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{where} must have {len(kinds)} entries, got {value!r}")
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}")
    return value
