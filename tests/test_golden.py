"""Golden files: the same symbols, table indices, means, details and grain for ever and everywhere.

`golden/v2` belongs to format version 2, `golden/alpha` to its alpha, the others to the bundles of
these names. None ever changes, and nothing here may be loosened: a difference is a file that no
longer decodes.
"""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.make_golden import TEMPERATURE, decode
from PIL import Image

from sic_jax.codec.bundle import load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import unpack
from sic_jax.model.entropy_models.checkerboard.context import all_parameters
from sic_jax.model.entropy_models.checkerboard.hyper import hyper_synthesis

GOLDEN = Path(__file__).parent / "golden"
FOLDERS: dict[str, Path | str] = {
    "v2": GOLDEN / "v2" / "bundle",
    "pyramid-1": "pyramid-1",
    "pyramid-2": "pyramid-2",
}
FILES = [(folder, name) for folder in FOLDERS for name in ("photo", "gray", "edges")]


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    return {folder: Codec.load(bundle) for folder, bundle in FOLDERS.items()}


@pytest.mark.parametrize(("name", "predictor"), [("disc", 1), ("ramp", 3)])
def test_golden_alpha(codecs: dict[str, Codec], name: str, predictor: int) -> None:
    data = (GOLDEN / "alpha" / f"{name}.sic").read_bytes()
    assert decode(codecs["v2"], data) == expected("alpha")[name]
    segment = unpack(data).alpha
    assert segment is not None
    assert zlib.decompress(zlib.decompress(segment.payload))[0] == predictor
    picture = codecs["v2"].decompress(data, temperature=TEMPERATURE, level=2, grain=False)
    golden = np.asarray(Image.open(GOLDEN / "alpha" / f"{name}.png"))
    assert np.abs(picture.astype(int) - golden).max() <= 1
    np.testing.assert_array_equal(picture[..., -1], golden[..., -1])


def expected(folder: str) -> dict[str, Any]:
    records: dict[str, Any] = json.loads((GOLDEN / folder / "golden.json").read_text())
    return records


@pytest.mark.parametrize(("folder", "name"), FILES)
def test_golden_file(codecs: dict[str, Codec], folder: str, name: str) -> None:
    data = (GOLDEN / folder / f"{name}.sic").read_bytes()
    assert decode(codecs[folder], data) == expected(folder)[name]
    picture = codecs[folder].decompress(data, temperature=TEMPERATURE, level=2, grain=False)
    golden = np.asarray(Image.open(GOLDEN / folder / f"{name}.png"))
    assert np.abs(picture.astype(int) - golden).max() <= 1


PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from golden.make_golden import decode
from sic_jax.codec.codec import Codec
codec = Codec.load(sys.argv[2])
print(json.dumps({Path(f).stem: decode(codec, Path(f).read_bytes()) for f in sys.argv[3:]}))
"""
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
# Every liberty that XLA's fast-math takes with floats on CPUs.
FAST = "--xla_cpu_enable_fast_math=true --xla_cpu_enable_fast_min_max=true" + "".join(
    f" --xla_cpu_fast_math_honor_{what}=false" for what in ("nans", "infs", "division", "functions")
)
SETTINGS = {
    "one thread": {"XLA_FLAGS": ONE_THREAD, "OMP_NUM_THREADS": "1"},
    "fast math": {"XLA_FLAGS": FAST},
    "no optimisation": {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    "no jit": {"JAX_DISABLE_JIT": "1"},
}


def decode_elsewhere(setting: str, folder: str, names: list[str]) -> Any:
    """The records of some files, found by another process under a setting."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **SETTINGS[setting]}
    files = [str(GOLDEN / folder / f"{name}.sic") for name in names]
    argv = [sys.executable, "-c", PROGRAM, str(GOLDEN.parent), str(FOLDERS[folder]), *files]
    out = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


@pytest.mark.parametrize("setting", ["one thread", "fast math"])
def test_nothing_about_the_compiler_changes_a_symbol(setting: str) -> None:
    assert decode_elsewhere(setting, "v2", ["photo"]) == {"photo": expected("v2")["photo"]}


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_changes_a_symbol(setting: str, folder: str) -> None:
    """Threads, fast-math flags, no optimisation, no compilation at all."""
    assert decode_elsewhere(setting, folder, ["photo", "gray", "edges"]) == expected(folder)


DEVICES = {d.platform: d for d in (jax.devices("cpu")[0], jax.devices()[0])}


@pytest.mark.thorough
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())
def test_batches_and_devices(codecs: dict[str, Codec], device: jax.Device) -> None:
    """A picture's parameters are the same alone, in a batch of four, and on an accelerator."""
    for folder in FOLDERS:
        codec = codecs[folder]
        data = (GOLDEN / folder / "edges.sic").read_bytes()
        y, z, _ = codec.decode_latents(unpack(data))
        layers = jax.device_put(load_bundle(FOLDERS[folder]).integers, device)

        def parameters(y: jax.Array, z: jax.Array, layers: Any = layers, codec: Any = codec) -> Any:
            hyper = hyper_synthesis(layers["h_s"], z, (y.shape[1], y.shape[2]))
            cfg = codec.bundle.cfg
            model = cfg.levels, cfg.entropy.scales
            return hyper, *all_parameters(layers["context"], *model, y, hyper)

        y4 = jnp.stack([jnp.asarray(a, jnp.float32) for a in (y, y[::-1], y[:, ::-1], -y)])
        z4 = jnp.stack([jnp.asarray(a, jnp.float32) for a in (z, z[::-1], z[:, ::-1], -z)])
        four = jax.jit(parameters)(jax.device_put(y4, device), jax.device_put(z4, device))
        alone = codec._pass.hyper(z, (y.shape[0], y.shape[1]))
        np.testing.assert_array_equal(four[0][0], alone[0])
        for k in range(4):
            one = jax.jit(parameters)(y4[k : k + 1], z4[k : k + 1])
            for a, b in zip(four, one, strict=True):
                np.testing.assert_array_equal(a[k], b[0])
                assert np.asarray(a).std() > 0.5
