"""The conditional PatchGAN of the adversarial stage.

    y_s of the level --3x3 convolution of that level--> 12 features, repeated to every pixel
    picture ---------------------------------------------------------------------+--> 15 channels
    four convolutions 4x4 of stride 2 with spectral normalisation --> 1x1 --> logits at 1/16

Spectral normalisation (Miyato et al. 2018) divides a kernel by an estimate of its largest singular
value; the vectors of the estimate are the collection `batch_stats`, and
`sic_jax.training.step.spectral_step` takes a step of it.

Source: paper notes 2.8 (HiFiC's discriminator with a head a level).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sic_jax.fields import require
from sic_jax.model.levels import level_mask
from sic_jax.model.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The conditional PatchGAN; made where `LossConfig.adversarial_weight` is not 0."""

    features: tuple[int, ...] = (64, 128, 256, 512)
    """Features of its four convolutions, each of stride 2."""
    condition_features: int = 12
    """Features that y_s is mapped to; they join the three channels of the picture."""
    learning_rate: float = 2e-4
    """Learning rate of the discriminator's AdamW, constant."""
    weight_decay: float = 5e-5
    """Weight decay of the discriminator's AdamW."""

    def __post_init__(self) -> None:
        """Check the fields."""
        f = self.features
        require(len(f) == 4 and all(n > 0 for n in f), self, "features", f, "four positive counts")
        n = self.condition_features
        require(n > 0, self, "condition_features", n, "positive")
        require(self.learning_rate > 0, self, "learning_rate", self.learning_rate, "positive")
        require(self.weight_decay >= 0, self, "weight_decay", self.weight_decay, "at least 0")


_SLOPE = 0.2


class Discriminator(nn.Module):
    """D(picture | y_s): logits that a picture is an original."""

    cfg: DiscriminatorConfig
    model: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, y_hat: jax.Array, level: jax.Array, *, update_stats: bool
    ) -> jax.Array:
        """Logits [N, H/16, W/16, 1].

        Args:
            x: Pictures [N, H, W, 3], sides multiples of the model's stride s.
            y_hat: Latents [N, H/s, W/s, C]; channels above `level` are not read.
            level: int [N], 1 to L.
            update_stats: Take a step of the power iteration; `batch_stats` must be mutable.
        """
        y_s = jnp.where(level_mask(level, self.model.levels), jax.lax.stop_gradient(y_hat), 0)
        condition = self._condition(y_s, level)
        h = jnp.concatenate([x, _repeat(condition, self.model.stride)], axis=-1)
        normal = nn.initializers.kaiming_normal()
        for features in self.cfg.features:
            conv = nn.Conv(features, (4, 4), strides=2, padding=1, kernel_init=normal)
            h = nn.SpectralNorm(conv)(h, update_stats=update_stats)
            h = nn.leaky_relu(h, _SLOPE)
        logits: jax.Array = nn.Conv(1, (1, 1), use_bias=False, kernel_init=normal)(h)
        return logits

    def _condition(self, y_s: jax.Array, level: jax.Array) -> jax.Array:
        """Features [N, h, w, F] by a 3x3 convolution with kernel and bias of each image's level."""
        levels, channels = self.model.num_levels, self.model.num_channels
        features = self.cfg.condition_features
        shape = (levels, 3, 3, channels, features)
        kernel = self.param("condition_kernel", _level_kernels(self.model), shape)
        bias = self.param("condition_bias", nn.initializers.zeros, (levels, features))
        padded = jnp.pad(y_s, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        h, w = y_s.shape[1:3]
        at = level - 1
        out = bias[at][:, None, None]
        for i in range(3):
            for j in range(3):
                part = padded[:, i : i + h, j : j + w]
                out = out + jnp.einsum("nhwc,ncf->nhwf", part, kernel[at, i, j])
        features_of: jax.Array = nn.leaky_relu(out, _SLOPE)
        return features_of


def example_inputs(model: ModelConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A picture, its latents and its level, as small as the network takes them.

    Returns:
        Zeros [1, 4*s, 4*s, 3] and [1, 4, 4, C], and level 1 as int32 [1]; s is the model's stride.
    """
    side = 4
    x = jnp.zeros((1, side * model.stride, side * model.stride, 3))
    return x, jnp.zeros((1, side, side, model.num_channels)), jnp.ones((1,), jnp.int32)


def _level_kernels(model: ModelConfig) -> nn.initializers.Initializer:
    """Kaiming-normal kernels whose fan-in is the number of channels that their level reads."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        read = jnp.cumsum(jnp.array(model.levels.channels))
        scale = jnp.sqrt(2 / (9 * read)).astype(dtype)
        return scale[:, None, None, None, None] * jax.random.normal(key, shape, dtype)

    return init


def _repeat(x: jax.Array, times: int) -> jax.Array:
    """Nearest-neighbour enlargement of [N, h, w, F]."""
    return jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)
