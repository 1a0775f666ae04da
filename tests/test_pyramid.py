"""The family `pyramid`: the trained bundle against its fixture, and how far its transforms reach.

`data/pyramid_fixture.npz` was made when the weights were trained, by the code that trained them: a
crop of 96 x 144 pixels, latents, bits, details in 1/256 at temperature 0, and every fourth pixel of
the reconstructions, which are not clipped.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.cli import export
from sic_jax.codec.bundle import Bundle, export_bundle, load_bundle
from sic_jax.model.levels import LevelConfig
from sic_jax.model.params import init_params
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms.pyramid import PyramidAnalysis, PyramidSynthesis, PyramidTransforms
from sic_jax.model.tree import flatten_params
from sic_jax.training.presets import preset

FIXTURE = Path(__file__).with_name("data") / "pyramid_fixture.npz"
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def expected() -> Arrays:
    with np.load(FIXTURE) as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("pyramid-1")


def error(a: Any, b: NDArray[Any]) -> float:
    """Largest difference, relative to the largest magnitude."""
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())


@pytest.mark.thorough
def test_the_default_bundle_computes_what_was_trained(bundle: Bundle, expected: Arrays) -> None:
    model, variables = SicModel(bundle.cfg), {"params": bundle.params}

    @jax.jit
    def encode(variables: Any, x: jax.Array) -> Any:
        y, z = model.apply(variables, x, method="analyse")
        return y, z, model.apply(variables, y, z, method="rate")

    @jax.jit
    def decode(variables: Any, y_hat: Any, hyper: jax.Array, level: jax.Array) -> Any:
        zero = jnp.zeros(1)
        y_hat = model.apply(variables, y_hat, hyper, level, temperature=zero, method="complete")
        return y_hat, model.apply(variables, y_hat, level, method="synthesise")

    y, z, rated = encode(variables, expected["image"][None] / np.float32(255))
    assert error(y, expected["y"]) < 2e-4
    assert error(z, expected["z"]) < 2e-4
    np.testing.assert_array_equal(rated.y_hat, expected["y_hat"])
    np.testing.assert_allclose(rated.bits_z, expected["bits_z"], rtol=1e-3)
    np.testing.assert_allclose(rated.bits_y, expected["bits_y"], rtol=1e-3)
    for level in (1, 8, 16):
        y_hat, x_hat = decode(variables, rated.y_hat, rated.hyper, np.array([level]))
        np.testing.assert_array_equal(y_hat * 256, expected[f"details_{level}"])
        assert error(x_hat[:, ::4, ::4], expected[f"x_hat_{level}"]) < 2e-4
    assert np.abs(expected["y_hat"]).max() == 17  # The fixture is not empty.


STRIDE = 16
DEEP = PyramidTransforms(widths=(3, 3, 3, 3))
"""As deep as the default."""


def random_variables(module: Any, *args: Any) -> Any:
    """Parameters without zeros, so that no path is shut."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree.map(lambda a: rng.uniform(0.1, 0.5, a.shape).astype(np.float32), shapes)


def changed(before: Any, after: Any, unit: int) -> list[bool]:
    """Which positions of one row of [1, h, w, C] changed, of `unit` samples a side each."""
    columns = np.any(np.asarray(before) != np.asarray(after), axis=(0, 1, 3))
    return [bool(a) for a in columns.reshape(-1, unit).any(1)]


def test_reach_of_the_analysis_is_exact() -> None:
    g_a = PyramidAnalysis(DEEP, channels=2)
    x = np.random.default_rng(1).random((1, STRIDE, 12 * STRIDE, 3)).astype(np.float32)
    variables, other = random_variables(g_a, x), x.copy()
    other[:, :, :STRIDE] += 0.5
    apply = jax.jit(g_a.apply)
    reached = changed(apply(variables, x), apply(variables, other), 1)
    assert DEEP.analysis_reach == 4
    assert reached == [True] * 5 + [False] * 7


def test_reach_of_the_synthesis_is_exact() -> None:
    g_s = PyramidSynthesis(DEEP, num_levels=2)
    y = np.random.default_rng(2).random((1, 1, 12, 4)).astype(np.float32)
    level = np.array([1])
    variables, other = random_variables(g_s, y, level), y.copy()
    other[:, :, 0] += 1
    apply = jax.jit(g_s.apply)
    reached = changed(apply(variables, y, level), apply(variables, other, level), STRIDE)
    assert DEEP.synthesis_reach == 8
    assert reached == [True] * 9 + [False] * 3


