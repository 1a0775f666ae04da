"""Named training runs as lab notes: source, command, hardware, time, result.

Level weights are written as lambda_r(l) times (1, lambda_d / lambda_r, lambda_p / lambda_r).

The presets `paper*`, where the authors' code and the paper, or two parts of the code, disagree:

- The extra terms of the first two epochs never ran in the code as committed, and are left out; the
  warm-up's spread of the groups' rates is an image's, not a batch's, so that it does not matter how
  a batch is cut.
- M is 1 unless ``--loss.num-samples`` says otherwise; the draws are seeded.
- The discriminator judges each decoding given its own level's latents (the code takes level l's for
  level L too); it and the codec step at once, from the same state; its gradients are neither
  clipped nor mixed into the codec's clip.
- A picture at evaluation is padded to multiples of 16 by its border, and bpp counts the picture's
  pixels.
- Likelihoods are not clamped in training: the bits have finite gradients without.
"""

import dataclasses
from collections.abc import Callable

from sic_jax.data.crops import DataConfig
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.transforms.swin import SwinTransforms
from sic_jax.training.discriminator import DiscriminatorConfig
from sic_jax.training.losses import LossConfig
from sic_jax.training.train_config import Stage, TrainConfig


def _geometric(first: float, last: float, num_levels: int) -> tuple[float, ...]:
    return tuple(first * (last / first) ** (i / (num_levels - 1)) for i in range(num_levels))


def geometric_loss(
    rate: tuple[float, float],
    dist: tuple[float, float],
    perc: tuple[float, float],
    levels: int,
    dists_weight: float = 0.0,
) -> LossConfig:
    """A loss whose lambda_r and ratios to lambda_r are geometric in the level.

    Args:
        rate: lambda_r of the first and the last level.
        dist: lambda_d / lambda_r of them.
        perc: lambda_p / lambda_r of them; zeros for a loss without LPIPS.
        levels: Their number.
        dists_weight: Weight of DISTS beside LPIPS.
    """
    r = _geometric(*rate, levels)
    zero = (0.0,) * levels
    d = _geometric(*dist, levels)
    p = _geometric(*perc, levels) if any(perc) else zero
    return LossConfig(
        lmbda_rate=r,
        lmbda_dist=tuple(a * b for a, b in zip(r, d, strict=True)),
        lmbda_perc=tuple(a * b for a, b in zip(r, p, strict=True)),
        dists_weight=dists_weight,
    )


def default_model() -> ModelConfig:
    """The architecture of the default bundle."""
    return ModelConfig(
        levels=LevelConfig(deadzone=0.1),
        transforms=PyramidTransforms(),
        entropy=CheckerboardEntropy(
            hyper_channels=48, hyper_width=128, context_width=48, head_width=128
        ),
    )


def paper_loss(num_levels: int = 16) -> LossConfig:
    """The paper's loss, alpha = 1/2.

    lambda_d = 128 l, lambda_p = 2^(5-l/8), lambda_r = 2^(6-3l/8).
    """
    levels = range(1, num_levels + 1)
    return LossConfig(
        lmbda_rate=tuple(2 ** (6 - 3 * x / 8) for x in levels),
        lmbda_dist=tuple(128.0 * x for x in levels),
        lmbda_perc=tuple(2 ** (5 - x / 8) for x in levels),
        levels="cyclic",
        full_share=0.5,
        temperature=1.0,
        clamp=True,
        lmbda_consistency=1.0,
    )


def paper_model() -> ModelConfig:
    """The paper's network in its published size, 87.2 million parameters (paper notes 2.1 to 2.5).

    512 channels of y in 16 levels of 32; details are drawn uniformly around the hyper mean.
    """
    return ModelConfig(
        levels=LevelConfig(channels=(32,) * 16, refinements=(0,) * 16),
        transforms=SwinTransforms(),
        entropy=RasterEntropy(hyper_channels=384),
        temperature=1.0,
    )


def default() -> TrainConfig:
    """The default model: squared error and LPIPS for a third of the run, then DISTS and grain too.

    The share is meant for runs by the clock (``--minutes``). Steps of the first stage take half as
    long as those of the second.

    All levels count alike; half of the images have drawn details, and half or three quarters are
    rated by their rounded latents, as files hold them.

    The first default bundle of this family came from a script with these losses and sizes, 12 500
    and 12 750 steps; the one that ships went on from it with the last stage alone, 26 175 steps
    with a peak rate of 6e-4. Both had crops at scales 1 and 0.7 and a last rate of a fivehundredth.

    - Source: this project.
    - Command: python train.py default --data memory:photos/ --workdir runs/default
      --export runs/bundle
    - Hardware, time: of these scripts, one H100: 12 minutes, and 8 more (``--minutes 12``; 18 ms a
      step of the second stage). Of this command: not run yet.
    - Result: the model card of the default bundle.
    """
    model = default_model()
    first = geometric_loss((8, 1.25), (40, 1100), (0.16, 3.3), model.num_levels)
    first = dataclasses.replace(
        first, full_share=0.0, temperature=0.35, sampled_share=0.5, rounded_share=0.5
    )
    loss = geometric_loss((8, 1.25), (20, 500), (0.32, 6.6), model.num_levels, dists_weight=1.0)
    loss = dataclasses.replace(
        loss, full_share=0.0, temperature=0.35, sampled_share=0.5, rounded_share=0.75, grain=True
    )
    return TrainConfig(
        model=model,
        stages=(Stage(loss=first, share=0.33),),
        loss=loss,
        data=DataConfig(transpose=0.3, scale_jitter=0.3),
        steps=25_000,
        steps_per_dispatch=25,
        batch_size=16,
        crop_size=256,
        compute_dtype="bfloat16",
        learning_rate=1.2e-3,
        warmup_steps=500,
        beta2=0.995,
    )


