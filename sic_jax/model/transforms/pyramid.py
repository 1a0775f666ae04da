"""Transforms of the family `pyramid`, the default: residual blocks at four resolutions.

    x --+-- 2x2 patches, 3x3 -- blocks at 1/2 -- at 1/4 -- at 1/8 -- at 1/16, 1x1 --(+)-- y
        +-- 16x16 patches times a matrix -------------------------------------------+

    y_hat --+-- log_compress, 3x3 -- blocks at 1/16 -- at 1/8 -- at 1/4 --(+)-- at 1/2 --(+)-- x_hat
            |                                                              | 3x3          |
            +-- times a gain of the level, times a matrix, 16x16 patches --+--------------+

Going down, 2x2 positions become channels and a 1x1 convolution follows; going up, the same the
other way round. The matrices, the linear branch, start as the Karhunen-Loeve transform of training
patches, and the last layers at zero, so that an untrained model is the linear codec. The blocks of
g_s know the level. All convolutions are dense 1x1 and 3x3 ones with zero padding: depthwise ones
are slower on CPUs.

Images are NHWC, [0, 1], sides a multiple of 16. Source: this project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from sic_jax.fields import MAX_WIDTH, may_change, require
from sic_jax.model.levels import LevelConfig, refinement_sources
from sic_jax.model.maps import depth_to_space, log_compress, space_to_depth
from sic_jax.model.transforms.transforms import Transforms
from sic_jax.model.tree import Params
from sic_jax.sizes import Size, zero_outside

_STRIDE = 16
_FINEST = 2
"""Pixels that a position of the finest stage covers in each direction."""
_LEAK = 0.1


@dataclass(frozen=True, kw_only=True)
class PyramidTransforms(Transforms):
    """Sizes of the networks, and how their linear branches start."""

    kind: ClassVar[str] = "pyramid"
    stride: ClassVar[int] = _STRIDE
    sized: ClassVar[bool] = True

    widths: tuple[int, int, int, int] = (64, 96, 160, 256)
    """Widths of the networks at 1/2, 1/4, 1/8 and 1/16 of the picture's resolution, in features."""
    synthesis_widths: tuple[int, ...] = ()
    """Widths of g_s at the same resolutions, where they are not those of g_a. None given: `widths`
    are those of both."""
    analysis_depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Number of residual blocks of g_a at 1/2, 1/4, 1/8 and 1/16."""
    synthesis_depths: tuple[int, int, int, int] = (3, 4, 4, 3)
    """Number of residual blocks of g_s at 1/16, 1/8, 1/4 and 1/2."""
    start_step: float = may_change(0.25, on="init_from")
    """Quantisation step of the linear branch before training, for images in [0, 1]."""
    coarse_start_step: float = may_change(0.4, on="init_from")
    """Quantisation step before training of the channels that later levels refine."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("widths", "synthesis_widths"):
            widths = getattr(self, name)
            ok = all(0 < w <= MAX_WIDTH for w in widths)
            require(ok, self, name, widths, f"positive, at most {MAX_WIDTH}")
        ok = len(self.synthesis_widths) in (0, 4)
        require(ok, self, "synthesis_widths", self.synthesis_widths, "four, or none")
        for name in ("analysis_depths", "synthesis_depths"):
            depths = getattr(self, name)
            require(all(0 <= d <= 64 for d in depths), self, name, depths, "0 to 64 each")
        for name in ("start_step", "coarse_start_step"):
            require(getattr(self, name) > 0, self, name, getattr(self, name), "positive")

    @property
    def analysis_reach(self) -> int:
        """Latent positions beyond its own that a latent of g_a depends on, in each direction."""
        first = _FINEST
        blocks: int = sum(d * _FINEST * 2**k for k, d in enumerate(self.analysis_depths))
        return -(-(first + blocks) // _STRIDE)

    @property
    def synthesis_reach(self) -> int:
        """Latent positions beyond its own that a pixel of g_s depends on, in each direction."""
        first, last = _STRIDE, _FINEST
        blocks: int = sum(d * _STRIDE // 2**k for k, d in enumerate(self.synthesis_depths))
        return -(-(first + blocks + last) // _STRIDE)

    def analysis(
        self, levels: LevelConfig, dtype: DTypeLike | None = None, remat: bool = False
    ) -> nn.Module:
        """See `Transforms`."""
        return PyramidAnalysis(self, levels.num_base_channels, dtype, remat)

    def synthesis(
        self, levels: LevelConfig, dtype: DTypeLike | None = None, remat: bool = False
    ) -> nn.Module:
        """See `Transforms`."""
        return PyramidSynthesis(self, levels.num_levels, dtype, remat)

    def start(
        self,
        params: Params,
        levels: LevelConfig,
        patches: Callable[[int], NDArray[np.float32]],
    ) -> Params:
        """See `Transforms`: the linear branches are the Karhunen-Loeve transform of patches."""
        return with_klt(params, self, patches(_STRIDE), levels)

    def learning_rate_scale(self, path: str) -> float:
        """The linear branches learn ten times slower than the networks."""
        return 0.1 if path in ("g_a/linear", "g_s/linear") else 1.0


class ResidualBlock(nn.Module):
    """x + conv1x1(act(conv3x3(x))), with an optional gain and bias of each level."""

    features: int
    num_levels: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None = None) -> jax.Array:
        """The map [B, h, w, features] after the block; level: int [B], 1-based, where needed."""
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype)(x)
        if self.num_levels and level is not None:
            shape = (self.num_levels, 2, self.features)
            table = self.param("level", nn.initializers.zeros, shape)
            gain, bias = jnp.moveaxis(table[level - 1], 1, 0)[:, :, None, None].astype(h.dtype)
            h = h * (1 + gain) + bias
        h = nn.leaky_relu(h, _LEAK)
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        return x + nn.Conv(self.features, (1, 1), kernel_init=small, dtype=self.dtype)(h)


def _blocks(depths: tuple[int, ...], stage: int, remat: bool, *args: Any) -> list[nn.Module]:
    """The residual blocks of a stage; a transform's blocks are numbered from its first to its last.

    Their parameters' names do not tell `remat`.
    """
    kind: Any = nn.remat(ResidualBlock) if remat else ResidualBlock
    first = sum(depths[:stage])
    return [kind(*args, name=f"ResidualBlock_{first + i}") for i in range(depths[stage])]


class PyramidAnalysis(nn.Module):
    """g_a: image [B, H, W, 3] to `channels` channels of y, [B, H/16, W/16, channels], unquantised.

    Features are of type `dtype`; parameters, the linear branch and the result are float32.
    """

    cfg: PyramidTransforms
    channels: int
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, size: Size = None) -> jax.Array:
        """Latents of images [B, H, W, 3] in [0, 1], H and W multiples of 16.

        `size` is that of the latents, if the images do not fill their array.
        """
        cfg = self.cfg
        # What lies beside an image must be zero, as padding is, wherever a 3x3 convolution reads.
        x = zero_outside(x - 0.5, size, _STRIDE)
        shape = (3 * _STRIDE**2, self.channels)
        linear = space_to_depth(x, _STRIDE) @ self.param("linear", _LINEAR_INIT, shape)
        h = nn.Conv(cfg.widths[0], (3, 3), dtype=self.dtype)(space_to_depth(x, _FINEST))
        for stage, width in enumerate(cfg.widths):
            if stage:
                h = nn.Conv(width, (1, 1), dtype=self.dtype)(space_to_depth(h, 2))
            scale = _STRIDE // _FINEST // 2**stage
            for block in _blocks(cfg.analysis_depths, stage, self.remat, width, 0, self.dtype):
                h = block(zero_outside(h, size, scale))
        last = nn.Conv(self.channels, (1, 1), kernel_init=nn.initializers.zeros)
        return linear + last(h.astype(jnp.float32))


