"""Inception v3: parameter count, shapes, its parts by hand, and weights files."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.metrics import inception
from sic_jax.metrics.inception import fold_weights, inception_features, stored_shapes


def zeros() -> dict[str, NDArray[Any]]:
    """Weights without memory: every array is one zero, seen many times."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in stored_shapes().items()}


def test_parameters_are_those_of_inception_v3() -> None:
    learned = sum(
        math.prod(shape) for name, shape in stored_shapes().items() if "running" not in name
    )
    # torchvision's 27 161 264 without its two classifiers: 3 326 696 and 2048 * 1000 + 1000.
    assert learned == 27_161_264 - 3_326_696 - 2_049_000
    assert len(stored_shapes()) == 94 * 5
    assert stored_shapes()["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert stored_shapes()["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert stored_shapes()["Mixed_6a.branch3x3.conv.weight"] == (384, 288, 3, 3)
    assert stored_shapes()["Mixed_7c.branch1x1.bn.running_var"] == (320,)


def test_shapes_of_features_and_of_the_three_grids() -> None:
    weights = fold_weights(zeros(), source="test")
    x = jax.ShapeDtypeStruct((2, 256, 256, 3), np.float32)
    assert jax.eval_shape(inception_features, x, weights=weights).shape == (2, 2048)
    jaxpr = jax.make_jaxpr(inception_features)(jnp.zeros(x.shape), weights=weights)
    joined: list[Any] = [
        eqn.outvars[0].aval for eqn in jaxpr.eqns if eqn.primitive.name == "concatenate"
    ]
    outputs = [aval.shape[1:] for aval in joined if len(aval.shape) == 4]
    assert outputs == [
        (35, 35, 256), (35, 35, 288), (35, 35, 288), (17, 17, 768), (17, 17, 768), (17, 17, 768),
        (17, 17, 768), (17, 17, 768), (8, 8, 1280), (8, 8, 2048), (8, 8, 2048),
    ]  # fmt: skip
    with pytest.raises(TypeError, match="floating-point"):
        inception_features(np.zeros((1, 8, 8, 3), np.uint8), weights=weights)


def test_pictures_are_resized_as_tensorflow_1_did() -> None:
    x = jnp.array([[1.0, 3.0], [5.0, 9.0]]).reshape(1, 2, 2, 1)
    # Samples lie at 0, 0.5, 1 and 1.5, and behind the last one its value goes on.
    np.testing.assert_array_equal(
        inception.resize(x, 4)[0, ..., 0],
        [[1.0, 2, 3, 3], [3, 4.5, 6, 6], [5.0, 7, 9, 9], [5.0, 7, 9, 9]],
    )
    wide = jnp.arange(12.0).reshape(1, 2, 6, 1)
    np.testing.assert_array_equal(inception.resize(wide, 3)[0, 0, :, 0], [0, 2, 4])
    np.testing.assert_allclose(inception.resize(wide, 3)[0, :, 0, 0], [0, 4, 6], rtol=1e-6)
    same = jnp.asarray(np.random.default_rng(0).random((2, 7, 7, 3), np.float32))
    np.testing.assert_array_equal(inception.resize(same, 7), same)


def test_the_network_sees_samples_less_128_over_128(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "_network", lambda h, conv: h)
    x = np.array([0, 128, 255], np.float32).reshape(3, 1, 1, 1) / 255 * np.ones((3, 64, 64, 3))
    found = inception_features(x.astype(np.float32), weights={})
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found[:, 0], [-1, 0, 127 / 128], atol=1e-6)


