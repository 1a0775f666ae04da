"""The deblocking filter that ends g_s (conv): smooth, differentiable, without parameters.

The linear branch works on patches, so that quantisation leaves jumps at their borders, plain to see
where the picture is smooth. A jump d becomes a ramp over half a patch on either side,

    pixel i before (after) the border  +- (1 - (i + 1/2) / 8) / 2 * w * d,
    w = exp(-(d / jump)^2 - (a / activity)^2),

where a is the mean deviation of the 8 pixels on the busier side. The weight w leaves edges (large
d) and textures (large a) alone.
"""

import jax
import jax.numpy as jnp
import numpy as np

_HALF = 8
"""Pixels on either side of a border: half a patch."""
_PATCH = 2 * _HALF
_REACH = 2
"""Rows before and after, over which d and a are averaged."""


def deblock(x: jax.Array, jump: float, activity: float) -> jax.Array:
    """Images [B, H, W, 3], sides multiples of 16, with the borders of 16x16 patches smoothed."""
    x = _across_columns(x, jump, activity)
    return _across_columns(x.swapaxes(1, 2), jump, activity).swapaxes(1, 2)


def _across_columns(x: jax.Array, jump: float, activity: float) -> jax.Array:
    b, h, w, c = x.shape
    patches = x.reshape(b, h, w // _PATCH, _PATCH, c)
    before, after = patches[:, :, :-1, _HALF:], patches[:, :, 1:, :_HALF]
    d = _mean_of_rows(after[..., :2, :].mean(-2) - before[..., -2:, :].mean(-2))
    a = _mean_of_rows(jnp.maximum(_deviation(before), _deviation(after)))
    # The channels share one weight, that of the worst of them: colours do not part.
    weight = jnp.exp(
        -jnp.square(jnp.abs(d).max(-1, keepdims=True) / jump)
        - jnp.square(a.max(-1, keepdims=True) / activity)
    )
    ramp = (1 - (np.arange(_HALF, dtype=np.float32) + 0.5) / _HALF)[:, None] / 2
    change = (weight * d)[..., None, :]
    patches = patches.at[:, :, :-1, _HALF:].add(change * ramp[::-1])
    patches = patches.at[:, :, 1:, :_HALF].add(-change * ramp)
    return patches.reshape(x.shape)


def _deviation(side: jax.Array) -> jax.Array:
    """Mean absolute deviation over the pixels [..., 8, 3] of a row: [..., 3]."""
    return jnp.abs(side - side.mean(-2, keepdims=True)).mean(-2)


def _mean_of_rows(a: jax.Array) -> jax.Array:
    """Running mean over the rows of [B, H, ...]; the first and the last are repeated."""
    rows = a.shape[1]
    padding = [(0, 0)] * a.ndim
    padding[1] = (_REACH, _REACH)
    padded = jnp.pad(a, padding, mode="edge")
    count = 2 * _REACH + 1
    total: jax.Array = sum((padded[:, i : i + rows] for i in range(count)), jnp.zeros_like(a))
    return total / count
