"""Exact arithmetic of the entropy networks: float32 arrays that carry small integers.

Decoding works only if a decoder finds the very tables that the encoder used, so h_s, the context
model and the entropy-parameter networks compute with integers whose every partial sum is below
2^24. float32 holds those exactly, whatever the order of summation, number of threads, batch size,
backend or compiler flags; the factors have at most 8 bits, so that the reduced-precision
multipliers of accelerators (TF32, bfloat16 with float32 sums) are exact too.

    activations   integers in [-127, 127], in sixteenths, as means (`FRACTION_BITS`)
    layer         floor(clip(act(2^-shift * (bias + sum of kernel * input))) + 1/2), shift an
                  integer a feature, act a leaky ReLU of slope 1/8 or nothing

Training and coding run the same functions. Training holds float parameters, and `quantise` yields
the integers with straight-through gradients; coding loads the integers from a bundle.
FORMAT.md specifies the arithmetic. Reference: Balle, Johnston and Minnen 2019.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.model.entropy_models.scales import FRACTION_BITS

ACTIVATION_MAX: Final = 127
"""Largest magnitude of an activation, and of a latent that a network reads as it is."""
LOG_MAX: Final = 63
"""Magnitude at which latents are clipped before their logarithm is looked up."""
MAX_SHIFT: Final = 12
BIAS_MAX: Final = 2**21
_SUM_MAX: Final = 2**24
_ROUNDING: Final = 2 ** (MAX_SHIFT + 2)
_KERNEL_MAX: Final = 127
_SCALES: Final = np.float32(2.0) ** -np.arange(MAX_SHIFT + 1, dtype=np.float32)

LOG_TABLE: Final = np.floor(2**FRACTION_BITS * np.log1p(np.arange(LOG_MAX + 1)) + 0.5).astype(
    np.float32
)
"""log(1 + n) in sixteenths for n = 0..LOG_MAX."""


class Layer(NamedTuple):
    """Integers of a linear layer, as float32 arrays; stacked layers have leading axes."""

    kernel: jax.Array
    """[..., I, O] or, for a 3x3 convolution, [..., 9, I, O]; magnitudes up to `kernel_limit`."""
    bias: jax.Array
    """[..., O]; magnitudes up to `BIAS_MAX`."""
    scale: jax.Array
    """[..., O]: 2^-shift, shift 0 to `MAX_SHIFT`."""


Layers = dict[str, Layer]


def kernel_limit(num_inputs: int, input_max: int) -> int:
    """Largest kernel magnitude, of the form 2^k - 1, that keeps every partial sum below 2^24.

    Args:
        num_inputs: Products that are summed for one output, taps included.
        input_max: Largest magnitude of an input.

    Raises:
        ValueError: If not even kernels of -1, 0 and 1 would do.
    """
    room = (_SUM_MAX - BIAS_MAX - _ROUNDING) // (num_inputs * input_max)
    if room < 1:
        raise ValueError(
            f"a layer of {num_inputs} inputs is too wide for exact arithmetic: sums of inputs up "
            f"to {input_max} pass 2^24"
        )
    return int(min(2 ** ((room + 1).bit_length() - 1) - 1, _KERNEL_MAX))


@jax.custom_jvp
def _straight_through(hard: jax.Array, soft: jax.Array) -> jax.Array:
    """`hard`, with the gradient of `soft`."""
    return hard


@_straight_through.defjvp
def _straight_through_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[1]


@dataclass(frozen=True)
class LayerSpec:
    """What is fixed about a layer, or about stacked layers, before its integers are."""

    shape: tuple[int, ...]
    """Of the kernel: [..., I, O] or, for a convolution, [..., taps, I, O]."""
    num_stacked: int = 0
    """Leading axes that enumerate layers."""
    input_max: int = ACTIVATION_MAX
    """Largest magnitude of an input."""
    input_bits: int = FRACTION_BITS
    """Fraction bits of the inputs: `FRACTION_BITS`, or 0 for latents as they are."""
    mask: NDArray[np.bool_] | None = None
    """Broadcasts to `shape`; where false, the kernel is 0."""
    gain: float = 2.0
    """Variance of the initial kernel times the number of inputs."""
    bias: NDArray[np.float32] | None = None
    """Initial bias, broadcast to [..., O]; default 0."""

    @property
    def sum_axes(self) -> tuple[int, ...]:
        """Axes of the kernel over which an output sums."""
        return tuple(range(self.num_stacked, len(self.shape) - 1))

    @property
    def num_inputs(self) -> int:
        """Products that are summed for one output."""
        mask = np.ones((), np.bool_) if self.mask is None else self.mask
        return int(np.broadcast_to(mask, self.shape).sum(self.sum_axes).max())

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """[..., O]."""
        return self.shape[: self.num_stacked] + self.shape[-1:]


def quantise(kernel: jax.Array, bias: jax.Array, spec: LayerSpec) -> Layer:
    """Integers of a layer with float parameters; gradients pass straight through.

    Each output feature has the finest power-of-two step that holds its largest kernel entry. The
    result is a fixed point: the floats that `dequantise` makes of it have the same integers.

    Args:
        kernel: Float [..., I, O] or [..., taps, I, O].
        bias: Float [..., O].
        spec: Of the layer.
    """
    limit = kernel_limit(spec.num_inputs, spec.input_max)
    lowest = FRACTION_BITS - spec.input_bits
    powers = np.float32(2.0) ** np.arange(lowest, lowest + MAX_SHIFT + 1, dtype=np.float32)
    if spec.mask is not None:
        kernel = jnp.where(spec.mask, kernel, 0)
    largest = jnp.abs(jax.lax.stop_gradient(kernel)).max(spec.sum_axes)
    scaled = largest[..., None] * jax.lax.broadcast_to_rank(powers, largest.ndim + 1)
    shift = jnp.maximum((scaled <= limit).sum(-1) - 1, 0)
    step = jnp.asarray(powers)[shift]
    soft = jnp.clip(kernel * jnp.expand_dims(step, spec.sum_axes), -limit, limit)
    soft_bias = jnp.clip(bias * (step * 2.0**spec.input_bits), -BIAS_MAX, BIAS_MAX)
    return Layer(
        _straight_through(jnp.round(soft), soft),
        _straight_through(jnp.round(soft_bias), soft_bias),
        jnp.asarray(_SCALES)[shift],
    )


def dequantise(layer: Layer, spec: LayerSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Float parameters whose `quantise` is `layer`.

    Returns:
        Kernel float32 [..., I, O] or [..., taps, I, O], and bias float32 [..., O].
    """
    kernel, bias, scale = (np.asarray(a, np.float32) for a in layer)
    step = scale * np.float32(2.0 ** (spec.input_bits - FRACTION_BITS))
    kernel = kernel * np.expand_dims(step, spec.sum_axes)
    return kernel, bias * step * np.float32(2.0**-spec.input_bits)


