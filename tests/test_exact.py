"""Exact arithmetic: by hand, its bounds, and that nothing about a machine or program changes it."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.checkerboard.exact import (
    BIAS_MAX,
    CROSS,
    LOG_MAX,
    LOG_TABLE,
    MAX_SHIFT,
    NEIGHBOURHOOD,
    Layer,
    LayerSpec,
    check_layer,
    dequantise,
    kernel_limit,
    log_by_table,
    quantise,
    rescale,
    shifted_products,
)
from sic_jax.model.levels import LevelConfig


def layer_of(kernel: Any, bias: Any, shift: Any) -> Layer:
    kernel, bias, shift = (np.asarray(a, np.float32) for a in (kernel, bias, shift))
    return Layer(jnp.asarray(kernel), jnp.asarray(bias), jnp.asarray(2.0**-shift))


def test_log_table() -> None:
    assert LOG_TABLE.dtype == np.float32
    assert LOG_TABLE[[0, 1, 2, 3, 7, 15, 31, 63]].tolist() == [0, 11, 18, 22, 33, 44, 55, 67]
    # No entry is so near a half that another logarithm would round it otherwise.
    exact = 16 * np.log1p(np.arange(LOG_MAX + 1.0))
    assert np.abs(exact + 0.5 - np.round(exact + 0.5)).min() > 1e-3
    y = jnp.array([-(2.0**29), -64, -63, -1, 0, 1, 62, 63, 1e9])
    assert log_by_table(y).tolist() == [-67, -67, -67, -11, 0, 11, 66, 67, 67]
    slope = jax.grad(lambda v: log_by_table(v).sum())(jnp.array([-3.0, 0.0, 1.0, 100.0]))
    np.testing.assert_allclose(slope, [4, 16, 8, 0], rtol=1e-6)


def test_rescale_by_hand() -> None:
    layer = layer_of(np.zeros((1, 4)), [0, 0, 3, -8], [1, 4, 4, 0])
    total = jnp.array([[3.0, 8, 5, 100], [-3, -8, -11, -100], [-1, -9, 4, 8]])
    assert rescale(total, layer).tolist() == [[2, 1, 1, 92], [-1, 0, 0, -108], [0, -1, 0, 0]]
    # The slope of 1/8 comes before the rounding: -108 / 8 = -13.5 rounds to -13.
    leaky = rescale(total, layer, leaky=True)
    assert leaky.tolist() == [[2, 1, 1, 92], [0, 0, 0, -13], [0, 0, 0, 0]]
    clipped = rescale(total * 100, layer_of(np.zeros((1, 4)), [0] * 4, [0] * 4), limit=300)
    assert clipped.tolist() == [[300] * 4, [-300] * 4, [-100, -300, 300, 300]]
    slope = jax.grad(lambda t: rescale(t, layer, leaky=True).sum())(total)
    assert slope[0].tolist() == [1 / 2, 1 / 16, 1 / 16, 1]
    assert slope[1].tolist() == [1 / 16, 1 / 128, 1 / 128, 1 / 8]


@pytest.mark.parametrize("taps", [NEIGHBOURHOOD, CROSS])
def test_shifted_products_by_hand(taps: tuple[tuple[int, int], ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (2, 3, 4, 2))
    kernel = rng.integers(-9, 10, (len(taps), 2, 5))
    expected = np.zeros((2, 3, 4, 5), int)
    for b, i, j in np.ndindex(2, 3, 4):
        for (di, dj), k in zip(taps, kernel, strict=True):
            if 0 <= i + di < 3 and 0 <= j + dj < 4:
                expected[b, i, j] += x[b, i + di, j + dj] @ k
    got = shifted_products(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), taps)
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_checked_layer_is_exact(data: st.DataObject) -> None:
    """Float32 results equal those of rational arithmetic, at the bounds too."""
    num_inputs, input_max = data.draw(st.integers(1, 3000)), data.draw(st.sampled_from([67, 127]))
    limit = kernel_limit(num_inputs, input_max)
    assert limit in (1, 3, 7, 15, 31, 63, 127)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    extreme = data.draw(st.booleans())
    kernel = rng.integers(-limit, limit + 1, (num_inputs, 3))
    x = rng.integers(-input_max, input_max + 1, (2, num_inputs))
    if extreme:
        kernel[:, 0] = limit
        x[0] = input_max
        x[1] = -input_max
    bias = rng.integers(-BIAS_MAX, BIAS_MAX + 1, 3)
    bias[0] = BIAS_MAX
    shift = rng.integers(0, MAX_SHIFT + 1, 3)
    layer = layer_of(kernel, bias, shift)
    check_layer(layer, LayerSpec((num_inputs, 3), input_max=input_max))
    leaky = data.draw(st.booleans())
    got = rescale(jnp.asarray(x, jnp.float32) @ layer.kernel, layer, limit=2**15, leaky=leaky)
    for row, out in zip(x.tolist(), np.asarray(got), strict=True):
        for o in range(3):
            total = sum(a * b for a, b in zip(row, kernel[:, o].tolist(), strict=True))
            value = Fraction(total + int(bias[o]), 2 ** int(shift[o]))
            if leaky and value < 0:
                value /= 8
            assert out[o] == min(max((value + Fraction(1, 2)).__floor__(), -(2**15)), 2**15)


def test_kernel_limit() -> None:
    assert [kernel_limit(n, 127) for n in (1, 909, 910, 1832, 115000)] == [127, 127, 63, 63, 1]
    assert kernel_limit(1710, 67) == 127
    with pytest.raises(ValueError, match="a layer of 120000 inputs is too wide for exact arith"):
        kernel_limit(120000, 127)


SPECS = {
    "dense": LayerSpec((40, 6)),
    "raw": LayerSpec((9, 4, 6), input_bits=0),
    "stacked": LayerSpec((3, 4, 5, 6), num_stacked=1, mask=np.arange(5)[:, None] < 4),
}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(SPECS)),
    seed=st.integers(0, 2**32),
    size=st.floats(-6, 3),
)
def test_quantising_is_a_projection(name: str, seed: int, size: float) -> None:
    spec = SPECS[name]
    rng = np.random.default_rng(seed)
    scales = 10.0 ** (size + rng.uniform(-1, 1, spec.shape[-1]))
    kernel = (rng.standard_normal(spec.shape) * scales).astype(np.float32)
    bias = rng.standard_normal(spec.bias_shape).astype(np.float32)
    layer = quantise(jnp.asarray(kernel), jnp.asarray(bias), spec)
    check_layer(layer, spec)
    floats = dequantise(layer, spec)
    again = quantise(jnp.asarray(floats[0]), jnp.asarray(floats[1]), spec)
    for a, b in zip(layer, again, strict=True):
        np.testing.assert_array_equal(a, b)
    # Rounding moves a kernel entry by at most half a step of its feature, unless it is clipped.
    step = np.expand_dims(np.asarray(layer.scale) * 2.0 ** (spec.input_bits - 4), spec.sum_axes)
    free = np.abs(kernel) <= kernel_limit(spec.num_inputs, spec.input_max) * step
    masked = kernel if spec.mask is None else np.where(spec.mask, kernel, 0)
    assert (np.abs(floats[0] - masked) <= 0.5001 * step)[free].all()
    # The finest step: doubled, the largest entry would not fit (or the shift is at its end).
    largest = np.abs(np.asarray(layer.kernel)).max(spec.sum_axes)
    limit = kernel_limit(spec.num_inputs, spec.input_max)
    shift = -np.log2(np.asarray(layer.scale))
    assert ((largest * 2 >= limit) | (shift == MAX_SHIFT)).all()


def test_quantised_layers_learn() -> None:
    """Straight-through gradients are those of the float layer, in the activations' sixteenths."""
    spec = LayerSpec((5, 2))
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.standard_normal((5, 2)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(2), jnp.float32)
    x = jnp.asarray(rng.integers(-50, 50, (3, 5)), jnp.float32)

    def out(kernel: jax.Array, bias: jax.Array) -> jax.Array:
        layer = quantise(kernel, bias, spec)
        return rescale(x @ layer.kernel, layer, limit=2**15).sum()

    by_kernel, by_bias = jax.grad(out, (0, 1))(kernel, bias)
    np.testing.assert_allclose(by_kernel, np.repeat(np.asarray(x).sum(0)[:, None], 2, 1))
    np.testing.assert_allclose(by_bias, 3 * 16)
    layer = quantise(kernel, bias, spec)
    value = rescale(x @ layer.kernel, layer, limit=2**15)
    # Half a sixteenth from the output, 2^-6 / 2 an input from the kernel, at most.
    np.testing.assert_allclose(value, x @ kernel + 16 * bias[None], atol=0.5 + 5 * 50 / 64)


