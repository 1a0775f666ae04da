"""The codec end to end: pictures to bytes and back, damage, prefixes, seeds."""

import copy
import dataclasses
import multiprocessing
import operator
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import checkerboard_entropy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sic_jax import BitstreamError
from sic_jax.codec.bundle import export_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import (
    Header,
    Segment,
    pack,
    read_header,
    read_metadata,
    symbols_checksum,
    truncate,
    truncate_to,
    unpack,
)
from sic_jax.codec.grain import add_grain, measure_grain
from sic_jax.codec.options import DecodeOptions, EncodeOptions
from sic_jax.codec.pixels import exact_segment
from sic_jax.codec.psnr_target import lowest_level
from sic_jax.devices import check_devices
from sic_jax.entropy import range_coder
from sic_jax.entropy.cdf_tables import CdfTables
from sic_jax.entropy.distributions import NO_REACH, logistic_bits, normal_bits
from sic_jax.entropy.range_coder import RangeDecoder, RangeEncoder, available_backends
from sic_jax.metadata import Metadata
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.checkerboard.group_coding import refinement_table_indices
from sic_jax.model.entropy_models.coding_pass import Request, code_levels
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.entropy_models.scales import table_indices
from sic_jax.model.levels import LevelConfig, refinement_limit, refinement_sources
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import init_params
from sic_jax.model.transforms.pyramid import PyramidTransforms, with_klt
from sic_jax.training.presets import preset

CFG = preset("smoke").model
LEVELS = CFG.num_levels
ROOT = Path(__file__).resolve().parents[1]
STRIDE = CFG.stride


def tiny_bundle(folder: Path, seed: int, cfg: ModelConfig = CFG) -> Path:
    """An untrained bundle: linear branches from smooth patches, everything else random."""
    rng = np.random.default_rng(seed)
    patches = rng.normal(size=(1500, STRIDE, STRIDE, 3)).cumsum(1).cumsum(2)
    patches *= 0.2 / np.abs(patches).max((1, 2, 3), keepdims=True)
    assert isinstance(cfg.transforms, PyramidTransforms)
    params = with_klt(
        init_params(cfg, seed=seed),
        cfg.transforms,
        patches.reshape(1500, -1),
        cfg.levels,
    )
    export_bundle(folder, cfg, params)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", 0)


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return Codec.load(folder)


def picture(height: int, width: int, seed: int = 0) -> NDArray[Any]:
    """A smooth colour picture with some noise."""
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:height, :width]
    waves = [np.sin(i / 9 + k) + np.cos(j / 7 - k) for k in range(3)]
    out: NDArray[Any] = np.clip(
        128 + 45 * np.stack(waves, -1) + rng.normal(0, 4, (height, width, 3)), 0, 255
    ).astype(np.uint8)
    return out


