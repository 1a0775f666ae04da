"""Analysis g_a and synthesis g_s of the paper: Swin transformers.

    x --2x2 patches--> blocks --merge--> blocks --merge--> blocks --merge--> blocks --norm--> y
    y_hat --> blocks --split--> blocks --split--> blocks --split--> blocks --split, 3x3--> x_hat

A block is attention within windows and an MLP, each behind a layer norm and beside a shortcut;
every second block's windows are shifted by half a window, round the picture's edge, with a mask
between what does not belong together. A map whose sides are not multiples of the window is padded
at the right and at the bottom: the pads are zero behind the norm, and are attended to. Hence g_a
and g_s see a picture as a whole, and a cut-out of it differently.

Images are NHWC, [0, 1], sides a multiple of 16. Parameters and results are float32; `dtype` is what
products are computed in, softmax and layer norms always compute in float32. Reference: Liang et al.
2025; the authors' network, as described in the paper notes 2.1, 2.2 and 2.4; Liu et al. 2021.
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

from sic_jax.fields import MAX_WIDTH, require, require_width
from sic_jax.model.float_layers import torch_uniform
from sic_jax.model.levels import LevelConfig
from sic_jax.model.maps import depth_to_space, space_to_depth
from sic_jax.model.transforms.transforms import Transforms


@dataclass(frozen=True, kw_only=True)
class SwinTransforms(Transforms):
    """The paper's transforms; their narrowest features, at 1/16, are the channels of y.

    A stage is a resolution: g_a works at 1/2, 1/4, 1/8 and 1/16, g_s at 1/16, 1/8, 1/4 and 1/2.
    """

    kind: ClassVar[str] = "swin"
    stride: ClassVar[int] = 16

    analysis_widths: tuple[int, int, int] = (256, 384, 512)
    """Widths of g_a's first three stages, in features."""
    analysis_depths: tuple[int, int, int, int] = (1, 2, 2, 3)
    """Number of blocks in each stage of g_a; every second block has shifted windows."""
    synthesis_widths: tuple[int, int, int] = (512, 384, 256)
    """Widths of g_s's last three stages, in features."""
    synthesis_depths: tuple[int, int, int, int] = (3, 2, 2, 1)
    """Number of blocks in each stage of g_s."""
    num_heads: int = 16
    """Number of attention heads in every block."""
    window: int = 8
    """Side of an attention window in positions of the stage; even."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP, as a multiple of the block's width."""

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

    def check(self, levels: LevelConfig) -> None:
        """See `Transforms`."""
        heads = self.num_heads
        n, base = levels.num_channels, levels.num_base_channels
        allowed = f"a multiple of 4 and of num_heads = {heads}"
        require(n % heads == 0 and n % 4 == 0, levels, "num_channels", n, allowed)
        allowed = f"a multiple of num_heads = {heads}"
        require(base > 0 and base % heads == 0, levels, "num_base_channels", base, allowed)

    def analysis(
        self, levels: LevelConfig, dtype: DTypeLike | None = None, remat: bool = False
    ) -> nn.Module:
        """See `Transforms`."""
        return SwinAnalysis(self, levels.num_base_channels, dtype, remat)

    def synthesis(
        self, levels: LevelConfig, dtype: DTypeLike | None = None, remat: bool = False
    ) -> nn.Module:
        """See `Transforms`."""
        return SwinSynthesis(self, dtype, remat)


_MASKED = -100.0
# PyTorch's truncation, at +-2, is a hundred standard deviations away.
_INIT = nn.initializers.normal(0.02)


def _dense(features: int, dtype: DTypeLike | None, name: str, *, bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=_INIT, name=name)


def _norm(dtype: DTypeLike | None, name: str) -> Callable[[jax.Array], jax.Array]:
    norm = nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)

    def normalise(x: jax.Array) -> jax.Array:
        # Flax promotes bfloat16 to float32 implicitly; the tests forbid that everywhere else.
        with jax.numpy_dtype_promotion("standard"):
            y: jax.Array = norm(x)
        return y

    return normalise


def relative_positions(window: int) -> NDArray[np.int32]:
    """Index into the table of biases for each pair of positions of a window: int32 [n, n]."""
    row, column = np.divmod(np.arange(window**2, dtype=np.int32), window)
    rows = row[:, None] - row + window - 1
    columns = column[:, None] - column + window - 1
    index: NDArray[np.int32] = (rows * (2 * window - 1) + columns).astype(np.int32)
    return index


