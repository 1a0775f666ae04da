from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BATCH, SIDE, Functions, checkerboard_entropy
from numpy.typing import NDArray

from sic_jax.entropy.distributions import NO_REACH, logistic_bits
from sic_jax.model.complexity import codec_macs_per_pixel
from sic_jax.model.entropy_models.checkerboard.context import (
    all_parameters,
    checkerboard,
    complete,
)
from sic_jax.model.entropy_models.checkerboard.detail import limited_moments, prior_sigmas
from sic_jax.model.entropy_models.checkerboard.exact import log_by_table
from sic_jax.model.levels import channel_levels, level_starts, refinement_sources, split_latents
from sic_jax.model.macs import count_macs
from sic_jax.model.maps import depth_to_space, log_compress, space_to_depth
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.transforms.pyramid import PyramidTransforms, karhunen_loeve, with_klt

STRIDE = 16
N = SIDE // STRIDE
ANCHOR = checkerboard(N, N)
QUICK = {"xla_backend_optimization_level": 0}
LEVELS: Any = np.array([1, 2, 3], np.int32)
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def y_hat(tiny: ModelConfig) -> NDArray[Any]:
    rng = np.random.default_rng(2)
    out: NDArray[Any] = np.round(3 * rng.standard_normal((BATCH, N, N, tiny.num_channels))).astype(
        np.float32
    )
    return out


@pytest.fixture(scope="module")
def hyper(tiny: ModelConfig) -> NDArray[Any]:
    rng = np.random.default_rng(3)
    width = checkerboard_entropy(tiny).hyper_width
    out: NDArray[Any] = np.round(20 * rng.standard_normal((BATCH, N, N, width))).astype(np.float32)
    return out


@pytest.fixture(scope="module")
def noise(tiny: ModelConfig) -> NDArray[Any]:
    rng = np.random.default_rng(4)
    values = 1024 * rng.standard_normal((BATCH, N, N, tiny.num_channels))
    out: NDArray[Any] = np.round(values).astype(np.int32)
    return out


