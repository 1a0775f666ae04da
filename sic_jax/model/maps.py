"""What networks do to maps [B, H, W, C]: blocks to channels and back, logarithms."""

import jax
import jax.numpy as jnp


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """[B, H, W, C] to [B, H/block, W/block, block*block*C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """The inverse of `space_to_depth`: [B, H, W, C] to [B, H*block, W*block, C/(block*block)]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // (block * block))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, -1)


def log_compress(y: jax.Array) -> jax.Array:
    """sign(y) log(1 + |y|), of any shape: keeps large first components from swamping a network."""
    # Not with jnp.sign and jnp.abs: their derivatives at 0 would stop the gradient of every zero
    # symbol, where it is 1.
    negative = y < 0
    size = jnp.log1p(jnp.where(negative, -y, y))
    return jnp.where(negative, -size, size)
