"""Entropy models as plain functions, with TensorFlow Compression's definitions.

Bits of one symbol are -log2 of its probability. The same functions serve both uses: with
``y + U(-1/2, 1/2)`` they give the noisy upper bound that training minimises, with integers the bits
that coding needs. All of them have finite values and gradients out to ``|x| = 1e5``.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

_LOG2 = float(np.log(2.0))
_HALF_LOG_2PI = float(0.5 * np.log(2.0 * np.pi))

NO_REACH = 2.0**20
"""A `reach` of `logistic_bits` that cuts nothing off."""


@jax.custom_vjp
def lower_bound(x: jax.Array, bound: float) -> jax.Array:
    """``max(x, bound)`` whose gradient still reaches ``x`` below the bound when it would raise it.

    ``x`` has any shape.

    Reference: TensorFlow Compression, ``math_ops.lower_bound`` (gradient ``identity_if_towards``).
    """
    return jnp.maximum(x, bound)


def _lower_bound_fwd(x: jax.Array, bound: float) -> tuple[jax.Array, tuple[jax.Array, float]]:
    return jnp.maximum(x, bound), (x, bound)


def _lower_bound_bwd(res: tuple[jax.Array, float], g: jax.Array) -> tuple[jax.Array, None]:
    x, bound = res
    return jnp.where((x >= bound) | (g < 0), g, 0.0), None


lower_bound.defvjp(_lower_bound_fwd, _lower_bound_bwd)


def ste_round(x: jax.Array) -> jax.Array:
    """Round arrays of any shape half to even; the gradient is the identity (straight-through)."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def _log_scaled_ndtr(x: jax.Array) -> jax.Array:
    """log(Phi(x)) + x^2/2 for any x: the slowly varying part of the normal tail."""
    in_tail = x < -7.0
    safe = jnp.where(in_tail, 0.0, x)
    body = jnp.log(0.5 * jax.lax.erfc(-safe * np.float32(np.sqrt(0.5)))) + 0.5 * safe * safe
    far = jnp.where(in_tail, x, -7.0)
    r = 1.0 / (far * far)
    # Asymptotic series of the Mills ratio. At x = -7 its next term is 8e-7, no more than body loses
    # to rounding there: a larger step would be divided by the width of a bin that straddles it.
    series = jnp.log1p(-r * (1.0 - r * (3.0 - r * (15.0 - r * (105.0 - r * 945.0)))))
    tail = series - jnp.log(-far) - _HALF_LOG_2PI
    return jnp.where(in_tail, tail, body)


def normal_bits(y: jax.Array, mu: jax.Array, sigma: jax.Array) -> jax.Array:
    """Bits to code ``y`` under N(mu, sigma^2) integrated over the unit bin around ``y``.

    Args:
        y: Any shape; real (training, noisy) or integer (coding).
        mu: Means, broadcastable to ``y``.
        sigma: Standard deviations > 0, broadcastable to ``y``; bound them before (0.11 and up).

    Returns:
        Bits >= 0, shape of the broadcast.

    Reference: TensorFlow Compression, ``NoisyNormal``; Balle et al. 2018, eq. 6.
    """
    d = jnp.abs(y - mu)
    upper, lower = (0.5 - d) / sigma, (-0.5 - d) / sigma
    g_upper, g_lower = _log_scaled_ndtr(upper), _log_scaled_ndtr(lower)
    # log(Phi(lower) / Phi(upper)): the squares cancel to d / sigma^2 exactly.
    log_ratio = g_lower - g_upper - d / (sigma * sigma)
    log_p = g_upper - 0.5 * upper * upper + jnp.log(-jnp.expm1(jnp.minimum(log_ratio, -1e-7)))
    return jnp.maximum(-log_p, 0.0) / _LOG2


