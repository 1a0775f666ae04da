"""The bundle that ships: its size and cost, and real files of a real photograph."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli.demo import SAMPLE
from sic_jax.codec.bundle import describe
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import unpack

KODAK = Path(__file__).resolve().parents[2] / "shared" / "data" / "kodak"
LEVELS = (1, 4, 8, 12, 16)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load("default")


def psnr(x: NDArray[Any], x_hat: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.square(x.astype(float) - x_hat).mean()))


def check_size(codec: Codec, x: NDArray[Any], sizes: dict[int, int]) -> None:
    """Real sizes are within 1 % and the container's overhead of the estimate."""
    estimate = codec.estimate_bits(x)
    for level, size in sizes.items():
        expected = estimate.bpp_est(level, *x.shape[:2]) * x.shape[0] * x.shape[1] / 8
        overhead = 24 + 6 * (level + 1)
        assert abs(size - overhead / 2 - expected) < 0.01 * expected + overhead / 2, (level, size)


def test_size_and_cost_of_the_bundle() -> None:
    facts: dict[str, Any] = describe("default")
    assert facts["levels"] == 16
    assert facts["parameters"] == 10_037_724
    assert 17e6 < facts["bytes"] <= 20e6
    assert (facts["kmac_per_pixel_encode"], facts["kmac_per_pixel_decode"]) == (65.0, 99.9)


def test_id_of_the_bundle() -> None:
    # Files name it: new fields of the config must not change it.
    assert describe("default")["id"] == "46db83724fe0"
    assert describe("pyramid-1")["id"] == "1a89518dc20f"


def test_what_alpha_hides_costs_little(codec: Codec) -> None:
    with Image.open(SAMPLE) as im:
        photo = np.asarray(im.convert("RGB"))[:256, :384]
    x = np.dstack([photo, np.zeros((256, 384), np.uint8)])
    x[40:200, 60:300, 3] = 255
    file = unpack(codec.compress(x, level=4))
    assert file.alpha is not None
    assert len(file.alpha.payload) < 100
    whole = unpack(codec.compress(photo, level=4))
    costs = [sum(len(segment.payload) for segment in f.segments) for f in (file, whole)]
    assert costs[0] < 0.7 * costs[1]


def test_quality_rises_and_sizes_are_near_the_estimate(codec: Codec) -> None:
    with Image.open(SAMPLE) as im:
        x = np.asarray(im.convert("RGB"))[:256, :384]
    files = {level: codec.compress(x, level=level) for level in LEVELS}
    quality = [psnr(x, codec.decompress(files[level])) for level in LEVELS]
    assert quality == sorted(quality)
    assert quality[0] > 18
    assert quality[-1] > 28
    check_size(codec, x, {level: len(data) for level, data in files.items()})


@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason="needs the Kodak images")
def test_kodak_in_two_processes(codec: Codec, tmp_path: Path) -> None:
    images = {p.stem: np.asarray(Image.open(p)) for p in sorted(KODAK.glob("*.png"))}
    assert len(images) == 24
    out = tmp_path / "files"
    out.mkdir()
    symbols = {}
    for name, x in images.items():
        for level in LEVELS:
            data = codec.compress(x, level=level)
            (out / f"{name}_{level}.sic").write_bytes(data)
        symbols[name] = codec.encode_latents(x)
        sizes = {level: (out / f"{name}_{level}.sic").stat().st_size for level in LEVELS}
        check_size(codec, x, sizes)
    program = (
        "import sys, pathlib, numpy as np; from sic_jax import Codec\n"
        "from sic_jax.codec.container import unpack\n"
        "codec = Codec.load('default')\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.sic')):\n"
        "    data = path.read_bytes()\n"
        "    latents = codec.decode_latents(unpack(data))\n"
        "    np.savez(path.with_suffix('.npz'), x=codec.decompress(data), y=latents.y_s,\n"
        "             z=latents.z_hat)\n"
    )
    env = dict(os.environ)
    subprocess.run([sys.executable, "-c", program, str(out)], check=True, env=env)
    for name, x in images.items():
        quality = []
        for level in LEVELS:
            with np.load(out / f"{name}_{level}.npz") as decoded:
                quality.append(psnr(x, decoded["x"]))
                y, z, _ = symbols[name]
                coded = decoded["y"]
                count = sum(codec.bundle.cfg.levels.channels[:level])
                np.testing.assert_array_equal(coded[..., :count], y[..., :count])
                assert not coded[..., count:].any()
                np.testing.assert_array_equal(decoded["z"], z)
        assert quality == sorted(quality), name
    full = (out / "kodim01_16.sic").read_bytes()
    assert unpack(full).level == 16
