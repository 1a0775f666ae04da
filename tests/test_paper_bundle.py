"""`sic import-official`: from a checkpoint to a bundle that codes."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from paper_forward import reference_forward

from sic_jax.cli.main import main
from sic_jax.codec import container
from sic_jax.codec.bundle import load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.entropy.counter_noise import uniform_noise
from sic_jax.importers import convert_state_dict
from sic_jax.model.tree import flatten_params

SMALL = Path(__file__).with_name("data") / "paper_reference.npz"
FULL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "sic_official_tiny.npz"


@pytest.fixture(scope="module")
def state_dict() -> dict[str, NDArray[Any]]:
    """The authors' names and shapes, in the size of the parity fixture; random values."""
    rng = np.random.default_rng(0)
    with np.load(SMALL) as data:
        shapes = json.loads(str(data["meta"]))["shapes"]
    return {k: 0.1 * rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def test_import(
    state_dict: dict[str, NDArray[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "x.npz", tmp_path / "bundle"
    stored: dict[str, Any] = {f"module.{k}": a for k, a in state_dict.items()}
    np.savez(checkpoint, **stored)
    assert main(["import-official", str(checkpoint), "--out", str(out)]) == 0
    bundle = load_bundle(out)
    assert capsys.readouterr().out == (
        f"{checkpoint} -> {out}: bundle {bundle.model_id.hex()}, 16 levels\n"
    )
    card = (out / "README.md").read_text()
    assert "`x.npz`" in card
    assert "refused elsewhere" in card
    cfg, params = convert_state_dict(state_dict)
    assert bundle.cfg == cfg
    got, wanted = flatten_params(bundle.params), flatten_params(params)
    assert got.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(got[path], array.astype(np.float16), err_msg=path)
    assert main(["import-official", str(checkpoint), "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"sic: error: {out} is already there\n"


def test_other_checkpoints(
    state_dict: dict[str, NDArray[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(name: str) -> str:
        out = tmp_path / "bundle"
        code = main(["import-official", str(tmp_path / name), "--out", str(out)])
        assert code == 1
        assert not out.exists()
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message.removeprefix(f"sic: error: {tmp_path / name}").rstrip("\n")

    missing: dict[str, Any] = {k: a for k, a in state_dict.items() if k != "hs.2.bias"}
    np.savez(tmp_path / "missing.npz", **missing)
    prefix = " is not a checkpoint of the authors' network: "
    assert error("missing.npz") == f"{prefix}parameter hs.2.bias is missing"
    np.savez(tmp_path / "other.npz", weight=np.ones((2, 2)))
    assert error("other.npz").startswith(prefix)
    nan: dict[str, Any] = {**state_dict, "hs.2.bias": np.full_like(state_dict["hs.2.bias"], np.nan)}
    np.savez(tmp_path / "nan.npz", **nan)
    assert error("nan.npz") == f"{prefix}parameter hs.2.bias is not finite"
    (tmp_path / "text.pt").write_text("hello")
    assert "no file of torch.save" in error("text.pt")
    assert error("nothing.pt") == ": No such file or directory"

    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trace"),)

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Runs(), 2))
    assert "nothing was run" in error("evil.pt")
    assert not (tmp_path / "trace").exists()


@pytest.mark.slow
@pytest.mark.skipif(not FULL.is_file(), reason="needs the parity fixture")
def test_pictures_are_those_of_the_authors_forward_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At level 5 and 16; only the rounding of the parameters to float16 is this package's."""
    with np.load(FULL) as data:
        prefix = "state_dict/"
        arrays = {k.removeprefix(prefix): data[k] for k in data.files if k.startswith(prefix)}
        image = np.round(255 * np.clip(data["case0/x"][0], 0, 1)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", **arrays)
    out = tmp_path / "bundle"
    assert main(["import-official", str(tmp_path / "x.npz"), "--out", str(out)]) == 0
    codec = Codec.load(out)
    capsys.readouterr()
    assert main(["info", "--bundle", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["id"] == codec.bundle.model_id.hex()
    leaves = flatten_params(codec.bundle.params).values()
    assert facts["parameters"] == sum(a.size for a in leaves)
    cfg = codec.bundle.cfg
    image = np.moveaxis(image, 0, -1)
    data = codec.compress(image, seed=3)
    latents = codec.decode_latents(container.unpack(data))
    u: NDArray[Any] = (uniform_noise(3, latents.y_s.shape) / (1024 * 3**0.5) + 1) / 2
    u = np.moveaxis(u[None, ..., 20:], -1, 1).astype(np.float32)
    x = np.moveaxis(image, -1, 0)[None].astype(np.float32) / 255
    expected = reference_forward(cfg, codec.bundle.params, x, level=5, u=u)
    y_hat = np.moveaxis(expected["y_hat"][0], 0, -1)
    assert np.abs(y_hat).max() > 1
    np.testing.assert_array_equal(latents.y_s, y_hat)
    for level, name in ((5, "x_hat_level_unclipped"), (16, "x_hat_full_unclipped")):
        picture = np.moveaxis(255 * np.clip(expected[name][0], 0, 1), 0, -1)
        got = codec.decompress(data, level=level, grain=False)
        assert np.abs(got - picture).max() <= 0.501
        assert picture.std() > 1