def bad(change: str) -> tuple[Layer, LayerSpec]:
    kernel, bias, scale = np.full((9, 2), 5.0), np.zeros(2), np.ones(2)
    spec = LayerSpec((9, 2))
    if change == "shape":
        kernel = kernel[:8]
    elif change == "fraction":
        kernel[0, 0] = 0.5
    elif change == "scale":
        scale[1] = 0.75
    elif change == "nan":
        kernel[0, 0] = np.nan
    elif change == "kernel":
        kernel[0, 0] = 128
    elif change == "bias":
        bias[0] = BIAS_MAX + 1
    else:
        kernel, spec = np.full((1200, 2), 127.0), LayerSpec((1200, 2))
    return Layer(jnp.asarray(kernel), jnp.asarray(bias), jnp.asarray(scale)), spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"kernel has shape \(8, 2\), not \(9, 2\)"),
        ("fraction", "kernel and bias must be integers"),
        ("nan", "kernel and bias must be integers"),
        ("scale", "a scale is not a power of two from 2\\^-12 to 1"),
        ("kernel", "kernel or bias is beyond 127 or 2097152"),
        ("bias", "kernel or bias is beyond 127 or 2097152"),
        ("sum", "sums up to 19354800 are not exact"),
    ],
)
def test_bad_layers(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_layer(*bad(change))


def test_default_layers_use_eight_bits() -> None:
    for network, specs in CheckerboardEntropy().layer_specs(LevelConfig()).items():
        for name, spec in specs.items():
            assert kernel_limit(spec.num_inputs, spec.input_max) == 127, (network, name)