def cut_moments(mean: NDArray[Any], scale: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean in sixteenths and sigma in 1/4096 of logistic densities that are cut to -1, 0 and 1."""
    m = np.clip(mean, -64, 64) / 16
    sigma = np.geomspace(0.11, 64, 64)[scale.astype(int)]
    edges = np.arange(-1.5, 2)
    cdf = 0.5 + 0.5 * np.tanh((edges - m[..., None]) * np.pi / (2 * 3**0.5 * sigma[..., None]))
    p = np.diff(cdf) / (cdf[..., -1:] - cdf[..., :1])
    first, second = p[..., 2] - p[..., 0], p[..., 2] + p[..., 0]
    deviation = np.floor(4096 * np.sqrt(second - first**2) + 0.5).astype(int)
    return np.floor(16 * first + 0.5), deviation


def walk(
    functions: Functions, params: Arrays, cfg: ModelConfig, y: NDArray[Any], hyper: Any, level: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Group by group as the codec walks: (mean, scale index, y with the means above `level`)."""
    variables = {"params": params}
    starts, size = level_starts(cfg.levels), max(cfg.levels.channels)
    logs = np.zeros_like(y)
    means, scales, filled = [], [], []
    for g in range(cfg.num_levels):
        count = cfg.levels.channels[g]
        group = np.zeros((*y.shape[:3], size), np.float32)
        known = y[..., starts[g] : starts[g + 1]]
        halves = []
        context = functions.context_of_group(variables, g, logs)
        for half in (ANCHOR, ~ANCHOR):
            mean, scale = functions.group_parameters(variables, g, hyper, context, group)
            mean, scale = np.asarray(mean)[..., :count], np.asarray(scale)[..., :count]
            detail, refining = mean.copy(), cfg.levels.refinements[g]
            detail[..., :refining] = cut_moments(mean[..., :refining], scale[..., :refining])[0]
            halves.append((mean, scale, detail))
            new = known if g < level else np.floor(detail / 16 + 0.5)
            group[..., :count] = np.where(half, new, group[..., :count])
        mean, scale, detail = (np.where(ANCHOR, a, b) for a, b in zip(*halves, strict=True))
        means.append(mean)
        scales.append(scale)
        filled.append(known if g < level else detail / 16)
        logs[..., starts[g] : starts[g + 1]] = log_by_table(jnp.asarray(group[..., :count]))
    return np.concatenate(means, -1), np.concatenate(scales, -1), np.concatenate(filled, -1)


def test_space_to_depth_by_hand() -> None:
    x = jnp.arange(2 * 4 * 2).reshape(1, 2, 4, 2)
    blocks = space_to_depth(x, 2)
    assert blocks.shape == (1, 1, 2, 8)
    assert blocks[0, 0, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert blocks[0, 0, 1].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    np.testing.assert_array_equal(depth_to_space(blocks, 2), x)
    y = np.random.default_rng(0).standard_normal((2, 3, 2, 32))
    np.testing.assert_array_equal(
        space_to_depth(depth_to_space(jnp.asarray(y), 4), 4), y.astype(np.float32)
    )


def test_log_compress() -> None:
    y = jnp.array([-1e4, -1.0, -0.0, 0.0, 1e-3, 7.0])
    expected = [-np.log(10001), -np.log(2), 0, 0, np.log1p(1e-3), np.log(8)]
    np.testing.assert_allclose(log_compress(y), expected, rtol=1e-6)
    # 1 / (1 + |y|), also at 0, where most symbols are.
    slope = jax.grad(lambda v: log_compress(v).sum())(y)
    np.testing.assert_allclose(slope, 1 / (1 + np.abs(y)), rtol=1e-6)


def klt_params(untrained: Arrays, cfg: ModelConfig, pictures: NDArray[Any]) -> Arrays:
    patches = np.asarray(space_to_depth(jnp.asarray(pictures) - 0.5, STRIDE)).reshape(-1, 768)
    assert isinstance(cfg.transforms, PyramidTransforms)
    return with_klt(untrained, cfg.transforms, patches, cfg.levels)


def test_karhunen_loeve(pictures: NDArray[Any]) -> None:
    patches = np.asarray(space_to_depth(jnp.asarray(pictures) - 0.5, STRIDE)).reshape(-1, 768)
    basis = karhunen_loeve(patches, 6)
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-5)
    energy = np.square(patches @ basis).sum(0)
    assert (np.diff(energy) < 0).all()
    strongest = np.linalg.svd(patches, compute_uv=False)[:6] ** 2
    np.testing.assert_allclose(energy, strongest, rtol=1e-3)
    assert (basis[np.abs(basis).argmax(0), range(6)] > 0).all()


def test_untrained_model_reconstructs_the_span_of_its_basis(
    functions: Functions, untrained: Arrays, tiny: ModelConfig, pictures: NDArray[Any]
) -> None:
    params = klt_params(untrained, tiny, pictures)
    basis = params["g_a"]["linear"] / np.linalg.norm(params["g_a"]["linear"], axis=0)
    weights = np.random.default_rng(5).standard_normal((BATCH, N, N, tiny.levels.num_base_channels))
    x = np.asarray(depth_to_space(jnp.asarray(weights @ basis.T, jnp.float32), STRIDE)) + 0.5
    y, _ = functions.analyse({"params": params}, x)
    refines = refinement_sources(tiny.levels) >= 0
    # Without the refinements, and with them on the rounded channels that they refine.
    coarse = np.where(refines, 0, y)
    fine = np.array(y)
    fine[..., [0, 1]] = np.round(fine[..., [0, 1]])
    for latents in (coarse, fine):
        x_hat = functions.synthesise({"params": params}, latents, LEVELS)
        np.testing.assert_allclose(x_hat, x, atol=1e-4)
    assert np.abs(fine[..., refines]).max() > 0.5


def test_more_levels_of_the_linear_codec_never_hurt(
    functions: Functions, untrained: Arrays, tiny: ModelConfig, pictures: NDArray[Any]
) -> None:
    params = klt_params(untrained, tiny, pictures)
    for picture in pictures:
        x = np.repeat(picture[None], BATCH, 0)
        y, _ = functions.analyse({"params": params}, x)
        y_s, _ = split_latents(jnp.round(y), LEVELS, tiny.levels)
        x_hat = functions.synthesise({"params": params}, y_s, LEVELS)
        mse = np.square(x - x_hat).mean((1, 2, 3))
        assert mse[0] >= mse[1] >= mse[2]
        assert mse[2] < 0.7 * mse[0]


def test_context_is_causal(tiny: ModelConfig, params: Arrays, y_hat: Any, hyper: Any) -> None:
    c = tiny.num_channels

    def entropy_parameters(y: jax.Array) -> jax.Array:
        layers = checkerboard_entropy(tiny).entropy_layers(tiny.levels, params)
        out = all_parameters(
            layers["context"], tiny.levels, checkerboard_entropy(tiny).scales, y[None], hyper[:1]
        )
        return jnp.stack([out[0][0], out[1][0]])

    # No zeros: every path is open.
    y = jnp.asarray(np.where(y_hat[0] == 0, 1, y_hat[0]))
    jacobian = np.asarray(jax.jit(jax.jacrev(entropy_parameters), compiler_options=QUICK)(y))
    assert jacobian.shape == (2, N, N, c, N, N, c)
    group = channel_levels(tiny.levels)
    row, column = np.mgrid[:N, :N]
    near = np.maximum(
        np.abs(row[..., None, None] - row), np.abs(column[..., None, None] - column)
    ) <= 1  # fmt: skip
    anchor = ANCHOR[..., 0]
    earlier = group[:, None] > group
    own = group[:, None] == group
    # [row, column, channel of the parameter, row, column, channel of the symbol]
    allowed = near[:, :, None, :, :, None] & earlier[:, None, None]
    second = (near & ~anchor[..., None, None] & anchor)[:, :, None, :, :, None]
    allowed = allowed | (second & own[:, None, None])
    for kind in jacobian:
        assert np.count_nonzero(kind[~allowed]) == 0
        # Integer kernels are 0 here and there.
        assert np.count_nonzero(kind[allowed]) > 0.95 * allowed.sum()
    # 100 pairs of positions are neighbours, 24 of them lead from an anchor to a non-anchor.
    assert allowed.sum() == 100 * (2 * 2 + 2 * 4 + 2 * 4) + 24 * (2 * 2 + 2 * 2 + 4 * 4)


def test_walk_equals_parallel_evaluation(
    functions: Functions,
    params: Arrays,
    tiny: ModelConfig,
    y_hat: NDArray[Any],
    hyper: NDArray[Any],
) -> None:
    mean, scale, _ = walk(functions, params, tiny, y_hat, hyper, tiny.num_levels)
    parallel = functions.context({"params": params}, y_hat, hyper)
    np.testing.assert_array_equal(mean, parallel[0])
    np.testing.assert_array_equal(scale, parallel[1])
    assert np.abs(mean).mean() > 1
    assert scale.std() > 0.5
    assert 0 <= scale.min() <= scale.max() < checkerboard_entropy(tiny).scales.num_sigmas


def test_lower_levels_rates_do_not_depend_on_higher_channels(
    functions: Functions,
    params: Arrays,
    tiny: ModelConfig,
    y_hat: NDArray[Any],
    hyper: NDArray[Any],
) -> None:
    before = functions.context({"params": params}, y_hat, hyper)
    for level in (1, 2):
        start = level_starts(tiny.levels)[level]
        changed = y_hat.copy()
        changed[..., start:] = 9 - changed[..., start:]
        after = functions.context({"params": params}, changed, hyper)
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a[..., :start], b[..., :start])
            assert not np.array_equal(a[..., start:], b[..., start:])


