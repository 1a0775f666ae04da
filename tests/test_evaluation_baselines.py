"""Codecs to compare with: Pillow's against measurements made elsewhere, and commands."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from conftest import quick_compilation
from numpy.typing import NDArray
from PIL import Image, features

from sic_jax.evaluation.baselines import BASELINES, external_codec, missing_baseline, pillow_codec
from sic_jax.evaluation.codecs import setting_text
from sic_jax.evaluation.measurer import Measurer
from sic_jax.metrics.table import METRICS

SHARED = Path(__file__).resolve().parents[2] / "shared"
ANCHORS = SHARED / "anchors" / "kodak_peers_measured.json"
KODAK_1 = SHARED / "data" / "kodak" / "kodim01.png"
HERE = [name for name in BASELINES if not missing_baseline(name)]

# A codec in one program: it keeps the picture's red bits, as many as the quality says.
PROGRAM = """
import sys
from PIL import Image
mode, source, target, *rest = sys.argv[1:]
if mode == "fail":
    sys.exit("first line\\nno such quality")
image = Image.open(source)
if mode == "encode":
    step = 2 ** (8 - int(rest[0]))
    image = image.point(lambda value: value // step * step)
image.save(target, "PNG")
"""


def smooth(height: int, width: int) -> NDArray[Any]:
    i, j = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(i / 7 + k) + 60 * np.cos(j / (9 + k)) for k in range(3)]
    out: NDArray[Any] = np.clip(np.stack(waves, axis=-1), 0, 255).astype(np.uint8)
    return out


@pytest.mark.parametrize("name", HERE)
def test_baselines_give_smaller_and_worse_pictures_at_the_first_setting(name: str) -> None:
    codec, x = pillow_codec(name), smooth(48, 64)
    low, high = (codec.encode(x, setting) for setting in (codec.settings[0], codec.settings[-1]))
    assert len(low) < len(high)
    errors = [np.mean(np.square(x - codec.decode(data, 0).astype(float))) for data in (high, low)]
    assert errors[0] < errors[1]
    gray = codec.decode(codec.encode(x[..., 0], 40), 0)
    assert gray.shape == x.shape  # Measured as RGB.
    tiny = codec.encode(x[:1, :3], codec.settings[0])
    assert codec.decode(tiny, 0).shape == (1, 3, 3)
    assert any(digit in codec.options for digit in "0123456789")  # The encoder's version.


def test_settings_go_from_low_to_high_rates() -> None:
    assert pillow_codec("jpeg", [50, 5, 20, 5]).settings == (5, 20, 50)
    if "jpeg2000" in HERE:
        assert pillow_codec("jpeg2000", [30, 240]).settings == (240, 30)


@pytest.mark.parametrize("name", [name for name in HERE if name != "jpeg2000"])
@pytest.mark.parametrize("quality", [50.2, -1, 101, float("nan")])
def test_qualities_that_the_codec_would_round_or_limit_are_refused(
    name: str, quality: float
) -> None:
    message = f"{name}: qualities are integers of 0 to 100, got {quality}"
    with pytest.raises(ValueError, match=message):
        pillow_codec(name, [50, quality])
    assert pillow_codec(name, [50.0]).settings == (50,)


@pytest.mark.skipif("jpeg2000" not in HERE, reason="this Pillow has no JPEG 2000")
def test_ratios_of_jpeg2000_are_positive_and_may_be_fractions() -> None:
    assert pillow_codec("jpeg2000", [60.5]).settings == (60.5,)
    with pytest.raises(ValueError, match="jpeg2000: ratios are positive, got -2"):
        pillow_codec("jpeg2000", [-2])


@pytest.mark.parametrize(
    ("setting", "text"),
    [(50, "50"), (50.0, "50"), (0.1, "0.1"), (50.2000001, "50.2000001"), (1234567, "1234567")],
)
def test_settings_have_texts_that_tell_them_apart(setting: float, text: str) -> None:
    assert setting_text(setting) == text


@pytest.mark.skipif("jpeg2000" not in HERE, reason="this Pillow has no JPEG 2000")
def test_jpeg2000_has_the_ratio_that_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    data = pillow_codec("jpeg2000").encode(x, 20)
    assert len(data) == pytest.approx(x.size / 20, rel=0.1)


def test_missing_codecs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name == "jpg")
    assert pillow_codec("jpeg").name == "jpeg"
    with pytest.raises(ValueError, match="this Pillow was built without avif; leave avif out of"):
        pillow_codec("avif")

    def absent(name: str) -> NoReturn:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match="needs the package pillow-jxl-plugin, which is not inst"):
        pillow_codec("jxl")


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Words of a command that encodes or decodes."""
    file = tmp_path / "a codec.py"  # The template has to quote the space.
    file.write_text(PROGRAM)
    return f"{sys.executable} '{file}'"


def test_an_external_codec_runs_its_commands(program: str) -> None:
    encoder = f"{program} encode {{input}} {{output}} {{quality}}"
    template = f"{encoder} ;; {program} decode {{input}} {{output}}"
    codec = external_codec("bits", template, [2, 8, 2])
    x = smooth(40, 56)
    assert np.array_equal(codec.decode(codec.encode(x, 8), 0), x)
    coarse = codec.decode(codec.encode(x, 2), 0)
    assert np.array_equal(coarse, x // 64 * 64)
    assert codec.settings == (2, 8)
    assert "encode {input}" in codec.options.replace("'", "")


@pytest.mark.parametrize(
    ("template", "qualities", "message"),
    [
        ("a {input} {output} {quality}", [1], "need 'ENCODER ;; DECODER'"),
        ("a {input} {output} ;; b {input} {output}", [1], r"has no \{quality\}"),
        ("a {input} {quality} ;; b {input} {output}", [1], r"has no \{output\}"),
        ("a {input} {output} {quality} ;; b {output}", [1], r"has no \{input\}"),
        ("a {input} {output} {quality} ;; b {input} {output}", [], "needs qualities"),
        ("no-such-program {input} {output} {quality} ;; b {input} {output}", [1], "do not code"),
        ("{program} fail {input} {output} {quality} ;; b {input} {output}", [1],
         "do not code a 64x64 image: .* ended with code 1: no such quality"),
    ],
)  # fmt: skip
def test_wrong_templates_are_refused_at_once(
    template: str, qualities: list[float], message: str, program: str
) -> None:
    with pytest.raises(ValueError, match=message):
        external_codec("x", template.replace("{program}", program), qualities)


def test_names_of_external_codecs_are_file_suffixes() -> None:
    with pytest.raises(ValueError, match=r"has letters, digits, - and _, got '\.\./x'"):
        external_codec("../x", "", [1])


@pytest.mark.skipif(not (ANCHORS.exists() and KODAK_1.exists()), reason="needs the shared files")
@pytest.mark.parametrize(
    ("name", "anchor", "quality"),
    [("jpeg", "JPEG", 25), ("webp", "WEBP", 40), ("avif", "AVIF", 38), ("jxl", "JXL", 30)],
)
def test_baselines_on_a_kodak_image_agree_with_independent_measurements(
    name: str, anchor: str, quality: float, kodak_1: tuple[NDArray[Any], Measurer, dict[str, Any]]
) -> None:
    """Against PyTorch's metrics; other versions of the encoders write other bytes."""
    x, measurer, reference = kodak_1
    if name not in HERE:
        pytest.skip(f"no {name} here")
    records = json.loads(ANCHORS.read_text())["records"]
    (wanted,) = (r for r in records if (r["img"], r["codec"], r["q"]) == (1, anchor, quality))
    codec = pillow_codec(name)
    data = codec.encode(x, quality)
    if 8 * len(data) / (512 * 768) != wanted["bpp"]:
        pytest.skip("this version of the encoder writes other files")
    found = measurer.distances(reference, [codec.decode(data, 0)])
    assert found["psnr"][0] == pytest.approx(wanted["psnr"], abs=1e-3)
    assert found["ms_ssim"][0] == pytest.approx(wanted["msssim"], abs=1e-4)
    assert found["lpips"][0] == pytest.approx(wanted["lpips"], abs=5e-4)


@pytest.fixture(scope="module")
def kodak_1() -> Iterator[tuple[NDArray[Any], Measurer, dict[str, Any]]]:
    """The first Kodak image, its metrics and its features."""
    with Image.open(KODAK_1) as image:
        x = np.asarray(image)
    measurer = Measurer([metric for metric in METRICS if metric.default])
    with quick_compilation():
        yield x, measurer, measurer.features(x)
