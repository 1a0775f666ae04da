"""The loss of Synonymous Variational Inference.

For image x at level l, with details drawn (paper, section 3 and Lemma 3.2; LPIPS stands in for the
divergence of the perception term):

    L = lambda_r(l) * bpp(y_s, z) + lambda_d(l) * MSE(x, x_hat) + lambda_p(l) * LPIPS(x, x_hat)

The paper's alpha * L(l) + (1 - alpha) * L(L) is met in expectation by training the share
`full_share` of a batch's images at level L and the others at drawn levels.
"""

import jax
import jax.numpy as jnp

from sic_jax.config import LossConfig
from sic_jax.lpips import Weights, lpips
from sic_jax.model.sic import SicOutput

Metrics = dict[str, jax.Array]


def draw_levels(key: jax.Array, batch_size: int, num_levels: int, full_share: float) -> jax.Array:
    """Levels of a batch, int32 [B]: first those at level L, then a stratified uniform draw."""
    num_full = round(full_share * batch_size)
    num_drawn = batch_size - num_full
    u = (jnp.arange(num_drawn) + jax.random.uniform(key, (num_drawn,))) / max(num_drawn, 1)
    drawn = 1 + jnp.floor(u * num_levels).astype(jnp.int32)
    full = jnp.full((num_full,), num_levels, jnp.int32)
    return jnp.concatenate([full, jnp.minimum(drawn, num_levels)])


def svi_loss(
    out: SicOutput,
    x: jax.Array,
    level: jax.Array,
    *,
    cfg: LossConfig,
    lpips_weights: Weights | None,
) -> tuple[jax.Array, Metrics]:
    """Mean loss of a batch and its terms.

    Args:
      out: The model's output for `x`.
      x: Images [B, H, W, 3] in [0, 1].
      level: int [B].
      cfg: Weights as functions of the level.
      lpips_weights: AlexNet weights; None leaves the perception term out.

    Returns:
      (loss, metrics): a scalar, and scalars named by term; `*_full` average over the images at
      level L, `*_low` over the others.
    """
    num_levels = out.bits_y.shape[1]
    at = level - 1
    pixels = x.shape[1] * x.shape[2]
    coded = jnp.arange(num_levels) < level[:, None]
    bpp = (out.bits_z + jnp.where(coded, out.bits_y, 0).sum(1)) / pixels
    mse = jnp.square(x - out.x_hat).mean((1, 2, 3))
    loss = jnp.asarray(cfg.lmbda_rate)[at] * bpp + jnp.asarray(cfg.lmbda_dist)[at] * mse
    terms = {"bpp": bpp, "mse": mse}
    if lpips_weights is not None:
        terms["lpips"] = lpips(x, out.x_hat, weights=lpips_weights)
        loss = loss + jnp.asarray(cfg.lmbda_perc)[at] * terms["lpips"]
    full = (level == num_levels).astype(jnp.float32)
    metrics = {"loss": loss.mean(), "bpp_z": out.bits_z.mean() / pixels}
    for name, value in terms.items():
        metrics[f"{name}_full"] = (value * full).sum() / jnp.maximum(full.sum(), 1)
        metrics[f"{name}_low"] = (value * (1 - full)).sum() / jnp.maximum((1 - full).sum(), 1)
    return loss.mean(), metrics
