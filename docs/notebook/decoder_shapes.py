"""Shapes of g_s that the small trials compare and the library does not have."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sic_jax.model.levels import LevelConfig
from sic_jax.model.maps import depth_to_space, log_compress, space_to_depth
from sic_jax.model.transforms.pyramid import PyramidTransforms, ResidualBlock
from sic_jax.sizes import Size


@dataclass(frozen=True, kw_only=True)
class ShapedTransforms(PyramidTransforms):
    """Pyramid transforms with another kind of g_s; `shape` is one of the classes below."""

    kind: ClassVar[str] = "shaped"
    shape: str = "haar"

    def synthesis(self, levels: LevelConfig, dtype: Any = None, remat: bool = False) -> nn.Module:
        """See `PyramidTransforms`."""
        shapes: dict[str, Any] = {"haar": Haar, "depthwise": Depthwise, "renderer": Renderer}
        network: nn.Module = shapes[self.shape](self, levels.num_levels)
        return network


class Stages(nn.Module):
    """`PyramidSynthesis` with other blocks, or another way from one stage to the next."""

    cfg: ShapedTransforms
    num_levels: int

    block: ClassVar[Any] = ResidualBlock

    @nn.compact
    def __call__(self, y_hat: jax.Array, level: jax.Array, size: Size = None) -> jax.Array:
        """As `PyramidSynthesis`, for pictures that fill their array."""
        cfg, widths = self.cfg, self.cfg.synthesis_widths[::-1]
        linear = _linear(self, y_hat, level)
        h = nn.Conv(widths[0], (3, 3))(log_compress(y_hat))
        for stage, width in enumerate(widths):
            if stage:
                h = self.up(nn.Conv(4 * width, (1, 1))(h))
            if stage == len(widths) - 1:
                h = h + nn.Conv(width, (3, 3))(space_to_depth(linear, 2))
            for _ in range(cfg.synthesis_depths[stage]):
                h = self.block(width, self.num_levels)(h, level)
        last = nn.Conv(12, (3, 3), kernel_init=nn.initializers.zeros)(h)
        return linear + 0.5 + depth_to_space(last, 2)

    def up(self, h: jax.Array) -> jax.Array:
        """[B, h, w, 4 F] to twice the resolution, [B, 2h, 2w, F]."""
        return depth_to_space(h, 2)


class Haar(Stages):
    """Features are the four bands of a Haar transform."""

    def up(self, h: jax.Array) -> jax.Array:
        """See `Stages`."""
        a, b, c, d = jnp.split(h, 4, axis=-1)
        mixed = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
        return depth_to_space(jnp.concatenate(mixed, axis=-1) / 2, 2)


class DepthwiseBlock(nn.Module):
    """x + conv1x1(act(conv1x1(depthwise 3x3(x)))), twice as wide between the 1x1 convolutions."""

    features: int
    num_levels: int

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        """As `ResidualBlock`."""
        f, (rows, columns) = self.features, x.shape[1:3]
        taps = self.param("taps", nn.initializers.normal(1 / 3), (3, 3, f))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        # As sums of products, which XLA fuses; its depthwise convolution is slow on CPUs.
        spread = sum(
            padded[:, i : i + rows, j : j + columns] * taps[i, j][None, None, None]
            for i in range(3)
            for j in range(3)
        )
        h = nn.Conv(2 * f, (1, 1))(spread)
        table = self.param("level", nn.initializers.zeros, (self.num_levels, 2, 2 * f))
        gain, bias = jnp.moveaxis(table[level - 1], 1, 0)[:, :, None, None]
        h = nn.leaky_relu(h * (1 + gain) + bias, 0.1)
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        return x + nn.Conv(f, (1, 1), kernel_init=small)(h)


class Depthwise(Stages):
    """`DepthwiseBlock` in place of dense blocks."""

    block: ClassVar[Any] = DepthwiseBlock


class Renderer(nn.Module):
    """Blocks at 1/16 and 1/8, whose features scale and shift those of a pointwise network at 1/4.

    The last depth is that of the pointwise network, the second width its width.
    """

    cfg: ShapedTransforms
    num_levels: int

    @nn.compact
    def __call__(self, y_hat: jax.Array, level: jax.Array, size: Size = None) -> jax.Array:
        """See `Stages`."""
        cfg = self.cfg
        _, fine, middle, coarse = cfg.synthesis_widths
        linear = _linear(self, y_hat, level)
        h = nn.Conv(coarse, (3, 3))(log_compress(y_hat))
        for width, depth in zip((coarse, middle), cfg.synthesis_depths[:2], strict=True):
            for _ in range(depth):
                h = ResidualBlock(width, self.num_levels)(h, level)
            h = depth_to_space(nn.Conv(4 * middle, (1, 1))(h), 2)
        f = nn.Conv(fine, (1, 1))(space_to_depth(linear, 4)) + nn.Conv(fine, (1, 1))(h)
        for _ in range(cfg.synthesis_depths[3]):
            scale, shift = jnp.split(nn.Conv(2 * fine, (1, 1))(h), 2, axis=-1)
            g = nn.leaky_relu(nn.Conv(fine, (1, 1))(f) * (1 + scale) + shift, 0.1)
            f = f + nn.Conv(fine, (1, 1))(g)
        last = nn.Conv(48, (1, 1), kernel_init=nn.initializers.zeros)(f)
        return linear + 0.5 + depth_to_space(last, 4)


def _linear(network: nn.Module, y_hat: jax.Array, level: jax.Array) -> jax.Array:
    """The linear branch, under the names of `PyramidSynthesis`."""
    channels, num_levels = y_hat.shape[-1], network.num_levels
    basis = network.param("linear", nn.initializers.normal(0.04), (channels, 768))
    gain = network.param("linear_gain", nn.initializers.ones, (num_levels, channels))
    return depth_to_space((y_hat * gain[level - 1][:, None, None]) @ basis, 16)
