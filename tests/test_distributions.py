"""Entropy models against TensorFlow Compression 2.14.1, closed forms and hand-made gradients.

The reference values are float64 results of the library (data/make_tfc_reference.py says how they
were made). Tolerances are about twice what float32 loses: the library's own float32 results are off
by up to 3.3e-6 of max(1, bits).
"""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from sic_jax.entropy.cdf_tables import CdfTables, quantise_pmf
from sic_jax.entropy.distributions import (
    NO_REACH,
    deep_factorised_bits,
    deep_factorised_logits,
    logistic_bits,
    lower_bound,
    normal_bits,
    ste_round,
)
from sic_jax.entropy.range_coder import RangeDecoder, RangeEncoder

Array = npt.NDArray[Any]
Reference = dict[str, Array]
Params = dict[str, tuple[jax.Array, ...]]
PRIORS = ("df_init", "df_default", "df_deep", "df_shallow")
LN2 = math.log(2.0)
FAR = (-1e5, -99_999.37, -3e4, -1000.25, -40.0, 0.0, 40.0, 1000.25, 3e4, 99_999.37, 1e5)

# One compilation per shape is far quicker than every small operation by itself.
jit_normal_bits = jax.jit(normal_bits)
jit_logistic_bits = jax.jit(logistic_bits)
jit_logistic_grads = jax.jit(jax.grad(lambda *a: logistic_bits(*a).sum(), argnums=(0, 1, 2)))
jit_logits = jax.jit(deep_factorised_logits)
jit_bits = jax.jit(deep_factorised_bits)
jit_bits_and_grads = jax.jit(
    jax.value_and_grad(lambda p, x: deep_factorised_bits(p, x).sum(), argnums=(0, 1))
)
jit_normal_grads = jax.jit(jax.grad(lambda *a: normal_bits(*a).sum(), argnums=(0, 1, 2)))


@pytest.fixture(scope="module")
def ref() -> Reference:
    """All reference arrays."""
    with np.load(Path(__file__).parent / "data" / "tfc_reference.npz") as stored:
        return dict(stored)


def params_of(ref: Reference, prior: str) -> Params:
    """Parameters of one stored deep factorised prior."""

    def arrays(kind: str) -> tuple[jax.Array, ...]:
        count = sum(name.startswith(f"{prior}_{kind}") for name in ref)
        return tuple(jnp.asarray(ref[f"{prior}_{kind}{i}"]) for i in range(count))

    return {"matrices": arrays("matrix"), "biases": arrays("bias"), "factors": arrays("factor")}


def per_channel(x: Array) -> Array:
    """The same points for each of the four channels, [n, 4]."""
    return np.repeat(np.asarray(x, np.float32)[:, None], 4, axis=1)


def normal_grid(ref: Reference) -> tuple[Array, Array, Array]:
    """Points, means and scales of the stored normal grid [scale, loc, y]."""
    y, mu, sigma = np.broadcast_arrays(
        ref["normal_y"], ref["normal_loc"][:, None], ref["normal_scale"][:, None, None]
    )
    return y, mu, sigma


def normal_mass(d: float, sigma: float) -> float:
    """P(d - 1/2 < N(0, sigma^2) < d + 1/2) for d >= 0 by the error function."""
    a, b = (d - 0.5) / (sigma * math.sqrt(2)), (d + 0.5) / (sigma * math.sqrt(2))
    return 0.5 * (math.erfc(a) - math.erfc(b)) if a > 0 else 0.5 * (math.erf(b) - math.erf(a))


def test_normal_bits_equal_the_librarys(ref: Reference) -> None:
    bits = np.asarray(jit_normal_bits(*normal_grid(ref)))
    np.testing.assert_allclose(bits, -ref["normal_log_prob_f64"] / LN2, rtol=5e-6, atol=5e-6)
    np.testing.assert_allclose(np.exp2(-bits), ref["normal_prob_f32"], rtol=0, atol=1e-6)


