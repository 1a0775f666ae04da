"""The coding pass: latents to and from integers, level by level.

Encoder and decoder run the same pass. Only integers cross its boundary: known symbols go in, table
indices and integer means come out, and everything between is exact (`sic_jax.model.entropy_models.checkerboard.exact`). The
paper's model has another pass with the same methods, `sic_jax.model.entropy_models.raster.diagonal_coding`.
"""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.cdf_tables import (
    CdfTables,
    gaussian_tables,
    joined_tables,
    limited_tables,
    logistic_tables,
)
from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.checkerboard.context import (
    MEAN_BINS,
    EntropyLayers,
    checkerboard,
    complete,
    context_of_group,
    group_parameters,
    group_size,
    is_refinement,
    refinement_rows,
)
from sic_jax.model.entropy_models.checkerboard.detail import (
    REFINEMENT_MEAN_LIMIT,
    normal_noise,
    sigma_grid,
)
from sic_jax.model.entropy_models.checkerboard.exact import FRACTION_BITS, Layers, log_compressed
from sic_jax.model.entropy_models.checkerboard.hyper import hyper_synthesis
from sic_jax.model.levels import level_starts, refinement_limit

Ints = NDArray[np.int32]


class Request(NamedTuple):
    """What the pass asks for: the next n symbols of a level, in coding order."""

    level: int
    indices: Ints
    """Coding table of each symbol, [n]."""
    means: Ints
    """Integer part of each mean, [n]: the coded value is symbol - mean."""
    where: tuple[NDArray[Any] | slice, ...]
    """Index of the symbols in y [h, w, C]: positions and channels."""
    last: bool
    """Whether the level ends with them."""


def coding_tables(cfg: ModelConfig) -> CdfTables:
    """The tables of latents, numbered as by `table_indices` and `refinement_table_indices`.

    Those of normal densities with context raster, which has no tables for refinements.
    """
    sigmas = sigma_grid(cfg)
    if cfg.context == "raster":
        return gaussian_tables(sigmas, MEAN_BINS)
    refining = limited_tables(
        sigmas, MEAN_BINS, limit=refinement_limit(cfg), mean_limit=REFINEMENT_MEAN_LIMIT
    )
    return joined_tables(logistic_tables(sigmas, MEAN_BINS), refining)


def num_coding_tables(cfg: ModelConfig) -> int:
    """How many tables that are."""
    if cfg.context == "raster":
        return cfg.num_sigmas * MEAN_BINS
    return cfg.num_sigmas * (MEAN_BINS + 2 * REFINEMENT_MEAN_LIMIT + 1)


