"""Named training runs as lab notes: source, command, hardware, time, result.

Level weights are written as lambda_r(l) times (1, lambda_d / lambda_r, lambda_p / lambda_r).
"""

import dataclasses

from sic_jax.config import LossConfig, ModelConfig, TrainConfig


def _geometric(first: float, last: float, num_levels: int) -> tuple[float, ...]:
    return tuple(first * (last / first) ** (i / (num_levels - 1)) for i in range(num_levels))


def _weights(
    rate: tuple[float, float], dist: tuple[float, float], perc: tuple[float, float], levels: int
) -> LossConfig:
    """A loss whose lambda_r and ratios to lambda_r are geometric in the level."""
    r = _geometric(*rate, levels)
    zero = (0.0,) * levels
    d = _geometric(*dist, levels)
    p = _geometric(*perc, levels) if any(perc) else zero
    return LossConfig(
        lmbda_rate=r,
        lmbda_dist=tuple(a * b for a, b in zip(r, d, strict=True)),
        lmbda_perc=tuple(a * b for a, b in zip(r, p, strict=True)),
    )


def paper_loss(num_levels: int = 16) -> LossConfig:
    """The paper's coefficients: lambda_d = 128 l, lambda_p = 2^(5-l/8), lambda_r = 2^(6-3l/8)."""
    levels = range(1, num_levels + 1)
    return LossConfig(
        lmbda_rate=tuple(2 ** (6 - 3 * x / 8) for x in levels),
        lmbda_dist=tuple(128.0 * x for x in levels),
        lmbda_perc=tuple(2 ** (5 - x / 8) for x in levels),
        temperature=1.0,
    )


def paper_model() -> ModelConfig:
    """The paper's network in its published size, 87.2 million parameters (paper notes 2.1 to 2.5).

    512 channels of y in 16 levels of 32; details are drawn uniformly around the hyper mean.
    """
    return ModelConfig(
        level_channels=(32,) * 16,
        level_refinements=(0,) * 16,
        transforms="swin",
        context="raster",
        hyper_channels=384,
        detail="uniform",
        temperature=1.0,
    )


def preset(name: str) -> TrainConfig:
    """The preset `name`.

    `mse`: first stage of the default model, rate and squared error only, details at their mean.
    `perceptual`: second stage, from the first one's weights, with LPIPS.
    `paper_weights`: the default model with the paper's level weights.
    `smoke`: a tiny model for tests; seconds on a CPU.

    Raises:
      ValueError: For an unknown name.
    """
    model = ModelConfig()
    levels = model.num_levels
    if name == "mse":
        loss = _weights((8, 1), (60, 2000), (0, 0), levels)
        return TrainConfig(model=model, loss=loss, steps=2000, learning_rate=7e-4)
    if name == "perceptual":
        loss = _weights((8, 1), (15, 500), (0.45, 3.5), levels)
        loss = dataclasses.replace(loss, temperature=0.5, sampled_share=0.5)
        return TrainConfig(model=model, loss=loss, steps=3000, learning_rate=4e-4)
    if name == "paper_weights":
        return TrainConfig(model=model, loss=paper_loss(levels))
    if name == "smoke":
        tiny = ModelConfig(
            level_channels=(2, 2, 4),
            level_refinements=(0, 0, 2),
            width_8=8,
            width_16=8,
            analysis_blocks=(1, 1),
            synthesis_blocks=(1, 1),
            hyper_channels=2,
            hyper_width=8,
            context_width=4,
            anchor_width=4,
            head_width=8,
        )
        return TrainConfig(
            model=tiny,
            loss=_weights((4, 1), (40, 1000), (0, 0), 3),
            steps=20,
            batch_size=2,
            crop_size=64,
            warmup_steps=5,
            log_every=5,
            save_every=10,
        )
    raise ValueError(f"no preset {name!r}; there are mse, perceptual, paper_weights, smoke")


PRESETS = ("mse", "perceptual", "paper_weights", "smoke")
