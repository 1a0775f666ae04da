"""Write tfc_reference.npz: what TensorFlow Compression itself computes, for the entropy tests.

Needs Python 3.11 and a throwaway environment, because the full library stopped at 2.14.1:

    python3.11 -m venv tfc214
    tfc214/bin/pip install tensorflow-compression==2.14.1 "numpy<2"
    tfc214/bin/python tests/data/make_tfc_reference.py

The stored file was made with tensorflow 2.14.1, tensorflow-compression 2.14.1,
tensorflow-probability 0.22.1 and numpy 1.26.4 on x86-64 Linux.

Inputs are multiples of 1/64, so that y - 0.5 and y + 0.5 are exact in float32 as well and the
float64 values ("_f64") are the right answer to the float32 question. Keys:

    normal_*         NoisyNormal on [scale, loc, y]; "f32" is the library's default precision.
    <df>_*           NoisyDeepFactorized for df_init (as initialised, three units twice, scale 10),
                     df_default, df_deep and df_shallow (random parameters), [x, channel].
    batched_*        ContinuousBatchedEntropyModel over df_default.
    indexed_*        LocationScaleIndexedEntropyModel over NoisyNormal, 16 scales.
    pmf<i>_*         pmf_to_quantized_cdf.
    lower_bound_*    gradient of lower_bound.
"""

import os
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_compression as tfc

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
CHANNELS = 4


def sixty_fourths(values: Array) -> Array:
    """Round to multiples of 1/64, as float32."""
    out: Array = (np.round(np.asarray(values, np.float64) * 64) / 64).astype(np.float32)
    return out


def points(rng: np.random.Generator) -> Array:
    """Integers and fractions in [-50, 50], then far tails to 1e5, sorted."""
    tails = np.array([64, 100, 300.25, 1e3, 3333.5, 1e4, 1e5])
    near = np.concatenate([np.arange(-50, 51), rng.uniform(-50, 50, 20), rng.uniform(-3, 3, 30)])
    return np.unique(sixty_fourths(np.concatenate([near, tails, -tails])))


def normal(rng: np.random.Generator) -> Arrays:
    """Noisy normal: probabilities, log probabilities and their gradients."""
    y = points(rng)
    scale = np.array([0.11, 0.25, 0.5, 1, 2.5, 8, 24, 64], np.float32)
    loc = np.array([-3.5, 0, 0.484375, 7.25], np.float32)
    out = {"normal_y": y, "normal_scale": scale, "normal_loc": loc}
    for dtype, name in ((tf.float32, "f32"), (tf.float64, "f64")):
        y_t = tf.broadcast_to(tf.cast(y, dtype), (len(scale), len(loc), len(y)))
        scale_t = tf.broadcast_to(tf.cast(scale, dtype)[:, None, None], y_t.shape)
        prior_loc = tf.cast(loc, dtype)[None, :, None]
        with tf.GradientTape() as tape:
            tape.watch([y_t, scale_t])
            log_prob = tfc.NoisyNormal(loc=prior_loc, scale=scale_t).log_prob(y_t)
        grad_y, grad_scale = tape.gradient(log_prob, [y_t, scale_t])
        out[f"normal_log_prob_{name}"] = log_prob.numpy()
        if name == "f32":
            out["normal_prob_f32"] = tfc.NoisyNormal(loc=prior_loc, scale=scale_t).prob(y_t).numpy()
        else:
            out["normal_grad_y"] = grad_y.numpy().astype(np.float32)
            out["normal_grad_scale"] = grad_scale.numpy().astype(np.float32)
    return out


def deep_factorised(
    rng: np.random.Generator, filters: tuple[int, ...], perturb: float, dtype: tf.DType
) -> tfc.NoisyDeepFactorized:
    """A prior over four channels whose parameters are moved away from their start by `perturb`."""
    prior = tfc.NoisyDeepFactorized(
        batch_shape=(CHANNELS,), num_filters=filters, init_scale=10, dtype=dtype
    )
    base = prior.base
    for matrix, bias in zip(base._matrices, base._biases, strict=True):
        noise = perturb * rng.standard_normal(matrix.shape).astype(np.float32)
        matrix.assign(tf.cast(tf.cast(matrix, tf.float32) + noise, dtype))
        bias.assign(tf.cast(rng.uniform(-0.5, 0.5, bias.shape).astype(np.float32), dtype))
    for factor in base._factors:
        factor.assign(tf.cast(rng.normal(0, 2 * perturb, factor.shape).astype(np.float32), dtype))
    return prior