def test_batch_normalisation_is_folded_in() -> None:
    rng = np.random.default_rng(0)
    stored = zeros()
    name = "Conv2d_3b_1x1"
    for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        stored[f"{name}.{part}"] = rng.random(stored_shapes()[f"{name}.{part}"], np.float32)
    weights = fold_weights(stored, source="test")
    x = rng.random(64, np.float32)
    found = x @ weights[f"{name}_kernel"][0, 0] + weights[f"{name}_bias"]
    h = stored[f"{name}.conv.weight"][:, :, 0, 0] @ x
    deviation = np.sqrt(stored[f"{name}.bn.running_var"] + 1e-3)
    expected = (h - stored[f"{name}.bn.running_mean"]) / deviation
    expected = expected * stored[f"{name}.bn.weight"] + stored[f"{name}.bn.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pooling_by_hand() -> None:
    h = jnp.arange(9.0).reshape(1, 3, 3, 1)
    means = inception.mean_pool(h)[0, ..., 0]
    np.testing.assert_allclose(
        means, [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]], rtol=1e-6
    )  # Corners are means of four: the padding does not count.
    np.testing.assert_array_equal(
        inception.max_pool(-h, 1, 1)[0, ..., 0], [[0, 0, -1], [0, 0, -1], [-3, -3, -4]]
    )
    assert inception.max_pool(h, 2)[0].tolist() == [[[8.0]]]


def write_safetensors(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def one(name: str, dtype: str, shape: Sequence[int], begin: int, end: int) -> bytes:
    """A safetensors file of one array of zeros."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps({name: entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end - begin)


def test_files_that_do_not_fit_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    name = "Conv2d_1a_3x3.conv.weight"
    array = np.arange(32 * 3 * 9, dtype=np.float32).reshape(32, 3, 3, 3)
    write_safetensors(path, {name: array, "fc.weight": array})
    with pytest.raises(ValueError, match=r"has no array 'Conv2d_1a_3x3.bn.weight'"):
        inception.load_inception_weights(path)
    path.write_bytes(path.read_bytes()[: -4 * array.size - 4])
    cut = path.read_bytes()
    for data, reason in (
        (cut, "Error while deserializing"),
        (b"\x10", "Error while deserializing"),
        (b"", "Error while deserializing"),
        (one("a\nb", "F32", [2], 4, 12), r"Error while deserializing.*a(\\n| )b"),
        (one(name, "BF16", [1], 0, 2), "NumPy has no type BF16$"),
    ):
        path.write_bytes(data)
        message = rf"a\.safetensors is not a readable checkpoint: {reason}"
        with pytest.raises(ValueError, match=message) as error:
            inception.load_inception_weights(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        inception.load_inception_weights(tmp_path / "b.safetensors")
    few: dict[str, Any] = {name: array[:8]}
    np.savez(tmp_path / "a.npz", **few)
    with pytest.raises(ValueError, match=r"has shape \(8, 3, 3, 3\), not \(32, 3, 3, 3\)"):
        inception.load_inception_weights(tmp_path / "a.npz")
    text: dict[str, Any] = {name: np.full(array.shape, "a")}
    np.savez(tmp_path / "a.npz", **text)
    with pytest.raises(ValueError, match="is of type <U1, not of floats"):
        inception.load_inception_weights(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"are a \.npz or \.safetensors file"):
        inception.load_inception_weights(tmp_path / "a.pth")
    for change, message in ((np.nan, "not finite"), (-1.0, "is negative")):
        wrong = zeros() | {"Mixed_5b.branch1x1.bn.running_var": np.full(64, change)}
        with pytest.raises(ValueError, match=message):
            fold_weights(wrong, source="test")


def test_damaged_npz_files_are_one_clear_error(tmp_path: Path) -> None:
    """Cut off, empty, and a .npy file under the name of a .npz."""
    path = tmp_path / "a.npz"
    array = np.arange(32 * 27, dtype=np.float32).reshape(32, 3, 3, 3)
    arrays: dict[str, Any] = {"Conv2d_1a_3x3.conv.weight": array}
    np.savez(path, **arrays)
    cut = path.read_bytes()[:-40]
    np.save(tmp_path / "a.npy", array)
    for data in (cut, cut[:50], b"", (tmp_path / "a.npy").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.npz is not a readable checkpoint: "):
            inception.load_inception_weights(path)
