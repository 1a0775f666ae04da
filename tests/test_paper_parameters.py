import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_forward import reference_forward

from sic_jax.entropy.distributions import deep_factorised_bits, normal_bits
from sic_jax.importers import convert_state_dict, infer_config
from sic_jax.importers.paper_names import parameter_sources
from sic_jax.model.entropy_models.prior import quantise_hyper
from sic_jax.model.entropy_models.raster import networks as raster
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import param_shapes
from sic_jax.model.transforms.swin import SwinTransforms
from sic_jax.model.tree import flatten_params, num_params
from sic_jax.training.presets import paper_model

FULL = Path(__file__).resolve().parents[2] / "shared" / "parity" / "sic_official_tiny.npz"
SMALL = Path(__file__).with_name("data") / "paper_reference.npz"
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def small() -> Arrays:
    with np.load(SMALL) as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def state_dict(small: Arrays) -> Arrays:
    """All names and shapes of the tiny network; values where the small fixture has them."""
    rng = np.random.default_rng(0)
    out = {}
    for name, shape in json.loads(str(small["meta"]))["shapes"].items():
        values = small.get(f"state_dict/{name}")
        drawn = rng.standard_normal(shape).astype(np.float32)
        out[name] = drawn if values is None else values
    return out


def test_architecture_is_read_from_the_shapes(small: Arrays, state_dict: Arrays) -> None:
    cfg, params = convert_state_dict(state_dict)
    told = json.loads(str(small["meta"]))["config"]
    assert cfg.levels.channels == (told["dim"] // told["levels"],) * told["levels"]
    assert isinstance(cfg.transforms, SwinTransforms)
    assert isinstance(cfg.entropy, RasterEntropy)
    assert [*cfg.transforms.analysis_widths, cfg.num_channels] == told["embed_dims_ga"]
    assert [cfg.num_channels, *cfg.transforms.synthesis_widths] == told["embed_dims_gs"]
    assert [*cfg.transforms.analysis_depths] == told["depths_ga"]
    assert [*cfg.transforms.synthesis_depths] == told["depths_gs"]
    assert (cfg.transforms.num_heads, cfg.transforms.window) == (
        told["num_heads"],
        told["window_size"],
    )
    assert cfg.transforms.mlp_ratio == told["mlp_ratio"]
    assert (cfg.entropy.hyper_channels, cfg.entropy.analysis_width) == (48, 48)
    assert (cfg.entropy.synthesis_widths, cfg.entropy.head_width) == ((64, 96), 12)
    wanted = flatten_params(param_shapes(cfg))
    got = flatten_params(params)
    assert {k: a.shape for k, a in got.items()} == {k: a.shape for k, a in wanted.items()}
    assert {a.dtype for a in got.values()} == {np.dtype(np.float32)}
    # Conversion moves values and changes none.
    moved = np.sort(np.concatenate([a.ravel() for a in got.values()]))
    sources = [s.key for s in parameter_sources(cfg).values()]
    np.testing.assert_array_equal(
        moved, np.sort(np.concatenate([state_dict[k].ravel() for k in sources]))
    )


def test_layouts_by_hand(state_dict: Arrays) -> None:
    cfg, p = convert_state_dict(state_dict)
    s = state_dict
    embed = s["ga.patch_embed.proj.weight"]
    # Blocks are row by row, colours last.
    assert p["g_a"]["embed"]["kernel"][2 * 3 + 1, 7] == embed[7, 1, 1, 0]
    qkv = p["g_s"]["stage_1"]["block_1"]["attention"]["qkv"]["kernel"]
    assert qkv[5, 100] == s["gs.layers.1.blocks.1.attn.qkv.weight"][100, 5]
    assert p["g_s"]["out_kernel"][2, 0, 9, 1] == s["gs.outconv.weight"][1, 9, 2, 0]
    assert p["h_a"]["conv_2"]["kernel"][3, 4, 5, 6] == s["ha.2.weight"][6, 5, 3, 4]
    assert p["h_s"]["up_2"]["kernel"][3, 4, 5, 6] == s["hs.2.weight"][5, 6, 3, 4]
    dense = p["entropy_parameters"]["dense_1"]
    assert dense["kernel"][3, 2, 5] == s["entropy_parameters.layer.0.weight"][3 * 12 + 5, 2, 0, 0]
    assert dense["bias"][3, 5] == s["entropy_parameters.layer.0.bias"][3 * 12 + 5]
    assert cfg.temperature == 1


def test_prior_and_entropy_parameters_equal_the_authors(small: Arrays, state_dict: Arrays) -> None:
    cfg, params = convert_state_dict(state_dict)
    case: Arrays = {
        k.removeprefix("case1/"): np.moveaxis(a, 1, -1)
        for k, a in small.items()
        if k.startswith("case1/")
    }
    prior: Any = cfg.entropy.networks(cfg.levels).apply({"params": params}, method="prior")
    z_hat = quantise_hyper(prior, jnp.asarray(case["z"]))
    np.testing.assert_allclose(z_hat, case["z_hat"], rtol=1e-6)
    likelihoods = jnp.exp2(-deep_factorised_bits(prior, z_hat))
    np.testing.assert_allclose(likelihoods, case["z_likelihoods"], rtol=1e-4)
    hyper, context = case["hyper_params"], case["context_params"]
    features = jnp.concatenate([raster.group_features(cfg.levels, a) for a in (hyper, context)], -1)
    by_group = jnp.moveaxis(features, -2, 0).reshape(16, 16, -1)
    mu, scale = raster.entropy_parameters(params["entropy_parameters"], by_group)
    for got, name in ((mu, "means_hat"), (scale, "scales_hat")):
        expected = case[name].reshape(16, 16, 4).swapaxes(0, 1)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    bits = normal_bits(case["y_hat"], case["means_hat"], jnp.maximum(case["scales_hat"], 0.11))
    got = jnp.maximum(jnp.exp2(-bits), 1e-9)
    np.testing.assert_allclose(got, case["y_likelihoods"], rtol=1e-4)
    u = np.pad(2 * case["u"] - 1, ((0, 0), (0, 0), (0, 0), (20, 0)))
    details = raster.uniform_details(cfg.levels, jnp.asarray(hyper), jnp.asarray(u), jnp.ones(1))
    np.testing.assert_array_equal(details[..., 20:], case["y_eps"])


@pytest.mark.thorough
@pytest.mark.skipif(not FULL.exists(), reason="needs the shared files")
@pytest.mark.parametrize("case", ["case0", "case1"])
def test_every_tensor_equals_the_authors(case: str, quick: None) -> None:
    with np.load(FULL) as data:
        full = {name: data[name] for name in data.files}
    torch = {
        k.removeprefix("state_dict/"): a for k, a in full.items() if k.startswith("state_dict/")
    }
    cfg, params = convert_state_dict(torch)
    expected = {k.removeprefix(f"{case}/"): a for k, a in full.items() if k.startswith(case)}
    level = json.loads(str(full["meta"]))["level"]
    got = reference_forward(cfg, params, expected["x"], level=level, u=expected["u"])
    assert got.keys() == expected.keys() - {"x", "u"}
    for name, a in got.items():
        b = expected[name]
        assert (a.shape, a.dtype) == (b.shape, np.dtype(np.float32))
        assert np.abs(a - b).max() < 1e-4 * np.abs(b).max(), name
    # Likelihoods also where they are small.
    for name in ("z_likelihoods", "y_likelihoods"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4)
    # No value of this fixture lies near enough to a rounding tie to fall to the other side.
    np.testing.assert_array_equal(got["y_hat"], expected["y_hat"])
    np.testing.assert_array_equal(got["y_eps"], expected["y_eps"])


def test_parameter_counts_of_the_published_size() -> None:
    shapes = param_shapes(paper_model())
    assert {network: num_params(tree) for network, tree in shapes.items()} == {
        "g_a": 22_371_712,
        "g_s": 20_292_803,
        "h_a": 9_143_424,
        "h_s": 21_825_792,
        "prior_z": 23_424,
        "context": 13_108_224,
        "entropy_parameters": 446_464,
    }
    assert num_params(shapes) == 87_211_843


def test_the_published_architecture_is_recognised() -> None:
    cfg = paper_model()
    shapes = {path: leaf.shape for path, leaf in flatten_params(param_shapes(cfg)).items()}
    zero = np.zeros((), np.float32)
    state = {
        s.key: np.broadcast_to(zero, s.shape(shapes[path]))
        for path, s in parameter_sources(cfg).items()
    }
    assert infer_config(state) == cfg
    assert state["context_model.layer.weight"].shape == (1024, 512, 5, 5)
    assert state["hs.0.weight"].shape == (384, 512, 5, 5)
    assert state["entropy_parameters.layer.0.weight"].shape == (1536, 128, 1, 1)


def test_wrapped_names_and_foreign_networks(state_dict: Arrays) -> None:
    _, params = convert_state_dict(state_dict)
    wrapped = {f"module.{name}": a for name, a in state_dict.items()}
    wrapped["module.lpips.lin0.model.1.weight"] = np.zeros((1, 64, 1, 1), np.float32)
    wrapped["module.dists.alpha"] = np.zeros((1, 1475, 1, 1), np.float32)
    wrapped["module.ga.layers.1.blocks.1.attn_mask"] = np.zeros((24, 64, 64), np.float32)
    wrapped["module.ga.layers.1.blocks.1.attn.relative_position_index"] = np.zeros((64, 64), int)
    _, again = convert_state_dict(wrapped)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def replaced(name: str, array: Any) -> Callable[[Arrays], Any]:
    return lambda s: s.update({name: array})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.clear(), "parameter ga.layers.0.blocks.0.* is missing"),
        (lambda s: s.pop("ha.2.bias"), r"parameter ha\.2\.bias is missing"),
        (lambda s: s.pop("hs.2.weight"), r"parameter hs\.2\.weight is missing"),
        (
            lambda s: s.pop("gs.layers.0.blocks.1.norm2.weight"),
            r"parameter gs\.layers\.0\.blocks\.1\.norm2\.weight is missing",
        ),
        (
            replaced("ga.layers.0.blocks.0.attn.gate", np.zeros(3)),
            r"parameter ga\.layers\.0\.blocks\.0\.attn\.gate is not one of the authors' network",
        ),
        (replaced("decoder.weight", np.zeros(3)), r"parameter decoder\.weight is not one of"),
        (
            replaced("gs.outconv.weight", np.zeros((3, 31, 3, 3))),
            r"parameter gs\.outconv\.weight has shape \(3, 31, 3, 3\), not \(3, 32, 3, 3\)",
        ),
        (
            replaced("entropy_bottleneck.quantiles", np.zeros((48, 3))),
            r"entropy_bottleneck\.quantiles has shape \(48, 3\), not \(48, 1, 3\)",
        ),
        (
            replaced("ha.4.weight", np.zeros((48, 48))),
            r"parameter ha\.4\.weight has shape \(48, 48\), not one of rank 4",
        ),
        (
            replaced("entropy_parameters.layer.0.weight", np.zeros((192, 20, 1, 1))),
            "64 channels are no whole number of such groups",
        ),
        (
            replaced("ga.layers.0.blocks.0.attn.relative_position_bias_table", np.zeros((169, 4))),
            r"SwinTransforms\.window is 7; it must be even",
        ),
        (replaced("ga.norm.bias", np.full(64, np.nan)), r"parameter ga\.norm\.bias is not finite"),
        (replaced("ga.norm.bias", np.full(64, "a")), r"ga\.norm\.bias is of type <U1, not of numb"),
        (
            replaced("entropy_parameters.layer.0.weight", np.zeros((0, 2**40, 1, 1))),
            r"entropy_parameters\.layer\.0\.weight has shape \(0, .*: it is empty",
        ),
        (
            replaced("ga.layers.3.downsample.reduction.weight", np.zeros((0, 128))),
            r"ga\.layers\.3\.downsample\.reduction\.weight has shape \(0, 128\): it is empty",
        ),
        (
            replaced("ga.layers.3.downsample.reduction.weight", np.zeros((2**40, 0))),
            r"ga\.layers\.3\.downsample\.reduction\.weight has shape .* it is empty",
        ),
        (
            replaced("ga.layers.3.downsample.reduction.weight", np.zeros((65 * 4, 128))),
            "tells 65 levels, not 1 to 64",
        ),
        (replaced("ga.layers.0.blocks", np.zeros(3)), r"ga\.layers\.0\.blocks is not one of"),
        (replaced("ga.layers.0.blocks.x.a", np.zeros(3)), r"blocks\.x\.a is not one of"),
        (replaced("ga.layers.0.blocks.99.a", np.zeros(3)), r"analysis_depths is \(100, "),
    ],
)
def test_what_does_not_fit_is_named(
    state_dict: Arrays, edit: Callable[[Arrays], Any], message: str
) -> None:
    state = dict(state_dict)
    edit(state)
    with pytest.raises(ValueError, match=message):
        convert_state_dict(state)


def test_conversion_ignores_no_parameter(state_dict: Arrays) -> None:
    cfg: ModelConfig = infer_config(state_dict)
    used = {s.key for s in parameter_sources(cfg).values()}
    ignored = {k.split(".")[-1] for k in set(state_dict) - used}
    assert ignored == {"bound", "scale_bound", "mask"}
