"""FID and KID of eval.py: over the files of a run, with features that are known."""

import numpy as np
import pytest
from PIL import Image

from sic_jax.cli.evaluate import main
from sic_jax.evaluation.baselines import pillow_codec
from sic_jax.evaluation.fid import fid_rows, inception_of
from sic_jax.evaluation.measurer import Measurer
from sic_jax.evaluation.run import measure_images
from sic_jax.metrics.frechet import fid, kid, patches
from sic_jax.metrics.inception import inception_features, load_inception_weights, stored_shapes
from sic_jax.metrics.table import METRICS
from sic_jax.progress import Progress

SIDE = 16


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(found):
        noise = np.random.default_rng(seed).integers(0, 256, (40, 33, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)
    return found


def colours(found):
    return found.mean((1, 2)).astype(np.float32) / 255


def test_rows_compare_originals_with_what_the_files_decode_to(paths, tmp_path):
    out = tmp_path / "out"
    codec = pillow_codec("jpeg", [10, 90])
    records = measure_images(paths, [codec], Measurer(METRICS[:1]), out, Progress()).records
    rows = fid_rows(records, [codec], colours, out, side=SIDE)
    assert [(row.codec, row.setting) for row in rows] == [("jpeg", 10), ("jpeg", 90)]
    assert {row.num_patches for row in rows} == {2 * (2 * 2 + 2 * 1)}  # Of both grids.

    def features_of(files):
        images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        return np.concatenate([colours(patches(image, size=SIDE)) for image in images])

    real = features_of(paths)
    for row in rows:
        fake = features_of([out / r.file for r in records if r.setting == row.setting])
        assert row.fid == pytest.approx(fid(real, fake), rel=1e-6)
        assert row.kid == pytest.approx(kid(real, fake), rel=1e-6)
    assert 0 <= rows[1].fid < rows[0].fid
    with pytest.raises(ValueError, match="at least 2 patches of 256 pixels; the images have 0"):
        fid_rows(records, [codec], colours, out)


def test_the_page_has_the_rows_and_a_run_without_them_leaves_none(tmp_path, monkeypatch, capsys):
    for seed, name in enumerate("ab"):
        noise = np.random.default_rng(seed).integers(0, 256, (260, 270, 3))
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "small.png")
    monkeypatch.setattr("sic_jax.cli.evaluate.inception_of", lambda path: colours)
    out = tmp_path / "out"
    weights = ["--fid-weights", "w.npz"]

    def evaluate(*arguments):
        options = ["--codecs", "jpeg", "--metrics", "psnr", "--qualities", "jpeg=10,90", "--show"]
        code = main([*options, "--out", str(out), "--images", *arguments])
        return code, capsys.readouterr(), (out / "report.html").read_text()

    large = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    code, said, page = evaluate(*large, *weights)
    assert code == 0
    rows = [line.split(",") for line in (out / "fid.csv").read_text().splitlines()]
    assert rows[0] == ["codec", "setting", "num_patches", "fid", "kid"]
    assert [row[:2] for row in rows[1:]] == [["jpeg", "10"], ["jpeg", "90"]]
    assert '<a href="#fid">' in page
    for row in rows[1:]:
        cells = [*row[:3], f"{float(row[3]):.3f}", f"{float(row[4]):.6f}"]
        # The page's filter of codecs hides rows whose first cell names the codec.
        others = "".join(f"<td>{cell}</td>" for cell in cells[1:])
        assert f'<tr><td data-codec="jpeg">jpeg</td>{others}</tr>' in page
        assert f"| {' | '.join(cells)} |" in said.out
    code, _, page = evaluate(*large)
    assert (code, "#fid" in page, (out / "fid.csv").exists()) == (0, False, False)
    # Too few patches: an error, but the report is there.
    (out / "fid.csv").write_text("of an earlier run")
    code, said, page = evaluate(str(tmp_path / "small.png"), *weights)
    assert (code, "#fid" in page, (out / "fid.csv").exists()) == (1, False, False)
    assert "error: FID needs at least 2 patches of 256 pixels; the images have 0" in said.err
    assert said.out.startswith("| codec | setting |")


@pytest.mark.slow
def test_batches_of_inception_give_the_features_of_single_patches(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
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


def test_a_bad_weights_file_is_found_before_anything_is_coded(paths, tmp_path, capsys):
    (tmp_path / "w.npz").write_bytes(b"")
    np.savez(tmp_path / "w.npz", other=np.zeros(3))
    out = tmp_path / "out"
    arguments = ["--images", str(paths[0]), "--codecs", "jpeg", "--metrics", "psnr"]
    arguments += ["--out", str(out), "--fid-weights", str(tmp_path / "w.npz")]
    assert main(arguments) == 1
    assert "w.npz has no array 'Conv2d_1a_3x3.conv.weight'" in capsys.readouterr().err
    assert not out.exists()