def test_normal_gradients_equal_the_librarys(ref: Reference) -> None:
    y, mu, sigma = normal_grid(ref)
    grad_y, grad_mu, grad_sigma = (np.asarray(g) for g in jit_normal_grads(y, mu, sigma))
    np.testing.assert_allclose(grad_y, -ref["normal_grad_y"] / LN2, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad_sigma, -ref["normal_grad_scale"] / LN2, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(grad_mu, -grad_y)


@pytest.mark.parametrize("sigma", [0.11, 0.3, 1.0, 5.0, 24.0, 64.0])
def test_normal_bits_follow_the_error_function_without_a_seam(sigma: float) -> None:
    # Every 1/50 sigma: a step between two approximations shows only where a bin straddles it.
    sigma = float(np.float32(sigma))
    d = (np.arange(0, 15, 0.02) * sigma).astype(np.float32)
    expected = np.array([-math.log2(normal_mass(float(v), sigma)) for v in d])
    bits = jit_normal_bits(jnp.asarray(-3.0 - d), jnp.float32(-3.0), jnp.float32(sigma))
    # -3 - d is rounded to float32 before the bits are taken, so compare at the rounded distance.
    rounded = -3.0 - (-3.0 - d).astype(np.float64)
    shifted = np.array([-math.log2(normal_mass(float(v), sigma)) for v in rounded])
    np.testing.assert_allclose(bits, shifted, rtol=1e-5, atol=1e-5)
    centred = np.asarray(jit_normal_bits(jnp.asarray(d), jnp.float32(0.0), jnp.float32(sigma)))
    np.testing.assert_allclose(centred, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.31, -7.5])