def check_layer(layer: Layer, spec: LayerSpec) -> None:
    """Check that a layer of any source is exact whatever it reads.

    Raises:
        ValueError: If a shape or value is not allowed, or a partial sum could pass 2^24.
    """
    shapes = (spec.shape, spec.bias_shape, spec.bias_shape)
    for name, array, shape in zip(layer._fields, layer, shapes, strict=True):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, not {shape}")
    kernel, bias, scale = (np.asarray(a, np.float64) for a in layer)
    if not np.isin(scale, _SCALES).all():
        raise ValueError(f"a scale is not a power of two from 2^-{MAX_SHIFT} to 1")
    if not (np.array_equal(kernel, np.round(kernel)) and np.array_equal(bias, np.round(bias))):
        raise ValueError("kernel and bias must be integers")
    if np.abs(kernel).max() > _KERNEL_MAX or np.abs(bias).max() > BIAS_MAX:
        raise ValueError(f"kernel or bias is beyond {_KERNEL_MAX} or {BIAS_MAX}")
    sums = np.abs(kernel).sum(spec.sum_axes) * spec.input_max + np.abs(bias)
    if sums.max() > _SUM_MAX - _ROUNDING:
        raise ValueError(f"sums up to {sums.max():.0f} are not exact; 2^24 is the limit")


# Offsets (row, column) of the taps of a kernel.
NEIGHBOURHOOD: Final = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))
CROSS: Final = ((-1, 0), (0, -1), (0, 1), (1, 0))


def shifted_products(
    x: jax.Array, kernel: jax.Array, taps: Sequence[tuple[int, int]] = NEIGHBOURHOOD
) -> jax.Array:
    """Convolution with zero padding as a product a tap: [B,h,w,I] by [taps,I,O] to [B,h,w,O].

    Products instead of a convolution primitive, so that no backend can choose an algorithm that
    computes with fractions.

    Args:
        x: Integers.
        kernel: One matrix a tap.
        taps: Offsets, -1 to 1, of the position that a matrix reads.
    """
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    products = [
        padded[:, 1 + i : 1 + i + h, 1 + j : 1 + j + w] @ k
        for (i, j), k in zip(taps, kernel, strict=True)
    ]
    total: jax.Array = functools.reduce(operator.add, products)
    return total


def rescale(
    total: jax.Array, layer: Layer, *, limit: int = ACTIVATION_MAX, leaky: bool = False
) -> jax.Array:
    """Sums of products [..., O] to integers of magnitude up to `limit`.

    Adds the bias, scales, applies the leaky ReLU of slope 1/8 if `leaky`, clips and rounds.
    """
    bias, scale = (jax.lax.broadcast_to_rank(a, total.ndim) for a in (layer.bias, layer.scale))
    value = (total + bias) * scale
    if leaky:
        value = jnp.maximum(value, value * 0.125)
    # Clipped first: beyond 2^23 float32 does not hold the half that rounding adds.
    value = jnp.clip(value, -limit, limit)
    return _straight_through(jnp.floor(value + 0.5), value)


def log_by_table(y: jax.Array) -> jax.Array:
    """sign(y) log(1 + |y|) of integer latents of any shape, in sixteenths, by table."""
    negative = y < 0
    size = jnp.minimum(jnp.where(negative, -y, y), LOG_MAX)
    # The table's values are no function of the gradient: that is the logarithm's.
    hard = jnp.asarray(LOG_TABLE)[size.astype(jnp.int32)]
    size = _straight_through(hard, 2**FRACTION_BITS * jnp.log1p(size))
    return jnp.where(negative, -size, size)


class ExactLayers(nn.Module):
    """Float parameters `NAME/kernel` and `NAME/bias` of some layers, as their integers."""

    specs: Mapping[str, LayerSpec]

    @nn.compact
    def __call__(self) -> Layers:
        """The layers by name."""
        return {name: _Parameters(spec, name=name)() for name, spec in self.specs.items()}


class _Parameters(nn.Module):
    spec: LayerSpec

    @nn.compact
    def __call__(self) -> Layer:
        spec = self.spec
        normal = nn.initializers.normal((spec.gain / spec.num_inputs) ** 0.5)
        kernel = self.param("kernel", normal, spec.shape)

        def initial_bias(_: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jnp.broadcast_to(jnp.float32(0 if spec.bias is None else spec.bias), shape)

        return quantise(kernel, self.param("bias", initial_bias, spec.bias_shape), spec)
