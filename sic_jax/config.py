"""Configuration of model, loss and runs: frozen dataclasses.

A number that the model or the loss uses is a field here, with the paper's symbol where it has one.
"""

import math
from dataclasses import dataclass

from sic_jax.fields import MAX_WIDTH, require, require_width
from sic_jax.model.pyramid import PyramidConfig


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
        require_width(self, "num_heads")
        for name in ("analysis_widths", "synthesis_widths"):
            widths = getattr(self, name)
            ok = all(0 < w <= MAX_WIDTH and w % heads == 0 for w in widths)
            allowed = f"positive multiples of num_heads = {heads}, at most {MAX_WIDTH}"
            require(ok, self, name, widths, allowed)
        widths = self.synthesis_widths
        require(all(w % 4 == 0 for w in widths), self, "synthesis_widths", widths, "multiples of 4")
        for name in ("analysis_depths", "synthesis_depths"):
            depths = getattr(self, name)
            require(all(0 <= d <= 64 for d in depths), self, name, depths, "0 to 64 each")
        ok = 2 <= self.window <= 64 and self.window % 2 == 0
        require(ok, self, "window", self.window, "even, 2 to 64")
        require(0 < self.mlp_ratio <= 64, self, "mlp_ratio", self.mlp_ratio, "positive, at most 64")


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
            require_width(self, name)
        widths = self.synthesis_widths
        ok = all(0 < w <= MAX_WIDTH for w in widths)
        require(ok, self, "synthesis_widths", widths, f"positive, at most {MAX_WIDTH}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What the encoder's search (`sic_jax.codec.search`) minimises at level l, images in [0, 1].

        bpp + lmbda_dist(l) MSE + lmbda_perc(l) (LPIPS + lmbda_dists DISTS)

    The pairs are the weights of the first and the last level; they are geometric in between.
    """

    lmbda_dist: tuple[float, float] = (40.0, 1200.0)
    lmbda_perc: tuple[float, float] = (0.45, 2.8)
    lmbda_dists: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("lmbda_dist", "lmbda_perc"):
            pair = getattr(self, name)
            ok = all(0 < v < math.inf for v in pair)
            require(ok, self, name, pair, "positive and finite")
        weight = self.lmbda_dists
        require(0 <= weight < math.inf, self, "lmbda_dists", weight, "at least 0 and finite")


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
    deadzone: float = 0.0
    """By how much of a step the encoder brings channels that are never refined nearer to 0 before
    it rounds them."""
    transforms: str = "pyramid"
    """g_a and g_s: `pyramid` (the default) or `swin` (the paper's)."""
    context: str = "checkerboard"
    """h_a, h_s, the prior of z, the context model and the details: `checkerboard` (integer
    arithmetic, two passes a group, logistic densities, details from the learned
    p(y_eps | y_s, z)) or `raster` (the paper's: floats, normal densities, details mu_h + U(-2, 2)).
    """
    pyramid: PyramidConfig = PyramidConfig()
    """Of the transforms `pyramid`."""
    swin: SwinConfig = SwinConfig()
    """Of the transforms `swin`."""
    raster: RasterConfig = RasterConfig()
    """Of the context `raster`."""
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
    temperature: float = 0.0
    """Default temperature of the detail sampler when decoding."""
    search: SearchConfig = SearchConfig()
    """Of the encoder's search."""

    def __post_init__(self) -> None:
        """Check the fields."""
        lc, lr = self.level_channels, self.level_refinements
        require(0 < len(lc) <= 64, self, "level_channels", lc, "a tuple of 1 to 64 channel counts")
        ok = all(c > 0 for c in lc) and sum(lc) <= MAX_WIDTH
        allowed = f"positive everywhere, {MAX_WIDTH} in all at most"
        require(ok, self, "level_channels", lc, allowed)
        ok = len(lr) == len(lc) and all(0 <= r <= c for r, c in zip(lr, lc, strict=True))
        require(ok, self, "level_refinements", lr, f"{len(lc)} counts, each at most its level's")
        base = 0
        refined = 0
        for c, r in zip(lc, lr, strict=True):
            refined += r
            require(refined <= base, self, "level_refinements", lr, "of channels of earlier levels")
            base += c - r
        sigmas = (self.sigma_min, self.sigma_max)
        require(
            0 < sigmas[0] < sigmas[1] < 128,
            self,
            "sigma_min, sigma_max",
            sigmas,
            "rising, in (0, 128)",
        )
        for name in (
            "hyper_channels",
            "hyper_width",
            "context_width",
            "anchor_width",
            "head_width",
        ):
            require_width(self, name)
        require(0 <= self.deadzone < 0.5, self, "deadzone", self.deadzone, "in [0, 0.5)")
        self._check_choices()
        for name, most in (("num_sigmas", MAX_WIDTH), ("refine_factor", 64)):
            value = getattr(self, name)
            require(2 <= value <= most, self, name, value, f"at least 2, at most {most}")
        require(0 <= self.temperature <= 16, self, "temperature", self.temperature, "0 to 16")

    def _check_choices(self) -> None:
        """Check what the transforms and the context demand of the other fields."""
        ok = self.transforms in ("pyramid", "swin")
        require(ok, self, "transforms", self.transforms, "pyramid or swin")
        ok = self.context in ("checkerboard", "raster")
        require(ok, self, "context", self.context, "checkerboard or raster")
        if self.transforms == "swin":
            heads = self.swin.num_heads
            n, base = self.num_channels, self.num_base_channels
            allowed = f"a multiple of 4 and of swin.num_heads = {heads}"
            require(n % heads == 0 and n % 4 == 0, self, "num_channels", n, allowed)
            allowed = f"a multiple of swin.num_heads = {heads}"
            require(base > 0 and base % heads == 0, self, "num_base_channels", base, allowed)
        if self.context == "raster":
            lc = self.level_channels
            allowed = "equal for all levels with context raster"
            require(len(set(lc)) == 1, self, "level_channels", lc, allowed)

    @property
    def analysis_reach(self) -> int | None:
        """Latent positions beyond its own that a latent depends on; None: on the whole picture."""
        return self.pyramid.analysis_reach if self.transforms == "pyramid" else None

    @property
    def synthesis_reach(self) -> int | None:
        """Latent positions beyond its own that a pixel depends on; None: on all of them."""
        return self.pyramid.synthesis_reach if self.transforms == "pyramid" else None

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
        require(
            same and n > 0,
            self,
            "lmbda_*",
            (n, len(self.lmbda_dist), len(self.lmbda_perc)),
            "of one length",
        )
        require(0 <= self.full_share <= 1, self, "full_share", self.full_share, "in [0, 1]")
        for name in ("sampled_share", "rounded_share"):
            share = getattr(self, name)
            require(0 <= share <= 1, self, name, share, "in [0, 1]")
        require(self.levels in ("mixed", "cyclic"), self, "levels", self.levels, "mixed or cyclic")
        require(self.num_samples > 0, self, "num_samples", self.num_samples, "positive")
        names = ("temperature", "lmbda_consistency", "lmbda_dists", "lmbda_adv", "lmbda_balance")
        for name in names:
            require(getattr(self, name) >= 0, self, name, getattr(self, name), "at least 0")
        ok = any(self.lmbda_perc) or not (self.lmbda_dists or self.lmbda_adv)
        allowed = "not 0 everywhere where lmbda_dists or lmbda_adv is not 0"
        require(ok, self, "lmbda_perc", self.lmbda_perc, allowed)
        require(self.dists_every > 0, self, "dists_every", self.dists_every, "positive")


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
        require(len(f) == 4 and all(n > 0 for n in f), self, "features", f, "four positive counts")
        n = self.condition_features
        require(n > 0, self, "condition_features", n, "positive")
        require(self.learning_rate > 0, self, "learning_rate", self.learning_rate, "positive")
        require(self.weight_decay >= 0, self, "weight_decay", self.weight_decay, "at least 0")


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
        require(0 <= self.transpose <= 1, self, "transpose", self.transpose, "in [0, 1]")
        ok = 0 <= self.scale_jitter < 1
        require(ok, self, "scale_jitter", self.scale_jitter, "in [0, 1)")
        require(self.workers >= 0, self, "workers", self.workers, "at least 0")
        require(self.prefetch > 0, self, "prefetch", self.prefetch, "positive")


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
    eval_every: int = 0
    """Steps between evaluations on held-out images (``--eval-data``); 0: only at the end."""
    eval_images: int = 16
    eval_levels: tuple[int, ...] = ()
    """Levels that are evaluated; none given: the first, the middle and the last."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("steps", "batch_size", "log_every", "save_every", "keep_last", "accumulate"):
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        ok = self.crop_size > 0 and self.crop_size % 16 == 0
        require(ok, self, "crop_size", self.crop_size, "a positive multiple of 16")
        require(0 <= self.ema_decay < 1, self, "ema_decay", self.ema_decay, "in [0, 1)")
        for name in ("learning_rate", "clip_norm", "quantile_learning_rate", "eval_images"):
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        for name in ("seed", "weight_decay", "eval_every"):
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
        ok = all(1 <= v <= self.model.num_levels for v in self.eval_levels)
        allowed = f"levels 1 to {self.model.num_levels}"
        require(ok, self, "eval_levels", self.eval_levels, allowed)
        n, levels = len(self.loss.lmbda_rate), self.model.num_levels
        require(n == levels, self, "loss", f"weights for {n} levels", f"for {levels} levels")