@pytest.mark.parametrize("sigma", [0.11, 1.0, 9.0, 64.0])
def test_normal_probabilities_sum_to_one(mu: float, sigma: float) -> None:
    n = jnp.arange(-1000.0, 1001.0)
    assert float(jnp.exp2(-jit_normal_bits(n, mu, sigma)).sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("sigma", [0.11, 1.0, 64.0, 1000.0])
def test_normal_bits_and_gradients_are_finite_and_point_home_far_out(sigma: float) -> None:
    y = np.asarray(FAR, np.float32)
    mu, scale = np.zeros_like(y), np.full_like(y, sigma)
    bits = np.asarray(jit_normal_bits(y, mu, scale))
    grad_y, _, grad_sigma = (np.asarray(g) for g in jit_normal_grads(y, mu, scale))
    assert np.isfinite(bits).all()
    assert np.isfinite(grad_y).all()
    assert np.isfinite(grad_sigma).all()
    away = np.asarray(FAR) != 0
    np.testing.assert_array_equal(np.sign(grad_y)[away], np.sign(FAR)[away])
    np.testing.assert_allclose(grad_y[~away], 0.0, atol=1e-5)
    # d(bits)/dy -> (|y| - 1/2) / sigma^2 in the tail, in units of ln 2; 1/z^2 is what is dropped.
    far = np.abs(FAR) > 50 * sigma
    expected = (np.abs(FAR) - 0.5) / (sigma**2 * LN2)
    np.testing.assert_allclose(np.abs(grad_y)[far], expected[far], rtol=1e-3)


def logistic_mass(low: float, high: float, mu: float, sigma: float) -> float:
    """P(low < logistic variable < high) in float64, from the nearer tail."""
    a, b = ((x - mu) * math.pi / math.sqrt(3) / sigma for x in (low, high))
    if a > 0:
        a, b = -b, -a
    return 1 / (1 + math.exp(-b)) - 1 / (1 + math.exp(-a))


@pytest.mark.parametrize("sigma", [0.11, 0.4, 1.0, 7.0, 64.0])
@pytest.mark.parametrize("mu", [0.0, 0.31, -2.5])
def test_logistic_bits_by_the_closed_form(mu: float, sigma: float) -> None:
    y = np.round(mu) + np.arange(-2, 3)
    expected = [logistic_mass(v - 0.5, v + 0.5, mu, sigma) for v in y]
    bits = np.asarray(jit_logistic_bits(y, mu, sigma, NO_REACH))
    np.testing.assert_allclose(bits, -np.log2(expected), rtol=1e-4, atol=2e-5)
    # The variance of the density is sigma^2.
    v = np.arange(-2000.0, 2001.0)
    p = np.exp2(-np.asarray(jit_logistic_bits(v, mu, sigma, NO_REACH), np.float64))
    assert p.sum() == pytest.approx(1, abs=1e-4)
    if sigma >= 1:
        assert (p * (v - mu) ** 2).sum() == pytest.approx(sigma**2 + 1 / 12, rel=2e-3)


@pytest.mark.parametrize("sigma", [0.11, 0.7, 5.0, 64.0])
@pytest.mark.parametrize("mu", [0.0, 0.9, -4.0])
def test_a_cut_logistic_density_is_for_the_values_inside(mu: float, sigma: float) -> None:
    y, reach = np.arange(-1.0, 2.0), 1.5
    bits = np.asarray(jit_logistic_bits(y, mu, sigma, reach))
    assert np.exp2(-bits).sum() == pytest.approx(1, abs=2e-5)
    whole = np.asarray(jit_logistic_bits(y, mu, sigma, NO_REACH))
    # Each of them is shorter by the same, the mass that is cut off.
    saved = -math.log2(logistic_mass(-reach, reach, mu, sigma))
    np.testing.assert_allclose(whole - bits, saved, rtol=1e-3, atol=2e-4)
    wide = np.asarray(jit_logistic_bits(y, 0.0, 64.0, reach))
    np.testing.assert_allclose(wide, math.log2(3), atol=1e-3)


@pytest.mark.parametrize("reach", [1.5, NO_REACH])
@pytest.mark.parametrize("sigma", [0.11, 1.0, 64.0])
def test_logistic_bits_and_gradients_are_finite_and_point_home_far_out(
    sigma: float, reach: float
) -> None:
    y = np.asarray(FAR, np.float32)
    mu, scale = np.zeros_like(y), np.full_like(y, sigma)
    assert np.isfinite(jit_logistic_bits(y, mu, scale, reach)).all()
    grad_y, grad_mu, grad_sigma = (np.asarray(g) for g in jit_logistic_grads(y, mu, scale, reach))
    assert np.isfinite(grad_mu).all()
    assert np.isfinite(grad_sigma).all()
    away = y != 0
    # The tail is exponential: its slope is pi / (sqrt(3) sigma ln 2) bits.
    slope = math.pi / math.sqrt(3) / sigma / LN2
    far = np.abs(y) > 30 * sigma
    np.testing.assert_allclose(grad_y[far], np.sign(y[far]) * slope, rtol=1e-4)
    np.testing.assert_array_equal(np.sign(grad_y[away]), np.sign(y[away]))


@pytest.mark.parametrize("prior", PRIORS)
def test_deep_factorised_equals_the_librarys(ref: Reference, prior: str) -> None:
    params, x = params_of(ref, prior), per_channel(ref[f"{prior}_x"])
    logits = jit_logits(params, x)
    np.testing.assert_allclose(logits, ref[f"{prior}_logits_f64"], rtol=1e-6, atol=1e-6)
    bits = np.asarray(jit_bits(params, x))
    np.testing.assert_allclose(bits, -ref[f"{prior}_log_prob_f64"] / LN2, rtol=5e-6, atol=5e-6)
    np.testing.assert_allclose(np.exp2(-bits), ref[f"{prior}_prob_f32"], rtol=0, atol=1e-6)
    _, (_, grad) = jit_bits_and_grads(params, x)
    np.testing.assert_allclose(grad, -ref[f"{prior}_grad_x"] / LN2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
def test_deep_factorised_is_a_distribution(ref: Reference, prior: str) -> None:
    params, x = params_of(ref, prior), per_channel(np.arange(-4000.0, 4001.0))
    assert np.all(np.diff(np.asarray(jit_logits(params, x)), axis=0) > 0)
    mass = np.exp2(-np.asarray(jit_bits(params, x))).sum(axis=0)
    np.testing.assert_allclose(mass, 1.0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
def test_deep_factorised_is_finite_and_points_home_far_out(ref: Reference, prior: str) -> None:
    params = params_of(ref, prior)
    for value in FAR:
        bits, grads = jit_bits_and_grads(params, np.full((1, 4), value, np.float32))
        assert np.isfinite(bits), value
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads)), value
        if abs(value) >= 1000:
            np.testing.assert_array_equal(np.sign(grads[1]), np.sign(value))


def test_deep_factorised_without_hidden_units_is_the_logistic_density() -> None:
    matrix, bias = np.array([0.3, -2.0]), np.array([0.5, -1.0])
    params: Params = {
        "matrices": (jnp.asarray(matrix.reshape(2, 1, 1)),),
        "biases": (jnp.asarray(bias.reshape(2, 1, 1)),),
        "factors": (),
    }
    x = np.arange(-24.0, 25.0).reshape(7, 7, 1) * np.ones(2)
    slope = np.log1p(np.exp(matrix))

    def cdf(v: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-(slope * v + bias))))

    np.testing.assert_allclose(jit_logits(params, x), slope * x + bias, rtol=1e-5)
    expected = -np.log2(cdf(x + 0.5) - cdf(x - 0.5))
    np.testing.assert_allclose(jit_bits(params, x), expected, rtol=1e-5)