def test_details_at_temperature_zero_are_the_means_of_a_walk(
    functions: Functions, params: Arrays, tiny: ModelConfig, y_hat: Any, hyper: Any, noise: Any
) -> None:
    y_s = np.asarray(split_latents(jnp.asarray(y_hat), LEVELS, tiny.levels)[0])
    zero = np.zeros(BATCH, np.int32)
    got = functions.complete({"params": params}, y_s, hyper, LEVELS, noise, zero)
    for b, level in enumerate(LEVELS):
        _, _, expected = walk(functions, params, tiny, y_s, hyper, int(level))
        np.testing.assert_array_equal(got[b], expected[b])
        known = level_starts(tiny.levels)[level]
        np.testing.assert_array_equal(got[b, ..., :known], y_hat[b, ..., :known])
    assert np.abs(got[0, ..., 2:]).mean() > 0.05


def test_drawn_details(
    functions: Functions, params: Arrays, tiny: ModelConfig, y_hat: Any, hyper: Any, noise: Any
) -> None:
    y_s = np.asarray(split_latents(jnp.asarray(y_hat), LEVELS, tiny.levels)[0])
    ones = np.full(BATCH, 256, np.int32)

    def draw(levels: Any, y_s: Any, noise: Any, temperature: Any) -> NDArray[Any]:
        return np.asarray(
            functions.complete({"params": params}, y_s, hyper, levels, noise, temperature)
        )

    drawn = draw(LEVELS, y_s, noise, ones)
    np.testing.assert_array_equal(drawn, draw(LEVELS, y_s, noise, ones))
    assert (drawn != draw(LEVELS, y_s, -noise, ones)).any((1, 2, 3)).tolist() == [True, True, False]
    for b, level in enumerate(LEVELS):
        known = level_starts(tiny.levels)[level]
        np.testing.assert_array_equal(drawn[b, ..., :known], y_hat[b, ..., :known])
        # Alone, as one picture of one level.
        alone = [np.repeat(a[b : b + 1], BATCH, 0) for a in (LEVELS, y_s, noise)]
        single = functions.complete(
            {"params": params}, alone[1], np.repeat(hyper[b : b + 1], BATCH, 0), alone[0],
            alone[2], ones,
        )  # fmt: skip
        np.testing.assert_array_equal(single[0], drawn[b])
    # The first open group's anchors by hand, at the temperature of each picture.
    half = np.array([128, 512, 256], np.int32)
    mean, scale, _ = walk(functions, params, tiny, y_s, hyper, 1)
    spread = (prior_sigmas(checkerboard_entropy(tiny).scales)[scale.astype(int)] * 128) >> 12
    expected = (16 * mean + ((spread * noise) >> 10))[0, ..., 2:4] / 256
    got = draw(LEVELS, y_s, noise, half)[0, ..., 2:4]
    np.testing.assert_array_equal(got[ANCHOR[..., 0]], expected[ANCHOR[..., 0]])
    assert np.abs(expected - mean[0, ..., 2:4] / 16).mean() > 0.05