def deep_factorised_values(
    name: str, seed: int, filters: tuple[int, ...], perturb: float
) -> Arrays:
    """Parameters, logits of the cdf, probabilities and gradients of one prior."""
    x = points(np.random.default_rng(seed))
    out = {f"{name}_x": x}
    for dtype, suffix in ((tf.float32, "f32"), (tf.float64, "f64")):
        prior = deep_factorised(np.random.default_rng(seed), filters, perturb, dtype)
        x_t = tf.broadcast_to(tf.cast(x, dtype)[:, None], (len(x), CHANNELS))
        with tf.GradientTape() as tape:
            tape.watch(x_t)
            log_prob = prior.log_prob(x_t)
        out[f"{name}_log_prob_{suffix}"] = log_prob.numpy()
        if suffix == "f32":
            out[f"{name}_prob_f32"] = prior.prob(x_t).numpy()
            for i, (matrix, bias) in enumerate(
                zip(prior.base._matrices, prior.base._biases, strict=True)
            ):
                out[f"{name}_matrix{i}"] = matrix.numpy()
                out[f"{name}_bias{i}"] = bias.numpy()
            for i, factor in enumerate(prior.base._factors):
                out[f"{name}_factor{i}"] = factor.numpy()
        else:
            out[f"{name}_logits_f64"] = prior.base._logits_cumulative(x_t).numpy()
            out[f"{name}_grad_x"] = tape.gradient(log_prob, x_t).numpy().astype(np.float32)
    return out


def strings(encoded: tf.Tensor, name: str) -> Arrays:
    """Byte strings one after the other, and their lengths."""
    parts = [bytes(s) for s in encoded.numpy()]
    return {
        f"{name}_bytes": np.frombuffer(b"".join(parts), np.uint8),
        f"{name}_num_bytes": np.array([len(p) for p in parts], np.int32),
    }


def tables(model: Any, name: str) -> Arrays:
    """The 1-D lookup of a model, where each row starts, its length and the value of symbol 0."""
    cdf = model.cdf.numpy()
    starts = np.flatnonzero(cdf < 0).astype(np.int32)
    return {
        f"{name}_cdf": cdf,
        f"{name}_cdf_start": starts,
        f"{name}_cdf_length": np.diff(np.append(starts, len(cdf))).astype(np.int32),
        f"{name}_cdf_offset": model.cdf_offset.numpy(),
    }


def batched(rng: np.random.Generator, seed: int) -> Arrays:
    """Bits, tables and strings of the channel-wise entropy model, for precision 12 and 16."""
    prior = deep_factorised(np.random.default_rng(seed), (3, 3), 0.5, tf.float32)
    y = sixty_fourths(rng.normal(0, 15, (3, 40, CHANNELS)))
    y[1, 7] = [-4000, 900.25, 31337, -70]
    # Whole values only in the last string: nothing depends on how a fraction was rounded.
    y[2] = np.round(y[2])
    out = {"batched_y": y}
    tf.random.set_seed(seed)
    free = tfc.ContinuousBatchedEntropyModel(prior, coding_rank=2, offset_heuristic=False)
    noisy, noisy_bits = free(y, training=True)
    y_hat, bits = free(y, training=False)
    out |= {"batched_noisy": noisy.numpy(), "batched_noisy_bits": noisy_bits.numpy()}
    out |= {"batched_y_hat": y_hat.numpy(), "batched_bits": bits.numpy()}
    centred = tfc.ContinuousBatchedEntropyModel(prior, coding_rank=2)
    y_hat, bits = centred(y, training=False)
    out |= {"batched_centred_y_hat": y_hat.numpy(), "batched_centred_bits": bits.numpy()}
    out["batched_median_offset"] = centred.quantization_offset.numpy()
    for precision in (12, 16):
        coder = tfc.ContinuousBatchedEntropyModel(
            prior,
            coding_rank=2,
            offset_heuristic=False,
            compression=True,
            range_coder_precision=precision,
        )
        encoded = coder.compress(y)
        assert np.array_equal(coder.decompress(encoded, [40]), out["batched_y_hat"])
        out |= tables(coder, f"batched_p{precision}")
        out |= strings(encoded, f"batched_p{precision}")
    return out


