"""Hyper-analysis h_a and hyper-synthesis h_s."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sic_jax.model.entropy_models.checkerboard.exact import (
    ACTIVATION_MAX,
    Layers,
    LayerSpec,
    rescale,
    shifted_products,
)
from sic_jax.model.maps import depth_to_space, log_compress, space_to_depth
from sic_jax.sizes import Size, zero_outside

HYPER_STRIDE = 4
"""Latent positions that one position of z covers in each direction."""


class HyperAnalysis(nn.Module):
    """h_a: y [B, h, w, C] to z [B, ceil(h/4), ceil(w/4), C_z]; sides are padded by repetition."""

    width: int
    channels: int

    @nn.compact
    def __call__(self, y: jax.Array, size: Size = None) -> jax.Array:
        """Unquantised z of unquantised y; `size` is that of y, if it does not fill its array."""
        pad_h, pad_w = -y.shape[1] % HYPER_STRIDE, -y.shape[2] % HYPER_STRIDE
        y = jnp.pad(y, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)), mode="edge")
        if size is not None:
            for axis in (1, 2):
                at = jnp.minimum(jnp.arange(y.shape[axis])[None], size[:, axis - 1, None] - 1)
                y = jnp.take_along_axis(y, jnp.expand_dims(at, (3 - axis, 3)), axis)
            y = zero_outside(y, -(-size // HYPER_STRIDE), HYPER_STRIDE)
        h = nn.Conv(self.width, (3, 3))(log_compress(y))
        for _ in range(2):
            h = nn.Conv(self.width, (1, 1))(space_to_depth(nn.leaky_relu(h, 0.1), 2))
        return nn.Conv(self.channels, (1, 1))(nn.leaky_relu(h, 0.1))


def hyper_synthesis_specs(width: int, channels: int) -> dict[str, LayerSpec]:
    """The layers of h_s, of `width` features, for z of `channels` channels."""
    up = LayerSpec((width, 4 * width))
    return {
        "first": LayerSpec((9, channels, width), input_bits=0),
        "up_1": up,
        "up_2": up,
        "last": LayerSpec((9, width, width)),
    }


def hyper_synthesis(
    layers: Layers, z_hat: jax.Array, shape: tuple[int, int], size: Size = None
) -> jax.Array:
    """h_s: z_hat to features [B, h, w, F] at the latents' resolution, in exact arithmetic.

    Args:
        layers: Of `hyper_synthesis_specs`.
        z_hat: Integers [B, ceil(h/4), ceil(w/4), C_z]; clipped to what the arithmetic allows.
        shape: (h, w), to which the features are cropped.
        size: Of latents that do not fill the shape; z_hat is zero outside.
    """
    first, last = layers["first"], layers["last"]
    z_hat = jnp.clip(z_hat, -ACTIVATION_MAX, ACTIVATION_MAX)
    h = rescale(shifted_products(z_hat, first.kernel), first, leaky=True)
    for up in (layers["up_1"], layers["up_2"]):
        h = depth_to_space(rescale(h @ up.kernel, up, leaky=True), 2)
    if size is not None:
        h = zero_outside(h, -(-size // HYPER_STRIDE), HYPER_STRIDE)
    h = rescale(shifted_products(h, last.kernel), last)
    return h[:, : shape[0], : shape[1]]
