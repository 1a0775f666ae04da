"""Validation of a run: against the model and the metrics by hand, on one device and many."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Functions, quick_compilation, write_images
from numpy.typing import NDArray

from sic_jax import metrics
from sic_jax.codec.grain import measure_grain
from sic_jax.metrics.lpips_metric import load_alexnet_weights
from sic_jax.model.model_config import ModelConfig
from sic_jax.training.losses import LossConfig
from sic_jax.training.train_config import TrainConfig
from sic_jax.training.validation import make_validate, mean_loss
from sic_jax.training.validation_images import ValidationImages

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (1, 3)


@pytest.fixture(scope="module")
def images(pictures: NDArray[Any]) -> NDArray[Any]:
    out: NDArray[Any] = np.round(pictures * 255).astype(np.uint8)
    return out


@pytest.fixture(scope="module")
def found(tiny: ModelConfig, params: dict[str, Any], images: NDArray[Any]) -> dict[str, float]:
    with quick_compilation():
        validate = make_validate(tiny, levels=LEVELS, batch_size=2)
        return validate(params, images)  # Two batches, one not full.


@pytest.mark.thorough
def test_values_are_those_of_the_model_and_the_metrics(
    found: dict[str, float], functions: Functions, params: dict[str, Any], images: NDArray[Any]
) -> None:
    assert sorted(found) == sorted(
        f"{name}/{level}" for name in ("bpp_est", "lpips", "mse", "psnr") for level in LEVELS
    )  # The images are too small for MS-SSIM.
    x = jnp.asarray(images, jnp.float32) / 255
    weights = load_alexnet_weights()
    key, temperature = jax.random.key(0), jnp.zeros(len(x))
    for level in LEVELS:
        each = jnp.full(len(x), level)
        out, _ = functions.forward({"params": params}, x, each, temperature, key)
        x_hat = np.round(np.clip(out.x_hat, 0, 1) * 255).astype(np.float32) / 255
        bits = np.asarray(out.bits_z) + np.asarray(out.bits_y)[:, :level].sum(1)
        expected = {
            "bpp_est": np.mean(bits) / 64**2,
            "mse": np.mean(np.square(x - x_hat)),
            "psnr": np.mean(metrics.psnr(x, x_hat)),
            "lpips": np.mean(metrics.lpips(x, x_hat, weights=weights)),
        }
        for name, value in expected.items():
            assert found[f"{name}/{level}"] == pytest.approx(float(value), rel=1e-5), name


def test_the_loss_is_that_of_the_levels() -> None:
    values = {"bpp_est/1": 0.5, "bpp_est/3": 2.0, "mse/1": 0.01, "mse/3": 0.001, "lpips/1": 0.3}
    cfg = LossConfig(lmbda_rate=(1, 9, 2), lmbda_dist=(100, 9, 300), lmbda_perc=(4, 9, 0))
    assert mean_loss(values, LEVELS, cfg) == pytest.approx((0.5 + 1 + 1.2 + 4 + 0.3) / 2)


def test_the_loss_has_dists_where_it_trains_with_it() -> None:
    values = {"bpp_est/1": 0.5, "mse/1": 0.01, "lpips/1": 0.3, "dists/1": 0.2}
    weights: dict[str, Any] = {
        "lmbda_rate": (1,),
        "lmbda_dist": (100,),
        "lmbda_perc": (4,),
        "dists_weight": 2,
    }
    assert mean_loss(values, [1], LossConfig(**weights)) == pytest.approx(1.5 + 4 * (0.3 + 2 * 0.2))


@pytest.mark.thorough
def test_validation_images_are_decoded_as_the_exported_model_would(
    tiny_run: TrainConfig, params: dict[str, Any], images: NDArray[Any], tmp_path: Path, quick: None
) -> None:
    folder = tmp_path / "images"
    write_images(folder, list(images))
    found = {}
    for temperature in (0.0, 4.0):
        model = dataclasses.replace(tiny_run.model, temperature=temperature)
        cfg = dataclasses.replace(tiny_run, model=model, crop_size=32, validation_levels=(1, 3))
        validation = ValidationImages(cfg, str(folder))
        values = validation.measure(params)
        pictures = validation.pictures(params)
        assert validation.identity == f"{len(images)} images of {folder} at levels (1, 3)"
        for level in (1, 3):
            errors = [
                np.square(
                    pictures[f"image_{n}/original"] - pictures[f"image_{n}/level_{level}"] * 1.0
                )
                for n in range(2)
            ]
            found[temperature, level] = (values[f"mse/{level}"], np.mean(errors))
    # At level L there are no details to draw.
    assert found[0.0, 3] == pytest.approx(found[4.0, 3], rel=1e-6)
    for k in range(2):
        assert found[4.0, 1][k] > 1.01 * found[0.0, 1][k]


def test_ms_ssim_joins_from_161_pixels(
    tiny: ModelConfig, params: dict[str, Any], images: NDArray[Any], quick: None
) -> None:
    large = np.tile(images[:1], (1, 3, 3, 1))[:, :176, :176]
    validate = make_validate(tiny, levels=[2], metrics=["ms_ssim"], batch_size=1)
    assert 0 < validate(params, large)["ms_ssim/2"] < 1


@pytest.mark.thorough
def test_grain_adds_its_variance(tiny: ModelConfig, params: dict[str, Any], quick: None) -> None:
    gray = params | {"g_s": jax.tree.map(np.zeros_like, params["g_s"])}
    noise = np.random.default_rng(0).normal(120, 2, (64, 64, 1))
    x = np.repeat(np.round(noise), 3, -1).astype(np.uint8)[None]
    mse = {}
    for grain in (False, True):
        options: dict[str, Any] = {"levels": [1], "metrics": [], "batch_size": 1, "grain": grain}
        mse[grain] = make_validate(tiny, **options)(gray, x)["mse/1"]
    sigma = measure_grain(x[0]) / 16 / 255
    assert 0.85 * sigma**2 < mse[True] - mse[False] < 1.2 * sigma**2


@pytest.mark.thorough
def test_details_depend_on_the_seed_and_the_image_and_not_on_the_batch(
    tiny: ModelConfig, params: dict[str, Any], images: NDArray[Any], quick: None
) -> None:
    def mse(batch_size: int, seed: int, images: NDArray[Any]) -> float:
        options: dict[str, Any] = {"levels": [1], "metrics": [], "temperature": 2.0, "seed": seed}
        return make_validate(tiny, batch_size=batch_size, **options)(params, images)["mse/1"]

    twice = images[[0, 0]]
    pair = mse(2, 0, twice)
    assert mse(1, 0, twice) == pytest.approx(pair, rel=1e-6)
    assert abs(mse(1, 0, images[:1]) - pair) > 1e-7  # The second image draws other details.
    assert abs(mse(1, 1, twice) - pair) > 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [4]}, r"levels must be some of 1 to 3, got \(4,\)"),
        ({"levels": []}, "levels must be some of"),
        ({"metrics": ["vmaf"]}, "no metric 'vmaf': there are psnr, "),
        ({"batch_size": 0}, "positive multiple of 1 devices, got 0"),
    ],
)
def test_options_are_checked(tiny: ModelConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_validate(tiny, **{"levels": [1], "metrics": ["psnr"], "batch_size": 1, **options})


def test_images_are_checked(tiny: ModelConfig) -> None:
    validate = make_validate(tiny, levels=[1], metrics=["psnr"], batch_size=1)
    for shape, dtype, message in (
        ((1, 64, 60, 3), np.uint8, r"multiples of 16, got \(64, 60\)"),
        ((0, 64, 64, 3), np.uint8, r"images \[N, H, W, 3\], got"),
        ((64, 64, 3), np.uint8, r"images \[N, H, W, 3\], got"),
        ((1, 64, 64, 3), np.float32, "type uint8, got float32"),
    ):
        with pytest.raises(ValueError, match=message):
            validate({}, np.zeros(shape, dtype))


PROGRAM = """
import json, sys
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
from sic_jax.training.presets import preset
from sic_jax.training import parallel
from sic_jax.training.validation import make_validate

