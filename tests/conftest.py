"""Shared fixtures: one tiny model, its parameters and its compiled functions; a fake codec.

Compiling takes nearly all of the tests' time: the functions are compiled once a session, for one
batch size, without the costly passes of XLA.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# Workers share the cores, and so do the processes that tests start: two that each use all of them
# wait for one another (an eigendecomposition of NumPy's for 6 s instead of 0.1).
if (_worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    _mine = _cores[int(_worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, _mine or _cores)

# Before JAX is imported, and for the processes that tests start: programs compiled once serve
# every test, and the next run. JAX before 0.10 reads some of its own cache wrongly.
if tuple(map(int, version("jax").split(".")[:2])) >= (0, 10):
    _cache = Path(__file__).resolve().parents[1] / ".pytest_cache" / f"jax-{version('jax')}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Also before and for processes: nothing promotes types or ranks implicitly. An int32 that becomes
# a float by accident rounds above 2^24; an axis too few pairs the wrong axes where sizes agree.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import jax
import numpy as np
import pytest
from fake_codec import MODEL_ID, FakeCodec
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli import jobs
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.checkerboard.context import (
    all_parameters,
    complete,
    context_of_group,
    group_parameters,
)
from sic_jax.model.entropy_models.checkerboard.hyper import HYPER_STRIDE, hyper_synthesis
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import init_params
from sic_jax.model.sic import SicModel
from sic_jax.training.presets import preset
from sic_jax.training.train_config import TrainConfig

BATCH = 3
SIDE = 64


@contextmanager
def quick_compilation() -> Iterator[None]:
    """XLA without most optimisations."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def quick() -> Iterator[None]:
    """Programs compiled in the test compile quickly."""
    with quick_compilation():
        yield


@pytest.fixture(scope="session")
def tiny_run() -> TrainConfig:
    """The smoke preset."""
    return preset("smoke")


@pytest.fixture(scope="session")
def tiny(tiny_run: TrainConfig) -> ModelConfig:
    """The smoke preset's model: 3 levels of 2, 2 and 4 channels, 4 and 5 refining 0 and 1."""
    return tiny_run.model


@pytest.fixture(scope="session")
def untrained(tiny: ModelConfig) -> dict[str, Any]:
    """Parameters of the tiny model as they are initialised, NumPy arrays."""
    with quick_compilation():
        out: dict[str, Any] = jax.tree.map(np.asarray, init_params(tiny, seed=0))
        return out


@pytest.fixture(scope="session")
def params(untrained: dict[str, Any]) -> dict[str, Any]:
    """Parameters without zeros, so that no path through the tiny model is shut."""
    rng = np.random.default_rng(0)

    def disturb(a: NDArray[Any]) -> NDArray[Any]:
        out: NDArray[Any] = (a + 0.1 * rng.standard_normal(a.shape)).astype(np.float32)
        return out

    out: dict[str, Any] = jax.tree.map(disturb, untrained)
    return out


def checkerboard_entropy(cfg: ModelConfig) -> CheckerboardEntropy:
    """The entropy model of a config that has the tiny model's kind of it."""
    assert isinstance(cfg.entropy, CheckerboardEntropy)
    return cfg.entropy


class Functions(NamedTuple):
    """Compiled functions of the tiny model; the first argument is {"params": ...}."""

    analyse: Callable[..., Any]
    synthesise: Callable[..., Any]
    hyper: Callable[..., Any]
    context: Callable[..., Any]
    group_parameters: Callable[..., Any]
    context_of_group: Callable[..., Any]
    complete: Callable[..., Any]
    forward: Callable[..., Any]
    """(variables, x, level, temperature, key) -> outputs without and with the key."""