def default_gan() -> TrainConfig:
    """The default model with a third stage, which has a discriminator.

    The stage has the last fifth of the run. The discriminator judges the layers of AlexNet, given
    y_s. The weight of its loss rises from 0 in 500 steps.

    - Source: this project, docs/notebook/17: 2000 steps of a model of a sixteenth of the size.
    - Command: python train.py default_gan --data memory:photos/ --workdir runs/default_gan
      --export runs/bundle
    - Hardware, time, result: not run yet in this size.
    """
    cfg = default()
    (first,) = cfg.stages
    return dataclasses.replace(
        cfg,
        stages=(dataclasses.replace(first, share=0.27), Stage(loss=cfg.loss, share=0.53)),
        loss=dataclasses.replace(cfg.loss, adversarial_weight=0.1),
        discriminator=DiscriminatorConfig(network="alexnet", learning_rate=3e-4, ramp_steps=500),
    )


def fast() -> TrainConfig:
    """A model that decodes with 25 instead of 100 thousand multiply-accumulates a pixel.

    It is the default model with another g_s, most of whose work is at 1/2 of the resolution.

    - Source: this project, docs/notebook/18: the shape of g_s.
    - Command: python train.py fast --data memory:photos/ --workdir runs/fast
      --export runs/bundle
    - Hardware, time, result: not run yet in this size.
    """
    transforms = PyramidTransforms(synthesis_widths=(36, 32, 40, 80), synthesis_depths=(1, 1, 1, 2))
    model = dataclasses.replace(default_model(), transforms=transforms)
    return dataclasses.replace(default(), model=model)


def paper_warmup() -> TrainConfig:
    """The paper's first stage: the full rate alone, no samples, groups of equal rate.

    2048 MSE + 8 LPIPS + bpp + (standard deviation - minimum of the groups' bpp).

    - Source: paper notes 2.7; 16 000 images in batches of 8, one epoch.
    - Command: python train.py paper_warmup --data images/ --workdir runs/warmup
    - Hardware: one GPU in the paper. Time, result: no long run of it has been made here.
    """
    loss = dataclasses.replace(
        paper_loss(), full_share=1.0, levels="mixed", lmbda_consistency=0.0, lmbda_balance=1.0
    )
    return dataclasses.replace(paper(), loss=loss, steps=2000, batch_size=8, weight_decay=0.0)


def paper() -> TrainConfig:
    """The paper's second stage: all levels in turn, M samples, latent consistency.

    M is 1; the paper also has M = 5 (``--loss.num-samples 5``). No flips, no decay of the rate, no
    average of the parameters, reconstructions clipped in the loss, as the authors do.

    - Source: paper notes 1.2, 1.3 and 2.7; 100 000 images, 160 epochs of 6250 steps.
    - Command: python train.py paper --data images/ --workdir runs/paper
      --init-from runs/warmup
    - Hardware: eight GPUs in the paper. Time, result: no long run of it has been made here.
    """
    return TrainConfig(
        model=paper_model(),
        loss=paper_loss(),
        data=DataConfig(flip=False, transpose=0.0),
        steps=1_000_000,
        batch_size=16,
        crop_size=256,
        learning_rate=1e-4,
        decay="constant",
        warmup_steps=0,
        weight_decay=5e-5,
        auxiliary_learning_rate=1e-3,
        clip_norm=0.5,
        ema_decay=0.0,
        save_every=2000,
    )


def paper_gan() -> TrainConfig:
    """The paper's third stage: LPIPS + G, a discriminator conditioned on y_s.

    - Source: paper notes 1.3, 2.7 and 2.8; 32 epochs of 6250 steps.
    - Command: python train.py paper_gan --data images/ --workdir runs/paper_gan
      --init-from runs/paper
    - Hardware: eight GPUs in the paper. Time, result: no long run of it has been made here.
    """
    loss = dataclasses.replace(paper_loss(), adversarial_weight=1.0)
    return dataclasses.replace(paper(), loss=loss, steps=200_000)


def smoke() -> TrainConfig:
    """A tiny model, to see that everything runs.

    - Source: this project.
    - Command: python train.py smoke --data photos/ --workdir runs/smoke
    - Hardware, time: two CPU cores, under a minute, nearly all of it compilation.
    - Result: pictures that can be told apart, no more.
    """
    model = ModelConfig(
        levels=LevelConfig(channels=(2, 2, 4), refinements=(0, 0, 2)),
        transforms=PyramidTransforms(
            widths=(8, 8, 8, 8), analysis_depths=(1, 1, 1, 1), synthesis_depths=(1, 1, 1, 1)
        ),
        entropy=CheckerboardEntropy(
            hyper_channels=2, hyper_width=8, context_width=4, anchor_width=4, head_width=8
        ),
    )
    return TrainConfig(
        model=model,
        loss=geometric_loss((4, 1), (40, 1000), (0, 0), model.num_levels),
        steps=20,
        batch_size=2,
        crop_size=64,
        warmup_steps=5,
        log_every=5,
        save_every=10,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    f.__name__: f for f in (default, default_gan, fast, paper_warmup, paper, paper_gan, smoke)
}


def preset(name: str) -> TrainConfig:
    """The config of the preset `name`, one of `PRESETS`.

    Raises:
        ValueError: For an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