def test_the_level_is_read_by_every_block_of_the_synthesis() -> None:
    g_s = PyramidSynthesis(PyramidTransforms(widths=(3, 4, 5, 6), synthesis_depths=(1, 2, 1, 1)), 3)
    y, level = np.ones((1, 1, 1, 4), np.float32), np.array([2])
    shapes = flatten_params(jax.eval_shape(g_s.init, jax.random.key(0), y, level)["params"])
    tables = {path: a.shape for path, a in shapes.items() if path.endswith("/level")}
    widths = (6, 5, 5, 4, 3)
    assert tables == {f"ResidualBlock_{i}/level": (3, 2, w) for i, w in enumerate(widths)}
    assert shapes["linear_gain"].shape == (3, 4)
    assert shapes["linear"].shape == (4, 768)


def test_widths_of_the_synthesis_alone() -> None:
    levels = LevelConfig(channels=(2, 3), refinements=(0, 0))
    own = PyramidTransforms(widths=(2, 3, 4, 5), synthesis_widths=(3, 4, 5, 6))
    both = PyramidTransforms(widths=(2, 3, 4, 5))
    other = PyramidTransforms(widths=(3, 4, 5, 6))
    key = jax.random.key(0)
    x, y, level = np.ones((1, 32, 32, 3)), np.ones((1, 2, 2, 5)), np.array([1])

    def shapes(network: Any, *args: Any) -> Any:
        return jax.tree.map(lambda a: a.shape, jax.eval_shape(network.init, key, *args))

    g_a, g_s = own.analysis(levels), own.synthesis(levels)
    assert shapes(g_a, x) == shapes(both.analysis(levels), x) != shapes(other.analysis(levels), x)
    assert shapes(g_s, y, level) == shapes(other.synthesis(levels), y, level)
    assert shapes(g_s, y, level) != shapes(both.synthesis(levels), y, level)


@pytest.mark.parametrize("widths", [(4, 4, 4), (4, 4, 0, 4)])
def test_wrong_widths_of_the_synthesis(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"synthesis_widths is \(4, 4, .*; it must be"):
        PyramidTransforms(synthesis_widths=widths)


def test_recomputed_activations_and_half_precision(tiny: Any, params: Arrays) -> None:
    x = np.random.default_rng(3).random((1, 32, 32, 3)).astype(np.float32)
    variables = {"params": params["g_a"]}
    out: list[Any] = [
        PyramidAnalysis(tiny.transforms, 6, dtype, remat).apply(variables, x)
        for dtype, remat in ((None, False), (None, True), (jnp.bfloat16, False))
    ]
    np.testing.assert_array_equal(out[0], out[1])
    assert out[2].dtype == np.float32
    assert 0 < error(out[2], np.asarray(out[0])) < 0.03


def test_a_bundle_from_parameters(tmp_path: Path, untrained: Arrays) -> None:
    leaves = flatten_params(untrained)
    half = {
        k: a if k.startswith(("h_s", "context")) else a.astype(np.float16)
        for k, a in leaves.items()
    }
    np.savez(tmp_path / "params.npz", **half)
    (tmp_path / "card.md").write_text("# Card\n")
    argv = ["smoke", str(tmp_path / "params.npz"), str(tmp_path / "bundle")]
    export.main([*argv, "--card", str(tmp_path / "card.md")])
    export_bundle(tmp_path / "expected", preset("smoke").model, untrained)
    got, expected = load_bundle(tmp_path / "bundle"), load_bundle(tmp_path / "expected")
    assert got.digest == expected.digest
    assert (tmp_path / "bundle" / "README.md").read_text() == "# Card\n"
    np.savez(tmp_path / "params.npz", **dict(list(half.items())[1:]))
    with pytest.raises(SystemExit, match=r"^export: error: .*params\.npz: parameter \S+ is m"):
        export.main(argv)
    (tmp_path / "params.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(SystemExit, match=r"^export: error: .*params\.npz is no \.npz file of p"):
        export.main(argv)
    with pytest.raises(SystemExit, match=r"^export: error: .*No such file or directory: .*none"):
        export.main(["smoke", str(tmp_path / "none.npz"), str(tmp_path / "bundle")])


def test_a_config_without_blocks_is_the_linear_codec_and_a_few_convolutions() -> None:
    cfg = dataclasses.replace(
        preset("smoke").model,
        transforms=PyramidTransforms(
            widths=(2, 2, 2, 2), analysis_depths=(0, 0, 0, 0), synthesis_depths=(0, 0, 0, 0)
        ),
    )
    names = flatten_params(init_params(cfg, seed=0))
    assert not [name for name in names if "ResidualBlock" in name]
    assert (cfg.transforms.analysis_reach, cfg.transforms.synthesis_reach) == (1, 2)