def indexed(rng: np.random.Generator, seed: int) -> Arrays:
    """Bits, tables and strings of the location-scale entropy model, for precision 12 and 16."""
    scales = np.exp(np.linspace(np.log(0.11), np.log(64), 16)).astype(np.float32)
    index = rng.integers(0, 16, (3, 120)).astype(np.int32)
    loc = sixty_fourths(rng.normal(0, 5, index.shape))
    y = sixty_fourths(loc + scales[index] * rng.standard_normal(index.shape))
    y[1, 5], y[1, 17] = -5000, 12345.5
    out = {"indexed_y": y, "indexed_index": index, "indexed_loc": loc, "indexed_scales": scales}

    def model(precision: int, compression: bool) -> tfc.LocationScaleIndexedEntropyModel:
        return tfc.LocationScaleIndexedEntropyModel(
            prior_fn=tfc.NoisyNormal,
            num_scales=16,
            scale_fn=lambda i: tf.gather(scales, tf.cast(i, tf.int32)),
            coding_rank=1,
            compression=compression,
            range_coder_precision=precision,
        )

    tf.random.set_seed(seed)
    free = model(12, False)
    noisy, noisy_bits = free(y, index, loc, training=True)
    y_hat, bits = free(y, index, loc, training=False)
    out |= {"indexed_noisy": noisy.numpy(), "indexed_noisy_bits": noisy_bits.numpy()}
    out |= {"indexed_y_hat": y_hat.numpy(), "indexed_bits": bits.numpy()}
    out["indexed_symbols"] = tf.cast(tf.round(y - loc), tf.int32).numpy()
    for precision in (12, 16):
        coder = model(precision, True)
        encoded = coder.compress(tf.constant(y), index, loc)  # changes a numpy y in place
        assert np.array_equal(coder.decompress(encoded, index, loc), out["indexed_y_hat"])
        out |= tables(coder, f"indexed_p{precision}")
        out |= strings(encoded, f"indexed_p{precision}")
    return out


def quantized_cdfs(rng: np.random.Generator) -> Arrays:
    """pmf_to_quantized_cdf: even, skewed, with zeros, not summing to one, one certain symbol."""
    gauss = np.exp(-0.5 * (np.arange(-30, 31) / 4.0) ** 2)
    cases = [
        ([0.1, 0.2, 0.3, 0.4], 16),
        (gauss / gauss.sum(), 16),
        (gauss / gauss.sum(), 8),
        ([1.0, 0.0, 0.0, 0.0], 16),
        ([0.25, 0.25], 4),
        (np.full(16, 1 / 16), 4),
        (rng.dirichlet(np.full(40, 0.2)), 12),
    ]
    out: Arrays = {}
    for i, (pmf, precision) in enumerate(cases):
        pmf = np.asarray(pmf, np.float32)
        cdf = tfc.pmf_to_quantized_cdf(pmf, precision=precision).numpy()
        out |= {
            f"pmf{i}_pmf": pmf,
            f"pmf{i}_precision": np.array(precision, np.int32),
            f"pmf{i}_cdf": cdf,
        }
    return out


def lower_bound() -> Arrays:
    """Gradient of lower_bound(x, 0.5) below, at and above the bound for both signs."""
    x = np.array([-2, 0.25, 0.5, 3, -2, 0.25, 0.5, 3], np.float32)
    cotangent = np.array([1, 2, 3, 4, -1, -2, -3, -4], np.float32)
    x_t = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x_t)
        value = tfc.lower_bound(x_t, 0.5)
    grad = tape.gradient(value, x_t, output_gradients=tf.constant(cotangent))
    return {
        "lower_bound_x": x,
        "lower_bound_cotangent": cotangent,
        "lower_bound_value": value.numpy(),
        "lower_bound_grad": grad.numpy(),
    }


def main() -> None:
    """Write the archive beside this file."""
    rng = np.random.default_rng(2024)
    data: dict[str, Any] = {**normal(rng)}
    data |= deep_factorised_values("df_init", 1, (3, 3), 0.0)
    data |= deep_factorised_values("df_default", 2, (3, 3), 0.5)
    data |= deep_factorised_values("df_deep", 3, (3, 3, 3), 0.5)
    data |= deep_factorised_values("df_shallow", 4, (2,), 1.0)
    data |= batched(rng, 2) | indexed(rng, 5) | quantized_cdfs(rng) | lower_bound()
    np.savez_compressed(Path(__file__).with_name("tfc_reference.npz"), **data)


if __name__ == "__main__":
    main()