def test_details_of_refinements_have_the_moments_of_the_cut_density(
    functions: Functions, params: Arrays, tiny: ModelConfig, y_hat: Any, hyper: Any, noise: Any
) -> None:
    y_s = np.asarray(split_latents(jnp.asarray(y_hat), 2, tiny.levels)[0])
    levels, temperature = np.full(BATCH, 2, np.int32), np.full(BATCH, 128, np.int32)
    variables = {"params": params}
    drawn = np.asarray(functions.complete(variables, y_s, hyper, levels, noise, temperature))
    mean, scale, _ = walk(functions, params, tiny, y_s, hyper, 2)
    anchors = ANCHOR[..., 0]
    refining = np.arange(tiny.num_channels) // 2 == 2
    cut_mean, cut_sigma = cut_moments(mean, scale)
    mean = np.where(refining, cut_mean, mean)
    sigma = np.where(
        refining, cut_sigma, prior_sigmas(checkerboard_entropy(tiny).scales)[scale.astype(int)]
    )
    expected = 16 * mean + ((((sigma * 128) >> 12) * noise) >> 10)
    np.testing.assert_array_equal(drawn[:, anchors, 4:] * 256, expected[:, anchors, 4:])
    assert np.abs(expected[:, anchors, 4:6]).mean() > 5
    means, deviations = limited_moments(checkerboard_entropy(tiny).scales, tiny.levels)
    assert np.abs(means).max() <= 16
    assert 0 <= deviations.min() < deviations.max() < 4096


