"""PyTorch names and layouts of the authors' parameters (paper notes 2.11)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.typing import NDArray

from sic_jax.model.model_config import ModelConfig
from sic_jax.model.transforms.swin import SwinTransforms


class Source(NamedTuple):
    """Where a parameter comes from."""

    key: str
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    """Its PyTorch shape, from ours."""
    convert: Callable[[NDArray[Any], tuple[int, ...]], NDArray[Any]]
    """From the PyTorch array and our shape to our array."""


def _same(key: str) -> Source:
    return Source(key, lambda s: s, lambda a, s: a)


def _linear(key: str) -> Source:
    return Source(key, lambda s: s[::-1], lambda a, s: a.T)


def _conv(key: str) -> Source:
    return Source(key, lambda s: (s[3], s[2], s[0], s[1]), lambda a, s: a.transpose(2, 3, 1, 0))


def _deconv(key: str) -> Source:
    return Source(key, lambda s: (s[2], s[3], s[0], s[1]), lambda a, s: a.transpose(2, 3, 0, 1))


def _grouped(key: str) -> Source:
    """1x1 convolutions of groups: [G * O, I, 1, 1] to [G, I, O]."""
    return Source(
        key,
        lambda s: (s[0] * s[2], s[1], 1, 1),
        lambda a, s: a.reshape(s[0], s[2], s[1]).swapaxes(1, 2),
    )


def _flat(key: str) -> Source:
    """Biases of groups: [G * O] to [G, O]."""
    return Source(key, lambda s: (s[0] * s[1],), lambda a, s: a.reshape(s))


def _embedding(key: str) -> Source:
    """The 2x2 convolution of stride 2 as a product with blocks: [O, 3, 2, 2] to [12, O]."""
    return Source(
        key,
        lambda s: (s[1], 3, 2, 2),
        lambda a, s: a.transpose(2, 3, 1, 0).reshape(s),
    )


def _quantiles(key: str) -> Source:
    return Source(key, lambda s: (s[0], 1, s[1]), lambda a, s: a[:, 0])


def _pair(path: str, key: str, kernel: Callable[[str], Source]) -> dict[str, Source]:
    return {f"{path}/kernel": kernel(f"{key}.weight"), f"{path}/bias": _same(f"{key}.bias")}


def _norm(path: str, key: str) -> dict[str, Source]:
    return {f"{path}/scale": _same(f"{key}.weight"), f"{path}/bias": _same(f"{key}.bias")}


def _blocks(path: str, key: str, depth: int) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for k in range(depth):
        p, t = f"{path}/block_{k}", f"{key}.blocks.{k}"
        for n in (1, 2):
            sources |= _norm(f"{p}/norm_{n}", f"{t}.norm{n}")
            sources |= _pair(f"{p}/mlp_{n}", f"{t}.mlp.fc{n}", _linear)
        for name in ("qkv", "proj"):
            sources |= _pair(f"{p}/attention/{name}", f"{t}.attn.{name}", _linear)
        sources[f"{p}/attention/position_bias"] = _same(f"{t}.attn.relative_position_bias_table")
    return sources


def parameter_sources(cfg: ModelConfig) -> dict[str, Source]:
    """Where each parameter of a converted model comes from, by its path."""
    transforms = cfg.transforms
    assert isinstance(transforms, SwinTransforms)
    s = _pair("g_a/embed", "ga.patch_embed.proj", _linear)
    s["g_a/embed/kernel"] = _embedding("ga.patch_embed.proj.weight")
    s |= _norm("g_a/embed_norm", "ga.patch_embed.norm") | _norm("g_a/norm", "ga.norm")
    for k, depth in enumerate(transforms.analysis_depths):
        s |= _blocks(f"g_a/stage_{k}", f"ga.layers.{k}", depth)
        if k > 0:
            path, key = f"g_a/merge_{k}", f"ga.layers.{k}.downsample"
            s |= _norm(f"{path}/norm", f"{key}.norm")
            s[f"{path}/reduction/kernel"] = _linear(f"{key}.reduction.weight")
    for k, depth in enumerate(transforms.synthesis_depths):
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
