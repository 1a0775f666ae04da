"""FID and KID of eval.py: over the files of a run, with features that are known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli.evaluate import main
from sic_jax.evaluation.baselines import pillow_codec
from sic_jax.evaluation.fid import fid_rows, inception_of, vgg16_of_package
from sic_jax.evaluation.measurer import Measurer
from sic_jax.evaluation.run import measure_images
from sic_jax.metrics.frechet import fid, kid, patches
from sic_jax.metrics.inception import inception_features, load_inception_weights, stored_shapes
from sic_jax.metrics.table import METRICS
from sic_jax.progress import Progress

SIDE = 16


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(found):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 33, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)
    return found


def colours(found: NDArray[Any]) -> NDArray[Any]:
    out: NDArray[Any] = found.mean((1, 2)).astype(np.float32) / 255
    return out


def corners(found: NDArray[Any]) -> NDArray[Any]:
    return found[:, 0, 0].astype(np.float32)


def test_rows_compare_originals_with_what_the_files_decode_to(
    paths: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    codec = pillow_codec("jpeg", [10, 90])
    records = measure_images(paths, [codec], Measurer(METRICS[:1]), out, Progress()).records
    rows = fid_rows(records, [codec], out, inception=colours, vgg16=corners, side=SIDE)
    assert [(row.codec, row.setting) for row in rows] == [("jpeg", 10), ("jpeg", 90)]
    # Of both grids of 40x33 pixels: 2 x 2 patches, and from 8 on 2 x 1.
    assert {(row.patch, row.num_patches) for row in rows} == {(SIDE, 2 * (2 * 2 + 2 * 1))}

    def patches_of(files: Sequence[Path]) -> NDArray[Any]:
        images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        return np.concatenate([patches(image, size=SIDE) for image in images])

    real = patches_of(paths)
    for row in rows:
        fake = patches_of([out / r.file for r in records if r.setting == row.setting])
        assert row.fid == pytest.approx(fid(colours(real), colours(fake)), rel=1e-6)
        assert row.kid == pytest.approx(kid(colours(real), colours(fake)), rel=1e-6)
        assert row.vgg16_frechet == pytest.approx(fid(corners(real), corners(fake)), rel=1e-6)
    low, high = rows[1].fid, rows[0].fid
    assert low is not None
    assert high is not None
    assert 0 <= low < high
    alone = fid_rows(records, [codec], out, vgg16=corners, side=SIDE)
    assert alone == [row._replace(fid=None, kid=None) for row in rows]
    with pytest.raises(ValueError, match="at least 2 patches of 256 pixels; the images have 0"):
        fid_rows(records, [codec], out, inception=colours)


def test_networks_get_the_8_bit_samples_of_every_patch(paths: list[Path], tmp_path: Path) -> None:
    seen = []

    def keep(found: NDArray[Any]) -> NDArray[Any]:
        seen.append(found)
        return colours(found)

    out = tmp_path / "out"
    codec = pillow_codec("jpeg", [90])
    records = measure_images(paths, [codec], Measurer(METRICS[:1]), out, Progress()).records
    fid_rows(records, [codec], out, inception=keep, side=SIDE)
    files = [*paths, *(out / record.file for record in records)]
    assert len(seen) == len(files) == 4
    for found, file in zip(seen, files, strict=True):
        assert found.dtype == np.uint8
        with Image.open(file) as image:
            np.testing.assert_array_equal(found, patches(np.asarray(image), size=SIDE))


def test_the_page_has_the_rows_and_a_run_without_them_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate("ab"):
        noise = np.random.default_rng(seed).integers(0, 256, (260, 270, 3))
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "small.png")
    monkeypatch.setattr("sic_jax.cli.evaluate.inception_of", lambda path: colours)
    out = tmp_path / "out"
    weights = ["--fid-weights", "w.npz"]

    def evaluate(*arguments: str) -> tuple[int, Any, str]:
        options = ["--codecs", "jpeg", "--metrics", "psnr", "--qualities", "jpeg=10,90", "--show"]
        code = main([*options, "--out", str(out), "--images", *arguments])
        return code, capsys.readouterr(), (out / "report.html").read_text()

    large = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    code, said, page = evaluate(*large, *weights)
    assert code == 0
    rows = [line.split(",") for line in (out / "fid.csv").read_text().splitlines()]
    names = ["codec", "setting", "patch", "num_patches", "fid", "kid", "vgg16_frechet"]
    assert rows[0] == names
    assert [row[:2] for row in rows[1:]] == [["jpeg", "10"], ["jpeg", "90"]]
    assert '<a href="#fid">' in page
    for row in rows[1:]:
        assert row[2:4] == ["256", "2"]
        cells = [*row[:4], f"{float(row[4]):.3f}", f"{float(row[5]):.6f}", "-"]
        # The page's filter of codecs hides rows whose first cell names the codec.
        others = "".join(f"<td>{cell}</td>" for cell in cells[1:])
        assert f'<tr><td data-codec="jpeg">jpeg</td>{others}</tr>' in page
        assert f"| {' | '.join(cells)} |" in said.out
    remark = "Over 2 patches of 256 pixels of all images. They are fewer than the 2048 features"
    assert remark in said.err
    assert remark in page
    assert "stand-in" not in said.err
    code, _, page = evaluate(*large)
    assert (code, "#fid" in page, (out / "fid.csv").exists()) == (0, False, False)
    # Too few patches: an error, but the report is there.
    (out / "fid.csv").write_text("of an earlier run")
    code, said, page = evaluate(str(tmp_path / "small.png"), *weights)
    assert (code, "#fid" in page, (out / "fid.csv").exists()) == (1, False, False)
    assert "error: need at least 2 patches of 256 pixels; the images have 0" in said.err
    assert said.out.startswith("| codec | setting |")


def test_the_stand_in_needs_no_weights_and_is_not_called_fid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.zeros((100, 160, 3))
    image += np.linspace(0, 255, 160)[:, None] * np.linspace(0.2, 1, 100)[:, None, None]
    image += np.random.default_rng(0).normal(0, 20, image.shape)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    run = ["--images", str(tmp_path / "a.png"), "--out", str(out), "--codecs", "jpeg", "--show"]
    run += ["--metrics", "psnr", "--qualities", "jpeg=10,90", "--fid-patch", "64"]
    assert main(run) == 1
    assert "--fid-patch needs --fid-weights or --vgg-frechet" in capsys.readouterr().err
    assert main([*run, "--vgg-frechet"]) == 0
    said = capsys.readouterr()
    head, *rows = [line.split(",") for line in (out / "fid.csv").read_text().splitlines()]
    # 1 x 2 patches, and from 32 on 1 x 2.
    assert [row[:6] for row in rows] == [["jpeg", q, "64", "4", "", ""] for q in ("10", "90")]
    assert head[6] == "vgg16_frechet"
    low, high = (float(row[6]) for row in rows)
    assert 0 < high < low
    assert f"| jpeg | 10 | 64 | 4 | - | - | {low:.4f} |" in said.out
    assert "The Frechet distance of VGG16 features is a stand-in, and no FID." in said.err
    assert "do not state this FID" not in said.err
    cells = "".join(f"<td>{cell}</td>" for cell in ("10", "64", "4", "-", "-", f"{low:.4f}"))
    assert f'<td data-codec="jpeg">jpeg</td>{cells}' in (out / "report.html").read_text()
    with Image.open(tmp_path / "a.png") as png, Image.open(out / files_of(out)[0]) as jpeg:
        cut = [patches(np.asarray(x), size=64) for x in (png, jpeg)]
    features = vgg16_of_package()
    assert features(cut[0]).shape == (4, 512)
    assert low == pytest.approx(fid(*map(features, cut)), rel=1e-6)


def files_of(out: Path) -> list[str]:
    """Files of a run, in the order of its records."""
    return [record["file"] for record in json.loads((out / "results.json").read_text())["records"]]


@pytest.mark.slow
def test_batches_of_inception_give_the_features_of_single_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for name, shape in stored_shapes().items():
        array = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        arrays[name] = array if name.endswith("conv.weight") else np.ones(shape)
        if name.endswith(("bn.bias", "running_mean")):
            arrays[name] = np.zeros(shape)
        arrays[name] = arrays[name].astype(np.float16)
    np.savez(tmp_path / "w.npz", **arrays)
    found = rng.integers(0, 256, (9, 64, 64, 3)).astype(np.uint8)  # Two batches of at most 8.
    features = inception_of(tmp_path / "w.npz")(found)
    assert features.shape == (9, 2048)
    x = found[[0, 8]].astype(np.float32) / 255
    alone = inception_features(x, weights=load_inception_weights(tmp_path / "w.npz"))
    np.testing.assert_allclose(features[[0, 8]], alone, rtol=1e-4, atol=1e-5)
    assert features.std() > 1e-3


def test_a_bad_weights_file_is_found_before_anything_is_coded(
    paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.npz").write_bytes(b"")
    np.savez(tmp_path / "w.npz", other=np.zeros(3))
    out = tmp_path / "out"
    arguments = ["--images", str(paths[0]), "--codecs", "jpeg", "--metrics", "psnr"]
    arguments += ["--out", str(out), "--fid-weights", str(tmp_path / "w.npz")]
    assert main(arguments) == 1
    assert "w.npz has no array 'Conv2d_1a_3x3.conv.weight'" in capsys.readouterr().err
    assert not out.exists()