def test_details_carry_no_gradient(
    tiny: ModelConfig, params: Arrays, y_hat: Any, hyper: Any, noise: Any
) -> None:
    def total(params: Arrays, y_s: jax.Array, hyper: jax.Array) -> jax.Array:
        layers = checkerboard_entropy(tiny).entropy_layers(tiny.levels, params)
        ones = jnp.full(BATCH, 256)
        cfg = tiny.levels, checkerboard_entropy(tiny).scales
        out = complete(layers["context"], *cfg, y_s, hyper, jnp.asarray(LEVELS), noise, ones)
        return (out * jnp.arange(1.0, 1 + tiny.num_channels)[None, None, None]).sum()

    grads = jax.jit(jax.grad(total, (0, 1, 2)), compiler_options=QUICK)(params, y_hat, hyper)
    assert all(not np.any(a) for a in jax.tree.leaves(grads[0]))
    assert not np.any(grads[2])
    coded = channel_levels(tiny.levels) <= LEVELS[:, None, None, None]
    np.testing.assert_array_equal(
        grads[1],
        np.broadcast_to(np.where(coded, 1.0 + np.arange(tiny.num_channels), 0), y_hat.shape),
    )


def test_forward_pass(
    functions: Functions, params: Arrays, tiny: ModelConfig, pictures: NDArray[Any]
) -> None:
    zero = np.zeros(BATCH, np.float32)
    key = jax.random.key(0)
    out, noisy = functions.forward({"params": params}, pictures, LEVELS, zero, key)
    assert out.x_hat.shape == (BATCH, SIDE, SIDE, 3)
    assert out.bits_z.shape == (BATCH,)
    assert out.bits_y.shape == (BATCH, tiny.num_levels)
    # Without a key: the rounded latents under the parameters that coding uses.
    y_hat = np.round(out.y)
    variables = {"params": params}
    _, z = functions.analyse(variables, pictures)
    hyper = functions.hyper(variables, np.round(z))
    mean, scale = functions.context(variables, y_hat, hyper)
    sigma = checkerboard_entropy(tiny).scales.sigmas[np.asarray(scale, int)]
    reach = jnp.where(refinement_sources(tiny.levels) < 0, NO_REACH, 1.5)[None, None, None]
    bits = np.asarray(logistic_bits(y_hat, mean / 16, jnp.asarray(sigma, jnp.float32), reach))
    # What an outlier costs in a file: an escape, and 2 bits for each doubling of its distance.
    distance = np.maximum(np.abs(y_hat - np.asarray(mean) / 16), 1)
    bits = np.minimum(bits, 18 + 2 * np.log2(distance)).sum((1, 2))
    by_level = np.add.reduceat(bits, level_starts(tiny.levels)[:-1], axis=1)
    np.testing.assert_allclose(out.bits_y, by_level, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(out.bits_y).sum(1), bits.sum(1), rtol=1e-4)
    assert np.asarray(out.bits_y).min() > 1
    # y does not depend on the key; known channels reach g_s rounded, level L needs no details.
    np.testing.assert_array_equal(noisy.y, out.y)
    for b, known in enumerate((2, 4, 8)):
        np.testing.assert_array_equal(out.y_hat[b, ..., :known], y_hat[b, ..., :known])
    again, drawn = functions.forward(variables, pictures, LEVELS, zero + 1, jax.random.key(1))
    np.testing.assert_array_equal(again.x_hat, out.x_hat)
    np.testing.assert_allclose(drawn.x_hat[2], out.x_hat[2], atol=1e-5)
    assert np.abs(np.asarray(drawn.x_hat - out.x_hat))[:2].max((1, 2, 3)).min() > 1e-3
    assert not np.array_equal(noisy.bits_y, drawn.bits_y)


