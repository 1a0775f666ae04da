"""A bundle's networks as compiled programs: one serves all pictures of a bucket of sizes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.pixels import Pixels
from sic_jax.codec.windows import in_windows
from sic_jax.compilation_cache import jit_per_shape
from sic_jax.entropy.distributions import deep_factorised_bits
from sic_jax.model.entropy_models.coding_pass import Floats, Ints
from sic_jax.model.entropy_models.prior import medians
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.sic import SicModel
from sic_jax.model.tree import Params
from sic_jax.sizes import Size, bucket, fill, zero_outside


class EstimatedBits(NamedTuple):
    """Bits of an image by the model's probabilities, without coding."""

    z: float
    y: NDArray[np.float64]
    """Of each level, [L]."""

    def bpp_est(self, level: int, height: int, width: int) -> float:
        """Estimated bits per pixel of a file of `level`, if it holds latents."""
        return (self.z + float(self.y[:level].sum())) / (height * width)


class Networks:
    """What the codec computes in floats: g_a, h_a, g_s, and estimates of bits."""

    def __init__(self, cfg: ModelConfig, params: Params, *, window: int) -> None:
        """Place the parameters on the device.

        Args:
            cfg: Of the model.
            params: Of the model.
            window: As in `Codec`.

        Raises:
            ValueError: If the window is too small.
        """
        # Transforms without a reach see pictures whole, whatever the window.
        transforms = cfg.transforms
        reach = max(transforms.analysis_reach or 0, transforms.synthesis_reach or 0)
        if window // cfg.stride <= 2 * reach:
            least = (2 * reach + 1) * cfg.stride
            raise ValueError(f"window must be at least {least} for this bundle, got {window}")
        self._window = window // cfg.stride
        self._cfg = cfg
        model, networks = SicModel(cfg), cfg.entropy.networks(cfg.levels)
        self._variables = jax.device_put({"params": params})

        def latents(variables: Any, x: jax.Array, size: Size) -> jax.Array:
            x = x[None].astype(jnp.float32) / 255
            y: Any = model.apply(variables, x, size, method="latents")
            first: jax.Array = y[0]
            return first

        def quantise(variables: Any, y: jax.Array, size: Size) -> tuple[jax.Array, jax.Array]:
            sizes = () if size is None else (size,)
            z: Any = networks.apply(variables, y[None], *sizes, method="hyper_latents")
            prior: Any = networks.apply(variables, method="prior")
            z = jnp.round(z[0] - medians(prior)[None, None])
            return jnp.round(y).astype(jnp.int32), z.astype(jnp.int32)

        def synthesise(variables: Any, y_hat: jax.Array, level: jax.Array, size: Size) -> jax.Array:
            x_hat: Any = model.apply(variables, y_hat[None], level, size, method="synthesise")
            return jnp.round(jnp.clip(x_hat[0], 0, 1) * 255).astype(jnp.uint8)

        def estimate(
            variables: Any, y_hat: jax.Array, z_hat: jax.Array, hyper: jax.Array, size: Size
        ) -> tuple[jax.Array, jax.Array]:
            prior: Any = networks.apply(variables, method="prior")
            z = z_hat[None].astype(jnp.float32) + medians(prior)[None, None, None]
            z_size = None if size is None else -(-size // cfg.entropy.hyper_stride)
            bits_z = zero_outside(deep_factorised_bits(prior, z), z_size).sum()
            y = y_hat[None].astype(jnp.float32)
            bits: Any = networks.apply(variables, y, y, hyper, size=size, method="level_bits")
            return bits_z, bits[0]

        self._latents = jit_per_shape(latents)
        self._quantise = jit_per_shape(quantise)
        self._synthesise = jit_per_shape(synthesise)
        self._estimate = jit_per_shape(estimate)

    def analyse(self, x: Pixels) -> NDArray[np.float32]:
        """g_a: unquantised latents [h, w, C] of a picture uint8 [stride h, stride w, 3]."""
        cfg, stride = self._cfg, self._cfg.stride
        h, w = x.shape[0] // stride, x.shape[1] // stride
        y = np.empty((h, w, cfg.num_channels), np.float32)

        def latents(x: Pixels) -> jax.Array:
            shape, size = _place(x.shape[0] // stride, x.shape[1] // stride, cfg.transforms.sized)
            filled = fill(x, (shape[0] * stride, shape[1] * stride))
            found: jax.Array = self._latents(*shape)(self._variables, filled, size)
            return found

        in_windows(
            latents,
            x,
            y,
            unit_in=stride,
            unit_out=1,
            limit=self._window,
            margin=cfg.transforms.analysis_reach,
        )
        return y

    def quantise(self, y: NDArray[np.float32]) -> tuple[Ints, Ints]:
        """Integers of unquantised latents [h, w, C], those of y and those of z less its medians."""
        (h, w), entropy = y.shape[:2], self._cfg.entropy
        shape, size = _place(h, w, entropy.sized)
        y_hat, z_hat = self._quantise(*shape)(self._variables, fill(y, shape), size)
        below = entropy.hyper_stride
        return np.asarray(y_hat)[:h, :w], np.asarray(z_hat)[: -(-h // below), : -(-w // below)]

    def synthesise(self, y_hat: NDArray[Any], level: int) -> Pixels:
        """g_s of latents float32 [h, w, C] at a level: uint8 [stride h, stride w, 3]."""
        stride, transforms = self._cfg.stride, self._cfg.transforms
        levels = np.array([level], np.int32)
        x_hat = np.empty((y_hat.shape[0] * stride, y_hat.shape[1] * stride, 3), np.uint8)

        def synthesise(y_hat: NDArray[Any]) -> jax.Array:
            shape, size = _place(y_hat.shape[0], y_hat.shape[1], transforms.sized)
            found: jax.Array = self._synthesise(*shape)(
                self._variables, fill(y_hat, shape), levels, size
            )
            return found

        in_windows(
            synthesise,
            y_hat,
            x_hat,
            unit_in=1,
            unit_out=stride,
            limit=self._window,
            margin=transforms.synthesis_reach,
        )
        return x_hat

    def estimate_bits(self, y: Ints, z: Ints, hyper: Floats) -> EstimatedBits:
        """Bits of the integers y [h, w, C] and z.

        They are those of `quantise`; `hyper` is the coding pass's.
        """
        (h, w), below = y.shape[:2], self._cfg.entropy.hyper_stride
        shape, size = _place(h, w, self._cfg.entropy.sized)
        bits_z, bits_y = self._estimate(*shape)(
            self._variables,
            fill(y, shape),
            fill(z, (-(-shape[0] // below), -(-shape[1] // below))),
            fill(np.asarray(hyper)[0], shape)[None],
            size,
        )
        return EstimatedBits(float(bits_z), np.asarray(bits_y, np.float64))

    @property
    def params(self) -> Params:
        """The model's parameters, on the device."""
        params: Params = self._variables["params"]
        return params


def _place(h: int, w: int, sized: bool) -> tuple[tuple[int, int], NDArray[np.int32] | None]:
    """Shape of the arrays in which latents [h, w] are computed, and what tells networks h and w.

    Networks that are not `sized` get arrays that the latents fill.
    """
    return (bucket(h, w), np.array([[h, w]], np.int32)) if sized else ((h, w), None)
