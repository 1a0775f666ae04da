import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_compilation
from numpy.typing import NDArray

from sic_jax.entropy.distributions import (
    FactorisedParams,
    deep_factorised_logits,
    normal_bits,
    quantile_loss,
)
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.entropy_model import EntropyModel
from sic_jax.model.entropy_models.prior import quantise_hyper
from sic_jax.model.entropy_models.raster import networks as raster
from sic_jax.model.entropy_models.raster.networks import REACH
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.entropy_models.raster.wavefront import (
    MARGIN,
    by_diagonal,
    empty_board,
    schedule,
    step_layers,
    step_parameters,
    write_symbols,
)
from sic_jax.model.entropy_models.scales import ScaleGrid
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import init_params, param_shapes
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.transforms.swin import SwinTransforms
from sic_jax.model.transforms.transforms import Transforms
from sic_jax.model.tree import num_params

Arrays = dict[str, Any]
QUICK = {"xla_backend_optimization_level": 0}
SWIN = SwinTransforms(
    analysis_widths=(8, 8, 8),
    analysis_depths=(0, 0, 0, 2),
    synthesis_widths=(12, 12, 12),
    synthesis_depths=(1, 0, 0, 0),
    num_heads=2,
    window=4,
    mlp_ratio=2,
)
PYRAMID = PyramidTransforms(
    widths=(6, 8, 8, 8), analysis_depths=(1, 0, 0, 1), synthesis_depths=(0, 1, 1, 0)
)
RASTER = RasterEntropy(
    hyper_channels=3, analysis_width=6, synthesis_widths=(6, 8), head_width=6,
    scales=ScaleGrid(sigma_min=0.01),
)  # fmt: skip
CHECKERBOARD = CheckerboardEntropy(
    hyper_channels=3, hyper_width=8, context_width=4, anchor_width=4, head_width=8
)
LEVELS = LevelConfig(channels=(4, 4, 4), refinements=(0, 0, 0))
SIGMA_MIN = 0.01


def config(transforms: Transforms, entropy: EntropyModel) -> ModelConfig:
    """Three levels of four channels."""
    return ModelConfig(levels=LEVELS, transforms=transforms, entropy=entropy)


CFG = config(SWIN, RASTER)


def specs_of(cfg: RasterEntropy) -> Arrays:
    return raster.raster_specs(
        LEVELS,
        hyper_channels=cfg.hyper_channels,
        synthesis_widths=cfg.synthesis_widths,
        head_width=cfg.head_width,
    )


@pytest.fixture(scope="module")
def params() -> Arrays:
    """Random h_s, context model and entropy parameters; scales well above their bound."""
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], deviation: float) -> NDArray[Any]:
        return (deviation * rng.standard_normal(shape)).astype(np.float32)

    out: Arrays = {}
    for network, specs in specs_of(RASTER).items():
        out[network] = {
            name: {
                "kernel": draw(spec.shape, np.prod(spec.shape[-4:-1]) ** -0.5),
                "bias": draw(spec.shape[-1:] if len(spec.shape) == 4 else spec.shape[::2], 0.3),
            }
            for name, spec in specs.items()
        }
    out["entropy_parameters"]["dense_3"]["bias"][:, :4] += 9
    return out


def test_transposed_convolutions_by_definition(params: Arrays) -> None:
    rng = np.random.default_rng(1)
    z_hat = rng.standard_normal((1, 2, 3, 3)).astype(np.float32)

    def transposed(x: NDArray[Any], layer: Arrays, stride: int, padding: int) -> NDArray[Any]:
        """Every input adds the kernel, scaled, to the output; PyTorch's sizes."""
        kernel = layer["kernel"]
        side = len(kernel)
        full = np.zeros((stride * x.shape[0] + side, stride * x.shape[1] + side, kernel.shape[-1]))
        for i, j in np.ndindex(*x.shape[:2]):
            window = full[stride * i : stride * i + side, stride * j : stride * j + side]
            window += np.einsum("c,yxco->yxo", x[i, j], kernel)
        h, w = stride * x.shape[0], stride * x.shape[1]
        out: NDArray[Any] = full[padding : padding + h, padding : padding + w] + layer["bias"]
        return out

    layers = params["h_s"]
    h = np.maximum(transposed(z_hat[0], layers["up_1"], 2, 2), 0)
    h = np.maximum(transposed(h, layers["up_2"], 2, 2), 0)
    h = transposed(h, layers["last"], 1, 1)
    assert h.shape == (8, 12, 24)
    got = raster.hyper_features(params, jnp.asarray(z_hat), (7, 10))
    np.testing.assert_allclose(got[0], h[:7, :10], atol=1e-5)


