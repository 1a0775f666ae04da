"""Random numbers of training: one key for a batch, or a key an image."""

from collections.abc import Callable

import jax


def split_keys(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of the noise of y, of z and of the details, from one key or from keys [B]."""
    if key.shape:
        keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(key)
    else:
        keys = jax.random.split(key, 3)
    return keys[0], keys[1], keys[2]


def draw_each(
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array], key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """``draw(key, shape)``; with keys [B], image by image.

    A key an image makes its noise independent of the batch that it is in: however a batch is cut
    over devices, hosts and accumulated steps, the numbers are the same.
    """
    if key.shape:
        return jax.vmap(lambda k: draw(k, shape[1:]))(key)
    return draw(key, shape)


def unit_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """U(-1/2, 1/2) of a shape: rounding, as training sees it."""
    return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)