def test_batched_model_bits_equal_the_librarys(ref: Reference) -> None:
    params = params_of(ref, "df_default")
    np.testing.assert_array_equal(ste_round(jnp.asarray(ref["batched_y"])), ref["batched_y_hat"])
    for y, bits in (
        ("batched_noisy", "batched_noisy_bits"),
        ("batched_y_hat", "batched_bits"),
        ("batched_centred_y_hat", "batched_centred_bits"),
    ):
        total = jit_bits(params, ref[y]).sum(axis=(1, 2))
        np.testing.assert_allclose(total, ref[bits], rtol=5e-6, err_msg=y)


def test_indexed_model_bits_equal_the_librarys(ref: Reference) -> None:
    mu, sigma = ref["indexed_loc"], ref["indexed_scales"][ref["indexed_index"]]
    symbols = ste_round(jnp.asarray(ref["indexed_y"] - mu))
    np.testing.assert_array_equal(symbols, ref["indexed_symbols"])
    np.testing.assert_array_equal(symbols + mu, ref["indexed_y_hat"])
    for y, bits in (("indexed_noisy", "indexed_noisy_bits"), ("indexed_y_hat", "indexed_bits")):
        total = jit_normal_bits(ref[y], mu, sigma).sum(axis=1)
        np.testing.assert_allclose(total, ref[bits], rtol=5e-6, err_msg=y)


@pytest.mark.parametrize("sigma", [0.11, 0.4, 1.0, 3.0, 10.0])
def test_noisy_bits_bound_quantised_bits_and_the_differential_entropy(sigma: float) -> None:
    key_y, key_u = jax.random.split(jax.random.key(7))
    y = sigma * jax.random.normal(key_y, (40_000,))
    noisy = jit_normal_bits(
        y + jax.random.uniform(key_u, y.shape, minval=-0.5, maxval=0.5), 0.0, sigma
    )
    coded = jit_normal_bits(ste_round(y), 0.0, sigma)
    # Both averages must be the entropies of what they describe, integrated here exactly.
    reach, steps = math.ceil(12 * sigma) + 1, 64
    fine = np.array([normal_mass(n / steps, sigma) for n in range(reach * steps)])
    fine_terms = -fine * np.log2(np.maximum(fine, 1e-300)) / steps
    noisy_entropy = 2 * fine_terms.sum() - fine_terms[0]
    whole = fine[::steps]
    whole_terms = -whole * np.log2(np.maximum(whole, 1e-300))
    coded_entropy = 2 * whole_terms.sum() - whole_terms[0]
    for bits, entropy in ((noisy, noisy_entropy), (coded, coded_entropy)):
        standard_error = float(jnp.std(bits)) / math.sqrt(y.size)
        assert float(jnp.mean(bits)) == pytest.approx(entropy, abs=4 * standard_error)
    assert noisy_entropy >= coded_entropy * (1 - 1e-6)
    assert noisy_entropy > 0.5 * math.log2(2 * math.pi * math.e * sigma**2)
    if sigma < 0.5:
        assert float(jnp.mean(noisy)) > float(jnp.mean(coded)) + 0.05


