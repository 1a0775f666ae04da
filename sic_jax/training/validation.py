"""Validation of a model while it is trained: rates and metrics without files, on all devices.

What eval.py measures with real files, for any parameters: images are encoded once, rounded latents
are rated, and every level is decoded, brought to 8 bits as a decoder would, and measured. Files are
larger by headers and by what the range coder loses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from numpy.typing import NDArray

from sic_jax.metrics.table import METRICS, Metric
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params
from sic_jax.training.batch_grain import add_grain, measure_grain
from sic_jax.training.losses import Compared, Decodings, LossConfig, rate_terms, svi_loss
from sic_jax.training.parallel import AXIS, replicate, shard_rows

Pixels = NDArray[np.uint8]
Validate = Callable[[Params, Pixels], dict[str, float]]
"""(parameters, images uint8 [N, H, W, 3], the same on every process) to named means."""


def make_validate(
    cfg: ModelConfig,
    *,
    levels: Sequence[int],
    metrics: Sequence[str] = ("psnr", "ms_ssim", "lpips"),
    batch_size: int,
    mesh: Mesh | None = None,
    temperature: float = 0.0,
    grain: bool = False,
    seed: int = 0,
    dtype: DTypeLike | None = None,
) -> Validate:
    """A compiled validation; it compiles once for each image size.

    Args:
        cfg: Of the model.
        levels: Levels to decode.
        metrics: Names of `sic_jax.metrics.table.METRICS`.
        batch_size: Images at once on all devices together.
        mesh: Over whose one axis `sic_jax.training.parallel.AXIS` batches are spread, with
            processes that hold the same number of its devices each; default: one device.
        temperature: Of the details; 0 decodes their mean.
        grain: Whether the images' grain is drawn on their decodings.
        seed: Of the details; image n draws the same ones at every level, in every batch, on any
            mesh.
        dtype: In which g_a and g_s compute; default: float32.

    Returns:
        A function of parameters (host or global arrays) and images uint8 [N, H, W, 3], any N, sides
        multiples of the stride, the same on every process. It returns means over images, equal on
        every process: ``bpp_est/LEVEL`` (bits per pixel by the model's probabilities),
        ``mse/LEVEL`` (of 8-bit images in [0, 1]) and ``METRIC/LEVEL``. Metrics that images of this
        size are too small for (MS-SSIM below 161 pixels) are left out; values that are not finite
        are returned. Other images are a ValueError.

    Raises:
        ValueError: If a level, a metric or `batch_size` does not fit.
    """
    mesh = Mesh(np.array(jax.local_devices()[:1]), (AXIS,)) if mesh is None else mesh
    if not levels or not all(1 <= level <= cfg.num_levels for level in levels):
        raise ValueError(f"levels must be some of 1 to {cfg.num_levels}, got {tuple(levels)}")
    known = {metric.name: metric for metric in METRICS}
    if unknown := [name for name in metrics if name not in known]:
        raise ValueError(f"no metric {unknown[0]!r}: there are {', '.join(known)}")
    if batch_size < 1 or batch_size % mesh.devices.size:
        raise ValueError(
            f"batch_size must be a positive multiple of {mesh.devices.size} devices, "
            f"got {batch_size}"
        )
    chosen = [known[name] for name in metrics]
    weights = {metric.name: replicate(metric.load(), mesh) for metric in chosen}
    sums = jax.jit(
        _make_sums(cfg, chosen, temperature, grain, seed, dtype),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    wanted = replicate(np.array(levels, np.int32), mesh)
    own = _own_rows(mesh, batch_size)

    def validate(params: Params, images: Pixels) -> dict[str, float]:
        _check_images(images, cfg.stride)
        params, total = replicate(params, mesh), None
        for start in range(0, len(images), batch_size):
            at = np.arange(start, start + batch_size)[own]
            # A batch that is not full repeats the last image, which does not count.
            batch = images[np.minimum(at, len(images) - 1)]
            rows = np.where(at < len(images), at, -1).astype(np.int32)
            found = sums(params, shard_rows(batch, mesh), shard_rows(rows, mesh), wanted, weights)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        assert total is not None
        return {
            f"{name}/{level}": float(value) / len(images)
            for name, values in sorted(jax.device_get(total).items())
            for level, value in zip(levels, values, strict=True)
        }

    return validate


def mean_loss(values: dict[str, float], levels: Sequence[int], cfg: LossConfig) -> float:
    """The SVI loss of a validation, without adversarial and consistency terms, mean over levels.

    Args:
        values: Of a validation at these levels, with LPIPS and DISTS where their weights are not 0.
        levels: Of the validation.
        cfg: Weights.
    """

    def term(name: str, weights: Sequence[float]) -> jax.Array:
        return jnp.array([[values[f"{name}/{k}"] if weights[k - 1] else 0.0 for k in levels]])

    # One decoding each of as many images as there are levels.
    at = Decodings(jnp.array([levels]), jnp.ones((1, len(levels))))
    terms = Compared(term("bpp_est", cfg.lmbda_rate), term("mse", cfg.lmbda_dist))
    if any(cfg.lmbda_perc):
        terms = terms._replace(lpips=term("lpips", cfg.lmbda_perc))
        if cfg.dists_weight:
            terms = terms._replace(dists=term("dists", cfg.lmbda_perc))
    return float(svi_loss(terms, at, cfg)[0])


def _make_sums(
    cfg: ModelConfig,
    metrics: Sequence[Metric],
    temperature: float,
    grain: bool,
    seed: int,
    dtype: DTypeLike | None,
) -> Callable[..., dict[str, jax.Array]]:
    """(parameters, uint8 [B, H, W, 3], image numbers [B], levels [K], weights) -> sums, [K] each.

    Images with the number -1 do not count.
    """
    model: Any = SicModel(cfg, dtype)

    def sums(
        params: Params,
        batch: jax.Array,
        rows: jax.Array,
        levels: jax.Array,
        weights: dict[str, Any],
    ) -> dict[str, jax.Array]:
        variables = {"params": params}
        x = batch.astype(jnp.float32) / 255
        pixels = x.shape[1] * x.shape[2]
        fitting = [metric for metric in metrics if min(x.shape[1:3]) >= metric.min_size]
        features = {m.name: m.features(x, weights[m.name], None) for m in fitting}
        y, z = model.apply(variables, x, method="analyse")
        rated = model.apply(variables, y, z, method="rate")
        root = jax.random.key(seed)
        keys = jax.vmap(lambda row: jax.random.fold_in(root, row))(rows)
        sigma = measure_grain(x) if grain else None

        def at_level(level: jax.Array) -> dict[str, jax.Array]:
            each = jnp.full(rows.shape, level)
            y_hat = model.apply(
                variables,
                rated.y_hat,
                rated.hyper,
                each,
                temperature=jnp.full(rows.shape, temperature),
                key=keys if temperature else None,
                method="complete",
            )
            x_hat = model.apply(variables, y_hat, each, method="synthesise")
            x_hat = _in_8_bits(x_hat)
            if sigma is not None:
                x_hat = _in_8_bits(add_grain(x_hat, sigma, keys))
            values = {
                "bpp_est": rate_terms(rated.bits_z, rated.bits_y, each[None], pixels)[0],
                "mse": jnp.square(x - x_hat).mean((1, 2, 3)),
            }
            for metric in fitting:
                name = metric.name
                values[name] = metric.distance(features[name], x_hat, weights[name], None)
            return {name: jnp.where(rows >= 0, v, 0).sum() for name, v in values.items()}

        # One body for all levels: it compiles once, and memory is that of one level.
        found: dict[str, jax.Array] = jax.lax.map(at_level, levels)
        return found

    return sums


def _in_8_bits(x_hat: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(x_hat, 0, 1) * 255) / 255


def _own_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a batch that this process's devices of the mesh take."""
    share = batch_size // mesh.devices.size
    process = jax.process_index()
    own = [k for k, device in enumerate(mesh.devices.flat) if device.process_index == process]
    return slice(own[0] * share, (own[-1] + 1) * share)


def _check_images(images: Pixels, stride: int) -> None:
    if images.dtype != np.uint8:
        raise ValueError(f"need images of type uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"need images [N, H, W, 3], got {images.shape}")
    if images.shape[1] % stride or images.shape[2] % stride:
        raise ValueError(f"sides must be multiples of {stride}, got {images.shape[1:3]}")
