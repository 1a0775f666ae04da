import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_equal

from sic_jax.codec.bundle import Bundle, describe, export_bundle, load_bundle
from sic_jax.config import TrainConfig, to_dict
from sic_jax.model.params import num_params

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
    assert_equal(loaded.params, rounded)
    assert len(loaded.tables_y.starts) == 64 * 16
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


def change(path: Path, name: str) -> None:
    """Write an .npz again with one array changed."""
    with np.load(path) as data:
        arrays = {k: data[k].copy() for k in data.files}
    arrays[name].reshape(-1)[-1] += 1
    np.savez(path, **arrays)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config": (
        lambda p: (p / "config.json").write_text((p / "config.json").read_text()[:-9]),
        "bundle .* is damaged",
    ),
    "field": (
        lambda p: (p / "config.json").write_text('{"depth": 3}'),
        "ModelConfig has no field 'depth'",
    ),
    "value": (
        lambda p: (p / "config.json").write_text(
            (p / "config.json").read_text().replace('"temperature": 0.0', '"temperature": 0.5')
        ),
        "is damaged: its content does not match its id",
    ),
    "weight": (
        lambda p: change(p / "weights.npz", "g_s/linear"),
        "is damaged: its content does not match its id",
    ),
    "cut weights": (
        lambda p: (p / "weights.npz").write_bytes((p / "weights.npz").read_bytes()[:-99]),
        "bundle .* is damaged",
    ),
    "no weights": (lambda p: (p / "weights.npz").unlink(), "bundle .* is damaged: .*weights.npz"),
    "offset": (
        lambda p: change(p / "tables.npz", "z_offsets"),
        "is damaged: its content does not match its id",
    ),
    "row": (lambda p: change(p / "tables.npz", "y_lookup"), "every row must run from 0 to 65536"),
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


@pytest.mark.parametrize("name", ["weights.npz", "tables.npz"])
def test_flipped_bytes_of_a_bundle(name: str, bundle: Path, tmp_path: Path) -> None:
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = (bundle / name).read_bytes()
    with zipfile.ZipFile(bundle / name) as z:
        first = z.infolist()[0]
    # The local header, the content, and the central directory.
    spots = [*range(0, 40, 3), first.compress_size // 2, len(data) // 2, *range(-60, 0, 5)]
    problems = []
    for spot in spots:
        damaged = bytearray(data)
        damaged[spot] ^= 0x55
        (tmp_path / name).write_bytes(damaged)
        problems.append(problem(tmp_path))
    # Some bytes of a ZIP, as its times, mean nothing.
    refused = [p for p in problems if p]
    assert len(refused) >= len(spots) // 3
    assert all(p.startswith(f"bundle {str(tmp_path)!r}") for p in refused)


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no bundle '.*nothing': not a bundle's folder, nor one"):
        load_bundle(tmp_path / "nothing")


def test_describe(bundle: Path, params: Arrays, tiny_run: TrainConfig) -> None:
    info = describe(bundle)
    assert info["bundle"] == str(bundle)
    assert info["id"] == load_bundle(bundle).model_id.hex()
    assert info["bytes"] == sum(p.stat().st_size for p in bundle.iterdir())
    assert info["parameters"] == num_params(params)
    assert (info["levels"], info["channels"], info["coding_tables"]) == (3, 8, 64 * 16 + 2)
    # test_model.py counts them by hand.
    assert info["kmac_per_pixel_encode"] == 0.3
    assert info["kmac_per_pixel_decode"] == 0.3
    assert info["config"] == to_dict(tiny_run.model)