if len(sys.argv) > 2:
    parallel.initialise_distributed(sys.argv[2], 2, int(sys.argv[3]))
stored = np.load(sys.argv[1])
params = {}
for name in stored.files:
    *above, last = name.split("/")
    tree = params
    for part in above:
        tree = tree.setdefault(part, {})
    tree[last] = stored[name]
images = params.pop("images")
mesh = parallel.device_mesh()
run = make_validate(preset("smoke").model, levels=(1, 3), batch_size=8, mesh=mesh)
print(json.dumps([jax.device_count(), run(params, images)]))
"""


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def start(path: Path, devices: int, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, float]]:
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    out: tuple[int, dict[str, float]] = json.loads(stdout.splitlines()[-1])
    return out


@pytest.fixture
def stored(tmp_path: Path, params: dict[str, Any], images: NDArray[Any]) -> Path:
    path = tmp_path / "params.npz"
    np.savez(path, images=images, **dict(flattened(params)))
    return path


@pytest.mark.thorough
def test_eight_devices_give_the_values_of_one(found: dict[str, float], stored: Path) -> None:
    count, sharded = finish(start(stored, 8))
    assert count == 8
    assert sharded == pytest.approx(found, rel=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_values_of_one(found: dict[str, float], stored: Path) -> None:
    address = f"localhost:{20000 + os.getpid() % 20000}"
    processes = [start(stored, 2, address, str(k)) for k in range(2)]
    results = [finish(process) for process in processes]
    assert [count for count, _ in results] == [4, 4]
    assert results[0] == results[1]
    assert results[0][1] == pytest.approx(found, rel=1e-5)
