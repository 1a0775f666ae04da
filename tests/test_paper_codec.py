"""Files of the paper's model: float entropy networks, decoded diagonal by diagonal."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import quick_compilation
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from sic_jax.cli.main import main
from sic_jax.codec import container
from sic_jax.codec.bundle import export_bundle, load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.entropy.range_coder import available_backends
from sic_jax.errors import BitstreamError
from sic_jax.model.entropy_models.raster.diagonal_coding import quantise_parameters
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.entropy_models.raster.wavefront import schedule
from sic_jax.model.entropy_models.scales import ScaleGrid
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import init_params
from sic_jax.model.transforms.swin import SwinTransforms

CFG = ModelConfig(
    levels=LevelConfig(channels=(4, 4, 4), refinements=(0, 0, 0)),
    temperature=1.0,
    transforms=SwinTransforms(
        analysis_widths=(8, 8, 8),
        analysis_depths=(0, 0, 0, 1),
        synthesis_widths=(12, 12, 12),
        synthesis_depths=(1, 0, 0, 0),
        num_heads=2,
        window=4,
        mlp_ratio=1,
    ),
    entropy=RasterEntropy(
        hyper_channels=3, analysis_width=6, synthesis_widths=(6, 8), head_width=6
    ),
)
SIZES = ((1, 90), (40, 100), (130, 50))


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """Random; y spreads over some integers, medians are no integers, scales vary."""
    with quick_compilation():
        params: dict[str, Any] = jax.tree.map(np.asarray, init_params(CFG, seed=0))
    rng = np.random.default_rng(0)

    def disturb(a: NDArray[Any]) -> NDArray[Any]:
        out: NDArray[Any] = (a + 0.1 * rng.standard_normal(a.shape)).astype(np.float32)
        return out

    params = jax.tree.map(disturb, params)
    params["g_a"]["norm"]["scale"] = params["g_a"]["norm"]["scale"] * 3
    params["prior_z"]["quantiles"] += np.float32(0.3)
    params["entropy_parameters"]["dense_3"]["bias"][:, :4] += 3
    return params


@pytest.fixture(scope="module")
def folder(params: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "paper"
    export_bundle(folder, CFG, params, card="# Test\n")
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return Codec.load(folder)


def picture(height: int, width: int) -> NDArray[Any]:
    rng = np.random.default_rng(height)
    i, j = np.mgrid[:height, :width]
    grey = 128 + 60 * np.sin(i / 9) + 50 * np.cos(j / 7)
    out: NDArray[Any] = np.clip(
        grey[..., None] + rng.normal(0, 20, (height, width, 3)), 0, 255
    ).astype(np.uint8)
    return out


@pytest.mark.slow
def test_optimised_latents_are_others_and_decode(codec: Codec) -> None:
    x = picture(40, 100)
    with quick_compilation():
        data, found = codec.compress(x, optimise_steps=4), codec.encode_latents(x, optimise_steps=4)
    decoded = codec.decode_latents(container.unpack(data))
    np.testing.assert_array_equal(decoded.y_s, found.y_s)
    assert (found.y_s != codec.encode_latents(x).y_s).any()
    np.testing.assert_array_equal(found.z_hat, codec.encode_latents(x).z_hat)


def test_steps_of_the_papers_pictures() -> None:
    order = schedule(32, 48)
    assert (order.num_steps(16), order.num_steps(1)) == (276, 141)
    assert order.rows.shape[1] == 16
    assert order.counts.sum() == 32 * 48


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 2), (2, 3), (5, 8), (8, 5)])
def test_schedule(shape: tuple[int, int]) -> None:
    """Each position is on one diagonal, behind all that the context model reads of its group."""
    order = schedule(*shape)
    when = np.full(shape, -1)
    for diagonal, n in enumerate(order.counts):
        place = order.rows[diagonal, :n], order.columns[diagonal, :n]
        assert (np.diff(place[0]) == 1).all()
        assert (when[place] == -1).all()
        when[place] = diagonal
    i, j = np.mgrid[: shape[0], : shape[1]]
    np.testing.assert_array_equal(when, j + 3 * i)
    assert order.rows.shape == (when.max() + 1, max(order.counts))


def test_round_trip_of_all_levels(codec: Codec) -> None:
    """Symbols decode as they were coded; truncation gives what compressing gives."""
    with quick_compilation():
        for size in SIZES:
            image = picture(*size)
            y, z, _ = codec.encode_latents(image)
            assert y.min() < -2 < 2 < y.max()
            files = [codec.compress(image, level=level, seed=5) for level in (1, 2, 3)]
            for level, data in enumerate(files, 1):
                header = container.read_header(data)
                assert header.float_entropy
                assert header.num_levels == level
                assert container.truncate(files[-1], level) == data
                latents = codec.decode_latents(container.unpack(data))
                np.testing.assert_array_equal(latents.z_hat, z)
                np.testing.assert_array_equal(latents.y_s[..., : 4 * level], y[..., : 4 * level])
                assert not latents.y_s[..., 4 * level :].any()
            low = codec.decode_latents(container.unpack(files[-1]), level=1)
            np.testing.assert_array_equal(low.y_s[..., :4], y[..., :4])
        # One program a size serves encoder and decoder, all levels and all steps.
        coding: Any = codec._pass
        for height, width in SIZES:
            assert coding._step(-(-height // 16), -(-width // 16))._cache_size() == 1


@pytest.mark.parametrize("size", [(400, 20), (30, 390)])
def test_tall_and_wide_pictures(codec: Codec, size: tuple[int, int]) -> None:
    with quick_compilation():
        image = picture(*size)
        y, z, _ = codec.encode_latents(image)
        latents = codec.decode_latents(container.unpack(codec.compress(image)))
    np.testing.assert_array_equal(latents.z_hat, z)
    np.testing.assert_array_equal(latents.y_s, y)


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture(20, 30)
    source, file, small = (tmp_path / name for name in ("x.png", "x.sic", "y.sic"))
    Image.fromarray(image).save(source)
    bundle = ["--bundle", str(folder)]
    with quick_compilation():
        assert main(["compress", str(source), str(file), *bundle]) == 0
        assert main(["truncate", str(file), str(small), "--level", "2"]) == 0
        assert main(["decompress", str(small), str(tmp_path / "a.png"), *bundle]) == 0
        assert main(["decompress", str(file), str(tmp_path / "b.png"), "--level=2", *bundle]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == image.shape
    capsys.readouterr()
    assert main(["info", str(small), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["float_entropy"], facts["num_levels"]) == (True, 2)
    wrong = ["--bundle", "default"]
    assert main(["decompress", str(small), str(tmp_path / "c.png"), *wrong]) == 1
    assert "was made with bundle" in capsys.readouterr().err
    assert main(["decompress", str(small), str(tmp_path / "c.png")]) == 1
    assert f"no bundle has the id {facts['model_id']} in " in capsys.readouterr().err


def test_any_floats_give_valid_tables() -> None:
    values: Any = np.array(
        [np.nan, np.inf, -np.inf, 3e38, -3e38, 0, 0.03125, -0.03125, 2.5], np.float32
    )
    mean, scale = quantise_parameters(values, np.abs(values), ScaleGrid())
    assert np.asarray(mean).tolist() == [0, 32768, -32768, 32768, -32768, 0, 1, 0, 40]
    grid: Any = ScaleGrid().sigmas
    assert np.asarray(scale)[:6].tolist() == [0, 63, 63, 63, 63, 0]
    between = np.sqrt(grid[1:] * grid[:-1])
    for factor, step in ((1.001, 1), (0.999, 0)):
        _, index = quantise_parameters(
            grid[:-1], (factor * between).astype(np.float32), ScaleGrid()
        )
        np.testing.assert_array_equal(index, np.arange(63) + step)


def test_size_is_the_estimate(codec: Codec) -> None:
    """The tables are those of mu, sigma and the prior of z: within rounding of mu and sigma."""
    with quick_compilation():
        image = picture(*SIZES[1])
        estimate = codec.estimate_bits(image)
        segments = container.unpack(codec.compress(image)).segments
        sizes = np.array([8 * len(segment.payload) for segment in segments])
        assert estimate.y.min() > 250
        np.testing.assert_allclose(sizes[1:], estimate.y, rtol=0.02, atol=24)
        np.testing.assert_allclose(sizes[0], estimate.z, rtol=0.02, atol=24)


def test_pictures_and_details(codec: Codec) -> None:
    with quick_compilation():
        image = picture(*SIZES[1])
        data = codec.compress(image, level=1)
        a, b, c = codec.decompress_samples(data, num_samples=3, seed=7)
        assert a.shape == image.shape
        assert a.dtype == np.uint8
        np.testing.assert_array_equal(codec.decompress(data, seed=8), b)
        assert (a != b).mean() > 0.01 < (b != c).mean()
        means = codec.decompress_samples(data, num_samples=2, temperature=0.0)
        np.testing.assert_array_equal(*means)
        full = codec.decompress_samples(codec.compress(image), num_samples=2)
        np.testing.assert_array_equal(*full)
        gray = codec.decompress(codec.compress(image[..., 0], level=1))
        assert gray.shape == image.shape[:2]


def test_details_by_definition(codec: Codec) -> None:
    """FORMAT.md: round(mean half of h_s + 2 T n / (1024 sqrt 3)), T in 1/256."""
    from sic_jax.entropy.counter_noise import uniform_noise

    rng = np.random.default_rng(0)
    hyper = rng.normal(0, 4, (1, 3, 4, 24)).astype(np.float32)
    y = rng.integers(-3, 4, (3, 4, 12)).astype(np.int32)
    noise = uniform_noise(3, y.shape)
    assert abs(noise).max() > 1500
    out = np.asarray(codec._pass.complete(y, jax.numpy.asarray(hyper), 2, noise, 192))[0]
    np.testing.assert_array_equal(out[..., :8], y[..., :8])
    exact = hyper[0, ..., 12:] + 2 * 0.75 * noise / (1024 * np.sqrt(3))
    np.testing.assert_array_equal(out[..., 8:], np.round(exact)[..., 8:])
    assert np.abs(exact - hyper[0, ..., 12:]).max() < 1.5


@pytest.mark.skipif("tfc" not in available_backends(), reason="needs TensorFlow Compression")
def test_both_range_coders_write_the_same_bytes(codec: Codec) -> None:
    with quick_compilation():
        image = picture(*SIZES[1])
        data = codec.compress(image)
        ours, codec.coder = codec.coder, "tfc"
        try:
            assert codec.compress(image) == data
            codec.decode_latents(container.unpack(data))
        finally:
            codec.coder = ours


def test_other_floats_are_an_error(codec: Codec, params: dict[str, Any]) -> None:
    """A weight of the context model that is another: every level but the first can see it."""
    with quick_compilation():
        data = codec.compress(picture(*SIZES[1]))
        changed = jax.tree.map(np.copy, codec.bundle.params)
        changed["context"]["masked"]["bias"] += 0.2
        other = Codec(dataclasses.replace(codec.bundle, params=changed))
        with pytest.raises(BitstreamError, match=r"range decoder|float arithmetic here"):
            other.decode_latents(container.unpack(data))


def test_forged_payloads_are_an_error(codec: Codec) -> None:
    """With valid checksums of the bytes: huge symbols, and their infinities in the networks."""
    with quick_compilation():
        file = container.unpack(codec.compress(picture(*SIZES[1])))
        rng = np.random.default_rng(0)
        for trial in range(12):
            segments = list(file.segments)
            k = trial % len(segments)
            size = len(segments[k].payload)
            # Zeros decode to escapes with long codes.
            forged = rng.bytes(size) if trial < 8 else bytes(size // 2) + rng.bytes(4 * size)
            segments[k] = dataclasses.replace(segments[k], payload=forged)
            data = container.pack(file.header, segments)
            with pytest.raises(BitstreamError, match=r"range decoder|do not have their checksum"):
                codec.decode_latents(container.unpack(data))


def test_exact_and_float_bundles_refuse_each_others_files(
    codec: Codec, tiny: ModelConfig, untrained: dict[str, Any], tmp_path: Path
) -> None:
    with quick_compilation():
        file = container.unpack(codec.compress(picture(*SIZES[0])))
        integers = dataclasses.replace(
            file, header=dataclasses.replace(file.header, float_entropy=False)
        )
        with pytest.raises(BitstreamError, match="path is in integers, this bundle's in floats"):
            codec.decode_latents(integers)
        export_bundle(tmp_path / "exact", tiny, untrained)
        exact = Codec.load(tmp_path / "exact")
        with pytest.raises(BitstreamError, match="was made with bundle"):
            exact.decode_latents(file)
        same_id = dataclasses.replace(file.header, model_id=exact.bundle.model_id)
        with pytest.raises(BitstreamError, match="path is in floats, this bundle's in integers"):
            exact.decode_latents(dataclasses.replace(file, header=same_id))


def test_damaged_bundles(folder: Path, tmp_path: Path) -> None:
    leaves = load_file(folder / "weights.safetensors")
    assert {a.dtype for a in leaves.values()} == {np.dtype(np.float16)}
    name = "context/masked/kernel"

    def load(changed: dict[str, Any]) -> None:
        from sic_jax.codec import bundle

        target = tmp_path / "damaged"
        target.mkdir(exist_ok=True)
        for file in folder.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        save_file(bundle._contiguous(changed), target / "weights.safetensors")
        tables = load_file(target / "tables.safetensors")
        config = json.loads((target / "config.json").read_text())
        (target / "id").write_text(bundle._digest(config, changed, tables).hex())
        load_bundle(target)

    load(leaves)
    for value, message in (
        (leaves[name].astype(np.float32), f"{name} is not finite float16"),
        (np.where(leaves[name] > 0, np.inf, 0).astype(np.float16), f"{name} is not finite float16"),
        (leaves[name][1:], f"{name} has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            load({**leaves, name: value})
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load({k: v for k, v in leaves.items() if k != name})


@pytest.mark.slow
def test_two_processes(folder: Path, codec: Codec, tmp_path: Path) -> None:
    image = picture(*SIZES[2])
    np.save(tmp_path / "x.npy", image)
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from sic_jax.codec.codec import Codec\n"
        "bundle, image, out = sys.argv[1:]\n"
        "Path(out).write_bytes(Codec.load(bundle).compress(np.load(image)))\n"
    )
    out = tmp_path / "x.sic"
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "x.npy"), str(out)]
    subprocess.run(command, check=True)
    y, z, _ = codec.encode_latents(image)
    latents = codec.decode_latents(container.unpack(out.read_bytes()))
    np.testing.assert_array_equal(latents.y_s, y)
    np.testing.assert_array_equal(latents.z_hat, z)
