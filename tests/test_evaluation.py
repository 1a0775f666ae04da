"""eval.py: what it measures against files on disk and NumPy, and how it compares codecs."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, features

from sic_jax.codec.bundle import export_bundle
from sic_jax.codec.codec import Codec
from sic_jax.evaluation import Metrics, find_images, main, peer_codec, sic_codec
from sic_jax.evaluation_report import (
    Record,
    Row,
    interpolate,
    mean_rows,
    rows_at_equal_rate,
    to_csv,
    to_markdown,
)
from sic_jax.model.params import init_params
from sic_jax.presets import preset

ROOT = Path(__file__).resolve().parents[1]
ANCHORS = ROOT.parent / "shared" / "anchors" / "kodak_peers_measured.json"
KODAK_1 = ROOT.parent / "shared" / "data" / "kodak" / "kodim01.png"
HEIGHT, WIDTH = 48, 64
PEERS = [name for name in ("jpeg", "webp", "avif") if name == "jpeg" or features.check(name)]


def picture(seed: int) -> np.ndarray:
    """Smooth colours with some noise, uint8 [HEIGHT, WIDTH, 3]."""
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(i / a + seed) + np.cos(j / b) for a, b in rng.uniform(4, 12, (3, 2))]
    noisy = 127 + 50 * np.stack(waves, axis=-1) + rng.normal(0, 8, (HEIGHT, WIDTH, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


class Finished(NamedTuple):
    code: int
    stdout: str
    stderr: str
    codec: Codec
    bundle: Path
    out: Path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    cfg = preset("smoke").model
    export_bundle(folder, cfg, init_params(cfg, seed=0))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bundle):
    """A run over a folder of two pictures, with a broken and a missing one between them."""
    folder = tmp_path_factory.mktemp("evaluation")
    images, out = folder / "images", folder / "out"
    images.mkdir()
    for seed, name in enumerate(("a.png", "c.png")):
        Image.fromarray(picture(seed)).save(images / name)
    (images / "b.png").write_bytes((images / "a.png").read_bytes()[:500])
    (images / "notes.txt").write_text("not a picture\n")
    arguments = ["--images", str(images), str(folder / "missing.png"), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        stdout, stderr = io.StringIO(), io.StringIO()
        load, loaded = Codec.load, []

        def load_and_keep(*args, **options):
            loaded.append(load(*args, **options))
            return loaded[-1]

        patch.setattr(Codec, "load", load_and_keep)  # Compiled once for all tests.
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        code = main([*arguments, "--bundle", str(bundle), "--levels", "3", "1", "3"])
    (codec,) = loaded
    return Finished(code, stdout.getvalue(), stderr.getvalue(), codec, bundle, out)


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished.out / "results.json").read_text())


def test_every_image_codec_and_setting_has_one_complete_record(finished, results):
    seen = [(Path(r["image"]).name, r["codec"], r["setting"]) for r in results["records"]]
    ladder = [("sic", 1), ("sic", 3)]
    ladder += [(name, quality) for name in PEERS for quality in peer_codec(name).settings]
    assert seen == [(name, *step) for name in ("a.png", "c.png") for step in ladder]
    for record in results["records"]:
        assert tuple(record) == Record._fields
        assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
        assert 3 < record["psnr"] < 60
        assert 0 < record["lpips"] < 2
        assert record["ms_ssim"] is None  # The images are too small for five scales.
        assert 0 < record["encode_s"] < 60
        assert 0 < record["decode_s"] < 60


def test_bpp_is_the_size_of_the_file_on_disk(finished, results):
    for record in results["records"]:
        size = (finished.out / record["file"]).stat().st_size
        assert record["num_bytes"] == size
        assert record["bpp"] == 8 * size / (HEIGHT * WIDTH)
    assert len({record["file"] for record in results["records"]}) == len(results["records"])


def test_the_files_decode_to_what_was_measured(finished, results):
    for record in results["records"]:
        file = finished.out / record["file"]
        if record["codec"] == "sic":
            x_hat = finished.codec.decompress(file.read_bytes(), strict=True)
        else:
            with Image.open(file) as image:
                x_hat = np.asarray(image.convert("RGB"))
        with Image.open(record["image"]) as image:
            x = np.asarray(image)
        mse = np.mean(np.square(x.astype(np.float64) - x_hat))
        assert record["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)


def test_the_estimated_rate_is_that_of_the_codec(finished, results):
    bits = {seed: finished.codec.estimate_bits(picture(seed)) for seed in (0, 1)}
    for record in results["records"]:
        if record["codec"] != "sic":
            assert record["bpp_est"] is None
            continue
        wanted = bits[0 if record["image"].endswith("a.png") else 1]
        expected = wanted.bpp_est(record["setting"], HEIGHT, WIDTH)
        assert record["bpp_est"] == pytest.approx(expected, rel=1e-6)
        overhead = record["bpp"] - record["bpp_est"]
        assert -0.01 * expected < overhead < 0.03 * expected + 8 * 60 / (HEIGHT * WIDTH)


def test_broken_images_are_reported_and_the_others_measured(finished, results):
    assert finished.code == 1
    lines = finished.stderr.splitlines()
    errors = [line for line in lines if line.startswith("eval.py: error: ")]
    assert [Path(e["image"]).name for e in results["errors"]] == ["b.png", "missing.png"]
    assert errors == [f"eval.py: error: {e['error']}" for e in results["errors"]]
    assert "b.png: the picture is damaged" in errors[0]
    assert errors[1].endswith("missing.png: No such file or directory")
    assert [line[:5] for line in lines if line not in errors] == ["[1/4]", "[3/4]"]


def test_the_report_says_what_was_measured(finished, results):
    assert results["bundle"] == str(finished.bundle)
    assert results["model_id"] == finished.codec.bundle.model_id.hex()
    assert results["coder"] in ("native", "tfc")
    assert set(results["versions"]) == {"jax", "pillow"}


def test_summary_holds_means_and_the_comparison(finished, results):
    with open(finished.out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == Row._fields
    means = [row for row in rows if not row["level"]]
    compared = [row for row in rows if row["level"]]
    assert len(means) == len(results["records"]) / 2
    assert [row["codec"] for row in compared] == 2 * ["sic", *PEERS]
    for row in means:
        group = [
            record
            for record in results["records"]
            if (record["codec"], str(record["setting"])) == (row["codec"], row["setting"])
        ]
        assert row["num_images"] == "2"
        for name in ("bpp", "psnr", "lpips", "encode_s", "decode_s"):
            assert float(row[name]) == pytest.approx(np.mean([r[name] for r in group]), rel=1e-12)
        assert row["ms_ssim"] == ""
    assert float(compared[0]["bpp"]) == float(compared[1]["bpp"]) == float(means[0]["bpp"])
    table = finished.stdout.splitlines()
    assert len(table) == 2 + len(compared)
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == list(Row._fields)


def test_a_run_without_errors_exits_with_0_and_prints_the_means(tmp_path, capsys):
    Image.fromarray(picture(2)).save(tmp_path / "a.png")
    (tmp_path / "other").mkdir()
    Image.fromarray(picture(3)[..., 0]).save(tmp_path / "other" / "a.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "other"), str(tmp_path / "a.png")]
    out = tmp_path / "out"
    assert main(["--images", *paths, "--codecs", "jpeg", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["bundle"], results["model_id"], results["errors"]) == (None, None, [])
    folders = {Path(record["file"]).parent.as_posix() for record in results["records"]}
    assert folders == {"files/001_a", "files/002_a"}  # One name, and the repeated file once.
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(peer_codec("jpeg").settings)
    assert lines[2].startswith("| jpeg | 1 | - | 2 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "4"], "levels of this bundle are 1 to 3, got 4"),
        (["--levels", "0"], "levels of this bundle are 1 to 3, got 0"),
        (["--bundle", "nothing"], "no bundle 'nothing'"),
        (["--images", "{tmp}"], "the folder holds no picture"),
    ],
)
def test_a_run_that_cannot_begin_is_one_line_and_exit_code_1(
    arguments, message, bundle, tmp_path, capsys
):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    common = ["--images", "x.png", "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert main([*common, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("eval.py: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_script_knows_its_options():
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    for option in ("--images", "--bundle", "--levels", "--codecs", "--coder", "--out"):
        assert option in done.stdout


def test_default_levels_end_at_the_highest_of_the_bundle(bundle):
    codec = Codec.load(bundle)
    assert sic_codec(codec).settings == (1, 3)
    assert sic_codec(codec, [2, 1, 2]).settings == (1, 2)


def test_folders_are_not_searched_below_their_first_level(tmp_path):
    (tmp_path / "files").mkdir()
    for name in ("b.PNG", "a.webp", ".hidden.png", "files/c.png", "notes.txt"):
        (tmp_path / name).touch()
    assert find_images([str(tmp_path)]) == [tmp_path / "a.webp", tmp_path / "b.PNG"]


@pytest.mark.parametrize("name", PEERS)
def test_peers_give_smaller_and_worse_pictures_at_lower_quality(name):
    codec, x = peer_codec(name), picture(4)
    low, high = (codec.encode(x, quality) for quality in (codec.settings[0], codec.settings[-1]))
    assert len(low) < len(high)
    errors = [np.mean(np.square(x - codec.decode(data).astype(float))) for data in (high, low)]
    assert errors[0] < errors[1]
    assert codec.decode(codec.encode(x[..., 0], 40)).shape == x.shape  # Gray, measured as RGB.


def test_missing_codec_of_pillow_is_named(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    assert peer_codec("jpeg").name == "jpeg"
    with pytest.raises(ValueError, match="this Pillow has no avif; leave it out of --codecs"):
        peer_codec("avif")


def test_metrics_leave_out_what_is_not_defined():
    x = picture(5)
    measure = Metrics().against(x)
    same = measure(x)
    assert same["psnr"] is None  # Infinite.
    assert same["lpips"] == pytest.approx(0, abs=1e-7)
    small = Metrics().against(x[:30])(x[:30, :, ::-1])
    assert small["lpips"] is None
    assert small["ms_ssim"] is None
    mse = np.mean(np.square(x[:30].astype(float) - x[:30, :, ::-1]))
    assert small["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)


def test_interpolation_is_linear_in_log_bpp_and_never_extrapolates():
    points = [(0.4, 32.0), (0.1, 26.0), (1.6, 35.0)]
    assert interpolate(points, 0.2) == pytest.approx(29.0)  # Half way from 0.1 to 0.4 in logs.
    assert interpolate(points, 0.8) == pytest.approx(33.5)
    assert interpolate(points, 0.4 * 4**0.25) == pytest.approx(32.75)
    assert [interpolate(points, rate) for rate in (0.1, 1.6)] == [26.0, 35.0]
    assert [interpolate(points, rate) for rate in (0.0999, 1.6001)] == [None, None]
    assert interpolate([*points, (3.0, None)], 0.2) is None


def record(image: str, codec: str, setting: int, bpp: float, psnr: float, **other) -> Record:
    values = {"ms_ssim": 0.5, "lpips": 0.25, "bpp_est": None, **other}
    return Record(image, codec, setting, "", 8, 8, 8, bpp, psnr=psnr, encode_s=1, decode_s=2,
                  **values)  # fmt: skip


def test_comparison_reads_the_mean_curve_at_the_mean_rate():
    records = [
        record("a", "sic", 1, 0.1, 25.0, bpp_est=0.09),
        record("a", "sic", 2, 0.7, 33.0, bpp_est=0.69),
        record("a", "jpeg", 10, 0.1, 20.0, lpips=0.5),
        record("a", "jpeg", 50, 0.5, 30.0, lpips=0.1),
        record("b", "sic", 1, 0.5, 27.0, bpp_est=0.47),
        record("b", "sic", 2, 0.9, 31.0, bpp_est=0.87),
        record("b", "jpeg", 10, 0.2, 24.0, lpips=0.3),
        record("b", "jpeg", 50, 0.7, 32.0, lpips=0.1),
    ]
    rows = rows_at_equal_rate(mean_rows(records))
    assert [(row.codec, row.level) for row in rows] == [
        ("sic", 1), ("jpeg", 1), ("sic", 2), ("jpeg", 2)
    ]  # fmt: skip
    sic, jpeg, _, outside = rows
    assert (sic.bpp, sic.bpp_est, sic.psnr) == pytest.approx((0.3, 0.28, 26.0))
    assert jpeg.setting is None
    assert jpeg.num_images == 2
    # JPEG's means: 0.15 bpp, 22 dB, 0.4 and 0.6 bpp, 31 dB, 0.1; 0.3 is the middle in logs.
    assert (jpeg.bpp, jpeg.psnr, jpeg.lpips) == pytest.approx((0.3, 26.5, 0.25))
    assert (jpeg.encode_s, jpeg.bpp_est) == (None, None)
    assert outside.bpp == pytest.approx(0.8)
    assert (outside.psnr, outside.ms_ssim, outside.lpips) == (None, None, None)
    table = to_markdown(rows).splitlines()
    assert (
        table[2]
        == "| sic | 1 | 1 | 2 | 0.3000 | 0.2800 | 26.00 | 0.5000 | 0.2500 | 1.000 | 2.000 |"
    )
    assert table[3] == "| jpeg | - | 1 | 2 | 0.3000 | - | 26.50 | 0.5000 | 0.2500 | - | - |"
    assert table[5] == "| jpeg | - | 2 | 2 | 0.8000 | - | - | - | - | - | - |"
    assert to_csv(rows).splitlines()[4] == f"jpeg,,2,2,{outside.bpp},,,,,,"


def test_a_mean_needs_every_image():
    rows = mean_rows([record("a", "jpeg", 1, 0.1, 20.0), record("b", "jpeg", 1, 0.3, None)])
    assert rows[0].psnr is None
    assert rows[0].lpips == 0.25
    assert rows[0].bpp == pytest.approx(0.2)


@pytest.mark.skipif(not (ANCHORS.exists() and KODAK_1.exists()), reason="needs the shared files")
def test_peers_on_a_kodak_image_agree_with_independent_measurements():
    """Against PyTorch's metrics; other versions of the encoders write other bytes, so are left."""
    records = json.loads(ANCHORS.read_text())["records"]
    with Image.open(KODAK_1) as image:
        x = np.asarray(image)
    measure = Metrics().against(x)
    matched = 0
    for name, quality in (("jpeg", 25), ("webp", 40), ("avif", 38)):
        if name not in PEERS:
            continue
        wanted = next(
            r for r in records if (r["img"], r["codec"], r["q"]) == (1, name.upper(), quality)
        )
        codec = peer_codec(name)
        data = codec.encode(x, quality)
        if 8 * len(data) / (512 * 768) != wanted["bpp"]:
            continue
        matched += 1
        found = measure(codec.decode(data))
        assert found["psnr"] == pytest.approx(wanted["psnr"], abs=1e-3)
        assert found["ms_ssim"] == pytest.approx(wanted["msssim"], abs=1e-4)
        assert found["lpips"] == pytest.approx(wanted["lpips"], abs=5e-4)
    if not matched:
        pytest.skip("no encoder of this Pillow writes the files that were measured")