class PyramidSynthesis(nn.Module):
    """g_s: decoded latents y_hat [B, h, w, C] and their level to an image [B, 16h, 16w, 3].

    The image is not clipped to [0, 1]: whoever writes or measures it does.
    """

    cfg: PyramidTransforms
    num_levels: int
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, y_hat: jax.Array, level: jax.Array, size: Size = None) -> jax.Array:
        """The image of y_hat [B, h, w, C] at level int [B], 1-based.

        `size` is that of the latents, if they do not fill their array.
        """
        cfg, channels = self.cfg, y_hat.shape[-1]
        y_hat = zero_outside(y_hat, size)
        widths = (cfg.synthesis_widths or cfg.widths)[::-1]
        basis = self.param("linear", _LINEAR_INIT, (channels, 3 * _STRIDE**2))
        # Drawn details are worth less, the lower the level: the gain can shrink them.
        ones = nn.initializers.ones
        gain = self.param("linear_gain", ones, (self.num_levels, channels))
        linear = depth_to_space((y_hat * gain[level - 1][:, None, None]) @ basis, _STRIDE)
        h = nn.Conv(widths[0], (3, 3), dtype=self.dtype)(log_compress(y_hat))
        for stage, width in enumerate(widths):
            if stage:
                h = depth_to_space(nn.Conv(4 * width, (1, 1), dtype=self.dtype)(h), 2)
            if stage == len(widths) - 1:
                fine = space_to_depth(linear, _FINEST)
                h = h + nn.Conv(width, (3, 3), dtype=self.dtype)(fine)
            sizes = (width, self.num_levels, self.dtype)
            for block in _blocks(cfg.synthesis_depths, stage, self.remat, *sizes):
                h = block(zero_outside(h, size, 2**stage), level)
        h = zero_outside(h, size, _STRIDE // _FINEST)
        zeros = nn.initializers.zeros
        last = nn.Conv(3 * _FINEST**2, (3, 3), kernel_init=zeros, dtype=self.dtype)(h)
        return linear + 0.5 + depth_to_space(last.astype(jnp.float32), _FINEST)


_LINEAR_INIT = nn.initializers.normal(0.04)


def karhunen_loeve(patches: NDArray[Any], num_components: int) -> NDArray[Any]:
    """Orthonormal components [D, num_components] of patches [N, D], by falling energy.

    The energy is about zero, not about the mean: the transform has no offset. Signs are fixed by
    the largest entry of each component being positive.
    """
    second_moment = (patches.T @ patches).astype(np.float64) / len(patches)
    _, vectors = np.linalg.eigh(second_moment)
    basis = vectors[:, ::-1][:, :num_components]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], 0)
    signed: NDArray[np.float32] = (basis * np.sign(largest)).astype(np.float32)
    return signed


def with_klt(
    params: Params, cfg: PyramidTransforms, patches: NDArray[Any], levels: LevelConfig
) -> Params:
    """Parameters of a model whose linear branches are the KLT of patches.

    Args:
        params: Of the model.
        cfg: Of its transforms.
        patches: Of training images, less 0.5, [N, 768].
        levels: The channels of y.
    """
    sources = refinement_sources(levels)
    is_base = sources < 0
    basis = karhunen_loeve(patches, int(is_base.sum()))
    steps = np.full(len(sources), cfg.start_step, np.float32)
    steps[sources[~is_base]] = cfg.coarse_start_step
    steps = np.where(is_base, steps, steps[sources] / levels.refine_factor).astype(np.float32)
    component = (np.cumsum(is_base) - 1)[np.where(is_base, np.arange(len(sources)), sources)]
    return {
        **params,
        "g_a": {**params["g_a"], "linear": basis / steps[is_base]},
        "g_s": {**params["g_s"], "linear": (basis[:, component] * steps).T},
    }
