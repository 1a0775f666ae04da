"""Analysis g_a and synthesis g_s of the `conv` family: a linear branch beside a small network.

    x --+-- 16x16 patches . K^T / step ------------------------(+)-- y
        +-- 8x8 patches, blocks at 1/8, blocks at 1/16, 1x1 ----+

    y --+-- K . (y * step), 16x16 patches ---------------------(+)-- deblocking, blocks at 1/2 --
        +-- log compression, blocks at 1/16, at 1/8, 8x8 -------+     (level-modulated)  x_hat

Last layers start at zero, so that an untrained model is the linear codec. Images are
NHWC, [0, 1], sides a multiple of 16. Only dense 3x3 and 1x1 convolutions: depthwise ones are
slower on XLA's CPU backend.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sic_jax.config import ModelConfig
from sic_jax.model.deblock import deblock

PATCH = 16
"""Pixels of an image a latent position covers in each direction."""
_STEM = 8


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """[B, H, W, C] to [B, H/block, W/block, block*block*C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // (block * block))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, -1)


def log_compress(y: jax.Array) -> jax.Array:
    """sign(y) log(1 + |y|): keeps the large first components from swamping a network."""
    # Not with jnp.sign and jnp.abs: their derivatives at 0 would stop the gradient of every zero
    # symbol, where it is 1.
    negative = y < 0
    size = jnp.log1p(jnp.where(negative, -y, y))
    return jnp.where(negative, -size, size)


def analysis_margin(cfg: ModelConfig) -> int | None:
    """Latent positions that the pixels beyond an edge can change: the reach of g_a.

    None for the swin transforms: every pixel can change every position.
    """
    if cfg.transforms == "swin":
        return None
    # At 1/8: the stem, the blocks, and two samples of the strided convolution.
    at_8 = 1 + cfg.analysis_blocks[0] + 2
    return -(-at_8 * _STEM // PATCH) + cfg.analysis_blocks[1]


def synthesis_margin(cfg: ModelConfig) -> int | None:
    """Latent positions beyond an edge that can change its pixels: the reach of g_s, or None."""
    if cfg.transforms == "swin":
        return None
    at_8 = cfg.synthesis_blocks[0] + 1
    margin = 1 + cfg.synthesis_blocks[1] - (-at_8 * _STEM // PATCH)
    # The deblocking filter reads the neighbouring patches.
    margin += bool(cfg.deblock_jump)
    at_2 = cfg.restoration_blocks + 2
    return margin - (-at_2 * 2 // PATCH) if cfg.restoration_width else margin


class ResidualBlock(nn.Module):
    """x + conv1x1(act(conv3x3(x))), with an optional gain and bias a level."""

    features: int
    num_levels: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None = None) -> jax.Array:
        """X: [B, h, w, features]; level: int [B], 1-based, where num_levels > 0."""
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype)(x)
        if self.num_levels and level is not None:
            shape = (self.num_levels, 2, self.features)
            table = self.param("level", nn.initializers.zeros, shape)
            gain, bias = jnp.moveaxis(table[level - 1], 1, 0)[:, :, None, None].astype(h.dtype)
            h = h * (1 + gain) + bias
        h = nn.leaky_relu(h, 0.1)
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        return x + nn.Conv(self.features, (1, 1), kernel_init=small, dtype=self.dtype)(h)


def _block(index: int, remat: bool, *args: Any) -> nn.Module:
    """Residual block number `index` of a transform; its parameters' names do not tell `remat`."""
    kind: Any = nn.remat(ResidualBlock) if remat else ResidualBlock
    block: nn.Module = kind(*args, name=f"ResidualBlock_{index}")
    return block


class AnalysisTransform(nn.Module):
    """g_a: image [B, H, W, 3] to the base channels of y, [B, H/16, W/16, C_base], unquantised."""

    cfg: ModelConfig
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """X: [B, H, W, 3] in [0, 1], H and W multiples of 16."""
        cfg = self.cfg
        x = x - 0.5
        basis = self.param(
            "linear", nn.initializers.normal(0.04), (3 * PATCH * PATCH, cfg.num_base_channels)
        )
        linear = space_to_depth(x, PATCH) @ basis
        h = nn.Conv(cfg.width_8, (3, 3), dtype=self.dtype)(space_to_depth(x, _STEM))
        at_8, at_16 = cfg.analysis_blocks
        for i in range(at_8):
            h = _block(i, self.remat, cfg.width_8, 0, self.dtype)(h)
        h = nn.Conv(cfg.width_16, (4, 4), strides=2, padding=1, dtype=self.dtype)(h)
        for i in range(at_16):
            h = _block(at_8 + i, self.remat, cfg.width_16, 0, self.dtype)(h)
        last = nn.Conv(cfg.num_base_channels, (1, 1), kernel_init=nn.initializers.zeros)
        return linear + last(h.astype(jnp.float32))


class RestorationFilter(nn.Module):
    """The network that ends g_s: it sees the decoded pixels themselves, at half resolution.

    The blocks at 1/8 have to learn an edge anew for each place of an 8x8 patch that it can cross;
    this one learns it once. It adds to the image what its last layer says, at first nothing.
    """

    cfg: ModelConfig
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        """X: [B, H, W, 3], sides even; level: int [B], 1-based."""
        cfg, width = self.cfg, self.cfg.restoration_width
        h = nn.Conv(width, (3, 3), dtype=self.dtype)(space_to_depth(x - 0.5, 2))
        for i in range(cfg.restoration_blocks):
            h = _block(i, self.remat, width, cfg.num_levels, self.dtype)(h, level)
        zeros = nn.initializers.zeros
        last = nn.Conv(12, (3, 3), kernel_init=zeros, dtype=self.dtype)(nn.leaky_relu(h, 0.1))
        return x + depth_to_space(last.astype(jnp.float32), 2)


class SynthesisTransform(nn.Module):
    """g_s: decoded latents y_hat [B, h, w, C] and their level to an image [B, 16h, 16w, 3].

    The image is not clipped to [0, 1]: whoever writes or measures it does.
    """

    cfg: ModelConfig
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, y_hat: jax.Array, level: jax.Array) -> jax.Array:
        """y_hat: [B, h, w, C]; level: int [B], 1-based."""
        cfg = self.cfg
        shape = (cfg.num_channels, 3 * PATCH * PATCH)
        basis = self.param("linear", nn.initializers.normal(0.04), shape)
        # Drawn details are worth less, the lower the level: the gain can shrink them.
        ones = nn.initializers.ones
        gain = self.param("linear_gain", ones, (cfg.num_levels, cfg.num_channels))
        weighted = y_hat * gain[level - 1][:, None, None]
        linear = depth_to_space(weighted @ basis, PATCH)
        h = nn.Conv(cfg.width_16, (3, 3), dtype=self.dtype)(log_compress(y_hat))
        at_8, at_16 = cfg.synthesis_blocks
        for i in range(at_16):
            h = _block(i, self.remat, cfg.width_16, cfg.num_levels, self.dtype)(h, level)
        h = depth_to_space(nn.Conv(4 * cfg.width_8, (1, 1), dtype=self.dtype)(h), 2)
        for i in range(at_8):
            h = _block(at_16 + i, self.remat, cfg.width_8, cfg.num_levels, self.dtype)(h, level)
        zeros = nn.initializers.zeros
        last = nn.Conv(3 * _STEM * _STEM, (3, 3), kernel_init=zeros, dtype=self.dtype)(h)
        x_hat = linear + depth_to_space(last.astype(jnp.float32), _STEM) + 0.5
        if cfg.deblock_jump:
            x_hat = deblock(x_hat, cfg.deblock_jump, cfg.deblock_activity)
        if cfg.restoration_width:
            restoration = RestorationFilter(cfg, self.dtype, self.remat, name="restoration")
            x_hat = restoration(x_hat, level)
        return x_hat
