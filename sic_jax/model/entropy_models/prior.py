"""The prior of z: a deep factorised density."""

import math
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.entropy.cdf_tables import CdfTables, tables_from_pmfs
from sic_jax.entropy.distributions import FactorisedParams, deep_factorised_logits, ste_round
from sic_jax.model.noise import unit_noise

_Z_REACH = 256
_Z_TAIL_MASS = 2.0**-12


class FactorisedPrior(nn.Module):
    """Parameters of the deep factorised density of z, TensorFlow Compression's initial values."""

    channels: int
    filters: tuple[int, ...] = (3, 3)
    init_scale: float = 10.0
    learns_quantiles: bool = False
    """Whether z is rounded around a learned median, as in CompressAI."""

    @nn.compact
    def __call__(self) -> FactorisedParams:
        """The parameters as `deep_factorised_bits` takes them."""
        sizes = (1, *self.filters, 1)
        scale = self.init_scale ** (1 / (len(self.filters) + 1))
        matrices, biases, factors = [], [], []
        for k, (d_in, d_out) in enumerate(pairwise(sizes)):
            value = math.log(math.expm1(1 / scale / d_out))
            shape = (self.channels, d_out, 1)
            const = nn.initializers.constant(value)
            matrices.append(self.param(f"matrix_{k}", const, (self.channels, d_out, d_in)))
            biases.append(self.param(f"bias_{k}", unit_noise, shape))
            if k < len(self.filters):
                factors.append(self.param(f"factor_{k}", nn.initializers.zeros, shape))
        params: FactorisedParams = {"matrices": matrices, "biases": biases, "factors": factors}
        if self.learns_quantiles:
            start = jnp.array([-self.init_scale, 0.0, self.init_scale])
            params["quantiles"] = self.param(
                "quantiles", lambda _: jnp.tile(start, (self.channels, 1))
            )
        return params


def medians(prior: FactorisedParams) -> jax.Array:
    """Medians [C_z] of z, around which it is rounded; zeros if the prior has none."""
    if "quantiles" in prior:
        return prior["quantiles"][:, 1]
    return jnp.zeros(prior["matrices"][0].shape[0])


def quantise_hyper(prior: FactorisedParams, z: jax.Array) -> jax.Array:
    """z_hat: z [..., C_z] rounded around the medians, if any, with straight-through gradients."""
    if "quantiles" not in prior:
        return ste_round(z)
    centre = jax.lax.broadcast_to_rank(medians(prior), z.ndim)
    return ste_round(z - centre) + centre


def prior_tables(prior: FactorisedParams) -> CdfTables:
    """Coding tables of z less its medians, one a channel, over all but 2^-12 of the mass."""
    edges = np.arange(-_Z_REACH, _Z_REACH + 2) - 0.5
    x = jnp.asarray(edges, jnp.float32)[:, None] + medians(prior)[None]
    logits = np.asarray(deep_factorised_logits(prior, x), np.float64)
    cdf: Any = 0.5 * (1 + np.tanh(0.5 * logits))
    pmfs, offsets, tails = [], [], []
    for c in range(cdf.shape[1]):
        low = max(int(np.searchsorted(cdf[:, c], _Z_TAIL_MASS / 2)) - 1, 0)
        high = min(int(np.searchsorted(cdf[:, c], 1 - _Z_TAIL_MASS / 2)), len(edges) - 1)
        pmfs.append(np.diff(cdf[low : high + 1, c]))
        offsets.append(low - _Z_REACH)
        tails.append(float(cdf[low, c] + 1 - cdf[high, c]))
    return tables_from_pmfs(pmfs, offsets, tails)
