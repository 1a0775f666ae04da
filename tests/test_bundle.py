import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_equal, checkerboard_entropy
from safetensors.numpy import load_file, save_file

from sic_jax.codec.bundle import Bundle, _digest, describe, export_bundle, load_bundle
from sic_jax.codec.options import LatentLossConfig
from sic_jax.fields import to_dict
from sic_jax.model.tree import num_params
from sic_jax.training.train_config import TrainConfig

Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(params: Arrays, tiny_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    export_bundle(folder, tiny_run.model, params, card="# Tiny\n")
    return folder


def test_bundle_round_trip(
    bundle: Path, params: Arrays, tiny_run: TrainConfig, tmp_path: Path
) -> None:
    loaded = load_bundle(bundle)
    assert isinstance(loaded, Bundle)
    assert loaded.cfg == tiny_run.model
    rounded = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), params)
    for network in ("g_a", "g_s", "h_a", "prior_z"):
        assert_equal(loaded.params[network], rounded[network])
    # The entropy networks are stored as integers, and their floats quantise to these again.
    entropy = checkerboard_entropy(loaded.cfg)
    layers = entropy.entropy_layers(loaded.cfg.levels, params)
    assert_equal(loaded.integers, layers)
    assert_equal(entropy.entropy_layers(loaded.cfg.levels, loaded.params), layers)
    assert_equal(jax.tree.map(np.shape, loaded.params), jax.tree.map(np.shape, params))
    stored = load_file(bundle / "weights.safetensors")
    types = {k: a.dtype.name for k, a in stored.items() if k.startswith("h_s/first/")}
    assert types == {
        "h_s/first/kernel": "int8", "h_s/first/bias": "int32", "h_s/first/shift": "uint8"
    }  # fmt: skip
    assert len(loaded.tables_y.starts) == 64 * (16 + 129)
    assert len(loaded.tables_z.starts) == 2
    assert loaded.digest.hex() == (bundle / "id").read_text().strip()
    assert loaded.model_id == loaded.digest[:6]
    # The same content has the same id; exporting what was loaded changes nothing.
    export_bundle(tmp_path / "again", loaded.cfg, loaded.params)
    assert load_bundle(tmp_path / "again").digest == loaded.digest
    assert (bundle / "README.md").read_text() == "# Tiny\n"
    params["h_a"]["Conv_0"]["bias"][0] += 0.5
    export_bundle(tmp_path / "other", loaded.cfg, params)
    params["h_a"]["Conv_0"]["bias"][0] -= 0.5
    assert load_bundle(tmp_path / "other").digest != loaded.digest


@pytest.mark.parametrize("value", [1e6, np.inf, np.nan])
def test_bundle_refuses_values_beyond_float16(
    value: float, params: Arrays, tiny_run: TrainConfig, tmp_path: Path
) -> None:
    big = {**params, "g_a": {**params["g_a"], "linear": np.full((768, 6), value, np.float32)}}
    with pytest.raises(ValueError, match="parameter g_a/linear has values that float16 cannot hol"):
        export_bundle(tmp_path, tiny_run.model, big)


def test_bundle_refuses_networks_that_diverged(
    params: Arrays, tiny_run: TrainConfig, tmp_path: Path
) -> None:
    kernel = params["h_s"]["up_1"]["kernel"].copy()
    kernel[3, 4] = np.nan
    bad = {**params, "h_s": {**params["h_s"], "up_1": {**params["h_s"]["up_1"], "kernel": kernel}}}
    with pytest.raises(ValueError, match=r"h_s/up_1: .*integers"):
        export_bundle(tmp_path / "b", tiny_run.model, bad)
    assert not (tmp_path / "b").exists()


def test_a_bundle_that_would_not_fit_memory(bundle: Path, tmp_path: Path) -> None:
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "weights.safetensors").open("r+b") as weights:
        weights.truncate(2**30 + 1)  # Sparse: it takes no room.
    message = r"weights.safetensors cannot be read: it has 1073741825 bytes, more than 1073741824"
    with pytest.raises(ValueError, match=message):
        load_bundle(tmp_path)
    # A header that promises more than there is.
    header = json.dumps({"x": {"dtype": "F16", "shape": [2**40], "data_offsets": [0, 2**41]}})
    data = len(header).to_bytes(8, "little") + header.encode()
    (tmp_path / "weights.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged: weights.safetensors cannot be read: "):
        load_bundle(tmp_path)