def test_lower_bound_gradient_by_hand_and_by_the_library(ref: Reference) -> None:
    x, cotangent = jnp.asarray(ref["lower_bound_x"]), jnp.asarray(ref["lower_bound_cotangent"])
    value, pullback = jax.vjp(lambda v: lower_bound(v, 0.5), x)
    np.testing.assert_array_equal(value, [0.5, 0.5, 0.5, 3, 0.5, 0.5, 0.5, 3])
    # Descent moves x by -gradient. Below the bound only a negative one, which raises x, may pass.
    np.testing.assert_array_equal(pullback(cotangent)[0], [0, 0, 3, 4, -1, -2, -3, -4])
    np.testing.assert_array_equal(value, ref["lower_bound_value"])
    np.testing.assert_array_equal(pullback(cotangent)[0], ref["lower_bound_grad"])


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_ste_round_is_half_to_even_with_identity_gradient(
    transform: Callable[[Callable[[jax.Array], jax.Array]], Callable[[jax.Array], jax.Array]],
) -> None:
    halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 0.3, -0.7, 99_999.5, 8_388_607.5, 3e7]
    x = np.concatenate([halves, np.random.default_rng(0).normal(0, 100, 1000)]).astype(np.float32)
    rounded = np.asarray(transform(ste_round)(jnp.asarray(x)))
    np.testing.assert_array_equal(rounded[:6], [-2, -2, 0, 0, 2, 2])
    np.testing.assert_array_equal(rounded, np.round(x))
    weights = jnp.arange(x.size, dtype=jnp.float32)
    grad = transform(jax.grad(lambda v: (weights * ste_round(v)).sum()))(jnp.asarray(x))
    np.testing.assert_array_equal(grad, weights)


def streams_of(ref: Reference, name: str) -> list[bytes]:
    """The library's byte strings of one stored model."""
    ends = np.cumsum(ref[f"{name}_num_bytes"])
    return [part.tobytes() for part in np.split(ref[f"{name}_bytes"], ends[:-1])]


def symbols_of(ref: Reference, model: str) -> tuple[Array, Array]:
    """Coded values and table indices [3 streams, n] of one stored model."""
    if model == "indexed":
        return ref["indexed_symbols"], ref["indexed_index"]
    values = ref["batched_y_hat"].astype(np.int32).reshape(3, -1)
    return values, np.broadcast_to(np.tile(np.arange(4, dtype=np.int32), 40), values.shape)


@pytest.mark.parametrize("backend", ["native", "tfc"])
@pytest.mark.parametrize("model", ["batched", "indexed"])
def test_both_coders_write_and_read_the_librarys_bytes(
    ref: Reference, model: str, backend: str
) -> None:
    if backend == "tfc" and importlib.util.find_spec("tensorflow_compression_ops") is None:
        pytest.skip("tensorflow-compression-ops is not installed")
    table = f"{model}_p16_cdf"
    tables = CdfTables(ref[table], ref[f"{table}_start"], ref[f"{table}_offset"])
    for values, indices, expected in zip(
        *symbols_of(ref, model), streams_of(ref, f"{model}_p16"), strict=True
    ):
        encoder = RangeEncoder(tables, backend=backend)
        encoder.encode(values, indices)
        assert encoder.finish() == expected
        decoder = RangeDecoder(tables, expected, backend=backend)
        np.testing.assert_array_equal(decoder.decode(indices), values)
        decoder.finish()


@pytest.mark.parametrize("case", range(7))
def test_quantised_cdf_costs_no_more_than_the_librarys(ref: Reference, case: int) -> None:
    pmf, precision = ref[f"pmf{case}_pmf"].astype(np.float64), int(ref[f"pmf{case}_precision"])

    def cost(cdf: Array) -> float:
        mass = np.diff(cdf) / 2**precision
        assert mass.min() > 0
        assert mass.sum() == 1
        return float(-(pmf * np.log2(mass)).sum() / pmf.sum())

    assert cost(quantise_pmf(pmf, precision=precision)) <= cost(ref[f"pmf{case}_cdf"]) + 1e-9


def test_ops_alone_equal_the_full_library(ref: Reference) -> None:
    ops = pytest.importorskip("tensorflow_compression_ops")
    for case in range(7):
        cdf = ops.pmf_to_quantized_cdf(ref[f"pmf{case}_pmf"], int(ref[f"pmf{case}_precision"]))
        np.testing.assert_array_equal(cdf, ref[f"pmf{case}_cdf"])
    for model in ("batched", "indexed"):
        for name in (f"{model}_p12", f"{model}_p16"):
            values, indices = symbols_of(ref, model)
            handle = ops.create_range_encoder([3], ref[f"{name}_cdf"])
            symbols = values - ref[f"{name}_cdf_offset"][indices]
            handle = ops.entropy_encode_index(handle, np.ascontiguousarray(indices), symbols)
            written = ops.entropy_encode_finalize(handle).numpy()
            assert [bytes(s) for s in written] == streams_of(ref, name)
