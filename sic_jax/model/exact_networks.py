"""The entropy networks in integers (context checkerboard) as a whole."""

import jax

from sic_jax.config import ModelConfig
from sic_jax.entropy.exact import Layers, LayerSpec, rescale, straight_through
from sic_jax.model.context import MEAN_BINS, MEAN_LIMIT, context_specs, sample_details
from sic_jax.model.detail import detail_spreads, draw_detail, round_detail, uniform_sigmas
from sic_jax.model.hyper import hyper_synthesis_specs
from sic_jax.model.levels import merge_latents

EntropyLayers = dict[str, Layers]
"""Integers of the entropy networks: `h_s`, `context`, and `detail` where that has parameters."""


def entropy_specs(cfg: ModelConfig) -> dict[str, dict[str, LayerSpec]]:
    """The layers of the entropy networks, by network and name; none with context raster."""
    if cfg.context == "raster":
        return {}
    specs = {"h_s": hyper_synthesis_specs(cfg), "context": context_specs(cfg)}
    if cfg.detail == "uniform":
        specs["detail"] = {"mean": LayerSpec((cfg.hyper_width, cfg.num_channels))}
    return specs


def complete(
    layers: EntropyLayers,
    cfg: ModelConfig,
    y_s: jax.Array,
    hyper: jax.Array,
    level: jax.Array,
    noise: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    """Fill the channels above `level` with details, in integers (context checkerboard).

    Args:
      layers: Of the entropy networks.
      cfg: Of the model.
      y_s: Synonymous part, zeros elsewhere, [B, h, w, C].
      hyper: h_s features.
      level: int [B].
      noise: int32 [B, h, w, C]; `sic_jax.model.detail` defines it.
      temperature: int32 [B], in 1/256; 0 gives the mean of the details.

    Returns:
      y_hat [B, h, w, C]. Gradients flow through y_s and, with the uniform sampler, its mean.
    """
    if cfg.detail == "uniform":
        # The paper's mu_h + U(-2, 2), rounded.
        layer = layers["detail"]["mean"]
        mean = rescale(hyper @ layer.kernel, layer, limit=MEAN_LIMIT)
        spread = detail_spreads(uniform_sigmas(), temperature)[:, None, None]
        details = round_detail(draw_detail(mean, spread, noise))
        details = straight_through(details, mean / MEAN_BINS)
    else:
        details = sample_details(layers["context"], cfg, y_s, hyper, level, noise, temperature)
    return merge_latents(y_s, details, level, cfg)
