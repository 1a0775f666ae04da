"""Float layers that functions apply, and PyTorch's initial values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for kernels and biases: uniform, variance 1 / (3 fan_in)."""
    edge = fan_in**-0.5

    def init(key: jax.Array, shape: Any, dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -edge, edge)

    return init


class ConvSpec(NamedTuple):
    """Shapes and initial values of a layer."""

    shape: tuple[int, ...]
    """Of the kernel: [k, k, I, O], or [G, I, O] for a product a group."""
    kernel: nn.initializers.Initializer
    bias: nn.initializers.Initializer
    """Of the bias, [O] or [G, O]."""


class ConvLayers(nn.Module):
    """Parameters `NAME/kernel` and `NAME/bias` of some layers."""

    specs: Mapping[str, ConvSpec]

    @nn.compact
    def __call__(self) -> dict[str, dict[str, jax.Array]]:
        """The parameters by name, of the shapes of `specs`."""
        return {name: _Parameters(spec, name=name)() for name, spec in self.specs.items()}


class _Parameters(nn.Module):
    spec: ConvSpec

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        shape = self.spec.shape
        bias_shape = shape[-1:] if len(shape) == 4 else (shape[0], shape[-1])
        return {
            "kernel": self.param("kernel", self.spec.kernel, shape),
            "bias": self.param("bias", self.spec.bias, bias_shape),
        }