def test_group_features_by_hand() -> None:
    hyper = jnp.arange(24)
    # Scale and mean halves of three groups of four channels.
    assert raster.group_features(LEVELS, hyper).tolist() == [
        [0, 1, 2, 3, 12, 13, 14, 15],
        [4, 5, 6, 7, 16, 17, 18, 19],
        [8, 9, 10, 11, 20, 21, 22, 23],
    ]


def steps(h: int, w: int) -> NDArray[Any]:
    """When each symbol is decoded: int [h, w, C]."""
    row, column, channel = np.ogrid[:h, :w, : CFG.num_channels]
    out: NDArray[Any] = column + 3 * row + 9 * (channel // 4)
    return out


def test_no_parameter_depends_on_a_later_symbol(params: Arrays) -> None:
    # Zeros of the initial scale bound would hide dependences: these scales are above it.
    h, w, c = 5, 6, CFG.num_channels
    rng = np.random.default_rng(2)
    hyper = jnp.asarray(rng.standard_normal((1, h, w, 2 * c)), jnp.float32)
    y_hat = jnp.asarray(np.round(3 * rng.standard_normal((h, w, c))), jnp.float32)

    def parameters(y: jax.Array) -> jax.Array:
        mu, sigma = raster.all_parameters(params, LEVELS, SIGMA_MIN, y[None], hyper)
        return jnp.stack([mu[0], sigma[0]])

    assert np.asarray(parameters(y_hat))[1].min() > 1
    jacobian = np.asarray(jax.jit(jax.jacrev(parameters), compiler_options=QUICK)(y_hat))
    assert jacobian.shape == (2, h, w, c, h, w, c)
    time = steps(h, w)
    later = time[..., None, None, None] <= time
    row, column, group = np.ogrid[:h, :w, :c]
    group = group // 4
    shape = (slice(None), slice(None), slice(None), None, None, None)
    down, right, up = row - row[shape], column - column[shape], group - group[shape]
    near = (abs(down) <= 2) & (abs(right) <= 2)
    before = (down < 0) | ((down == 0) & (right < 0))
    allowed = near & ((up < 0) | ((up == 0) & before))
    assert not (allowed & later).any()
    for kind in jacobian:
        assert np.count_nonzero(kind[~allowed]) == 0
        assert np.count_nonzero(kind[allowed]) == allowed.sum()
    # In the middle: the 12 causal taps of the own group and all 25 of the earlier ones.
    assert allowed[2, 3].sum((1, 2, 3)).tolist() == [48] * 4 + [148] * 4 + [248] * 4


@pytest.mark.parametrize("shape", [(4, 7), (12, 2), (2, 12), (8, 8)])
def test_walk_equals_parallel_evaluation(params: Arrays, shape: tuple[int, int]) -> None:
    h, w, c = *shape, CFG.num_channels
    rng = np.random.default_rng(3)
    hyper = rng.standard_normal((1, h, w, 2 * c)).astype(np.float32)
    y_hat = np.round(3 * rng.standard_normal((1, h, w, c))).astype(np.float32)
    expected = raster.all_parameters(
        params, LEVELS, SIGMA_MIN, jnp.asarray(y_hat), jnp.asarray(hyper)
    )
    order = schedule(h, w)
    by_group = raster.group_features(LEVELS, jnp.asarray(hyper[0]))
    features = by_diagonal(by_group, order.rows, order.columns)
    layers = step_layers(params, LEVELS)

    def walk_on(board: Any, symbols: Any, step: Any, level: Any) -> Any:
        board = write_symbols(board, symbols, step - 1)
        return board, *step_parameters(layers, LEVELS, SIGMA_MIN, board, features, step, level, w)

    step = jax.jit(walk_on, compiler_options=QUICK)
    # What is not decoded yet holds nonsense.
    board = np.array(empty_board(order, c))
    i, j = np.mgrid[:h, :w]
    diagonal = j + 3 * i
    board[MARGIN + diagonal, REACH + i - order.rows[diagonal, 0]] = 1e3
    time = steps(h, w)[..., ::4]
    symbols = np.zeros((3, order.rows.shape[1], 4), np.float32)
    seen = 0
    assert order.num_steps(3) == time.max() + 1
    for t in range(order.num_steps(3)):
        board, mu, sigma = step(board, symbols, t, 3)
        symbols = np.zeros_like(symbols)
        for g in range(3):
            i, j = np.nonzero(time[..., g] == t)
            channels = slice(4 * g, 4 * g + 4)
            for got, full in ((mu, expected[0]), (sigma, expected[1])):
                np.testing.assert_allclose(got[g, : len(i)], full[0, i, j, channels], atol=1e-5)
            symbols[g, : len(i)] = y_hat[0, i, j, channels]
            seen += len(i)
    assert seen == h * w * 3
    if shape != (4, 7):
        return
    # The first groups alone, as a file of a low level needs them.
    t = int(time[1, 3, 1])
    for few, all_groups in zip(
        step(board, 0 * symbols, t, 2), step(board, 0 * symbols, t, 3), strict=True
    ):
        np.testing.assert_array_equal(few[:2], all_groups[:2])


@pytest.mark.parametrize("shape", [(4096, 1), (1, 4096), (4096, 8), (256, 256), (256, 768)])
def test_board_grows_with_the_latents(shape: tuple[int, int]) -> None:
    """Also for pictures of 65536 x 16 pixels; the rest are margins of 4 places and 16 diagonals."""
    order = schedule(*shape)
    diagonals, positions = order.rows.shape
    assert diagonals * positions <= 3 * shape[0] * shape[1]
    board = jax.eval_shape(lambda: empty_board(order, 12))
    assert board.shape == (diagonals + 16, positions + 4, 12)


def test_uniform_details() -> None:
    rng = np.random.default_rng(4)
    hyper = jnp.asarray(2 * rng.standard_normal((3, 2, 2, 24)), jnp.float32)
    u = jnp.asarray(rng.uniform(-1, 1, (3, 2, 2, 12)), jnp.float32)
    temperature = jnp.array([1.0, 0.0, 0.5])
    got = raster.uniform_details(LEVELS, hyper, u, temperature)
    mean = np.asarray(hyper[..., 12:])
    expected = np.round(mean + np.array([2, 0, 1])[:, None, None, None] * np.asarray(u))
    np.testing.assert_array_equal(got, expected)
    slope = jax.grad(lambda a: raster.uniform_details(LEVELS, a, u, temperature).sum())(hyper)
    np.testing.assert_array_equal(slope, np.broadcast_to(np.arange(24) >= 12, hyper.shape))


def test_medians_and_quantiles() -> None:
    # One logistic density a channel: the logit at x is slope * x + offset.
    slope, offset = np.array([2.0, 0.5]), np.array([-3.0, 1.0])
    prior: FactorisedParams = {
        "matrices": [jnp.log(jnp.expm1(jnp.asarray(slope, jnp.float32)))[:, None, None]],
        "biases": [jnp.asarray(offset, jnp.float32)[:, None, None]],
        "factors": [],
    }
    np.testing.assert_allclose(deep_factorised_logits(prior, jnp.ones((1, 2))), [slope + offset])
    edge = np.log(2e9 - 1)
    true = (np.array([-edge, 0, edge]) - offset[:, None]) / slope[:, None]
    moved = true + np.array([0.5, -0.25, 0.0])

    def loss(prior: FactorisedParams, quantiles: Any) -> jax.Array:
        prior["quantiles"] = jnp.asarray(quantiles, jnp.float32)
        return quantile_loss(prior)

    assert float(loss(prior, true)) == pytest.approx(0, abs=1e-4)
    assert float(loss(prior, moved)) == pytest.approx(0.75 * slope.sum(), rel=1e-4)
    quantiles = jnp.asarray(moved, jnp.float32)
    prior["quantiles"] = quantiles
    grads = jax.grad(quantile_loss)(prior)
    np.testing.assert_allclose(grads["quantiles"][:, :2], slope[:, None] * [1, -1], rtol=1e-5)
    assert not any(np.any(a) for k in ("matrices", "biases") for a in grads[k])  # type: ignore[literal-required]
    # Rounded around the medians 1.25 and -2.25.
    z = jnp.array([[1.7, -1.9], [1.8, -1.7]])
    np.testing.assert_allclose(quantise_hyper(prior, z), [[1.25, -2.25], [2.25, -1.25]], atol=1e-5)
    both = jax.grad(lambda z, p: quantise_hyper(p, z).sum(), (0, 1))(z, prior)
    np.testing.assert_array_equal(both[0], np.ones((2, 2)))
    assert not np.any(both[1]["quantiles"])


@pytest.fixture(scope="module")
def paper_like() -> Arrays:
    # Few blocks: each parameter's generator is compiled.
    swin = dataclasses.replace(SWIN, analysis_depths=(0, 0, 0, 1), synthesis_depths=(0, 0, 0, 0))
    with quick_compilation():
        out: Arrays = jax.tree.map(
            np.asarray, init_params(dataclasses.replace(CFG, transforms=swin), seed=0)
        )
        return out


def test_initial_values(paper_like: Arrays) -> None:
    def uniform(a: NDArray[Any], fan_in: int) -> None:
        edge = fan_in**-0.5
        assert np.abs(a).max() <= edge
        if a.size > 50:
            assert np.abs(a).max() > 0.9 * edge
            assert a.std() == pytest.approx(edge / 3**0.5, rel=0.15)

    def normal(a: NDArray[Any], deviation: float) -> None:
        assert a.std() == pytest.approx(deviation, rel=0.15)
        assert np.abs(a).max() > 2 * deviation

    p = paper_like
    g_a, g_s = p["g_a"], p["g_s"]
    uniform(g_a["embed"]["kernel"], 12)
    uniform(g_a["embed"]["bias"], 12)
    block = g_a["stage_3"]["block_0"]
    normal(block["attention"]["qkv"]["kernel"], 0.02)
    normal(block["attention"]["position_bias"], 0.02)
    normal(block["mlp_1"]["kernel"], 0.02)
    assert not np.any(block["attention"]["qkv"]["bias"])
    assert np.all(block["norm_1"]["scale"] == 1)
    normal(g_a["merge_1"]["reduction"]["kernel"], 0.02)
    uniform(g_s["out_kernel"], 9 * 12)
    # fan_out with gains sqrt(2), sqrt(2) and 1; biases as PyTorch's convolutions start.
    for name, outputs, gain, inputs in (
        ("conv_1", 6 * 9, 2, 12 * 9),
        ("conv_2", 6 * 25, 2, 6 * 25),
        ("conv_3", 3 * 25, 1, 6 * 25),
    ):
        normal(p["h_a"][name]["kernel"], (gain / outputs) ** 0.5)
        uniform(p["h_a"][name]["bias"], inputs)
    for name, inputs, gain, outputs in (
        ("up_1", 3 * 25, 2, 6 * 25),
        ("up_2", 6 * 25, 2, 8 * 25),
        ("last", 8 * 9, 1, 24 * 9),
    ):
        normal(p["h_s"][name]["kernel"], (gain / inputs) ** 0.5)
        uniform(p["h_s"][name]["bias"], outputs)
    uniform(p["context"]["masked"]["kernel"], 25 * 12)
    for name, inputs in (("dense_1", 16), ("dense_2", 6), ("dense_3", 6)):
        uniform(p["entropy_parameters"][name]["kernel"], inputs)
        uniform(p["entropy_parameters"][name]["bias"], inputs)
    prior = p["prior_z"]
    assert [prior[f"matrix_{k}"].shape for k in (0, 1, 4)] == [(3, 3, 1), (3, 3, 3), (3, 1, 3)]
    assert prior["quantiles"].tolist() == [[-10, 0, 10]] * 3
    np.testing.assert_allclose(np.log1p(np.exp(prior["matrix_0"])), 10**-0.2 / 3, rtol=1e-5)
    assert num_params(prior) == 3 * 61
    assert [p["prior_z"][f"factor_{k}"].any() for k in range(4)] == [False] * 4


def test_rate_and_details_of_the_paper_model(paper_like: Arrays) -> None:
    model, variables = SicModel(CFG), {"params": paper_like}
    rng = np.random.default_rng(5)
    y = jnp.asarray(3 * rng.standard_normal((2, 3, 2, 12)), jnp.float32)
    z = jnp.asarray(3 * rng.standard_normal((2, 1, 1, 3)), jnp.float32)

    def rate(key: Any) -> Any:
        return jax.jit(
            lambda y, z: model.apply(variables, y, z, key=key, method="rate"),
            compiler_options=QUICK,
        )(y, z)

    rated, noisy = rate(None), rate(jax.random.key(1))
    np.testing.assert_array_equal(rated.y_hat, np.round(y))
    np.testing.assert_array_equal(noisy.y_hat, rated.y_hat)
    assert rated.hyper.shape == (2, 3, 2, 24)
    mu, sigma = raster.all_parameters(paper_like, LEVELS, SIGMA_MIN, rated.y_hat, rated.hyper)
    bits = np.asarray(normal_bits(rated.y_hat, mu, sigma))
    # sigma is near its bound in an untrained model: outliers cost what an escape does.
    distance = np.maximum(np.abs(rated.y_hat - mu), 1)
    bits = np.minimum(bits, 18 + 2 * np.log2(distance)).reshape(2, 6, 3, 4).sum((1, 3))
    np.testing.assert_allclose(rated.bits_y, bits, rtol=1e-4)
    assert (np.asarray(noisy.bits_y) != np.asarray(rated.bits_y)).all()
    assert (np.asarray(rated.bits_z) > 3).all()
    assert np.abs(np.asarray(noisy.bits_z) / rated.bits_z - 1).max() < 0.1

    def complete(y_hat: Any, hyper: Any, level: Any, temperature: float, key: Any) -> NDArray[Any]:
        t = jnp.full(len(y_hat), temperature)
        out: Any = model.apply(
            variables, y_hat, hyper, level, temperature=t, key=key, method="complete"
        )
        return np.asarray(out)

    # Three samples of each image in one call.
    level = np.array([1, 2], np.int32)
    y_hat, hyper, levels = (np.concatenate([a] * 3) for a in (rated.y_hat, rated.hyper, level))
    key = jax.random.key(2)
    drawn = complete(y_hat, hyper, levels, 1.0, key)
    mean = hyper[..., 12:]
    open_part = np.arange(12) >= 4 * levels[:, None, None, None]
    np.testing.assert_array_equal(np.where(open_part, 0, drawn), np.where(open_part, 0, y_hat))
    deviation = (drawn - mean)[np.broadcast_to(open_part, drawn.shape)]
    assert np.abs(deviation).max() <= 2.5
    # U(-2, 2) and, independently, the rounding: variances 4/3 and 1/12, 216 draws.
    assert deviation.std() == pytest.approx((4 / 3 + 1 / 12) ** 0.5, rel=0.1)
    assert np.any(drawn[:2] != drawn[2:4])
    assert np.any(drawn != complete(y_hat, hyper, levels, 1.0, jax.random.key(3)))
    for quiet in (
        complete(y_hat, hyper, levels, 0.0, key),
        complete(y_hat, hyper, levels, 1.0, None),
    ):
        np.testing.assert_array_equal(quiet, np.where(open_part, np.round(mean), y_hat))


FAMILIES = [(SWIN, RASTER), (PYRAMID, RASTER), (SWIN, CHECKERBOARD)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("transforms", "entropy"), FAMILIES, ids=["swin", "pyramid", "swin-checkerboard"]
)
def test_every_network_learns(transforms: Transforms, entropy: EntropyModel, quick: None) -> None:
    cfg = config(transforms, entropy)
    model, rng = SicModel(cfg), np.random.default_rng(6)
    # Not the initial values: the zeros among them would shut paths, and so would z_hat = 0.
    params = jax.tree.map(
        lambda a: (0.3 * rng.standard_normal(a.shape)).astype(np.float32), param_shapes(cfg)
    )
    x = jnp.asarray(rng.random((2, 32, 48, 3)), jnp.float32)
    level = jnp.array([1, 3])

    def loss(params: Any) -> Any:
        out: Any = model.apply(
            {"params": params}, x, level, temperature=jnp.ones(2), key=jax.random.key(0)
        )
        assert out.x_hat.shape == x.shape
        assert out.y.shape == out.y_hat.shape == (2, 2, 3, 12)
        bits = out.bits_y.sum() + out.bits_z.sum()
        return bits / x.size + jnp.square(out.x_hat - x).mean(), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(value)
    assert np.asarray(out.bits_y).min() > 0
    dead = {
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]
        if not np.any(g)
    }
    # The medians have their own loss.
    assert dead == ({"['prior_z']['quantiles']"} if entropy is RASTER else set())
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    # Level 3 has no details; what is coded at level 1 is kept.
    np.testing.assert_array_equal(out.y_hat[1], np.round(out.y[1]))
    np.testing.assert_array_equal(out.y_hat[0, ..., :4], np.round(out.y[0, ..., :4]))
    assert np.any(out.y_hat[0, ..., 4:] != np.round(out.y[0, ..., 4:]))


def test_validation() -> None:
    message = r"LevelConfig\.channels is \(4, 5\); it must be equal for all levels"
    with pytest.raises(ValueError, match=message):
        ModelConfig(levels=LevelConfig(channels=(4, 5), refinements=(0, 0)), entropy=RASTER)
    with pytest.raises(ValueError, match=r"RasterEntropy\.head_width is 0; it must be positive"):
        RasterEntropy(head_width=0)
    with pytest.raises(ValueError, match=r"synthesis_widths is \(0, 4\); it must be positive"):
        RasterEntropy(synthesis_widths=(0, 4))