def logistic_bits(
    y: jax.Array, mu: jax.Array, sigma: jax.Array, reach: jax.Array | float
) -> jax.Array:
    """Bits to code ``y`` under a logistic density, cut to +-reach, over the unit bin around ``y``.

    Args:
        y: Any shape; real (training, noisy) or integer (coding).
        mu: Means before the cut, broadcastable to ``y``.
        sigma: Standard deviations before the cut, > 0, broadcastable to ``y``.
        reach: Half widths of what is left of the densities, broadcastable to ``y``; at most
            `NO_REACH`, which cuts nothing. The integers inside have all the mass if it is half an
            odd number. Bins outside cost what they would without the cut, less the bits that it
            saves.

    Returns:
        Bits >= 0, shape of the broadcast.
    """
    per_sigma = np.float32(np.pi / np.sqrt(3)) / sigma

    def log_mass(low: jax.Array | float, high: jax.Array | float) -> jax.Array:
        return _log_sigmoid_difference((low - mu) * per_sigma, (high - mu) * per_sigma)

    # The bin seen from its nearer side, where float32 is finest.
    d = jnp.abs(y - mu)
    bin_mass = _log_sigmoid_difference((-0.5 - d) * per_sigma, (0.5 - d) * per_sigma)
    return jnp.maximum(log_mass(-reach, reach) - bin_mass, 0.0) / _LOG2


def _log_sigmoid_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(sigmoid(b) - sigmoid(a)) for a < b, exact in both tails.

    It is sigmoid(b) sigmoid(-a) (1 - exp(a - b)).
    """
    log_rest = jnp.log(-jnp.expm1(jnp.minimum(a - b, -1e-6)))
    total: jax.Array = jax.nn.log_sigmoid(b) + jax.nn.log_sigmoid(-a) + log_rest
    return total


class FactorisedParams(TypedDict):
    """Parameters of the deep factorised density of C channels.

    ``matrices[k]``: [C, d_k+1, d_k] (before softplus); ``biases[k]``: [C, d_k+1, 1];
    ``factors[k]``: [C, d_k+1, 1] (before tanh), one fewer than the others; ``quantiles``: [C, 3],
    where a model learns them: the tails' edges and, between them, the median.
    """

    matrices: Sequence[jax.Array]
    biases: Sequence[jax.Array]
    factors: Sequence[jax.Array]
    quantiles: NotRequired[jax.Array]


def deep_factorised_logits(params: FactorisedParams, x: jax.Array) -> jax.Array:
    """Logit of the cumulative density at ``x`` [..., C], one density a channel.

    Reference: Balle et al. 2018, appendix 6.1; TensorFlow Compression, ``DeepFactorized``.
    """
    h = jnp.moveaxis(x, -1, 0).reshape(x.shape[-1], 1, -1)
    for k, (matrix, bias) in enumerate(zip(params["matrices"], params["biases"], strict=True)):
        h = jnp.einsum("coi,cin->con", jax.nn.softplus(matrix), h) + bias
        if k < len(params["factors"]):
            h = h + jnp.tanh(params["factors"][k]) * jnp.tanh(h)
    return jnp.moveaxis(h.reshape(x.shape[-1:] + x.shape[:-1]), 0, -1)


def deep_factorised_bits(params: FactorisedParams, x: jax.Array) -> jax.Array:
    """Bits to code ``x`` [..., C] under the deep factorised density over the unit bin."""
    a = deep_factorised_logits(params, x - 0.5)
    b = deep_factorised_logits(params, x + 0.5)
    return -_log_sigmoid_difference(a, b) / _LOG2


def quantile_loss(params: FactorisedParams, *, tail_mass: float = 1e-9) -> jax.Array:
    """Distance of the learned quantiles from the density's: a scalar, 0 where they agree.

    Only the quantiles get a gradient: the loss is minimised beside the rate, not traded against it.

    Args:
        params: With quantiles.
        tail_mass: Probability outside of the outer two, in all.

    Reference: CompressAI, ``EntropyBottleneck.loss``.
    """
    fixed = jax.lax.stop_gradient(params)
    edge = float(np.log(2.0 / tail_mass - 1.0))
    logits = deep_factorised_logits(fixed, params["quantiles"].T)
    return jnp.abs(logits - jnp.array([[-edge], [0.0], [edge]])).sum()