def regions(length: int, window: int) -> NDArray[np.int32]:
    """Parts of a side that belong together after the shift: int32 [length / window, window]."""
    position = np.arange(length)
    part = (position >= length - window).astype(np.int32) + (position >= length - window // 2)
    return part.reshape(-1, window).astype(np.int32)


def _separate(rows: int, columns: int, window: int) -> jax.Array:
    """Pairs in a shifted window that must not see each other: bool [R, C, n, n]."""
    # From two small constants: a mask of all windows would be megabytes in the program.
    row = jnp.asarray(regions(rows, window))[:, None, :, None]
    column = jnp.asarray(regions(columns, window))[None, :, None, :]
    part = (3 * row + column).reshape(rows // window, columns // window, window**2)
    return part[..., :, None] != part[..., None, :]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, shifted or not."""

    num_heads: int
    window: int
    shifted: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The map [B, h, w, C] after attention, of a normalised map of that shape."""
        b, h, w, c = x.shape
        m, heads = self.window, self.num_heads
        x = jnp.pad(x, ((0, 0), (0, -h % m), (0, -w % m), (0, 0)))
        if self.shifted:
            x = jnp.roll(x, (-(m // 2), -(m // 2)), (1, 2))
        rows, columns = x.shape[1] // m, x.shape[2] // m
        x = x.reshape(b, rows, m, columns, m, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, rows, columns, m * m, c)
        qkv = _dense(3 * c, self.dtype, "qkv")(x).reshape(b, rows, columns, m * m, 3, heads, -1)
        q, k, v = jnp.moveaxis(qkv, -3, 0)
        # Scaled before the product: in low precision the logits stay small.
        q = q * (c // heads) ** -0.5
        logits = jnp.einsum("bijqhd,bijkhd->bijhqk", q, k, preferred_element_type=jnp.float32)
        table = self.param("position_bias", _INIT, ((2 * m - 1) ** 2, heads))
        logits = logits + jnp.moveaxis(table[relative_positions(m)], -1, 0)[None, None, None]
        if self.shifted:
            separate = _separate(rows * m, columns * m, m)[None, :, :, None]
            logits = logits + jnp.where(separate, _MASKED, 0.0)
        weights = jax.nn.softmax(logits).astype(v.dtype)
        out = jnp.einsum("bijhqk,bijkhd->bijqhd", weights, v)
        out = _dense(c, self.dtype, "proj")(out.reshape(b, rows, columns, m, m, c))
        out = out.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * m, columns * m, c)
        if self.shifted:
            out = jnp.roll(out, (m // 2, m // 2), (1, 2))
        return out[:, :h, :w]


class _SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    num_heads: int
    window: int
    mlp_ratio: int
    shifted: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The map [B, h, w, C] after the block."""
        attention = WindowAttention(
            self.num_heads, self.window, self.shifted, self.dtype, name="attention"
        )
        x = x + attention(_norm(self.dtype, "norm_1")(x))
        h = _dense(self.mlp_ratio * x.shape[-1], self.dtype, "mlp_1")(
            _norm(self.dtype, "norm_2")(x)
        )
        return x + _dense(x.shape[-1], self.dtype, "mlp_2")(nn.gelu(h, approximate=False))


class _Stage(nn.Module):
    """The blocks of one resolution."""

    cfg: SwinTransforms
    depth: int
    dtype: DTypeLike | None
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        block: Any = nn.remat(_SwinBlock) if self.remat else _SwinBlock
        for k in range(self.depth):
            x = block(
                cfg.num_heads,
                cfg.window,
                cfg.mlp_ratio,
                k % 2 == 1,
                self.dtype,
                name=f"block_{k}",
            )(x)
        return x


class PatchMerging(nn.Module):
    """[B, h, w, C] to [B, h/2, w/2, features]."""

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The merged map; h and w are even."""
        b, h, w, c = x.shape
        # A block's four positions in the authors' order: column by column.
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
        x = _norm(self.dtype, "norm")(x.reshape(b, h // 2, w // 2, 4 * c))
        return _dense(self.features, self.dtype, "reduction", bias=False)(x)


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """[B, h, w, C] to [B, 2h, 2w, C/4], with PyTorch's order of channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 4).swapaxes(-1, -2)
    return depth_to_space(x.reshape(b, h, w, c), 2)


class SwinAnalysis(nn.Module):
    """g_a: images [B, H, W, 3] to channels of y, [B, H/16, W/16, channels], unquantised."""

    cfg: SwinTransforms
    channels: int
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Latents of images [B, H, W, 3] in [0, 1], H and W multiples of 16."""
        cfg = self.cfg
        widths = (*cfg.analysis_widths, self.channels)
        uniform = torch_uniform(12)
        embed = nn.Dense(
            widths[0], dtype=self.dtype, kernel_init=uniform, bias_init=uniform, name="embed"
        )
        h = _norm(self.dtype, "embed_norm")(embed(space_to_depth(x, 2)))
        for k, (width, depth) in enumerate(zip(widths, cfg.analysis_depths, strict=True)):
            if k > 0:
                h = PatchMerging(width, self.dtype, name=f"merge_{k}")(h)
            h = _Stage(cfg, depth, self.dtype, self.remat, name=f"stage_{k}")(h)
        y: jax.Array = _norm(jnp.float32, "norm")(h)
        return y


class SwinSynthesis(nn.Module):
    """g_s: latents y_hat [B, h, w, C] to an image [B, 16h, 16w, 3], not clipped.

    The level is not an input: g_s sees it in the statistics of the drawn details.
    """

    cfg: SwinTransforms
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, y_hat: jax.Array, level: jax.Array) -> jax.Array:
        """The image of y_hat [B, h, w, C]; the level is not read."""
        cfg = self.cfg
        h = y_hat.astype(self.dtype or y_hat.dtype)
        for k, depth in enumerate(cfg.synthesis_depths):
            h = _Stage(cfg, depth, self.dtype, self.remat, name=f"stage_{k}")(h)
            h = _norm(self.dtype, f"split_norm_{k}")(pixel_shuffle(h))
            if k < 3:
                width = cfg.synthesis_widths[k]
                h = _dense(width, self.dtype, f"split_{k}", bias=False)(h)
        # The last two layers have no non-linearity between them, and no bias that the zeros around
        # the picture would miss: as one convolution they need no wide map at full resolution.
        width = cfg.synthesis_widths[-1]
        split = self.param("split_3", _INIT, (h.shape[-1], width))
        uniform = torch_uniform(9 * width)
        kernel = self.param("out_kernel", uniform, (3, 3, width, 3))
        bias = self.param("out_bias", uniform, (3,))
        kernel = jnp.einsum("io,yxoc->yxic", split, kernel)
        out = jax.lax.conv_general_dilated(
            h,
            kernel.astype(h.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x_hat: jax.Array = out.astype(jnp.float32) + bias[None, None, None]
        return x_hat
