"""The authors' PyTorch checkpoints: their parameters under this package's names.

The published network is the model with `transforms="swin"` and `context="raster"`. Names and layouts
are those of the paper notes 2.11: kernels are transposed, and nothing else changes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.config import ModelConfig, RasterConfig, SwinConfig
from sic_jax.entropy.distributions import deep_factorized_bits, normal_bits
from sic_jax.model import raster
from sic_jax.model.levels import merge_latents
from sic_jax.model.params import Params, flatten_params, param_shapes, unflatten_params
from sic_jax.model.sic import SicModel, quantise_hyper

Arrays = Mapping[str, NDArray[Any]]

_IGNORED_NETWORKS = ("gaussian_conditional", "distortion", "msssim", "lpips", "dists")
_IGNORED_BUFFERS = (
    "attn_mask",
    "relative_position_index",
    "mask",
    "bound",
    "target",
    "_offset",
    "_quantized_cdf",
    "_cdf_length",
)
_MIN_LIKELIHOOD = 1e-9
"""At which the authors clamp likelihoods."""


class _Source(NamedTuple):
    """Where a parameter comes from."""

    key: str
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    """Its PyTorch shape, from ours."""
    convert: Callable[[NDArray[Any], tuple[int, ...]], NDArray[Any]]
    """From the PyTorch array and our shape to our array."""


def _same(key: str) -> _Source:
    return _Source(key, lambda s: s, lambda a, s: a)


def _linear(key: str) -> _Source:
    return _Source(key, lambda s: s[::-1], lambda a, s: a.T)


def _conv(key: str) -> _Source:
    return _Source(key, lambda s: (s[3], s[2], s[0], s[1]), lambda a, s: a.transpose(2, 3, 1, 0))


def _deconv(key: str) -> _Source:
    return _Source(key, lambda s: (s[2], s[3], s[0], s[1]), lambda a, s: a.transpose(2, 3, 0, 1))


def _grouped(key: str) -> _Source:
    """1x1 convolutions of groups: [G * O, I, 1, 1] to [G, I, O]."""
    return _Source(
        key,
        lambda s: (s[0] * s[2], s[1], 1, 1),
        lambda a, s: a.reshape(s[0], s[2], s[1]).swapaxes(1, 2),
    )


def _flat(key: str) -> _Source:
    """Biases of groups: [G * O] to [G, O]."""
    return _Source(key, lambda s: (s[0] * s[1],), lambda a, s: a.reshape(s))


def _embedding(key: str) -> _Source:
    """The 2x2 convolution of stride 2 as a product with blocks: [O, 3, 2, 2] to [12, O]."""
    return _Source(
        key,
        lambda s: (s[1], 3, 2, 2),
        lambda a, s: a.transpose(2, 3, 1, 0).reshape(s),
    )


def _quantiles(key: str) -> _Source:
    return _Source(key, lambda s: (s[0], 1, s[1]), lambda a, s: a[:, 0])


def _pair(path: str, key: str, kernel: Callable[[str], _Source]) -> dict[str, _Source]:
    return {f"{path}/kernel": kernel(f"{key}.weight"), f"{path}/bias": _same(f"{key}.bias")}


def _norm(path: str, key: str) -> dict[str, _Source]:
    return {f"{path}/scale": _same(f"{key}.weight"), f"{path}/bias": _same(f"{key}.bias")}


def _blocks(path: str, key: str, depth: int) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    for k in range(depth):
        p, t = f"{path}/block_{k}", f"{key}.blocks.{k}"
        for n in (1, 2):
            sources |= _norm(f"{p}/norm_{n}", f"{t}.norm{n}")
            sources |= _pair(f"{p}/mlp_{n}", f"{t}.mlp.fc{n}", _linear)
        for name in ("qkv", "proj"):
            sources |= _pair(f"{p}/attention/{name}", f"{t}.attn.{name}", _linear)
        sources[f"{p}/attention/position_bias"] = _same(f"{t}.attn.relative_position_bias_table")
    return sources


def _sources(cfg: ModelConfig) -> dict[str, _Source]:
    """Where each parameter of a converted model comes from, by its path."""
    s = _pair("g_a/embed", "ga.patch_embed.proj", _linear)
    s["g_a/embed/kernel"] = _embedding("ga.patch_embed.proj.weight")
    s |= _norm("g_a/embed_norm", "ga.patch_embed.norm") | _norm("g_a/norm", "ga.norm")
    for k, depth in enumerate(cfg.swin.analysis_depths):
        s |= _blocks(f"g_a/stage_{k}", f"ga.layers.{k}", depth)
        if k > 0:
            path, key = f"g_a/merge_{k}", f"ga.layers.{k}.downsample"
            s |= _norm(f"{path}/norm", f"{key}.norm")
            s[f"{path}/reduction/kernel"] = _linear(f"{key}.reduction.weight")
    for k, depth in enumerate(cfg.swin.synthesis_depths):
        s |= _blocks(f"g_s/stage_{k}", f"gs.layers.{k}", depth)
        key = f"gs.layers.{k}.upsample"
        s |= _norm(f"g_s/split_norm_{k}", f"{key}.norm")
        path = f"g_s/split_{k}/kernel" if k < 3 else "g_s/split_3"
        s[path] = _linear(f"{key}.increment.weight")
    s["g_s/out_kernel"], s["g_s/out_bias"] = _conv("gs.outconv.weight"), _same("gs.outconv.bias")
    for k in range(3):
        s |= _pair(f"h_a/conv_{k + 1}", f"ha.{2 * k}", _conv)
        s |= _pair(f"h_s/{('up_1', 'up_2', 'last')[k]}", f"hs.{2 * k}", _deconv)
        path, key = f"entropy_parameters/dense_{k + 1}", f"entropy_parameters.layer.{2 * k}"
        s[f"{path}/kernel"], s[f"{path}/bias"] = _grouped(f"{key}.weight"), _flat(f"{key}.bias")
    s |= _pair("context/masked", "context_model.layer", _conv)
    s["prior_z/quantiles"] = _quantiles("entropy_bottleneck.quantiles")
    for k in range(5):
        s[f"prior_z/matrix_{k}"] = _same(f"entropy_bottleneck.matrices.{k}")
        s[f"prior_z/bias_{k}"] = _same(f"entropy_bottleneck.biases.{k}")
        if k < 4:
            s[f"prior_z/factor_{k}"] = _same(f"entropy_bottleneck.factors.{k}")
    return s


def infer_config(state_dict: Arrays) -> ModelConfig:
    """The architecture of a checkpoint, from the shapes of its parameters.

    Raises:
      ValueError: If a parameter that tells is missing, or tells something impossible.
    """

    def shape(key: str, rank: int) -> tuple[int, ...]:
        if key not in state_dict:
            raise ValueError(f"parameter {key} is missing")
        found = tuple(state_dict[key].shape)
        if len(found) != rank:
            raise ValueError(f"parameter {key} has shape {found}, not one of rank {rank}")
        return found

    def depth(stage: str) -> int:
        prefix = f"{stage}.blocks."
        numbers = [k[len(prefix) :].split(".")[0] for k in state_dict if k.startswith(prefix)]
        return 1 + max((int(n) for n in numbers if n.isdecimal()), default=-1)

    table = shape("ga.layers.0.blocks.0.attn.relative_position_bias_table", 2)
    fc1 = shape("ga.layers.0.blocks.0.mlp.fc1.weight", 2)
    merges = [shape(f"ga.layers.{k}.downsample.reduction.weight", 2)[0] for k in (1, 2, 3)]
    splits = [shape(f"gs.layers.{k}.upsample.increment.weight", 2)[0] for k in range(4)]
    channels = merges[2]
    size = shape("entropy_parameters.layer.0.weight", 4)[1] // 4
    if size < 1 or channels % size:
        raise ValueError(
            f"entropy_parameters.layer.0.weight has {4 * size} inputs a group: "
            f"{channels} channels are no whole number of such groups"
        )
    levels = channels // size
    h_a = shape("ha.4.weight", 4)
    return ModelConfig(
        level_channels=(size,) * levels,
        level_refinements=(0,) * levels,
        transforms="swin",
        context="raster",
        detail="uniform",
        hyper_channels=h_a[0],
        temperature=1.0,
        swin=SwinConfig(
            analysis_widths=(shape("ga.patch_embed.proj.weight", 4)[0], merges[0], merges[1]),
            analysis_depths=tuple(depth(f"ga.layers.{k}") for k in range(4)),
            synthesis_widths=(splits[0], splits[1], splits[2]),
            synthesis_depths=tuple(depth(f"gs.layers.{k}") for k in range(4)),
            num_heads=table[1],
            window=(round(table[0] ** 0.5) + 1) // 2,
            mlp_ratio=fc1[0] // max(fc1[1], 1),
        ),
        raster=RasterConfig(
            analysis_width=h_a[1],
            synthesis_widths=(shape("hs.0.weight", 4)[1], shape("hs.2.weight", 4)[1]),
            head_width=shape("entropy_parameters.layer.0.weight", 4)[0] // levels,
        ),
    )


def convert_state_dict(state_dict: Arrays) -> tuple[ModelConfig, Params]:
    """A model from the authors' parameters.

    Args:
      state_dict: The checkpoint's arrays by their PyTorch names, with or without the prefix
        `module.`. Buffers and the metrics' networks are ignored.

    Returns:
      The architecture, inferred from shapes, and float32 parameters (NumPy arrays).

    Raises:
      ValueError: If a parameter is missing, unknown, of another shape or not finite, naming it.
    """
    if state_dict and all(k.startswith("module.") for k in state_dict):
        state_dict = {k.removeprefix("module."): a for k, a in state_dict.items()}
    cfg = infer_config(state_dict)
    shapes = {path: leaf.shape for path, leaf in flatten_params(param_shapes(cfg)).items()}
    sources = _sources(cfg)
    left = {
        k
        for k in state_dict
        if k.split(".")[0] not in _IGNORED_NETWORKS and k.split(".")[-1] not in _IGNORED_BUFFERS
    }
    if missing := sorted(s.key for s in sources.values() if s.key not in left):
        raise ValueError(f"parameter {missing[0]} is missing")
    if unknown := sorted(left - {s.key for s in sources.values()}):
        raise ValueError(f"parameter {unknown[0]} is not one of the authors' network")
    leaves: dict[str, NDArray[np.float32]] = {}
    for path, source in sources.items():
        array, shape = np.asarray(state_dict[source.key]), shapes[path]
        if array.shape != source.shape(shape):
            raise ValueError(
                f"parameter {source.key} has shape {array.shape}, not {source.shape(shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"parameter {source.key} is not finite")
        leaves[path] = np.ascontiguousarray(source.convert(array, shape), np.float32)
    return cfg, unflatten_params(leaves)


def reference_forward(
    cfg: ModelConfig, params: Params, x: NDArray[np.float32], *, level: int, u: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the authors' forward pass, for comparison with theirs.

    Args:
      cfg: Of a converted model.
      params: Of a converted model.
      x: Images [B, 3, H, W] in [0, 1], H and W multiples of 64.
      level: 1 to L.
      u: Uniform draw in [0, 1) of the details, [B, C_eps, H/16, W/16].

    Returns:
      Float32 arrays with the channels second: `y`, `z`, `z_hat`, `z_likelihoods`, `hyper_params`,
      `y_hat`, `context_params`, `scales_hat` (before the lower bound), `means_hat`,
      `y_likelihoods`, `y_eps`, `x_hat_full_unclipped`, `x_hat_level_unclipped`, `y_reverse`.
    """
    raise NotImplementedError
