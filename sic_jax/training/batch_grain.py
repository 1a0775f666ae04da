"""Grain for training: what `sic_jax.codec.grain` does to files, for batches of floats."""

import jax
import jax.numpy as jnp

from sic_jax.codec.grain import (
    BLOCK,
    BRIGHTNESS,
    CALM,
    CALM_RATIO,
    LUMA,
    MEASURED_LIMIT,
    OWN,
    SHARED,
    WINDOW,
)
from sic_jax.model.noise import draw_each


def measure_grain(x: jax.Array) -> jax.Array:
    """The grain [B] of images [B, H, W, 3] in [0, 1], in their units; sides at least 16."""
    luma = _luma(x)
    brightness = _blocks(luma) * 255
    black, white = BRIGHTNESS
    usable = (brightness > black) & (brightness < white)
    squares = jnp.pad(_squared_differences(luma), ((0, 0), (1, 0), (1, 0)))
    variance = jnp.where(usable, _blocks(squares), jnp.nan)
    calmest, calm = jnp.sqrt(jnp.nanquantile(variance, jnp.array(CALM), axis=-1))
    sigma = jnp.minimum(jnp.minimum(calm, CALM_RATIO * calmest), MEASURED_LIMIT / 255)
    return jnp.where(usable.any(-1), sigma, 0)


def add_grain(x_hat: jax.Array, sigma: jax.Array, key: jax.Array) -> jax.Array:
    """Draw grain on decodings; it is constant for gradients.

    Args:
        x_hat: [B, H, W, 3] in [0, 1].
        sigma: Of each, in the same units, [B].
        key: [B] keys.
    """
    squares = _squared_differences(_luma(x_hat))
    around = (WINDOW // 2 + 1, WINDOW // 2)
    squares = jnp.pad(squares, ((0, 0), around, around), mode="edge")
    window = (1, WINDOW, WINDOW)
    energy = jax.lax.reduce_window(squares, 0.0, jax.lax.add, window, (1, 1, 1), "VALID")
    missing = jnp.square(sigma)[:, None, None] - energy / WINDOW**2
    amplitude = jnp.sqrt(jnp.maximum(missing, 0))[..., None]
    noise = draw_each(jax.random.normal, key, (*x_hat.shape[:3], 4))
    noise = (SHARED * noise[..., :1] + OWN * noise[..., 1:]) / 1024
    return x_hat + jax.lax.stop_gradient(amplitude * noise)


def _luma(x: jax.Array) -> jax.Array:
    return x @ jnp.array(LUMA, jnp.float32) / 256


def _squared_differences(luma: jax.Array) -> jax.Array:
    """Squares of second differences, with the variance of white noise: [B, H - 1, W - 1]."""
    return jnp.square(jnp.diff(jnp.diff(luma, axis=1), axis=2)) / 4


def _blocks(a: jax.Array) -> jax.Array:
    """Means of the blocks of [B, H, W]: [B, N]; what is left at the edges does not count."""
    rows, columns = a.shape[1] // BLOCK, a.shape[2] // BLOCK
    cut = a[:, : rows * BLOCK, : columns * BLOCK]
    return cut.reshape(-1, rows, BLOCK, columns, BLOCK).mean((2, 4)).reshape(len(a), -1)