def change(path: Path, name: str) -> None:
    """Write a file of arrays again with one of them changed."""
    arrays = {k: a.copy() for k, a in load_file(path).items()}
    arrays[name].reshape(-1)[-1] += 1
    save_file(arrays, path)


def float8(path: Path) -> None:
    """A file with an array of a type that NumPy does not have."""
    header = json.dumps({"x": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"x")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-99])


def seal(folder: Path, edit: Callable[[Arrays, Arrays], Any]) -> None:
    """Edit weights and tables of a bundle and give it the id that fits: a hostile bundle."""
    files = [folder / "weights.safetensors", folder / "tables.safetensors"]
    weights, tables = ({k: a.copy() for k, a in load_file(f).items()} for f in files)
    edit(weights, tables)
    for file, arrays in zip(files, (weights, tables), strict=True):
        save_file({k: np.ascontiguousarray(a) for k, a in arrays.items()}, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "id").write_text(_digest(config, weights, tables).hex())


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config": (
        lambda p: (p / "config.json").write_text((p / "config.json").read_text()[:-9]),
        "bundle .* is damaged",
    ),
    "field": (
        lambda p: (p / "config.json").write_text('{"model": {"depth": 3}, "latent_loss": {}}'),
        "ModelConfig has no field 'depth'",
    ),
    "part": (
        lambda p: (p / "config.json").write_text('{"model": {}}'),
        "config.json must hold 'model' and 'latent_loss', nothing else",
    ),
    "kind": (
        lambda p: (p / "config.json").write_text(
            '{"model": {"entropy": {"kind": "swin"}}, "latent_loss": {}}'
        ),
        r"ModelConfig\.entropy has no kind 'swin'; there are checkerboard, raster$",
    ),
    "value": (
        lambda p: (p / "config.json").write_text(
            (p / "config.json").read_text().replace('"temperature": 0.0', '"temperature": 0.5')
        ),
        "is damaged: its content does not match its id",
    ),
    "weight": (
        lambda p: change(p / "weights.safetensors", "g_s/linear"),
        "is damaged: its content does not match its id",
    ),
    "cut weights": (
        lambda p: cut(p / "weights.safetensors"),
        "bundle .* is damaged",
    ),
    "no weights": (
        lambda p: (p / "weights.safetensors").unlink(),
        "bundle .* is damaged: .*weights.safetensors",
    ),
    "offset": (
        lambda p: change(p / "tables.safetensors", "z_offsets"),
        "is damaged: its content does not match its id",
    ),
    "row": (
        lambda p: seal(p, lambda w, t: t["y_lookup"].__setitem__(-1, 65535)),
        "every row must run from 0 to 65536",
    ),
    "few tables": (
        lambda p: seal(p, lambda w, t: t.update(z_starts=t["z_starts"][:1])),
        "starts and offsets must have one equal positive length",
    ),
    "missing": (
        lambda p: seal(p, lambda w, t: w.pop("g_a/Conv_0/bias")),
        "parameter g_a/Conv_0/bias is missing",
    ),
    "missing integers": (
        lambda p: seal(p, lambda w, t: w.pop("h_s/up_1/shift")),
        "is damaged: 'h_s/up_1/shift' is missing",
    ),
    "missing table": (
        lambda p: seal(p, lambda w, t: t.pop("z_offsets")),
        "is damaged: 'z_offsets' is missing",
    ),
    "float32": (
        lambda p: seal(p, lambda w, t: w.update({"g_s/linear": w["g_s/linear"].astype("f4")})),
        "parameter g_s/linear is not finite float16",
    ),
    "type that NumPy lacks": (
        lambda p: float8(p / "tables.safetensors"),
        r"is damaged: tables\.safetensors cannot be read: ",
    ),
    "more integers": (
        lambda p: seal(p, lambda w, t: w.update({"h_s/more/kernel": w["h_s/up_1/kernel"]})),
        "parameter h_s/more/kernel is not finite float16",
    ),
    "unknown": (
        lambda p: seal(p, lambda w, t: w.update({"g_a/more": w["g_a/linear"]})),
        "parameter g_a/more is not one of this model",
    ),
    "shape": (
        lambda p: seal(p, lambda w, t: w.update({"g_a/linear": w["g_a/linear"][1:]})),
        r"parameter g_a/linear has shape \(767, 6\), not \(768, 6\)",
    ),
    "not finite": (
        lambda p: seal(p, lambda w, t: w["g_s/linear"].__setitem__((0, 0), np.inf)),
        "parameter g_s/linear is not finite float16",
    ),
    "integer type": (
        lambda p: seal(p, lambda w, t: w.update({"h_s/up_1/bias": w["h_s/up_1/bias"] * 1.0})),
        "h_s/up_1 has types .*, not int8, int32 and uint8",
    ),
    "integer shape": (
        lambda p: seal(p, lambda w, t: w.update({"h_s/up_1/bias": w["h_s/up_1/bias"][1:]})),
        r"h_s/up_1: bias has shape \(31,\), not \(32,\)",
    ),
    "big bias": (
        lambda p: seal(p, lambda w, t: w["h_s/up_1/bias"].__setitem__(0, 2**30)),
        "h_s/up_1: kernel or bias is beyond 127 or 2097152",
    ),
    "big shift": (
        lambda p: seal(p, lambda w, t: w["h_s/up_1/shift"].__setitem__(0, 13)),
        "h_s/up_1: a scale is not a power of two",
    ),
    "big kernel": (
        lambda p: seal(p, lambda w, t: w["h_s/up_1/kernel"].__setitem__((0, 0), -128)),
        "h_s/up_1: kernel or bias is beyond 127 or 2097152",
    ),
    "id": (
        lambda p: (p / "id").write_text("00" * 32),
        "is damaged: its content does not match its id",
    ),
    "no id": (lambda p: (p / "id").unlink(), "bundle .* is damaged: .*id"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_bundles(kind: str, bundle: Path, tmp_path: Path) -> None:
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage, message = DAMAGES[kind]
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_bundle(tmp_path)


def problem(folder: Path) -> str:
    """The error of a bundle, or nothing."""
    try:
        load_bundle(folder)
    except ValueError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("name", ["weights.safetensors", "tables.safetensors"])
def test_flipped_bytes_of_a_bundle(name: str, bundle: Path, tmp_path: Path) -> None:
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = (bundle / name).read_bytes()
    # The header's length, the header, and the content.
    spots = [*range(0, 40, 3), len(data) // 2, *range(-60, 0, 5)]
    problems = []
    for spot in spots:
        damaged = bytearray(data)
        damaged[spot] ^= 0x55
        (tmp_path / name).write_bytes(damaged)
        problems.append(problem(tmp_path))
    # Unlike a ZIP, the file has no byte that means nothing.
    assert all(p.startswith(f"bundle {str(tmp_path)!r} is damaged: ") for p in problems)


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no bundle '.*nothing': not a bundle's folder, nor one"):
        load_bundle(tmp_path / "nothing")


def test_describe(bundle: Path, params: Arrays, tiny_run: TrainConfig) -> None:
    info = describe(bundle)
    assert info["bundle"] == str(bundle)
    assert info["id"] == load_bundle(bundle).model_id.hex()
    assert info["bytes"] == sum(p.stat().st_size for p in bundle.iterdir())
    assert info["parameters"] == num_params(params)
    assert (info["levels"], info["channels"], info["coding_tables"]) == (3, 8, 64 * (16 + 129) + 2)
    # test_model.py counts them by hand.
    assert info["kmac_per_pixel_encode"] == 0.5
    assert info["kmac_per_pixel_decode"] == 0.7
    assert info["config"] == {
        "model": to_dict(tiny_run.model),
        "latent_loss": to_dict(LatentLossConfig()),
    }
