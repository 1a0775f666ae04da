"""docs/new_model.md: a transform and an entropy model in one file each, outside the package."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.codec.bundle import load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import unpack
from sic_jax.fields import kinds_of
from sic_jax.model.families import FAMILIES
from sic_jax.model.tree import flatten_params

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.thorough  # One run of the page serves all tests.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, source: list[NDArray[Any]]) -> Path:
    """The files of the page, and what running them left."""
    from conftest import write_images

    folder = tmp_path_factory.mktemp("new_model")
    write_images(folder / "photos", source)
    text = (ROOT / "docs" / "new_model.md").read_text()
    files = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in files] == ["linear.py", "hyperprior.py", "run.py"]
    for name, program in files:
        (folder / name).write_text(program)
    result = subprocess.run(
        [sys.executable, "run.py", "photos", "out"],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    return folder


def test_it_trains_and_codes(folder: Path) -> None:
    size, bpp, psnr = re.fullmatch(
        r"(\d+) bytes, ([\d.]+) bpp, ([\d.]+) dB\n", (folder / "stdout").read_text()
    ).groups()  # type: ignore[union-attr]
    assert float(bpp) == pytest.approx(8 * int(size) / (128 * 64), abs=1e-3)
    assert 0.05 < float(bpp) < 3
    # A linear transform of 24 of 192 components: far from a constant picture.
    assert float(psnr) > 22


def test_its_bundle_and_files(
    folder: Path, source: list[NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = folder / "out" / "bundle"
    # The package alone knows neither kind.
    with pytest.raises(ValueError, match=r"transforms has no kind 'linear'; there are pyramid, sw"):
        load_bundle(bundle)
    monkeypatch.syspath_prepend(str(folder))
    from hyperprior import HyperpriorEntropy  # type: ignore[import-not-found]
    from linear import LinearTransforms  # type: ignore[import-not-found]

    kinds = FAMILIES | kinds_of(LinearTransforms, HyperpriorEntropy)
    codec = Codec(load_bundle(bundle, kinds=kinds))
    cfg = codec.bundle.cfg
    assert (cfg.stride, cfg.num_levels, cfg.num_channels) == (8, 3, 24)
    assert set(codec.bundle.params) == {"g_a", "g_s", "h_a", "h_s", "prior_z"}
    assert {a.dtype.name for a in flatten_params(codec.bundle.params).values()} == {"float32"}
    # Odd sizes, gray, and every level: what is decoded is what was encoded.
    picture = source[1][:53, :37]
    latents = codec.encode_latents(picture)
    data = codec.compress(picture)
    assert latents.y_s.shape == (7, 5, 24)
    assert latents.z_hat.shape == (2, 2, 4)
    for level, channels in ((1, 4), (2, 12), (3, 24)):
        decoded = codec.decode_latents(unpack(data), level=level)
        np.testing.assert_array_equal(decoded.z_hat, latents.z_hat)
        np.testing.assert_array_equal(decoded.y_s[..., :channels], latents.y_s[..., :channels])
        assert not decoded.y_s[..., channels:].any()
        assert codec.decompress(data, level=level).shape == picture.shape
    assert codec.decompress(codec.compress(picture[..., 0])).shape == (53, 37)
    # What the networks estimate is what files have, but for scales that are rounded to the grid and
    # outliers, which cost a little less.
    bits = codec.estimate_bits(picture)
    coded = sum(len(s.payload) for s in unpack(data).segments)
    assert coded == pytest.approx((bits.z + bits.y.sum()) / 8, rel=0.06)
    # Details are drawn: another seed is another picture, but for the highest level.
    low = [codec.decompress(data, level=1, seed=s, temperature=1.0) for s in (1, 2)]
    high = [codec.decompress(data, level=3, seed=s, temperature=1.0, grain=False) for s in (1, 2)]
    assert np.any(low[0] != low[1])
    np.testing.assert_array_equal(high[0], high[1])


def test_large_pictures_go_in_windows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    from hyperprior import HyperpriorEntropy
    from linear import LinearTransforms

    kinds = FAMILIES | kinds_of(LinearTransforms, HyperpriorEntropy)
    bundle = load_bundle(folder / "out" / "bundle", kinds=kinds)
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    whole, cut = (Codec(bundle, window=w).encode_latents(picture) for w in (2048, 16))
    np.testing.assert_array_equal(whole.y_s, cut.y_s)


def test_a_run_is_read_by_the_kinds_that_it_uses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sic_jax.training.presets import preset
    from sic_jax.training.train_config import TrainConfig, load_config

    monkeypatch.syspath_prepend(str(folder))
    from hyperprior import HyperpriorEntropy
    from linear import LinearTransforms

    kinds = FAMILIES | kinds_of(LinearTransforms, HyperpriorEntropy)
    model = load_bundle(folder / "out" / "bundle", kinds=kinds).cfg
    path, smoke = folder / "out" / "run" / "config.json", preset("smoke")
    found = load_config(path, like=TrainConfig(model=model, loss=smoke.loss))
    assert (found.model, found.steps, found.crop_size) == (model, 20, 64)
    with pytest.raises(ValueError, match="transforms has no kind 'linear'"):
        load_config(path, like=smoke)


def test_its_work_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sic_jax.model.complexity import codec_macs_per_pixel

    monkeypatch.syspath_prepend(str(folder))
    from hyperprior import HyperpriorEntropy
    from linear import LinearTransforms

    kinds = FAMILIES | kinds_of(LinearTransforms, HyperpriorEntropy)
    bundle = load_bundle(folder / "out" / "bundle", kinds=kinds)
    macs = codec_macs_per_pixel(bundle.cfg)
    h_a, h_s = 25 * 24 * 4 / 1024, 9 * 4 * 16 * 24 / 1024
    assert macs["encode"] == pytest.approx(192 * 24 / 64 + h_a + h_s)
    assert macs["decode"] == pytest.approx(192 * 24 / 64 + h_s)