@pytest.fixture(scope="session")
def functions(tiny: ModelConfig) -> Functions:
    """The model's methods, each compiled at its first call."""
    model = SicModel(tiny)
    jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

    def of_context(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(variables: Any, *args: Any) -> Any:
            layers = checkerboard_entropy(tiny).entropy_layers(tiny.levels, variables["params"])
            return function(layers["context"], *args)

        return jit(run)

    def with_cfg(function: Callable[..., Any], *cfg: Any) -> Callable[..., Any]:
        return lambda layers, *args: function(layers, *cfg, *args)

    scales = checkerboard_entropy(tiny).scales

    def hyper(variables: Any, z_hat: Any) -> Any:
        layers = checkerboard_entropy(tiny).entropy_layers(tiny.levels, variables["params"])
        side = z_hat.shape[1] * HYPER_STRIDE
        return hyper_synthesis(layers["h_s"], z_hat, (side, side))

    def forward(variables: Any, x: Any, level: Any, temperature: Any, key: Any) -> Any:
        return (
            model.apply(variables, x, level, temperature=temperature),
            model.apply(variables, x, level, temperature=temperature, key=key),
        )

    def method(m: Any) -> Callable[..., Any]:
        return jit(partial(model.apply, method=m))

    return Functions(
        analyse=method("analyse"),
        synthesise=method("synthesise"),
        hyper=jit(hyper),
        context=of_context(with_cfg(all_parameters, tiny.levels, scales)),
        group_parameters=of_context(with_cfg(group_parameters, scales)),
        context_of_group=of_context(context_of_group),
        complete=of_context(with_cfg(complete, tiny.levels, scales)),
        forward=jit(forward),
    )


@pytest.fixture(scope="session")
def pictures() -> NDArray[Any]:
    """Smooth pictures with edges and a little noise: float32 [3, 64, 64, 3] in [0, 1]."""
    rng = np.random.default_rng(1)
    i, j = np.mgrid[:SIDE, :SIDE] / SIDE
    out = []
    for _ in range(BATCH):
        a, b, c = rng.uniform(1, 4, 3)
        grey = 0.5 + 0.2 * np.sin(a * i + b * j) + 0.15 * ((i - 0.5) ** 2 + (j - c / 5) ** 2 < 0.1)
        colour = grey[..., None] * rng.uniform(0.7, 1.1, 3)
        out.append(colour + 0.02 * rng.standard_normal((SIDE, SIDE, 3)))
    found: NDArray[Any] = np.clip(np.stack(out), 0, 1).astype(np.float32)
    return found


def flat(tree: Any) -> dict[str, NDArray[Any]]:
    """The leaves of a tree by name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal(a: Any, b: Any) -> None:
    """Both trees have the same leaves under the same names, bit for bit."""
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def write_images(folder: Path, source: Sequence[NDArray[Any]]) -> None:
    """The images of a source as PNG files."""
    folder.mkdir(parents=True)
    for k, image in enumerate(source):
        Image.fromarray(image).save(folder / f"{k}.png")


@pytest.fixture(scope="session")
def source(pictures: NDArray[Any]) -> list[NDArray[Any]]:
    """Three training images of 128 x 64 pixels."""
    return [np.round(np.tile(p, (2, 1, 1)) * 255).astype(np.uint8) for p in pictures]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with a bundle that has the fake codec's id; and no other but the package's."""
    place = tmp_path_factory.mktemp("bundles")
    fake = place / "fake"
    fake.mkdir()
    (fake / "config.json").write_text("{}")
    (fake / "id").write_text((MODEL_ID + bytes(26)).hex() + "\n")
    monkeypatch.setenv("SIC_BUNDLES", str(place))
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "data"))
    return place


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, place: Path) -> list[tuple[str, str | None]]:
    """Puts the fake codec in place and records how it was loaded."""
    calls: list[tuple[str, str | None]] = []

    def load(bundle: str, coder: str | None) -> FakeCodec:
        calls.append((bundle, coder))
        if bundle == "missing":
            raise ValueError("no bundle 'missing'")
        return FakeCodec(bundle)

    monkeypatch.setattr(jobs, "load_codec", load)
    return calls


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[object]) -> Path:
    """An empty folder, the working directory of commands that have the fake codec."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