@pytest.mark.parametrize("size", [(1, 90), (17, 33), (64, 48), (37, 200)])
def test_round_trip_of_symbols_at_any_size(codec: Codec, size: tuple[int, int]) -> None:
    x = picture(*size)
    data = codec.compress(x)
    assert (read_header(data).height, read_header(data).width) == size
    assert codec.decompress(data).shape == (*size, 3)
    # The symbols are those that the encoder rounded, not merely some that decode.
    encoded, decoded = codec.encode_latents(x), codec.decode_latents(unpack(data))
    np.testing.assert_array_equal(decoded.y_s, encoded.y_s)
    np.testing.assert_array_equal(decoded.z_hat, encoded.z_hat)
    assert encoded.level == decoded.level == 3
    assert encoded.y_s.shape[:2] == (-(-size[0] // 16), -(-size[1] // 16))


def test_both_coders_write_the_same_bytes_and_read_each_other(folder: Path, codec: Codec) -> None:
    if "tfc" not in available_backends():
        pytest.skip("TensorFlow Compression is not installed")
    other = Codec.load(folder, coder="tfc")
    x = picture(64, 48)
    data = codec.compress(x)
    assert other.compress(x) == data
    np.testing.assert_array_equal(other.decompress(data), codec.decompress(data))


def test_a_decoder_imports_nothing_of_training(folder: Path, codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "a.sic"
    path.write_bytes(codec.compress(picture(32, 32)))
    program = (
        "import sys; from pathlib import Path; import sic_jax\n"
        "sic_jax.Codec.load(sys.argv[1]).decompress(Path(sys.argv[2]).read_bytes())\n"
        "print(*sorted(m for m in sys.modules if m.startswith('sic_jax')))"
    )
    argv = [sys.executable, "-c", program, str(folder), str(path)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    assert "sic_jax.codec.codec" in out
    unwanted = {"training", "evaluation", "presets", "lpips_metric", "dists_metric", "vgg"}
    unwanted |= {"latent_optimisation"}
    assert not [m for m in out if set(m.split(".")) & unwanted]


def test_tables_are_validated_once_a_codec(
    codec: Codec, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[CdfTables] = []
    validate = range_coder.validate_tables  # type: ignore[attr-defined]

    def counted(tables: CdfTables) -> None:
        validated.append(tables)
        validate(tables)

    monkeypatch.setattr(range_coder, "validate_tables", counted)
    data = codec.compress(picture(64, 48))
    codec.decompress(data)
    assert not validated
    other = Codec(codec.bundle)
    assert [t.starts.size for t in validated] == [
        codec.bundle.tables_y.starts.size, codec.bundle.tables_z.starts.size
    ]  # fmt: skip
    # A bundle that is put together by hand is checked too.
    bad = codec.bundle.tables_z._replace(lookup=codec.bundle.tables_z.lookup * 2)
    with pytest.raises(ValueError, match="every row must start with -16"):
        Codec(dataclasses.replace(other.bundle, tables_z=bad))


def test_unknown_coder_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="coder must be one of"):
        Codec.load(folder, coder="huffman")


def test_prefix_of_levels_is_the_lower_file(codec: Codec) -> None:
    x = picture(64, 48)
    full = codec.compress(x)
    for level in range(1, LEVELS + 1):
        low = codec.compress(x, level=level)
        assert truncate(full, level) == low
        expected = codec.decompress(low)
        np.testing.assert_array_equal(codec.decompress(full, level=level), expected)
    assert len(codec.compress(x, level=1)) < len(full)


def test_truncated_bytes_warn_and_decode_at_the_level_that_is_whole(codec: Codec) -> None:
    x = picture(64, 48)
    full, low = codec.compress(x), codec.compress(x, level=2)
    cut = full[:-1]
    with pytest.warns(UserWarning, match=f"{LEVELS - 1} of {LEVELS} levels are whole"):
        np.testing.assert_array_equal(codec.decompress(cut), codec.decompress(low))
    with pytest.raises(BitstreamError, match="truncated"):
        codec.decompress(cut, strict=True)


def test_size_is_within_the_estimate(codec: Codec) -> None:
    x = picture(192, 256)
    estimate = codec.estimate_bits(x)
    for level in range(1, LEVELS + 1):
        size = len(codec.compress(x, level=level))
        expected = estimate.bpp_est(level, *x.shape[:2]) * x.shape[0] * x.shape[1] / 8
        # Escapes make outliers cheaper than the model's tail says: an untrained model has many.
        assert size < 1.01 * expected + 24 + 6 * (level + 1)


def test_refinements_have_tables_of_their_own(codec: Codec) -> None:
    cfg = CFG
    refining = np.flatnonzero(refinement_sources(cfg.levels) >= 0)
    first = checkerboard_entropy(cfg).scales.num_sigmas * 16
    tables = cfg.entropy.num_coding_tables(cfg.levels)
    assert len(codec.bundle.tables_y.starts) == tables == first + 64 * 129
    x = picture(192, 256)
    data, estimate = codec.compress(x), codec.estimate_bits(x)
    decoded = codec.decode_latents(unpack(data))
    np.testing.assert_array_equal(decoded.y_s, codec.encode_latents(x).y_s)
    assert np.abs(decoded.y_s[..., refining]).max() == refinement_limit(cfg.levels) == 1
    for level in range(1, LEVELS + 1):
        size = len(truncate(data, level))
        expected = estimate.bpp_est(level, *x.shape[:2]) * x.shape[0] * x.shape[1] / 8
        assert size < 1.01 * expected + 24 + 6 * (level + 1)
    # What no residual can be, a file can hold all the same: the escape.
    y = decoded.y_s.copy()
    y[0, 0, refining], y[5, 3, refining] = 2, -300
    hyper = codec._pass.hyper(decoded.z_hat, (y.shape[0], y.shape[1]))
    coder = RangeEncoder(codec.bundle.tables_y, backend="native")

    def encode(request: Request) -> NDArray[Any]:
        values = y[request.where].ravel()
        of_refinement = np.isin(np.arange(cfg.num_channels)[request.where[-1]], refining)
        tables = request.indices.reshape(-1, of_refinement.size)
        assert np.all((tables >= first) == of_refinement)
        assert not request.means.reshape(tables.shape)[:, of_refinement].any()
        coder.encode(values - request.means, request.indices)
        return values

    code_levels(codec._pass.run(hyper, LEVELS), encode)
    decoder = RangeDecoder(codec.bundle.tables_y, coder.finish(), backend="native")
    coding = codec._pass.run(hyper, LEVELS)
    again, _ = code_levels(coding, lambda r: decoder.decode(r.indices) + r.means)
    np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize("kind", ["checkerboard", "raster"])
def test_tables_have_the_probabilities_that_training_has(kind: str) -> None:
    """-log2 of a table's mass is the bits that `EntropyNetworks.level_bits` counts."""
    levels = CFG.levels
    entropy: CheckerboardEntropy | RasterEntropy = checkerboard_entropy(CFG)
    if kind == "raster":
        levels, entropy = LevelConfig(channels=(2,) * 3, refinements=(0,) * 3), RasterEntropy()
    tables = entropy.coding_tables(levels)
    ends = np.append(tables.starts[1:], tables.lookup.size)
    rng = np.random.default_rng(0)
    mean: Any = rng.integers(-40, 41, 400)
    scale = rng.integers(10, 45, 400)
    sigma: Any = entropy.scales.sigmas[scale]

    def masses(indices: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        symbols = values - tables.offsets[indices]
        rows = [tables.lookup[tables.starts[i] + 1 : ends[i]] for i in indices]
        return np.array([np.diff(r)[s] / 65536 for r, s in zip(rows, symbols, strict=True)])

    indices, whole = (np.asarray(a) for a in table_indices(jnp.asarray(mean), jnp.asarray(scale)))
    y: Any = np.round(mean / 16 + rng.uniform(-1, 1, 400) * sigma).astype(int)
    bits: Any = (
        normal_bits(y, mean / 16, sigma)
        if kind == "raster"
        else logistic_bits(y, mean / 16, sigma, NO_REACH)
    )
    np.testing.assert_allclose(-np.log2(masses(indices, y - whole)), bits, atol=4e-3)
    if kind == "checkerboard":
        found = refinement_table_indices(jnp.asarray(mean), jnp.asarray(scale), entropy.scales)
        indices, whole = (np.asarray(a) for a in found)
        assert not whole.any()
        y = rng.integers(-1, 2, 400)
        bits = np.asarray(logistic_bits(y, mean / 16, sigma, 1.5))
        got = -np.log2(masses(indices, y))
        likely = bits < 8
        assert likely.sum() > 300
        np.testing.assert_allclose(got[likely], bits[likely], atol=4e-3)


def test_seeds_draw_details_and_temperature_zero_is_the_mean(codec: Codec) -> None:
    data = codec.compress(picture(64, 48), level=1, seed=5, grain=0)
    one = codec.decompress(data, temperature=1.0)
    np.testing.assert_array_equal(one, codec.decompress(data, temperature=1.0, seed=5))
    assert (one != codec.decompress(data, temperature=1.0, seed=6)).any()
    mean = codec.decompress(data, temperature=0.0)
    np.testing.assert_array_equal(mean, codec.decompress(data, temperature=0.0, seed=6))
    members = codec.decompress_samples(data, num_samples=3, temperature=1.0)
    np.testing.assert_array_equal(members[0], one)
    np.testing.assert_array_equal(members[1], codec.decompress(data, temperature=1.0, seed=6))
    assert members.shape == (3, 64, 48, 3)
    full = codec.compress(picture(64, 48), grain=0)
    same = codec.decompress_samples(full, num_samples=2, temperature=1.0)
    np.testing.assert_array_equal(same[0], same[1])  # level L leaves nothing to draw


def test_grain_is_measured_kept_and_drawn(codec: Codec) -> None:
    x = picture(64, 48)
    data, without = codec.compress(x, seed=3), codec.compress(x, seed=3, grain=0)
    grain = read_header(data).grain
    assert grain == measure_grain(x) > 0
    assert read_header(without).grain == 0
    assert len(data) == len(without) + 1
    assert read_header(codec.compress(x, grain=1.3)).grain == 21
    for level in (1, LEVELS):
        plain = codec.decompress(without, level=level)
        expected = add_grain(plain, grain, 3)
        assert (expected != plain).any()
        np.testing.assert_array_equal(codec.decompress(data, level=level), expected)
        np.testing.assert_array_equal(codec.decompress(truncate(data, level)), expected)
        np.testing.assert_array_equal(codec.decompress(data, level=level, grain=False), plain)
    members = codec.decompress_samples(data, num_samples=2)
    plain = codec.decompress(data, grain=False)
    np.testing.assert_array_equal(members[1], add_grain(plain, grain, 4))
    gray = codec.compress(x[..., 0], grain=2)
    drawn = codec.decompress(gray).astype(int) - codec.decompress(gray, grain=False)
    assert 0.5 < drawn.std() < 2


def test_gray_comes_back_gray(codec: Codec) -> None:
    x = picture(40, 24)[..., 0]
    data = codec.compress(x)
    assert read_header(data).mode == "gray"
    assert codec.decompress(data).shape == (40, 24)
    assert codec.decompress_samples(data, num_samples=2).shape == (2, 40, 24)


@pytest.mark.parametrize("size", [(1, 1), (6, 6), (40, 25), (64, 64), (100, 190)])
def test_flat_pictures_come_back_exactly(codec: Codec, size: tuple[int, int]) -> None:
    for number, colour in enumerate(np.random.default_rng(0).integers(0, 256, (6, 3), np.uint8)):
        x = np.broadcast_to(colour, (*size, 3))
        level = 1 + number % LEVELS
        data = codec.compress(x, level=level)
        header = read_header(data)
        assert (header.exact, header.num_levels, header.grain) == (True, level, 0)
        assert len(data) <= 64 + x.size / 500
        np.testing.assert_array_equal(codec.decompress(data), x)
        assert truncate(codec.compress(x), level) == data
        np.testing.assert_array_equal(codec.decompress(codec.compress(x[..., 0])), x[..., 0])


def graphic(side: int) -> NDArray[Any]:
    """A disc and letters in front of a square: four colours, with smooth edges."""
    sheet = Image.new("RGB", (4 * side, 4 * side), (30, 60, 200))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((side, side, 3 * side, 3 * side), fill=(250, 240, 20))
    draw.ellipse((side // 2, side // 2, 2 * side, 2 * side), fill=(200, 0, 40))
    draw.text((side, side), "Ab", fill="white", font=ImageFont.load_default(size=1.5 * side))
    return np.asarray(sheet.resize((side, side), Image.Resampling.BOX))


def test_limits_of_size_cut_at_a_level(codec: Codec) -> None:
    x = picture(96, 80)
    metadata = Metadata(exif=b"exif" * 20)
    levels = range(1, codec.bundle.cfg.num_levels + 1)
    files = [codec.compress(x, level=level, metadata=metadata) for level in levels]
    assert len({len(data) for data in files}) == len(files)
    for k, data in enumerate(files):
        assert codec.compress(x, max_bytes=len(data), metadata=metadata) == data
        bpp = 8 * len(data) / (96 * 80)
        assert codec.compress(x, max_bpp=bpp + 1e-9, metadata=metadata) == data
        assert truncate_to(files[-1], len(data)) == data
        if k:
            assert codec.compress(x, max_bytes=len(data) - 1, metadata=metadata) == files[k - 1]
    assert codec.compress(x, max_bytes=10**6, metadata=metadata) == files[-1]
    assert codec.compress(x, level=1, max_bytes=10**6, metadata=metadata) == files[0]
    message = f"the smallest file has {len(files[0])} bytes; {len(files[0]) - 1} are allowed"
    with pytest.raises(ValueError, match=message):
        codec.compress(x, max_bytes=len(files[0]) - 1, metadata=metadata)
    # A graphic is coded where the exact file is too large.
    icon = graphic(64)
    exact = codec.compress(icon)
    coded = codec.compress(icon, max_bytes=len(exact) - 1)
    assert read_header(exact).exact
    assert not read_header(coded).exact
    assert len(coded) < len(exact)


def decibels(x: NDArray[Any], x_hat: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.square(x.astype(float) - x_hat).mean()))


def test_quality_as_a_psnr(codec: Codec) -> None:
    x, metadata = picture(96, 80), Metadata(exif=b"exif")
    levels = range(1, LEVELS + 1)
    files = [codec.compress(x, level=k, grain=6, seed=5, metadata=metadata) for k in levels]
    values = [decibels(x, codec.decompress(data, grain=False)) for data in files]
    assert values == sorted(values)
    assert min(np.diff(values)) > 0.1
    assert decibels(x, codec.decompress(files[0])) < values[0] - 0.1

    def made(**options: Any) -> bytes:
        return codec.compress(x, grain=6, seed=5, metadata=metadata, **options)

    assert made(min_psnr=1) == files[0]
    for k in levels:
        assert made(min_psnr=values[k - 1] - 0.01) == files[k - 1]
        if k < LEVELS:
            assert made(min_psnr=values[k - 1] + 0.01) == files[k]
    # Other limits say what there is to choose from.
    assert made(min_psnr=values[0] - 0.01, level=2) == files[0]
    assert made(min_psnr=values[1] - 0.01, max_bytes=len(files[1])) == files[1]
    most = f"a PSNR of 90 dB is not reached: level {LEVELS} has {values[-1]:.2f} dB"
    with pytest.warns(UserWarning, match=most):
        assert made(min_psnr=90) == files[-1]
    with pytest.warns(UserWarning, match=f"level 2 has {values[1]:.2f} dB"):
        assert made(min_psnr=values[-1], max_bytes=len(files[1])) == files[1]
    with pytest.warns(UserWarning, match=f"level 1 has {values[0]:.2f} dB"):
        assert made(min_psnr=values[-1], level=1) == files[0]
    # Exact pictures have any PSNR; gray ones have that of their one channel.
    assert codec.compress(graphic(32), min_psnr=99) == codec.compress(graphic(32))
    gray = codec.compress(x[..., 0])
    value = decibels(x[..., 0], codec.decompress(gray, level=2, grain=False))
    assert codec.compress(x[..., 0], min_psnr=value - 0.01) == truncate(gray, 2)


@given(st.lists(st.floats(1, 60), min_size=1, max_size=20), st.floats(1, 60))
def test_the_level_of_a_psnr_has_it_and_the_one_below_has_less(
    values: list[float], target: float
) -> None:
    level = lowest_level(lambda k: values[k - 1], target, len(values))
    assert values[level - 1] >= target or level == len(values)
    assert level == 1 or values[level - 2] < target
    rising = sorted(values)
    lowest = next((k for k, v in enumerate(rising, 1) if v >= target), len(values))
    assert lowest_level(lambda k: rising[k - 1], target, len(rising)) == lowest


def test_graphics_are_stored_exactly_and_photographs_not(
    codec: Codec,
) -> None:
    for side in (16, 32, 64, 200):
        x = graphic(side)
        data = codec.compress(x, level=1, metadata=Metadata(exif=b"exif"))
        assert read_header(data).exact
        assert len(data) < 22 * side + 60
        np.testing.assert_array_equal(codec.decompress_samples(data, num_samples=2), [x, x])
        assert unpack(data).metadata.exif == b"exif"
        assert not read_header(codec.compress(picture(side, side), level=1)).exact
    # Grain that is asked for is drawn; the picture's own is there already.
    x = np.full((64, 64, 3), 128, np.uint8)
    data = codec.compress(x, grain=4.0)
    drawn = codec.decompress(data)
    np.testing.assert_array_equal(drawn, add_grain(x, 64, 0))
    assert 2 < (drawn.astype(float) - 128).std() < 6
    np.testing.assert_array_equal(codec.decompress(data, grain=False), x)


def test_which_pictures_are_exact() -> None:
    flat = np.broadcast_to(np.array([200, 30, 40], np.uint8), (400, 600, 3))
    segment = exact_segment(flat)
    assert segment is not None
    assert len(segment.payload) < 800
    assert zlib.decompress(segment.payload) == flat.tobytes()
    assert segment.symbols_crc == symbols_checksum(flat.tobytes())
    # Noise in a corner of n pixels takes about 3 n bytes; sqrt(160 S) are 10733.
    for side, exact in ((50, True), (70, False)):
        x = flat.copy()
        x[:side, :side] = np.random.default_rng(0).integers(0, 256, (side, side, 3))
        assert (exact_segment(x) is not None) == exact
    # 57 megapixels and more cannot deflate to this, so nothing is deflated.
    assert exact_segment(np.broadcast_to(np.uint8(7), (1, 2**24 - 1, 1))) is not None
    assert exact_segment(np.broadcast_to(np.uint8(7), (11, 2**24 - 1, 1))) is None


def test_damaged_exact_pictures(codec: Codec) -> None:
    x = graphic(16)
    data = codec.compress(x, level=2)
    container = unpack(data)
    (segment,) = container.segments
    samples = x.tobytes()
    for content, message in (
        (samples[:-1], "the picture has 767 samples where 768 are needed"),
        (samples + b"x", "the picture decompresses to more than 768 bytes"),
        (samples[::-1], "the picture does not have its checksum"),
    ):
        forged = Segment(zlib.compress(content), segment.symbols_crc)
        with pytest.raises(BitstreamError, match=message):
            codec.decompress(pack(container.header, [forged]))
    for forged in (Segment(b"", 0), Segment(segment.payload[:-1], segment.symbols_crc)):
        with pytest.raises(BitstreamError, match="the picture is not exactly one non-empty zlib"):
            codec.decompress(pack(container.header, [forged]))
    with pytest.raises(BitstreamError, match="ends inside its picture"):
        codec.decompress(data[:-1])
    with pytest.raises(ValueError, match="level must be 1 to 2, got 3"):
        codec.decompress(data, level=3)
    with pytest.raises(ValueError, match="holds the picture exactly, and no latents"):
        codec.decode_latents(container)
    header = dataclasses.replace(container.header, model_id=bytes(6))
    with pytest.raises(BitstreamError, match="the file was made with bundle 000000000000"):
        codec.decompress(pack(header, [segment]))


def test_metadata_are_kept(codec: Codec) -> None:
    metadata = Metadata(icc_profile=b"profile", exif=b"II*\0exif", xmp=b"<x/>", dpi=(300, 72.01))
    data = codec.compress(picture(16, 16), metadata=metadata)
    assert read_metadata(data) == metadata
    assert codec.decompress(data).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, "uint8 array or a Pillow image, got float32"),
        ([[0]], TypeError, "uint8 array or a Pillow image, got list"),
        (jnp.zeros((8, 8, 3)), TypeError, "uint8 array or a Pillow image, got float32"),
        (Image.new("P", (8, 8)), ValueError, r"mode 'P': pass image.convert\(\"RGB\"\) or, if"),
        (Image.new("RGBa", (8, 8)), ValueError, r"mode 'RGBa': pass .* image.convert\(\"RGBA\"\)"),
        (np.zeros((0, 8, 4), np.uint8), ValueError, r"got shape \(0, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"got shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 1), np.uint8), ValueError, r"got shape \(8, 8, 1\)"),
        (np.zeros((8,), np.uint8), ValueError, r"got shape \(8,\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, r"got shape \(2, 8, 8, 3\)"),
    ],
)
def test_bad_images(codec: Codec, image: NDArray[Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        codec.compress(image)


def test_arrays_of_jax_and_pillow_images_are_pictures_too(codec: Codec) -> None:
    x = picture(32, 48)
    expected = codec.compress(x)
    assert codec.compress(jnp.asarray(x)) == expected
    assert codec.compress(Image.fromarray(x)) == expected
    gray = codec.compress(x[..., 0])
    assert codec.compress(jnp.asarray(x[..., 0])) == gray
    assert codec.compress(Image.fromarray(x[..., 0])) == gray
    assert codec.estimate_bits(jnp.asarray(x)).z == codec.estimate_bits(x).z
    latents = codec.encode_latents(Image.fromarray(x))
    np.testing.assert_array_equal(latents.y_s, codec.encode_latents(x).y_s)


def test_threads_share_a_codec(codec: Codec) -> None:
    pictures = [picture(32 + 8 * k, 48, seed=k) for k in range(6)]
    files = [codec.compress(x) for x in pictures]
    decoded = [codec.decompress(data) for data in files]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(codec.compress, pictures)) == files
        for x, expected in zip(pool.map(codec.decompress, files), decoded, strict=True):
            np.testing.assert_array_equal(x, expected)


def test_bad_arguments(codec: Codec) -> None:
    x = picture(16, 16)
    data = codec.compress(x, level=2)
    for level in (0, LEVELS + 1):
        with pytest.raises(ValueError, match=f"level must be 1 to {LEVELS}, got {level}"):
            codec.compress(x, level=level)
    with pytest.raises(TypeError, match=r"level must be an integer, got 2\.0"):
        codec.compress(x, level=2.0)
    with pytest.raises(TypeError, match="level must be an integer, got '2'"):
        codec.decompress(data, level="2")
    assert codec.compress(x, level=np.int64(2)) == data
    with pytest.raises(ValueError, match="seed"):
        codec.compress(x, seed=-1)
    with pytest.raises(ValueError, match=r"grain must be 0 to 15.9375, got 16"):
        codec.compress(x, grain=16)
    with pytest.raises(ValueError, match="level must be 1 to 2, got 3"):
        codec.decompress(data, level=3)
    with pytest.raises(ValueError, match="temperature must be 0 to 16, got -1"):
        codec.decompress(data, temperature=-1)
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        codec.decompress_samples(data, num_samples=0)
    with pytest.raises(ValueError, match="seed must be 0 to 4294967295"):
        codec.decompress(data, seed=1 << 32)
    with pytest.raises(BitstreamError, match="256 pixels"):
        codec.decompress(data, max_pixels=255)
    with pytest.raises(
        TypeError,
        match="EncodeOptions has no field 'search'; its fields are level, max_bytes, max_bpp, min_",
    ):
        codec.compress(x, search=3)
    with pytest.raises(TypeError, match="EncodeOptions has no field 'strict'"):
        codec.encode_latents(x, strict=True)
    for decode in (codec.decompress, codec.decompress_samples):
        with pytest.raises(TypeError, match="DecodeOptions has no field 'lvel'; its fields are le"):
            decode(data, lvel=1)


def test_options_and_changes_say_the_same(codec: Codec) -> None:
    x = picture(33, 20)
    options = EncodeOptions(level=2, seed=5, grain=1.5)
    data = codec.compress(x, options)
    assert data == codec.compress(x, level=2, seed=5, grain=1.5)
    assert read_header(codec.compress(x, options, seed=7)).seed == 7
    assert options.seed == 5
    one = codec.decompress(data, DecodeOptions(level=1, temperature=1.0, grain=False))
    expected = codec.decompress(data, level=1, temperature=1.0, grain=False)
    np.testing.assert_array_equal(one, expected)
    samples = codec.decompress_samples(
        data, DecodeOptions(level=1, seed=4, grain=False), num_samples=2, temperature=1.0
    )
    np.testing.assert_array_equal(samples[1], one)
    np.testing.assert_array_equal(codec.encode_latents(x, options).y_s, codec.encode_latents(x).y_s)


def test_another_bundle_is_refused(codec: Codec, tmp_path: Path) -> None:
    other = Codec.load(tiny_bundle(tmp_path / "other", 1))
    data = codec.compress(picture(16, 16))
    with pytest.raises(BitstreamError, match="was made with bundle"):
        other.decompress(data)


def test_more_levels_than_the_bundle_has(codec: Codec) -> None:
    header = Header(model_id=codec.bundle.model_id, height=16, width=16, num_levels=LEVELS + 1)
    data = pack(header, [Segment(b"", 0)] * (LEVELS + 2))
    with pytest.raises(BitstreamError, match=f"has {LEVELS + 1} levels"):
        codec.decompress(data)


@pytest.mark.parametrize("data", [b"", b"hello, I am a text file\n", b"\x93SIC", b"\x93SIC\x02"])
def test_not_a_file(codec: Codec, data: bytes) -> None:
    with pytest.raises(BitstreamError):
        codec.decompress(data)


def test_one_flipped_bit_anywhere_is_an_error_or_a_lower_level(codec: Codec) -> None:
    x = picture(16, 16)
    data = codec.compress(x, seed=3)
    lower = [codec.decompress(data, level=k) for k in range(1, LEVELS)]
    outcomes = {"error": 0, "lower": 0}
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    decoded = codec.decompress(bytes(damaged))
                except BitstreamError:
                    outcomes["error"] += 1
                    continue
            assert any("truncated" in str(w.message) for w in caught)
            assert any((decoded == known).all() for known in lower)
            outcomes["lower"] += 1
    assert outcomes["error"] > 0.9 * 8 * len(data)


def test_symbols_are_checked_even_where_the_container_is_whole(codec: Codec) -> None:
    container = unpack(codec.compress(picture(64, 48)))
    segments = list(container.segments)
    segments[1] = Segment(segments[1].payload, segments[1].symbols_crc ^ 1)
    with pytest.raises(BitstreamError, match="symbols of level 1 do not have their checksum"):
        codec.decompress(pack(container.header, segments))


def test_other_payloads_with_valid_checksums_never_pass(codec: Codec) -> None:
    container = unpack(codec.compress(picture(64, 48)))
    rng = np.random.default_rng(0)
    for trial in range(60):
        segments = list(container.segments)
        k = trial % len(segments)
        payload = rng.bytes(int(rng.integers(0, 2 * len(segments[k].payload) + 2)))
        segments[k] = Segment(payload, segments[k].symbols_crc)
        with pytest.raises(BitstreamError):
            codec.decompress(pack(container.header, segments))


def test_another_process_decodes_the_same_picture(
    codec: Codec, folder: Path, tmp_path: Path
) -> None:
    x = picture(50, 70)
    data = codec.compress(x, level=2, seed=9)
    (tmp_path / "x.sic").write_bytes(data)
    program = (
        "import sys, numpy as np; from sic_jax import Codec\n"
        "codec = Codec.load(sys.argv[1])\n"
        "data = open(sys.argv[2], 'rb').read()\n"
        "np.save(sys.argv[3], codec.decompress(data, temperature=1.0))"
    )
    arguments = [str(folder), str(tmp_path / "x.sic"), str(tmp_path / "x.npy")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=300)
    np.testing.assert_array_equal(
        np.load(tmp_path / "x.npy"), codec.decompress(data, temperature=1.0)
    )


WORKER = """
import multiprocessing, operator, os, pickle, sys
import numpy as np
from sic_jax import Codec

if __name__ == "__main__":
    codec = Codec.load(sys.argv[2])
    pictures = np.load(sys.argv[3])
    expected = [codec.compress(x, level=2) for x in pictures]
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(1) as pool:
        if sys.argv[1] == "spawn":
            assert pool.map(codec.decompress, expected)[1].shape == pictures[1].shape
            assert pool.map(codec.compress, pictures, chunksize=1) == [
                codec.compress(x) for x in pictures
            ]
            print("same")
        else:
            # Each in a child that has this codec, and one that makes its own.
            for function, argument in (
                (codec.compress, pictures[0]),
                (codec.decompress, expected[0]),
                (codec.encode_latents, pictures[0]),
                (codec.estimate_bits, pictures[0]),
                (Codec.load, sys.argv[2]),
                (operator.attrgetter("bundle"), codec),
                (operator.attrgetter("coder"), codec),
                (pickle.dumps, codec),
            ):
                try:
                    pool.apply(function, (argument,))
                except RuntimeError as error:
                    print(error)
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes(folder: Path, tmp_path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    (tmp_path / "worker.py").write_text(WORKER)
    np.save(tmp_path / "x.npy", np.stack([picture(32, 48, seed) for seed in range(2)]))
    argv = [sys.executable, str(tmp_path / "worker.py"), method, str(folder)]
    done = subprocess.run(
        [*argv, str(tmp_path / "x.npy")], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    if method == "spawn":
        assert done.stdout == "same\n"
    else:
        assert done.stdout == 8 * (
            "this process was forked after JAX had started, and JAX's threads are not in it; start "
            'workers with multiprocessing.get_context("spawn")\n'
        )


def test_pickles_name_the_bundle(
    codec: Codec, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(codec)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert pickle.loads(data) is again
    assert (again.bundle.digest, again.coder) == (codec.bundle.digest, codec.coder)
    with pytest.raises(TypeError, match="made of a bundle in memory cannot be pickled; write the"):
        pickle.dumps(Codec(codec.bundle))
    in_memory = Codec(codec.bundle)
    assert copy.copy(in_memory) is copy.deepcopy(in_memory) is in_memory
    assert copy.copy(codec) is copy.deepcopy(codec) is codec
    with pytest.raises(AttributeError, match="'Codec' object has no attribute 'bundel'"):
        operator.attrgetter("bundel")(codec)
    # A folder that is named from here is found from elsewhere, and must hold the same bundle.
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Codec.load("copy"))
    monkeypatch.chdir("/")
    assert pickle.loads(data).bundle.digest == codec.bundle.digest
    data = pickle.dumps(Codec.load(tmp_path / "copy", coder="native")).replace(
        codec.bundle.digest, bytes(32)
    )
    with pytest.raises(ValueError, match="copy is not the one that the codec was pickled with"):
        pickle.loads(data)


def test_a_platform_that_is_not_there_is_one_line(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    for platform in ("cuda" if jax.default_backend() == "cpu" else "tpu", "absent"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "sic_jax.cli.main",
                "compress",
                "a.png",
                "--bundle",
                str(folder),
            ],
            cwd=tmp_path,
            env={**os.environ, "JAX_PLATFORMS": platform, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        error = [line for line in done.stderr.splitlines() if line.startswith("sic: ")]
        assert (done.returncode, len(error)) == (1, 1)
        assert error[0].startswith(
            f"sic: error: JAX has no device of the platform {platform!r} here; with JAX_PLATFORMS "
            "unset it takes what there is"
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]


def test_a_machine_without_devices_is_not_called_a_wrong_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_devices() -> None:
        raise RuntimeError("the driver is too old\nmore")

    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    monkeypatch.setattr(jax, "devices", no_devices)
    try:
        jax.config.update("jax_platforms", None)
        with pytest.raises(ValueError, match=r"^JAX has no device here \(the driver is too old\)$"):
            check_devices()
        jax.config.update("jax_platforms", "cuda")
        with pytest.raises(
            ValueError, match=r"'cuda' here; .* there is \(the driver is too old\)$"
        ):
            check_devices()
    finally:
        jax.config.update("jax_platforms", platforms)


def test_programs_are_kept_only_where_they_are_the_same_when_loaded(tmp_path: Path) -> None:
    """JAX 0.5.3 computes other values with a loaded program; 0.10.2 and 0.12 do not."""
    program = (
        "import jax\n"
        "from sic_jax.compilation_cache import enable_compilation_cache\n"
        "enable_compilation_cache()\n"
        "print(jax.config.jax_enable_compilation_cache, jax.config.jax_compilation_cache_dir)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    folder = tmp_path / "sic_jax" / "jax"
    wanted = f"True {folder}" if jax.__version_info__ >= (0, 10) else "False None"
    assert done.stdout.strip() == wanted
