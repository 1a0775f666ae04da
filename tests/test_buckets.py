"""Pictures of many sizes in a few programs: the same integers, and memory that does not grow."""

import gc
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quick_compilation
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sic_jax.codec.bundle import Bundle, export_bundle, load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import unpack
from sic_jax.compilation_cache import KEPT, jit_per_shape
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.checkerboard.context import all_parameters, complete
from sic_jax.model.entropy_models.checkerboard.hyper import hyper_synthesis
from sic_jax.model.entropy_models.coding_pass import Request, code_levels
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.sizes import bucket, fill
from sic_jax.training.train_config import TrainConfig


def test_buckets_by_hand() -> None:
    found = {shape: bucket(*shape) for shape in [(1, 1), (16, 3), (17, 2), (32, 32), (32, 48)]}
    assert found == {
        (1, 1): (16, 16), (16, 3): (16, 16), (17, 2): (32, 32), (32, 32): (32, 32),
        (32, 48): (32, 48),
    }  # fmt: skip
    assert bucket(3, 33) == (16, 40)
    assert bucket(68, 120) == (80, 128)
    assert bucket(129, 300) == (160, 320)
    sides = {bucket(64, n)[1] for n in range(1, 129)}
    assert sorted(sides) == [16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128]


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_buckets_hold_what_they_are_for(height: int, width: int) -> None:
    shape = bucket(height, width)
    assert shape[0] >= height
    assert shape[1] >= width
    assert bucket(*shape) == shape
    assert shape[0] % 8 == shape[1] % 8 == 0
    assert shape == bucket(width, height)[::-1]
    for side, n in zip(shape, (height, width), strict=True):
        assert max(height, width) <= 32 or side < max(17, n + 8, 1.25 * n)