def test_noisy_bits_bound_the_bits_of_integer_latents(
    functions: Functions, untrained: Arrays, tiny: ModelConfig
) -> None:
    # A mid-gray picture has y = z = 0 in an untrained model; the densities are log-concave, so
    # that by Jensen's inequality noise can only cost bits on average.
    grey = np.full((BATCH, SIDE, SIDE, 3), 0.5, np.float32)
    zero = np.zeros(BATCH, np.float32)
    noisy_y, noisy_z = [], []
    for seed in range(12):
        out, noisy = functions.forward(
            {"params": untrained}, grey, LEVELS, zero, jax.random.key(seed)
        )
        noisy_y.append(np.asarray(noisy.bits_y).mean(0))
        noisy_z.append(np.asarray(noisy.bits_z).mean())
    assert not np.any(out.y)
    np.testing.assert_allclose(out.bits_y, np.repeat(out.bits_y[:1], BATCH, 0), rtol=1e-5)
    excess = np.mean(noisy_y, 0) - np.asarray(out.bits_y[0])
    # sigma is near 1: about E[u^2] / (2 ln 2) = 0.06 bits a symbol.
    per_symbol = excess / (N * N * np.array(tiny.levels.channels))
    assert (per_symbol > 0.03).all()
    assert (per_symbol < 0.09).all()
    # The initial density of z is so wide that noise hardly matters.
    np.testing.assert_allclose(np.mean(noisy_z), out.bits_z[0], rtol=1e-3)


def test_macs_by_hand() -> None:
    conv = nn.Conv(7, (3, 3))
    x = jnp.zeros((1, 10, 12, 5))
    shapes = jax.eval_shape(conv.init, jax.random.key(0), x)
    assert count_macs(conv.apply, shapes, x) == 10 * 12 * 9 * 5 * 7
    strided = nn.Conv(6, (4, 4), strides=2, padding=1, feature_group_count=2)
    x = jnp.zeros((2, 8, 8, 4))
    shapes = jax.eval_shape(strided.init, jax.random.key(0), x)
    assert count_macs(jax.jit(strided.apply), shapes, x) == 2 * 4 * 4 * 6 * 16 * 2
    product = count_macs(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.zeros((3, 4, 5)), jnp.zeros((3, 5, 6))
    )
    assert product == 3 * 4 * 5 * 6


def test_macs_of_the_tiny_model_by_hand(tiny: ModelConfig) -> None:
    c, base, f, levels = 8, 6, 8, 3
    # A position of the 1/2 grid costs 1/4 a pixel, and so on; z lies on the 1/64 grid.
    block = 9 * f * f + f * f
    # Down and up: four positions of f features become one of f, and one becomes four.
    down = 4 * f * f
    analysis = (9 * 12 * f + block) / 4 + (down + block) / 16 + (down + block) / 64
    analysis += (768 * base + down + block + f * base) / 256
    hyper_analysis = 9 * c * f / 256 + 4 * f * f / 1024 + (4 * f * f + f * 2) / 4096
    hyper_synthesis = (9 * 2 * f + f * 4 * f) / 4096 + f * 4 * f / 1024 + 9 * f * f / 256
    features = 4 + 8 + 4
    group = 4 * 4 * (4 + 4) + features * 8 + 8 * 8 + 8 * 2 * 4
    context = 9 * c * 4
    coding = levels * (2 * group + context) / 256
    synthesis = (c * 768 + 9 * c * f + block + down) / 256 + (block + down) / 64
    synthesis += (block + down) / 16 + (9 * 12 * f + block + 9 * f * 12) / 4
    macs = codec_macs_per_pixel(tiny)
    shared = hyper_synthesis + coding
    assert macs["encode"] == pytest.approx(analysis + hyper_analysis + shared)
    assert macs["decode"] == pytest.approx(synthesis + shared)
