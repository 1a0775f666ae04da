"""eval.py: what it measures against files on disk and NumPy, what it keeps, what it survives."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
import PIL
import pytest
from conftest import quick_compilation
from numpy.typing import NDArray
from PIL import Image

from sic_jax import metrics
from sic_jax.cli import evaluate
from sic_jax.cli.evaluate import main
from sic_jax.codec.bundle import export_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import read_header
from sic_jax.codec.options import DecodeOptions, EncodeOptions
from sic_jax.evaluation.baselines import BASELINES, missing_baseline, pillow_codec
from sic_jax.evaluation.codecs import ImageCodec, sic_codec
from sic_jax.evaluation.means import mean_rows
from sic_jax.evaluation.measurer import Measurer
from sic_jax.evaluation.records import (
    Record,
    append_records,
    from_json,
    key_of,
    load_records,
    to_json,
)
from sic_jax.evaluation.run import Measured, find_images, measure_images
from sic_jax.metrics.table import METRICS
from sic_jax.model.params import init_params
from sic_jax.progress import Progress
from sic_jax.training.presets import preset

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 48, 64
HERE = [name for name in BASELINES if not missing_baseline(name)]
FIELDS = (
    "image", "image_id", "codec", "options", "setting", "file", "file_id", "height", "width",
    "num_bytes", "bpp", "bpp_est", "samples", "encode_s", "decode_s", "timed_with",
    "psnr", "ms_ssim", "lpips",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Programs compile quickly in this module."""
    with quick_compilation():
        yield


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[Any]:
    """Smooth colours with some noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:height, :width]
    waves = [np.sin(i / a + seed) + np.cos(j / b) for a, b in rng.uniform(4, 12, (3, 2))]
    noisy = 127 + 50 * np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))
    out: NDArray[Any] = np.clip(noisy, 0, 255).astype(np.uint8)
    return out


class Finished(NamedTuple):
    code: int
    stdout: str
    stderr: str
    codec: Codec
    bundle: Path
    arguments: list[str]
    out: Path


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        code = main(arguments)
    return code, stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    cfg = preset("smoke").model
    export_bundle(folder, cfg, init_params(cfg, seed=0))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Finished:
    """A run over a folder of two pictures of one stem among all kinds of bad files."""
    folder = tmp_path_factory.mktemp("evaluation")
    images, out = folder / "images", folder / "out"
    images.mkdir()
    Image.fromarray(picture(0)).save(images / "a.png")
    Image.fromarray(picture(1)).save(images / "a.tiff")
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:500])
    (images / "text.png").write_text("not a picture\n")
    (images / "notes.txt").write_text("not a picture\n")
    frames = [Image.fromarray(picture(k)) for k in range(3)]
    frames[0].save(images / "moving.gif", save_all=True, append_images=frames[1:])
    clear = np.dstack([picture(2), np.full((HEIGHT, WIDTH), 100, np.uint8)])
    Image.fromarray(clear).save(images / "rgba.png")
    arguments = ["--images", str(images), str(folder / "missing.png"), "--out", str(out)]
    arguments += ["--bundle", str(bundle), "--levels", "3", "1", "3", "--show"]
    load, loaded = Codec.load, []

    def load_and_keep(*args: Any, **options: Any) -> Codec:
        loaded.append(load(*args, **options))
        return loaded[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codec, "load", load_and_keep)  # Compiled once for all tests.
        code, stdout, stderr = run(*arguments)
    (codec,) = loaded
    return Finished(code, stdout, stderr, codec, bundle, arguments, out)


@pytest.fixture(scope="module")
def results(finished: Finished) -> dict[str, Any]:
    out: dict[str, Any] = json.loads((finished.out / "results.json").read_text())
    return out


def test_every_image_codec_and_setting_has_one_complete_record(
    finished: Finished, results: dict[str, Any]
) -> None:
    seen = [(Path(r["image"]).name, r["codec"], r["setting"]) for r in results["records"]]
    ladder: list[tuple[str, float]] = [("sic", 1), ("sic", 3)]
    ladder += [(name, quality) for name in HERE for quality in pillow_codec(name).settings]
    assert seen == [(name, *step) for name in ("a.png", "a.tiff") for step in ladder]
    for record in results["records"]:
        assert tuple(record) == FIELDS
        assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
        assert 3 < record["psnr"] < 60
        assert 0 < record["lpips"] < 2
        assert record["ms_ssim"] is None  # The images are too small for five scales.
        assert 0 < record["encode_s"] < 60
        assert 0 < record["decode_s"] < 60


def test_bpp_is_the_size_of_the_file_on_disk(finished: Finished, results: dict[str, Any]) -> None:
    for record in results["records"]:
        size = (finished.out / record["file"]).stat().st_size
        assert record["num_bytes"] == size
        assert record["bpp"] == 8 * size / (HEIGHT * WIDTH)
        assert record["bpp"] == metrics.bpp(size, HEIGHT, WIDTH)
    assert len({record["file"] for record in results["records"]}) == len(results["records"])


def test_bits_per_pixel_are_counted_in_one_place() -> None:
    counted = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sic_jax").rglob("*.py")
        if re.search(r"\b8(\.0)? ?\* ?(len\(|num_bytes|size|nbytes)", path.read_text())
    ]
    assert counted == ["sic_jax/metrics/rate.py"]


def test_the_files_decode_to_what_was_measured(finished: Finished, results: dict[str, Any]) -> None:
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


def test_the_estimated_rate_is_that_of_the_codec(
    finished: Finished, results: dict[str, Any]
) -> None:
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


def test_pictures_that_are_stored_exactly_have_no_estimated_rate(finished: Finished) -> None:
    estimate = sic_codec(finished.codec).estimate
    assert estimate is not None
    assert estimate(np.zeros((8, 8, 3), np.uint8)) is None
    assert estimate(picture(0)) is not None


def test_bad_files_are_reported_each_and_the_others_measured(
    finished: Finished, results: dict[str, Any]
) -> None:
    assert finished.code == 1
    lines = finished.stderr.splitlines()
    errors = [line for line in lines if line.startswith("eval.py: error: ")]
    assert errors == [f"eval.py: error: {e['error']}" for e in results["errors"]]
    wanted = {
        "broken.png": "the picture is damaged",
        "moving.gif": "holds 3 frames",
        "rgba.png": "transparent",
        "text.png": "not a picture in a format that Pillow reads",
        "missing.png": "No such file or directory",
    }
    assert [Path(e["image"]).name for e in results["errors"]] == list(wanted)
    for error, reason in zip(errors, wanted.values(), strict=True):
        assert reason in error
    (skipped,) = results["skipped"]
    assert skipped.endswith("notes.txt")
    assert f"eval.py: skipped: {skipped}: not named like a picture" in lines
    steps = [line[:5] for line in lines if line.startswith("[")]
    assert steps == ["[1/7]", "[2/7]"]
    assert f"{len(results['records'])} measurements (0 from before)" in lines[-1]


def test_the_report_says_what_was_measured(finished: Finished, results: dict[str, Any]) -> None:
    assert results["bundle"] == str(finished.bundle)
    assert results["model_id"] == finished.codec.bundle.model_id.hex()
    assert results["coder"] in ("native", "tfc")
    assert set(results["versions"]) == {"jax", "pillow"}
    assert results["metrics"] == ["psnr", "ms_ssim", "lpips"]
    assert shlex.split(results["command"]) == ["python", "eval.py", *finished.arguments]
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", results["revision"])
    assert 0 < results["seconds"] < 600
    page = (finished.out / "report.html").read_text()
    assert "sic encodes an image once, at the highest level: its files are cut from one." in page


def measure(
    images: list[Path], codecs: list[ImageCodec], out: Path, wanted: tuple[str, ...]
) -> Measured:
    chosen = [metric for metric in METRICS if metric.name in wanted]
    return measure_images(images, codecs, Measurer(chosen), out, Progress())


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Paths of two images."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(paths):
        Image.fromarray(picture(seed)).save(path)
    return paths


def counting(codec: ImageCodec) -> tuple[ImageCodec, list[float]]:
    """The codec, and a list that receives the setting of every call of its encoder."""
    calls: list[float] = []

    def encode(image: NDArray[Any], setting: float) -> bytes:
        calls.append(setting)
        return codec.encode(image, setting)

    return codec._replace(encode=encode), calls


def test_a_rerun_makes_only_what_is_missing(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    codec, calls = counting(pillow_codec("jpeg", [10, 50]))
    first = measure(two, [codec], out, ("psnr",))
    assert (len(first.records), first.num_reused, calls) == (4, 0, [10, 50, 10, 50])
    again = measure(two, [codec], out, ("psnr",))
    assert (again.records, again.num_reused, len(calls)) == (first.records, 4, 4)
    more = measure(two, [codec._replace(settings=(10, 30, 50))], out, ("psnr",))
    assert (more.num_reused, calls[4:]) == (4, [30, 30])
    assert [record.setting for record in more.records] == [10, 30, 50, 10, 30, 50]
    assert len((out / "records.jsonl").read_text().splitlines()) == 6


def test_settings_that_are_nearly_the_same_have_files_of_their_own(
    two: list[Path], tmp_path: Path
) -> None:
    jpeg = pillow_codec("jpeg")
    near = jpeg._replace(
        settings=(50.2000001, 50.2000002),
        encode=lambda image, setting: jpeg.encode(image, 50 if setting < 50.20000015 else 60),
    )
    out = tmp_path / "out"
    first, second = measure(two[:1], [near], out, ("psnr",)).records
    assert [Path(r.file).name for r in (first, second)] == ["50.2000001.jpeg", "50.2000002.jpeg"]
    assert first.num_bytes < second.num_bytes
    assert (out / first.file).stat().st_size == first.num_bytes
    assert measure(two[:1], [near], out, ("psnr",)).num_reused == 2


def test_what_changed_is_made_again(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    codec, calls = counting(pillow_codec("jpeg", [10, 50]))
    first = measure(two, [codec], out, ("psnr",))
    assert measure(two, [codec._replace(options="other")], out, ("psnr",)).num_reused == 0
    both = measure(two, [codec], out, ("psnr", "ms_ssim"))
    assert both.num_reused == 0  # A metric was missing: the files were decoded for it.
    assert list(both.records[0].metrics) == ["psnr", "ms_ssim"]
    assert len(calls) == 4 * 2
    (out / first.records[0].file).write_bytes(b"damaged")
    (out / first.records[3].file).unlink()
    assert measure(two, [codec], out, ("psnr",)).num_reused == 2
    # What an earlier run found of the same file is kept with the new measurement.
    last = measure(two, [codec], out, ("ms_ssim",))
    assert last.num_reused == 4
    assert list(last.records[0].metrics) == ["ms_ssim"]
    Image.fromarray(picture(9)).save(two[0])
    assert measure(two, [codec], out, ("psnr",)).num_reused == 2
    assert len(calls) == 4 * 2 + 2 + 2


def test_more_metrics_are_computed_from_the_files_alone(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    codec, calls = counting(pillow_codec("jpeg", [10, 50]))
    first = measure(two, [codec], out, ("psnr",)).records
    asked: list[Any] = []
    features = Measurer.features

    def spy(
        self: Measurer, image: NDArray[Any], names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        asked.append(names)
        return features(self, image, names)

    monkeypatch.setattr(Measurer, "features", spy)
    more = measure(two, [codec._replace(settings=(10, 30, 50))], out, ("psnr", "ssim"))
    assert calls == [10, 50, 10, 50, 30, 30]
    assert sorted(asked) == sorted(2 * [("ssim",), ("psnr", "ssim")])
    fresh = measure(two, [codec._replace(settings=(10, 30, 50))], tmp_path / "new", ("ssim",))
    for record, expected in zip(more.records, fresh.records, strict=True):
        assert record.metrics["ssim"] == expected.metrics["ssim"]
    assert [r._replace(metrics={}) for r in more.records if r.setting != 30] == [
        r._replace(metrics={}) for r in first
    ]  # Times, sizes and estimates are those of the first run.
    assert [r.metrics["psnr"] for r in more.records if r.setting != 30] == [
        r.metrics["psnr"] for r in first
    ]


def test_times_are_those_of_the_coder_device_and_versions_of_the_run(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    codec = pillow_codec("jpeg", [10, 50])._replace(coder="native")
    first = measure(two, [codec], out, ("psnr",)).records
    assert {r.timed_with for r in first} == {
        f"coder native, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"pillow {PIL.__version__}"
    }
    stored = (out / "records.jsonl").read_text()

    def without_times(records: Sequence[Record]) -> list[Record]:
        return [record._replace(encode_s=None, decode_s=None) for record in records]

    # Of another coder, also where a metric is added, and with a setting that is new.
    other = codec._replace(coder="tfc", settings=(10, 30, 50))
    found = measure(two, [other], out, ("psnr", "ssim"))
    old = [record for record in found.records if record.setting != 30]
    assert [r._replace(metrics={}) for r in old] == [
        r._replace(metrics={}) for r in without_times(first)
    ]
    assert all(r.encode_s and r.decode_s for r in found.records if r.setting == 30)
    means = {row.setting: (row.encode_s, row.decode_s) for row in mean_rows(found.records)}
    assert means[10] == means[50] == (None, None)
    assert None not in means[30]
    # Nothing is lost: the first coder's run has its times, those of the other are left out.
    last = measure(two, [codec._replace(settings=(10, 30, 50))], out, ("psnr",))
    assert last.num_reused == 6
    assert [r for r in last.records if r.setting != 30] == first
    assert {r.encode_s for r in last.records if r.setting == 30} == {None}
    # Neither another version's times nor those of records that do not say it are published.
    (out / "records.jsonl").write_text(stored)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0.1")
        assert measure(two, [codec], out, ("psnr",)).records == without_times(first)
    flat = [json.loads(line) for line in stored.splitlines()]
    lines = [json.dumps({k: v for k, v in f.items() if k != "timed_with"}) for f in flat]
    (out / "records.jsonl").write_text("\n".join(lines) + "\n")
    again = measure(two, [codec], out, ("psnr",))
    assert again.num_reused == 4
    assert again.records == [r._replace(timed_with=None) for r in without_times(first)]


def test_a_run_says_of_how_many_measurements_it_has_no_times(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--images", *map(str, two), "--out", str(tmp_path / "out"), "--codecs", "jpeg"]
    arguments += ["--metrics", "psnr", "--qualities", "jpeg=10,50", "--show"]
    assert "no times" not in run(*arguments)[2]
    kind = namedtuple("Device", "device_kind")("Another accelerator")
    monkeypatch.setattr("sic_jax.evaluation.run.jax.devices", lambda: [kind])
    code, stdout, stderr = run(*arguments)
    assert code == 0
    assert "no times of 4 measurements: made before with another coder" in stderr
    assert stdout.splitlines()[2].endswith("| - | - |")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["device"] == "Another accelerator"
    assert {(r["encode_s"], r["decode_s"]) for r in results["records"]} == {(None, None)}
    content = json.loads((tmp_path / "out" / "compressai" / "jpeg.json").read_text())
    assert set(content["results"]) == {"bpp", "psnr-rgb"}
    assert "- where some were measured with another coder" in (
        (tmp_path / "out" / "report.html").read_text()
    )


def test_a_killed_run_goes_on_after_its_last_whole_line(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    codec = pillow_codec("jpeg", [10, 50])
    records = measure(two, [codec], out, ("psnr",)).records
    file = out / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    assert set(load_records(file)) == {key_of(record) for record in records[:3]}
    again = measure(two, [codec], out, ("psnr",))
    assert again.num_reused == 3
    assert len(load_records(file)) == 4
    assert again.records[:3] == records[:3]


def test_records_survive_json(two: list[Path], tmp_path: Path) -> None:
    (record, *_) = measure(two, [pillow_codec("jpeg", [10])], tmp_path / "o", ("psnr",)).records
    record = record._replace(spread={"psnr": 0.25, "lpips": None}, samples=2)
    assert from_json(json.loads(json.dumps(to_json(record)))) == record
    assert to_json(record)["psnr_spread"] == 0.25
    append_records(tmp_path / "r.jsonl", [record, record._replace(bpp=2.0)])
    assert load_records(tmp_path / "r.jsonl") == {key_of(record): record._replace(bpp=2.0)}
    with pytest.raises(ValueError, match="a record without 'image'"):
        from_json({"codec": "jpeg"})


def test_an_image_that_fails_with_one_codec_is_in_no_mean(two: list[Path], tmp_path: Path) -> None:
    good = pillow_codec("jpeg", [10])

    def fail_on_b(image: NDArray[Any], setting: float) -> bytes:
        if np.array_equal(image, picture(1)):
            raise OSError("the encoder crashed")
        return good.encode(image, setting)

    bad = good._replace(name="bad", encode=fail_on_b)
    measured = measure(two, [good, bad], tmp_path / "out", ("psnr",))
    assert [(Path(r.image).name, r.codec) for r in measured.records] == [
        ("a.png", "jpeg"), ("a.png", "bad")
    ]  # fmt: skip
    (failure,) = measured.failures
    assert failure.error == f"{two[1]}: bad at 10: the encoder crashed"


def test_a_picture_of_another_size_is_an_error(two: list[Path], tmp_path: Path) -> None:
    wrong = pillow_codec("jpeg", [10])._replace(decode=lambda data, _: picture(0)[:-1])
    measured = measure(two[:1], [wrong], tmp_path / "out", ("psnr",))
    assert "jpeg at 10: decoded to (47, 64, 3), the image is (48, 64, 3)" in (
        measured.failures[0].error
    )


@pytest.mark.parametrize("grain", [True, False])
def test_samples_are_members_of_the_synset(
    grain: bool, finished: Finished, two: list[Path], tmp_path: Path
) -> None:
    decoding = DecodeOptions(seed=5, temperature=2.0, grain=grain)
    codec = sic_codec(finished.codec, [1, 3], decoding=decoding, samples=3)
    assert codec.options.endswith("temperature 2, seed 5, samples 3" + ", grain" * grain)
    measured = measure(two[:1], [codec], tmp_path / "out", ("psnr",))
    for record in measured.records:
        data = (tmp_path / "out" / record.file).read_bytes()
        values = []
        for seed in (5, 6, 7):
            x_hat = finished.codec.decompress(data, seed=seed, temperature=2.0, grain=grain)
            mse = np.mean(np.square(picture(0).astype(float) - x_hat))
            values.append(10 * np.log10(255**2 / mse))
        assert record.samples == 3
        assert record.metrics["psnr"] == pytest.approx(np.mean(values), abs=1e-4)
        assert record.spread["psnr"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    low, high = measured.records
    assert low.spread["psnr"] is not None
    assert high.spread["psnr"] is not None
    assert low.spread["psnr"] > 0.001  # Level 1 leaves details to draw; level 3 holds all.
    assert (high.spread["psnr"] > 0) == grain  # Or all but the grain.


@pytest.mark.parametrize("steps", [0, 5])
def test_an_image_is_encoded_once_for_all_levels(
    steps: int, finished: Finished, two: list[Path], tmp_path: Path
) -> None:
    made = []

    class Optimising(Codec):
        def compress(  # type: ignore[override]
            self, image: Any, options: EncodeOptions, *, level: int
        ) -> bytes:
            made.append((level, options.optimise_steps))
            return super().compress(255 - image if options.optimise_steps else image, level=level)

    encoding = EncodeOptions(optimise_steps=steps)
    codec = sic_codec(Optimising(finished.codec.bundle), [1, 2, 3], encoding)
    optimised = ", optimised 5 steps to level 3" if steps else ""
    assert codec.options.endswith(", samples 1, grain" + optimised)
    measured = measure(two, [codec], tmp_path / "out", ("psnr",))
    first = 0 if steps else 1  # Of this size: it is not timed, or encoding has no times.
    assert made == [(3, steps)] * (first + len(two))
    assert [r.setting for r in measured.records] == len(two) * [1, 2, 3]
    assert [r.bpp_est is None for r in measured.records] == len(two) * 3 * [steps > 0]
    for path in two:
        times = [r.encode_s for r in measured.records if r.image == str(path)]
        if steps:
            assert times[0] is None
        else:
            assert times[0] is not None
            assert times[0] > 0
        assert times == 3 * times[:1]
    assert len({r.decode_s for r in measured.records}) == len(two) * 3
    for record in measured.records:
        file = (tmp_path / "out" / record.file).read_bytes()
        image = np.asarray(Image.open(record.image).convert("RGB"))
        coded: Any = 255 - image if steps else image
        assert file == finished.codec.compress(coded, level=int(record.setting))
    # What is missing is cut from an encoding at the same level.
    (tmp_path / "out" / measured.records[1].file).unlink()
    again = measure(two, [codec], tmp_path / "out", ("psnr",))
    assert (again.num_reused, made[first + 2 :]) == (5, [(3, steps)] * (first + 1))
    assert [r.file_id for r in again.records] == [r.file_id for r in measured.records]


def test_nothing_runs_beside_what_is_timed(two: list[Path], tmp_path: Path) -> None:
    order: Any = []

    class Features:
        def block_until_ready(self) -> "Features":
            order.append("features")
            return self

    measurer: Any = Measurer(METRICS[:1])
    found = measurer.features
    measurer.features = lambda image, names: (
        (order.append("start"), found(image, names))[1] | {"waited": Features()}
    )
    distances = measurer.distances
    measurer.distances = lambda features, pictures: distances(
        {name: features[name] for name in features if name != "waited"}, pictures
    )
    jpeg = pillow_codec("jpeg", [10, 50])
    codec = jpeg._replace(
        encode=lambda image, setting: order.append(setting) or jpeg.encode(image, setting),
        decode=lambda data, sample: order.append("decode") or jpeg.decode(data, sample),
        estimate=lambda image: order.append("estimate") or (lambda setting: setting),
        compiles=True,
    )
    measured = measure_images(two, [codec], measurer, tmp_path / "out", Progress())
    assert [r.bpp_est for r in measured.records] == 2 * [10, 50]
    timed = ["features", 10, "decode", 50, "decode"]
    assert order == ["start", "estimate", 10, "decode", *timed, "start", "estimate", *timed]


@pytest.mark.parametrize(
    ("options", "samples", "message"),
    [
        ({}, 0, "samples must be at least 1, got 0"),
        ({"seed": -1}, 1, "seed must be 0 to"),
        ({"seed": 2**32 - 2}, 3, "for 3 samples, got 4294967294"),
        ({"temperature": -0.5}, 1, "temperature must be 0 to 16, got -0.5"),
    ],
)
def test_options_of_sic_are_checked(
    finished: Finished, options: dict[str, Any], samples: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sic_codec(finished.codec, [1], decoding=DecodeOptions(**options), samples=samples)


def test_all_that_fixes_files_and_pictures_is_in_the_options(finished: Finished) -> None:
    encoding, decoding = EncodeOptions(seed=2, grain=1.5), DecodeOptions(level=1, max_pixels=9000)
    codec = sic_codec(finished.codec, [1], encoding, decoding)
    assert codec.options.endswith(
        "seed 2, samples 1, grain, EncodeOptions.seed 2, EncodeOptions.grain 1.5, "
        "DecodeOptions.level 1"
    )
    header = read_header(codec.encode(picture(0), 1))
    assert (header.seed, header.grain) == (2, 24)
    with pytest.raises(ValueError, match="optimise_steps must be at least 0, got -1"):
        sic_codec(finished.codec, [1], EncodeOptions(optimise_steps=-1))


def test_a_run_without_errors_exits_with_0_and_prints_the_means(tmp_path: Path) -> None:
    Image.fromarray(picture(2)).save(tmp_path / "a.png")
    (tmp_path / "other").mkdir()
    Image.fromarray(picture(3)[..., 0]).save(tmp_path / "other" / "a.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "other"), str(tmp_path / "a.png")]
    out = tmp_path / "out"
    options = ["--codecs", "jpeg", "--metrics", "psnr", "--qualities", "jpeg=10,35.0,60"]
    code, stdout, _ = run("--images", *paths, "--out", str(out), *options)
    assert code == 0
    results = json.loads((out / "results.json").read_text())
    assert (results["bundle"], results["model_id"], results["errors"]) == (None, None, [])
    assert [record["setting"] for record in results["records"]] == 2 * [10, 35, 60]
    assert "lpips" not in results["records"][0]
    folders = {Path(record["file"]).parts[1][:2] for record in results["records"]}
    assert folders == {"a-"}
    assert len({record["file"] for record in results["records"]}) == 6  # One name, two images.
    lines = stdout.splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| jpeg | 10 | - | 2 |")
    (tmp_path / "other" / "notes.txt").write_text("not a picture\n")
    again = run("--images", *paths, "--out", str(out), *options)
    assert (again[0], again[1]) == (1, stdout)  # Left out, and the exit code says so.
    assert "notes.txt: not named like a picture" in again[2]


def test_all_metrics_are_columns(tmp_path: Path) -> None:
    # So small that only PSNR and SSIM are defined; the others are there, without values.
    Image.fromarray(picture(2, 12, 13)).save(tmp_path / "a.png")
    options = ["--codecs", "jpeg", "--metrics", "all", "--qualities", "jpeg=50"]
    code, stdout, _ = run(
        "--images", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *options
    )
    assert code == 0
    names = ["psnr", "ms_ssim", "lpips", "dists", "lpips_vgg", "wd", "ssim"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"] == names
    (record,) = results["records"]
    assert [name for name in names if record[name] is not None] == ["psnr", "ssim"]
    header = stdout.splitlines()[0]
    assert " | ".join(names) in header


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", "4"], "levels of this bundle are 1 to 3, got 4"),
        (["--levels", "0"], "levels of this bundle are 1 to 3, got 0"),
        (["--bundle", "nothing"], "no bundle 'nothing'"),
        (["--bundle", "b:heat=1"], "b:heat=1: no setting 'heat', but optimise, seed, temperature,"),
        (["--bundle", "b:level=1"], "b:level=1: no setting 'level', but"),
        (["--bundle", "b:seed=1,seed=2"], "b:seed=1,seed=2: seed is given twice"),
        (["--bundle", "default:seed=x"], "default:seed=x: seed must be a whole number, got 'x'"),
        (["--bundle", "default:grain=0"], "default:grain=0: grain must be yes or no, got '0'"),
        (["--bundle", "default:temperature=17"], "temperature must be 0 to 16, got 17.0"),
        (["--bundle", "default", "default:grain=yes"], "default and default:grain=yes are one"),
        (["--images", "{tmp}"], "the folder holds no picture"),
        (["--codecs", "jpeg", "--qualities", "jpeg=a"], "need CODEC=Q,Q,..., got 'jpeg=a'"),
        (["--codecs", "jpeg", "--qualities", "webp=1"], "no codec 'webp' in this run"),
        (["--codecs", "jpeg", "--qualities", "jpeg=9,inf"], "finite numbers, got 'jpeg=9,inf'"),
        (["--codecs", "jpeg", "--qualities", "jpeg=50,50.2"], "of 0 to 100, got 50.2"),
        (["--qualities", "sic=2,8"], "sic has levels, see --levels; got 'sic=2,8'"),
        (["--qualities", "jpeg=1", "--qualities", "jpeg=2"], "codec 'jpeg' is given twice"),
        (["--external", "x=a;;b", "--external", "x=c;;d"], "the name 'x' is given twice"),
        (["--codecs"], "no codec to measure"),
        (["--codecs", "jpeg", "--show", "z"], "--show: no image of this run is called 'z'"),
        (["--codecs", "jpeg", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--codecs", "jpeg", "--external", "jpeg=a;;b"], "the name 'jpeg' belongs to another"),
    ],
)
def test_a_run_that_cannot_begin_is_one_line_and_exit_code_1(
    arguments: list[str], message: str, bundle: Path, tmp_path: Path
) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    common = ["--images", "x.png", "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    code, stdout, stderr = run(*common, *arguments)
    assert (code, stdout) == (1, "")
    (line,) = [line for line in stderr.splitlines() if "skipped" not in line]
    assert line.startswith("eval.py: error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_says_so(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("sic_jax.evaluation.run.read_image", interrupt)
    code, _, stderr = run("--images", str(two[0]), "--codecs", "jpeg", "--out", str(tmp_path))
    assert code == 130
    assert stderr == "eval.py: interrupted; the same command goes on from here\n"


@pytest.mark.thorough
def test_each_bundle_and_setting_is_a_curve_of_its_own(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [finished.bundle, tmp_path / "y" / "tiny"]
    cfg = preset("smoke").model
    export_bundle(folders[1], cfg, init_params(cfg, seed=1))
    # Compiled once for all runs.
    loaded = {str(folders[0]): finished.codec, str(folders[1]): Codec.load(folders[1])}
    monkeypatch.setattr(Codec, "load", lambda bundle, coder: loaded[bundle])
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    common = ["--images", str(tmp_path / "a.png"), "--out", str(out), "--codecs", "sic"]
    common += ["--metrics", "psnr", "--show", "a", "--levels", "1", "3", "--bundle"]
    assert run(*common, str(folders[0]))[0] == 0
    (alone,) = (out / "compressai").iterdir()
    assert alone.name == "sic.json"
    first, second = map(str, folders)
    hot = f"{first}:temperature=2,grain=no"
    code, stdout, stderr = run(*common, first, hot, second)
    assert code == 0
    # The levels that were measured as "sic" are those of the first bundle.
    assert "6 measurements (2 from before)" in stderr
    x = f"{finished.bundle.parent.name}-tiny"
    names = [x, f"{x}:temperature=2,grain=no", "y-tiny"]
    results = json.loads((out / "results.json").read_text())
    assert results["bundle"] == dict(zip(names, [first, first, second], strict=True))
    assert list(results["model_id"]) == names
    assert len(set(results["model_id"].values())) == 2
    records = results["records"]
    assert [(r["codec"], r["setting"]) for r in records] == [(n, s) for n in names for s in (1, 3)]
    assert {Path(r["file"]).suffix for r in records} == {".sic"}
    assert len({r["file"] for r in records}) == 6
    codec = finished.codec
    own: list[dict[str, Any]] = 2 * [{}] + 2 * [{"temperature": 2.0, "grain": False}]
    for record, options in zip(records[:4], own, strict=True):
        data = (out / record["file"]).read_bytes()
        assert data == codec.compress(picture(0), level=record["setting"])
        mse = np.mean(np.square(picture(0).astype(float) - codec.decompress(data, **options)))
        assert record["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)
    # Tables, deltas, plots and page know the names; the first one is the reference.
    assert [line.split(" | ")[0] for line in stdout.splitlines()[2:]] == 2 * [
        f"| {n}" for n in names
    ]
    summary = (out / "summary.csv").read_text()
    assert summary.count(f"\n{x},") == 4
    assert summary.count(f'\n"{names[1]}",') == 4
    page = (out / "report.html").read_text()
    assert f"At the rates of {x}" in page
    deltas = (out / "bd.csv").read_text()
    svg = (out / "plots" / "psnr.svg").read_text()
    for name in names:
        assert f"<td>{name}</td>" in page
        assert f">{name}</text>" in svg
        assert name in deltas
        file = out / "compressai" / f"{name.replace(':', '%3A')}.json"  # Windows takes no colon.
        assert json.loads(file.read_text())["name"] == name
    assert not alone.exists()
    # In another order and under another name everything is there already.
    code, _, stderr = run(*common, second, hot)
    assert code == 0
    assert "4 measurements (4 from before)" in stderr
    last = json.loads((out / "results.json").read_text())["records"]
    assert [r["codec"] for r in last] == [n for n in names[:0:-1] for _ in (1, 3)]
    assert last == records[4:] + records[2:4]
    kept = [f"{x}%3Atemperature=2,grain=no.json", "y-tiny.json"]
    assert sorted(p.name for p in (out / "compressai").iterdir()) == kept
    code, _, stderr = run(*common, second)
    assert "2 measurements (2 from before)" in stderr
    assert json.loads((out / "results.json").read_text())["bundle"] == second
    loaded["other/jpeg"] = loaded[second]
    code, _, stderr = run(*common, first, "other/jpeg", "--codecs", "sic", "jpeg")
    assert (code, stderr) == (
        1, "eval.py: error: --bundle: 2 codecs are called 'jpeg'; rename the folder\n"
    )  # fmt: skip


def test_flags_are_the_defaults_of_curves_and_names_tell_bundles_apart(finished: Finished) -> None:
    """`_make_curves` alone, without measuring."""
    path = str(finished.bundle)
    args = evaluate.parse(
        ["--images", "x", "--out", "y", "--temperature", "2", "--no-grain", "--bundle", path,
         f"{path}:optimise=3,seed=4", f"{path}:grain=yes,temperature=0.5"]
    )  # fmt: skip
    curves = evaluate._make_curves(args)
    model = finished.codec.bundle.model_id.hex()
    assert [(curve.codec.name, curve.codec.options) for curve in curves] == [
        ("tiny", f"model {model}, temperature 2, seed 0, samples 1"),
        (
            "tiny:optimise=3,seed=4",
            f"model {model}, temperature 2, seed 4, samples 1, optimised 3 steps to level 3",
        ),
        (
            "tiny:grain=yes,temperature=0.5",
            f"model {model}, temperature 0.5, seed 0, samples 1, grain",
        ),
    ]
    assert len({id(curve.loaded) for curve in curves}) == 1
    short = evaluate._short_names({"runs/a/bundle", "runs/b/bundle", "default"})
    assert short == {
        "runs/a/bundle": "a-bundle",
        "runs/b/bundle": "b-bundle",
        "default": "default",
    }
    assert evaluate._split_settings("a=1:b/c") == ("a=1:b/c", {})


def test_the_script_knows_its_options_and_does_not_load_matplotlib() -> None:
    program = "import runpy, sys; sys.argv = ['eval.py', '--help']\ntry:\n    "
    program += "runpy.run_path('eval.py', run_name='__main__')\n"
    program += "except SystemExit:\n    assert 'matplotlib' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    options = ("--images", "--bundle", "--levels", "--codecs", "--coder", "--out", "--metrics")
    for option in (*options, "--samples", "--seed", "--qualities", "--external", "--rate-axis"):
        assert option in done.stdout


def test_default_levels_end_at_the_highest_of_the_bundle(bundle: Path) -> None:
    codec = Codec.load(bundle)
    assert sic_codec(codec).settings == (1, 3)
    assert sic_codec(codec, [2, 1, 2]).settings == (1, 2)


def test_folders_are_not_searched_below_their_first_level(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for name in ("b.PNG", "a.webp", ".hidden.png", "files/c.png", "notes.txt"):
        (tmp_path / name).touch()
    found = find_images([str(tmp_path), str(tmp_path / "b.PNG")])
    assert found.images == [tmp_path / "a.webp", tmp_path / "b.PNG"]
    assert found.skipped == [tmp_path / "notes.txt"]


@pytest.mark.thorough
def test_metrics_leave_out_what_is_not_defined() -> None:
    x = picture(5)
    measurer = Measurer(METRICS)
    same = measurer.distances(measurer.features(x), [x])
    assert same["psnr"] == [None]  # Infinite.
    assert same["lpips"][0] == pytest.approx(0, abs=1e-7)
    small = measurer.distances(measurer.features(x[:30]), [x[:30, :, ::-1]])
    assert (small["lpips"], small["ms_ssim"]) == ([None], [None])
    mse = np.mean(np.square(x[:30].astype(float) - x[:30, :, ::-1]))
    assert small["psnr"] == [pytest.approx(10 * np.log10(255**2 / mse), abs=1e-4)]


@pytest.mark.thorough
def test_batches_give_the_values_of_single_pictures() -> None:
    x, others = picture(5), [picture(seed) for seed in (6, 7, 8)] + [picture(5)[..., 0]]
    one, three = Measurer(METRICS), Measurer(METRICS, batch_size=3)
    single = one.distances(one.features(x), others)
    batched = three.distances(three.features(x), others)  # Two batches, one not full.
    for name in ("psnr", "lpips"):
        assert len(batched[name]) == 4
        assert batched[name] == pytest.approx(single[name], rel=1e-5)
    assert batched["ms_ssim"] == [None] * 4


def test_features_of_an_original_are_computed_once(two: list[Path], tmp_path: Path) -> None:
    measurer: Any = Measurer(METRICS[:1])
    calls: Any = []
    features = measurer.features
    measurer.features = lambda image, names: calls.append(image.shape) or features(image, names)
    codecs = [pillow_codec("jpeg", [10, 50]), pillow_codec("jpeg", [20])._replace(name="other")]
    measured = measure_images(two, codecs, measurer, tmp_path / "out", Progress())
    assert len(measured.records) == 6
    assert calls == 2 * [(HEIGHT, WIDTH, 3)]
    assert (
        measurer._compare(256, 256)._cache_size() == 1
    )  # Both images and all settings: one program.
