"""The discriminators of the adversarial stage: D(picture | y_s).

`patch`, the paper's conditional PatchGAN:

    y_s of the level --3x3 convolution of that level--> 12 features, repeated to every pixel
    picture ---------------------------------------------------------------------+--> 15 channels
    four convolutions 4x4 of stride 2 with spectral normalisation --> 1x1 --> logits at 1/16

`alexnet`, small networks on the layers that LPIPS compares; AlexNet itself stays as it is:

    y_s of the level --3x3 convolution of that level--> 12 features, resized to each layer
    five layers of the picture, scaled to unit length --> 1x1 ----+--> 3x3 --> 1x1 --> logits each
                                                all with spectral normalisation

Spectral normalisation (Miyato et al. 2018) divides a kernel by an estimate of its largest singular
value; the vectors of the estimate are the collection `batch_stats`, and
`sic_jax.training.step.spectral_step` takes a step of it.

Source: paper notes 2.8 (HiFiC's discriminator with a head a level); a fixed network under the
discriminator: Sauer et al., "Projected GANs Converge Faster" (NeurIPS 2021).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sic_jax.fields import require
from sic_jax.metrics.convnet import Features
from sic_jax.metrics.lpips_metric import LAYER_CHANNELS
from sic_jax.model.levels import level_mask
from sic_jax.model.model_config import ModelConfig

NETWORKS = ("patch", "alexnet")
"""Kinds of discriminators."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """A discriminator; made where `LossConfig.adversarial_weight` is not 0."""

    network: str = "patch"
    """What judges a picture. `patch`: four convolutions. `alexnet`: small networks on the features
    of LPIPS, which are computed for the loss anyway."""
    features: tuple[int, ...] = (64, 128, 256, 512)
    """Features of the four convolutions of `patch`, each of stride 2."""
    head_width: int = 64
    """Width of the networks of `alexnet`, in features."""
    condition_features: int = 12
    """Features that y_s is mapped to; they join the picture or its features."""
    ramp_steps: int = 0
    """Steps in which the weight of the adversarial loss rises from 0, while the discriminator
    learns."""
    learning_rate: float = 2e-4
    """Learning rate of the discriminator's AdamW, constant."""
    weight_decay: float = 5e-5
    """Weight decay of the discriminator's AdamW."""

    def __post_init__(self) -> None:
        """Check the fields."""
        f = self.features
        require(len(f) == 4 and all(n > 0 for n in f), self, "features", f, "four positive counts")
        require(self.network in NETWORKS, self, "network", self.network, " or ".join(NETWORKS))
        for name in ("condition_features", "head_width"):
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")
        require(self.ramp_steps >= 0, self, "ramp_steps", self.ramp_steps, "at least 0")
        require(self.learning_rate > 0, self, "learning_rate", self.learning_rate, "positive")
        require(self.weight_decay >= 0, self, "weight_decay", self.weight_decay, "at least 0")


_SLOPE = 0.2
_NORMAL = nn.initializers.kaiming_normal()


class Discriminator(nn.Module):
    """D(picture | y_s): logits that a picture is an original."""

    cfg: DiscriminatorConfig
    model: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array | Features,
        y_hat: jax.Array,
        level: jax.Array,
        *,
        update_stats: bool,
    ) -> tuple[jax.Array, ...]:
        """Maps of logits [N, h, w, 1]: one at 1/16 of the picture, or one of each layer's size.

        Args:
            x: `patch`: pictures [N, H, W, 3], sides multiples of the model's stride s. `alexnet`:
                their `lpips_features`.
            y_hat: Latents [N, H/s, W/s, C]; channels above `level` are not read.
            level: int [N], 1 to L.
            update_stats: Take a step of the power iteration; `batch_stats` must be mutable.
        """
        y_s = jnp.where(level_mask(level, self.model.levels), jax.lax.stop_gradient(y_hat), 0)
        condition = self._condition(y_s, level)
        if isinstance(x, tuple):
            return tuple(self._judge_layer(h, condition, update_stats) for h in x)
        h = jnp.concatenate([x, _repeat(condition, self.model.stride)], axis=-1)
        for features in self.cfg.features:
            conv = nn.Conv(features, (4, 4), strides=2, padding=1, kernel_init=_NORMAL)
            h = nn.SpectralNorm(conv)(h, update_stats=update_stats)
            h = nn.leaky_relu(h, _SLOPE)
        return (nn.Conv(1, (1, 1), use_bias=False, kernel_init=_NORMAL)(h),)

    def _judge_layer(self, h: jax.Array, condition: jax.Array, update_stats: bool) -> jax.Array:
        """Logits [N, h, w, 1] of a layer [N, h, w, F] of AlexNet."""

        def conv(features: int, side: int, h: jax.Array) -> jax.Array:
            layer = nn.Conv(features, (side, side), kernel_init=_NORMAL)
            out: jax.Array = nn.SpectralNorm(layer)(h, update_stats=update_stats)
            return out

        # Features of unit length are small: a bound on the slope would keep the logits near 0.
        h = h.astype(jnp.float32) * h.shape[-1] ** 0.5
        size = (h.shape[0], *h.shape[1:3], condition.shape[-1])
        resized = jax.image.resize(condition, size, "nearest")
        h = nn.leaky_relu(conv(self.cfg.head_width, 1, h), _SLOPE)
        h = jnp.concatenate([h, resized], axis=-1)
        h = nn.leaky_relu(conv(self.cfg.head_width, 3, h), _SLOPE)
        return conv(1, 1, h)

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


def example_inputs(
    cfg: DiscriminatorConfig, model: ModelConfig
) -> tuple[jax.Array | Features, jax.Array, jax.Array]:
    """What the network judges, latents and a level, as small as the network takes them.

    Returns:
        Zeros [1, 4*s, 4*s, 3], or those of five layers [1, 4, 4, F]; zeros [1, 4, 4, C]; and level
        1 as int32 [1]. s is the model's stride.
    """
    side = 4
    x: jax.Array | Features = jnp.zeros((1, side * model.stride, side * model.stride, 3))
    if cfg.network == "alexnet":
        x = tuple(jnp.zeros((1, side, side, n)) for n in LAYER_CHANNELS)
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