@pytest.fixture(scope="module")
def bundle(params: Any, tiny_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model with strong convolutions: what lies beside a picture would be seen."""
    strong = jax.tree.map(np.copy, params)
    for transform in ("g_a", "g_s"):
        for name, p in strong[transform].items():
            if "Conv" in name or "Block" in name:
                strong[transform][name] = jax.tree.map(lambda a: 2 * a, p)
    folder = tmp_path_factory.mktemp("bundle")
    export_bundle(folder, tiny_run.model, strong)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def codec(bundle: Bundle) -> Codec:
    return Codec(bundle)


def picture(height: int, width: int) -> NDArray[Any]:
    """Random blocks with noise."""
    rng = np.random.default_rng(1000 * height + width)
    blocks = rng.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3))
    x = np.kron(blocks, np.ones((9, 9, 1)))[:height, :width]
    out: NDArray[Any] = np.clip(x + rng.normal(0, 9, x.shape), 0, 255).astype(np.uint8)
    return out


SIZES = [(1, 1), (2, 5), (4, 3), (7, 8)]
"""Of latents [8, 8]."""


@pytest.mark.parametrize("what", ["latents", "synthesise", "hyper_latents"])
def test_what_lies_beside_a_map_changes_nothing(bundle: Bundle, what: str, quick: None) -> None:
    rng = np.random.default_rng(3)
    cfg = bundle.cfg
    scales = {"latents": (16, 1), "synthesise": (1, 16), "hyper_latents": (1, 0.25)}[what]
    channels = 3 if what == "latents" else cfg.num_channels
    shape = (len(SIZES), 8 * scales[0], 8 * scales[0], channels)
    junk = (rng.random(shape) if what == "latents" else rng.normal(0, 3, shape)).astype(np.float32)
    level = (np.array([1, 2, 3, 2]),) if what == "synthesise" else ()
    networks = cfg.entropy.networks(cfg.levels)
    module: Any = networks if what == "hyper_latents" else SicModel(cfg)
    run = jax.jit(partial(module.apply, method=what))
    variables = {"params": bundle.params}
    found = run(variables, junk, *level, np.array(SIZES, np.int32))
    for k, (h, w) in enumerate(SIZES):
        alone = junk[k : k + 1, : h * scales[0], : w * scales[0]]
        exact = np.asarray(run(variables, alone, *(a[k : k + 1] for a in level)))[0]
        rows, columns = -int(-h * scales[1] // 1), -int(-w * scales[1] // 1)
        assert exact.shape[:2] == (rows, columns)
        np.testing.assert_allclose(found[k, :rows, :columns], exact, rtol=1e-4, atol=1e-4)
    assert np.std(found) > 0.1


@pytest.mark.parametrize("size", [(1, 1), (3, 18), (12, 8), (20, 33)])
def test_coding_pass_has_the_integers_of_the_exact_size(
    codec: Codec, size: tuple[int, int], quick: None
) -> None:
    """Of the functions of training, which know no buckets: features, tables, means, details."""
    h, w = size
    cfg, coding, rng = codec.bundle.cfg, codec._pass, np.random.default_rng(h)
    levels, layers = cfg.levels, codec.bundle.integers
    assert isinstance(cfg.entropy, CheckerboardEntropy)
    z = rng.integers(-9, 10, (-(-h // 4), -(-w // 4), cfg.entropy.hyper_channels)).astype(np.int32)
    y = rng.integers(-6, 7, (h, w, cfg.num_channels)).astype(np.int32)
    y_1 = y.astype(np.float32)[None]
    exact = jax.jit(hyper_synthesis, static_argnums=2)(
        layers["h_s"], z.astype(np.float32)[None], (h, w)
    )
    hyper = coding.hyper(z, (h, w))
    np.testing.assert_array_equal(hyper, exact)
    scales = cfg.entropy.scales
    mean, scale = jax.jit(
        lambda layers, y, hyper: all_parameters(layers, levels, scales, y, hyper)
    )(layers["context"], y_1, exact)
    expected = np.asarray(mean)[0].astype(int)
    seen = np.full(y.shape, np.inf)

    def code(request: Request) -> NDArray[Any]:
        # Tables of refinements are numbered otherwise, and have no integer mean.
        seen[request.where] = request.means.reshape(seen[request.where].shape)
        return y[request.where].ravel()

    y_s, _ = code_levels(coding.run(hyper, cfg.num_levels), code)
    np.testing.assert_array_equal(y_s, y)
    np.testing.assert_array_equal(seen[..., :4], expected[..., :4] >> 4)
    assert np.isfinite(seen).all()
    assert np.asarray(scale).std() > 0 or size == (1, 1)
    first = y.copy()
    first[..., levels.channels[0] :] = 0
    noise = coding.noise(5, y.shape)
    details = coding.complete(first, hyper, 1, noise, 200)
    level, temperature = np.array([1], np.int32), np.array([200], np.int32)
    whole = jax.jit(lambda layers, *args: complete(layers, levels, scales, *args))(
        layers["context"], first.astype(np.float32)[None], exact, level, noise[None], temperature
    )
    np.testing.assert_array_equal(details, whole)
    assert np.any(details[..., levels.channels[0] :])
    np.testing.assert_array_equal(coding.complete(y, hyper, cfg.num_levels, noise, 200), y_1)


@pytest.mark.thorough
def test_files_of_exact_sizes_and_of_buckets_are_the_same(
    bundle: Bundle, codec: Codec, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    x = {size: picture(*size) for size in [(1, 90), (37, 90), (270, 129)]}
    files = {size: codec.compress(image, seed=3) for size, image in x.items()}
    pictures = {size: codec.decompress(data, level=2) for size, data in files.items()}
    bits = {size: codec.estimate_bits(image) for size, image in x.items()}
    latents = {size: codec.decode_latents(unpack(data)) for size, data in files.items()}
    monkeypatch.setattr(PyramidTransforms, "sized", False)
    monkeypatch.setattr(CheckerboardEntropy, "sized", False)
    exact = Codec(bundle)
    for size, image in x.items():
        y, z, _ = exact.encode_latents(image)
        decoded = exact.decode_latents(unpack(files[size]))
        np.testing.assert_array_equal(decoded.y_s, latents[size].y_s)
        np.testing.assert_array_equal(decoded.z_hat, latents[size].z_hat)
        # g_a is computed in floats: what lies on an edge of rounding may fall to either side.
        assert np.mean(y != decoded.y_s) < 1e-4
        assert np.mean(z != decoded.z_hat) < 1e-3
        other = exact.decompress(files[size], level=2)
        assert np.abs(other.astype(int) - pictures[size]).max() <= 1
        estimate = exact.estimate_bits(image)
        assert estimate.z == pytest.approx(bits[size].z, rel=1e-4)
        np.testing.assert_allclose(estimate.y, bits[size].y, rtol=1e-4)
    assert exact._networks._latents.cache_info().currsize == len(x)


def test_one_bucket_compiles_once(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, quick: None
) -> None:
    codec = Codec(bundle)
    with jax.log_compiles():
        for k, size in enumerate([(5, 5), (17, 250), (256, 16), (100, 200), (256, 256)]):
            data = codec.compress(picture(*size), level=None if k else 1)
            assert codec.decompress(data).shape == (*size, 3)
            assert codec.decompress(data, level=1).shape == (*size, 3)
    names = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert len(names) == 6, names


def test_programs_that_fall_out_are_freed() -> None:
    client: Any = jax.devices("cpu")[0].client

    def live() -> int:
        gc.collect()
        return len(client.live_executables())

    compiled = jit_per_shape(lambda x: jnp.sin(x).sum())
    before = live()
    for n in range(1, 3 * KEPT):
        assert float(compiled(n)(np.zeros(n, np.float32))) == 0
    assert compiled.cache_info().currsize == KEPT
    assert live() == before + KEPT
    compiled(3 * KEPT - 1)(np.zeros(3 * KEPT - 1, np.float32))
    assert live() == before + KEPT


def test_fill() -> None:
    a = np.arange(6).reshape(2, 3, 1)
    assert fill(a, (2, 3)) is a
    assert fill(a, (3, 4))[..., 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 0], [0, 0, 0, 0]]


PROGRAM = """
import sys
import jax
import numpy as np
from sic_jax.codec.bundle import load_bundle
from sic_jax.codec.codec import Codec

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
)

def state():
    with open("/proc/self/maps") as maps, open("/proc/self/status") as status:
        resident = next(line for line in status if line.startswith("VmRSS"))
        return sum(1 for _ in maps), int(resident.split()[1]) // 1024

codec = Codec(load_bundle(sys.argv[1]))
before = len(compiled)
rng = np.random.default_rng(0)
places = rng.permutation(32 * 32)[:300]
for count, place in enumerate(places):
    height, width = 16 * (place // 32) + 1 + count % 16, 16 * (place % 32) + 1 + count % 7
    x = rng.integers(0, 256, (height, width, 3), np.uint8)
    picture = codec.decompress(codec.compress(x))
    assert picture.shape == x.shape
    if count in (60, 299):
        print(*state(), len(compiled) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts maps of Linux")
def test_three_hundred_sizes_in_one_process(
    params: Any, tiny_run: TrainConfig, tmp_path: Path
) -> None:
    with quick_compilation():
        export_bundle(tmp_path, tiny_run.model, params)
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    (maps, resident, _), (maps_end, resident_end, compilations) = (
        map(int, line.split()) for line in out.splitlines()
    )
    assert compilations <= 10
    assert maps_end - maps < 100
    assert resident_end - resident < 60