def table_indices(mean: jax.Array, scale_index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coding table and integer mean of means in sixteenths and scale indices: int32 arrays.

    Of all channels but those that have tables of their own (`refinement_table_indices`).
    """
    fine = mean.astype(jnp.int32)
    whole = jnp.right_shift(fine, FRACTION_BITS)
    scale = scale_index.astype(jnp.int32)
    return scale * MEAN_BINS + fine - whole * MEAN_BINS, whole


def refinement_table_indices(
    mean: jax.Array, scale_index: jax.Array, cfg: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """The same for refinement channels: the integer mean is 0."""
    rows = refinement_rows(mean, scale_index)
    return cfg.num_sigmas * MEAN_BINS + rows, jnp.zeros_like(rows)


def walk(
    coding: Generator[Request, Ints, Ints],
    code: Callable[[Request], Ints],
    finish: Callable[[int, bytes], None] = lambda level, symbols: None,
) -> tuple[Ints, dict[int, bytes]]:
    """Run a coding pass.

    Args:
      coding: Of `run` of a coding pass.
      code: Codes the symbols of a request and returns them.
      finish: Is called with the bytes of its symbols when a level ends.

    Returns:
      (y_s, bytes of the symbols of each level).
    """
    parts: dict[int, list[bytes]] = {}
    done: dict[int, bytes] = {}
    request = next(coding)
    while True:
        values = code(request)
        parts.setdefault(request.level, []).append(values.astype("<i4").tobytes())
        if request.last:
            done[request.level] = b"".join(parts.pop(request.level))
            finish(request.level, done[request.level])
        try:
            request = coding.send(values)
        except StopIteration as end:
            return end.value, done


class CodingPass:
    """Compiled steps of the coding pass of one model; reused for all images and levels."""

    float_entropy: Final = False
    """What a file's header says."""
    noise: Final = staticmethod(normal_noise)
    """Noise of the details, int32, of a seed and a shape [h, w, C]."""

    def __init__(self, cfg: ModelConfig, layers: EntropyLayers) -> None:
        """Place the entropy networks' integers on the CPU.

        Args:
          cfg: The model's config.
          layers: Integers of the entropy networks.
        """
        self.cfg = cfg
        self.layers = jax.device_put(layers, jax.devices("cpu")[0])
        self._hyper = jax.jit(hyper_synthesis, static_argnums=2)
        self._context = jax.jit(context_of_group)
        self._logs = jax.jit(log_compressed)
        self._step = jax.jit(self._entropy_step)
        self._complete = jax.jit(partial(complete, cfg=cfg))

    def hyper(self, z_hat: Ints, shape: tuple[int, int]) -> jax.Array:
        """h_s features [1, h, w, F_h] of z_hat int32 [h/4, w/4, C_z], for latents of `shape`."""
        features: jax.Array = self._hyper(self.layers["h_s"], z_hat.astype(np.float32)[None], shape)
        return features

    def complete(
        self, y_s: Ints, hyper: jax.Array, level: int, noise: Ints, temperature: int
    ) -> jax.Array:
        """Latents for g_s, float32 [1, h, w, C]: y_s int32 [h, w, C] and details above `level`.

        Noise is int32 [h, w, C], `temperature` in 1/256: see `sic_jax.model.entropy_models.checkerboard.detail`.
        """
        y_hat: jax.Array = self._complete(
            self.layers["context"],
            y_s=y_s.astype(np.float32)[None],
            hyper=hyper,
            level=np.array([level], np.int32),
            noise=noise[None],
            temperature=np.array([temperature], np.int32),
        )
        return y_hat

    def _entropy_step(
        self, layers: Layers, g: jax.Array, hyper: jax.Array, context: jax.Array, anchors: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        known = anchors.astype(jnp.float32)[None]
        cfg = self.cfg
        (mean,), (scale,) = group_parameters(layers, cfg, g, hyper, context, known)
        found = table_indices(mean, scale)
        refining = is_refinement(cfg, g)
        index, whole = refinement_table_indices(mean, scale, cfg)
        return jnp.where(refining, index, found[0]), jnp.where(refining, whole, found[1])

    def run(self, hyper: jax.Array, level: int) -> Generator[Request, Ints, Ints]:
        """Walk the groups of levels 1..level, anchors first.

        Yields requests and expects the symbols of each, int32 [n], by `send`.

        Args:
          hyper: h_s features [1, h, w, F_h].
          level: 1..L.

        Returns:
          y_s: int32 [h, w, C], zeros above `level`.
        """
        cfg, layers = self.cfg, self.layers["context"]
        h, w = hyper.shape[1:3]
        starts, size = level_starts(cfg), group_size(cfg)
        anchors_first = checkerboard(h, w)[..., 0]
        y = np.zeros((h, w, cfg.num_channels), np.int32)
        logs = np.zeros((1, h, w, cfg.num_channels), np.float32)
        for g in range(level):
            count = cfg.level_channels[g]
            channels = slice(int(starts[g]), int(starts[g + 1]))
            group = np.zeros((h, w, size), np.int32)
            context = self._context(layers, g, logs)
            for half in (anchors_first, ~anchors_first):
                index, mean = self._step(layers, g, hyper, context, group)
                indices = np.asarray(index)[half, :count].ravel()
                means = np.asarray(mean)[half, :count].ravel()
                last = half is not anchors_first
                symbols = yield Request(g + 1, indices, means, (half, channels), last)
                group[half, :count] = symbols.reshape(-1, count)
            y[..., channels] = group[..., :count]
            if g + 1 < level:
                logs[0, ..., channels] = self._logs(group.astype(np.float32))[..., :count]
        return y
