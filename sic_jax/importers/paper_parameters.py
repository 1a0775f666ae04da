"""The authors' PyTorch checkpoints: their parameters under this package's names.

The published network is the model with the transforms `swin` and the entropy model `raster`.
Conversion reorders axes (`sic_jax.importers.paper_names`) and changes no value.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sic_jax.importers.paper_names import parameter_sources
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import param_shapes
from sic_jax.model.transforms.swin import SwinTransforms
from sic_jax.model.tree import Params, flatten_params, unflatten_params

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
        # An empty array may claim any size along its other axes.
        if 0 in found:
            raise ValueError(f"parameter {key} has shape {found}: it is empty")
        return found

    def depths(transform: str) -> tuple[int, int, int, int]:
        block = rf"{transform}\.layers\.([0-3])\.blocks\.([0-9]{{1,9}})\."
        last = dict.fromkeys("0123", -1)
        for key in state_dict:
            if match := re.match(block, key):
                last[match[1]] = max(last[match[1]], int(match[2]))
        return last["0"] + 1, last["1"] + 1, last["2"] + 1, last["3"] + 1

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
    if levels > 64:
        raise ValueError(f"entropy_parameters.layer.0.weight tells {levels} levels, not 1 to 64")
    h_a = shape("ha.4.weight", 4)
    return ModelConfig(
        levels=LevelConfig(channels=(size,) * levels, refinements=(0,) * levels),
        transforms=SwinTransforms(
            analysis_widths=(shape("ga.patch_embed.proj.weight", 4)[0], merges[0], merges[1]),
            analysis_depths=depths("ga"),
            synthesis_widths=(splits[0], splits[1], splits[2]),
            synthesis_depths=depths("gs"),
            num_heads=table[1],
            window=(round(table[0] ** 0.5) + 1) // 2,
            mlp_ratio=fc1[0] // max(fc1[1], 1),
        ),
        entropy=RasterEntropy(
            hyper_channels=h_a[0],
            analysis_width=h_a[1],
            synthesis_widths=(shape("hs.0.weight", 4)[1], shape("hs.2.weight", 4)[1]),
            head_width=shape("entropy_parameters.layer.0.weight", 4)[0] // levels,
        ),
        temperature=1.0,
    )


def convert_state_dict(state_dict: Arrays) -> tuple[ModelConfig, Params]:
    """A model from the authors' parameters.

    Args:
        state_dict: The checkpoint's arrays by their PyTorch names, with or without the prefix
            `module.`. Buffers and the metrics' networks are ignored.

    Returns:
        The architecture, inferred from shapes, and float32 parameters (NumPy arrays).

    Raises:
        ValueError: If a parameter is missing, unknown, of another shape or type or not finite,
            naming it.
    """
    if state_dict and all(k.startswith("module.") for k in state_dict):
        state_dict = {k.removeprefix("module."): a for k, a in state_dict.items()}
    cfg = infer_config(state_dict)
    sources = parameter_sources(cfg)
    left = {
        k
        for k in state_dict
        if k.split(".")[0] not in _IGNORED_NETWORKS and k.split(".")[-1] not in _IGNORED_BUFFERS
    }
    if missing := sorted(s.key for s in sources.values() if s.key not in left):
        raise ValueError(f"parameter {missing[0]} is missing")
    if unknown := sorted(left - {s.key for s in sources.values()}):
        raise ValueError(f"parameter {unknown[0]} is not one of the authors' network")
    shapes = {path: leaf.shape for path, leaf in flatten_params(param_shapes(cfg)).items()}
    leaves: dict[str, NDArray[np.float32]] = {}
    for path, source in sources.items():
        array, shape = np.asarray(state_dict[source.key]), shapes[path]
        if array.shape != source.shape(shape):
            raise ValueError(
                f"parameter {source.key} has shape {array.shape}, not {source.shape(shape)}"
            )
        if array.dtype.kind not in "fiu":
            raise ValueError(f"parameter {source.key} is of type {array.dtype}, not of numbers")
        if not np.isfinite(array).all():
            raise ValueError(f"parameter {source.key} is not finite")
        leaves[path] = np.ascontiguousarray(source.convert(array, shape), np.float32)
    return cfg, unflatten_params(leaves)
