"""The program of docs/guide/corpus.md runs on a local cluster."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_codec import picture, tiny_bundle

import sic_jax
from sic_jax import metrics

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/guide/corpus.md").read_text()
PROGRAM = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_has_one_program() -> None:
    assert len(PROGRAM) == 1
    compile(PROGRAM[0], "corpus.py", "exec")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install "ray[data]"')
def test_the_program_runs(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", 0)
    photos = tmp_path / "photos" / "more"
    photos.mkdir(parents=True)
    pictures = {name: picture(64, 48, seed) for seed, name in enumerate(("a.png", "more/b.png"))}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    Image.fromarray(pictures["a.png"][..., 0]).save(photos / "gray.png")
    (photos / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (photos / "notes.txt").write_text("no picture")
    program = tmp_path / "corpus.py"
    program.write_text(PROGRAM[0])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "JAX_PLATFORMS": "cpu",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    run = subprocess.run(
        [sys.executable, program, "photos", "out", str(bundle), "2", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows: dict[str, dict[str, str]] = {}
    for file in (tmp_path / "out" / "table").glob("*.csv"):
        with open(file, newline="") as lines:
            rows |= {Path(row["picture"]).name: row for row in csv.DictReader(lines)}
    assert sorted(rows) == ["a.png", "b.png", "damaged.png", "gray.png"]
    assert rows["damaged.png"]["error"].startswith("image data: the PNG picture is damaged")
    assert rows["damaged.png"]["bpp"] == ""
    codec = sic_jax.Codec.load(bundle)
    for name, pixels in pictures.items():
        source = tmp_path / "photos" / name
        data = (tmp_path / "out" / f"{str(source)[1:]}.sic").read_bytes()
        assert data == codec.compress(pixels, level=2)
        row = rows[source.name]
        assert row["error"] == ""
        assert float(row["bpp"]) == pytest.approx(8 * len(data) / (64 * 48))
        x, x_hat = (p[None].astype(np.float32) / 255 for p in (pixels, codec.decompress(data)))
        for name, metric in (("psnr", metrics.psnr), ("lpips", metrics.lpips)):
            assert float(row[name]) == pytest.approx(float(metric(x, x_hat)[0]), rel=1e-4), name
    assert float(rows["gray.png"]["bpp"]) > 0
