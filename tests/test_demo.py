import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sic_jax.cli import demo
from sic_jax.codec.bundle import export_bundle
from sic_jax.codec.container import read_header
from sic_jax.model.model_config import ModelConfig


def random_picture(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_sample_is_a_photograph_with_texture_and_smooth_parts() -> None:
    assert demo.SAMPLE.stat().st_size <= 500_000
    with Image.open(demo.SAMPLE) as image:
        assert (image.mode, image.size) == ("RGB", (683, 384))
        pixels = np.asarray(image, np.float32)
    blocks = pixels[:384, :672].reshape(24, 16, 42, 16, 3).std((1, 3)).mean(-1)
    assert (blocks < 5).mean() > 0.2
    assert (blocks > 20).mean() > 0.2
    assert np.ptp(pixels, axis=-1).mean() > 30
    licence = (demo.SAMPLE.parent / "README.md").read_text()
    assert "CC0 1.0" in licence
    assert demo.SAMPLE.name in licence


def test_side_by_side_places_every_picture_below_its_caption() -> None:
    pictures = [random_picture(70, 50, seed) for seed in range(4)]
    panels = [demo.Panel(picture, f"picture {i}") for i, picture in enumerate(pictures)]
    sheet = np.asarray(demo.side_by_side(panels))
    assert sheet.shape == (2 * (50 + 26) + 6, 2 * 70 + 6, 3)
    for number, picture in enumerate(pictures):
        top, left = (number // 2) * 82, (number % 2) * 76
        np.testing.assert_array_equal(
            sheet[top + 26 : top + 76, left : left + 70], np.asarray(picture)
        )
        strip = sheet[top : top + 26, left : left + 70]
        assert strip.min() < 64
        assert strip.max() == 255
    assert demo.side_by_side(panels[:1]).size == (70, 76)


def test_demo_reports_what_the_files_hold(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tiny: ModelConfig,
    untrained: dict[str, Any],
) -> None:
    export_bundle(tmp_path / "bundle", tiny, untrained)
    original = random_picture(40, 24, 0)
    original.save(tmp_path / "in.png")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "in.png"), "--bundle", str(tmp_path / "bundle"), "--out", str(out)]
    assert demo.main([*arguments, "--levels", "2"]) == 0
    text = capsys.readouterr().out

    data = (out / "level_02.sic").read_bytes()
    assert read_header(data).num_levels == 2
    with Image.open(out / "level_02.png") as image:
        decoded = np.asarray(image)
    error = np.mean((decoded.astype(np.float64) - np.asarray(original)) ** 2)
    bpp, psnr = 8 * len(data) / (40 * 24), 10 * np.log10(255**2 / error)
    row = next(line for line in text.splitlines() if line.split()[:1] == ["2"]).split()
    assert row[:4] == ["2", str(len(data)), f"{bpp:.3f}", f"{psnr:.2f}"]
    assert all(float(seconds) > 0 for seconds in row[4:6])

    with Image.open(out / "side_by_side.png") as image:
        sheet = np.asarray(image)
    np.testing.assert_array_equal(sheet[26:50, :40], np.asarray(original))
    np.testing.assert_array_equal(sheet[26:50, 46:], decoded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "demo: error: .*missing.png"),
        (["--bundle", "no-such-bundle"], "demo: error: sic: error: no bundle 'no-such-bundle'"),
    ],
)
def test_a_failure_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert re.match(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "side_by_side.png").exists()
