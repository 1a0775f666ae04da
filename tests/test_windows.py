"""Windows: by hand, their invariants, and that the codec's results do not depend on them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sic_jax.codec.bundle import export_bundle, load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import unpack
from sic_jax.codec.pixels import pad
from sic_jax.codec.windows import in_windows, spans
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import param_shapes
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.transforms.swin import SwinTransforms
from sic_jax.training.train_config import TrainConfig


def test_spans_by_hand() -> None:
    assert [(s.start, s.stop, s.keep) for s in spans(10, 10, 3)] == [(0, 10, slice(0, 10))]
    assert [(s.start, s.stop, s.keep, s.inside) for s in spans(20, 12, 3)] == [
        (0, 11, slice(0, 8), slice(0, 8)),
        (5, 16, slice(8, 13), slice(3, 8)),
        (9, 20, slice(13, 20), slice(4, 11)),
    ]
    with pytest.raises(ValueError, match="a window of 6 positions is too small: its margins are 3"):
        spans(20, 6, 3)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(0, 12), st.integers(1, 60))
def test_spans_cover_all_and_keep_the_margin(length: int, margin: int, core: int) -> None:
    limit = 2 * margin + core
    cut = spans(length, limit, margin)
    assert {s.stop - s.start for s in cut} == {min(limit, cut[0].stop)}
    assert cut[0].stop <= limit
    done = 0
    for s in cut:
        assert 0 <= s.start < s.stop <= length
        assert s.keep.start == done
        assert s.keep.stop > s.keep.start
        assert s.start == 0 or s.keep.start - s.start >= margin
        assert s.stop == length or s.stop - s.keep.stop >= margin
        done = s.keep.stop
    assert done == length
    # No fewer windows would do.
    fewer = len(cut) - 1
    assert fewer == 0 or fewer * limit - 2 * margin * (fewer - 1) < length


def test_in_windows_is_exact_for_a_function_of_that_reach() -> None:
    x = np.random.default_rng(0).integers(0, 100, (46, 30, 2))

    def blurred(a: NDArray[Any]) -> NDArray[Any]:
        """Sums of 5x5 samples, each of 2x2: reach 1 position of 2 samples."""
        p = np.pad(a, ((2, 2), (2, 2), (0, 0)))
        h, w = a.shape[:2]
        out: Any = sum(p[i : i + h, j : j + w] for i in range(5) for j in range(5))
        found: NDArray[Any] = out.reshape(h // 2, 2, w // 2, 2, 2).sum((1, 3))
        return found

    out = np.zeros((23, 15, 2), int)
    in_windows(blurred, x, out, unit_in=2, unit_out=1, limit=6, margin=1)
    np.testing.assert_array_equal(out, blurred(x))
    wrong = np.zeros_like(out)
    in_windows(blurred, x, wrong, unit_in=2, unit_out=1, limit=6, margin=0)
    assert (wrong != out).any()


def test_no_margin_is_one_window() -> None:
    assert spans(10, 2, None) == [(0, 10, slice(0, 10))]
    x = np.arange(24).reshape(4, 6)
    out = np.zeros((8, 12), int)
    in_windows(lambda a: np.kron(a - a[0, 0], np.ones((2, 2), int)), x, out, unit_in=1, unit_out=2,
               limit=2, margin=None)  # fmt: skip
    np.testing.assert_array_equal(out, np.kron(x, np.ones((2, 2), int)))


def test_reach_by_hand() -> None:
    # g_a: 2 + 2 (2 + 4 + 8 + 16) = 62 pixels; g_s: 16 + 3 * 16 + 4 * 8 + 4 * 4 + 3 * 2 + 2 = 120.
    pyramid, swin = PyramidTransforms(), SwinTransforms()
    assert (pyramid.analysis_reach, pyramid.synthesis_reach) == (4, 8)
    assert (swin.analysis_reach, swin.synthesis_reach) == (None, None)


def check_windows(codec: Codec, small: Codec, x: NDArray[Any], level: int) -> None:
    """Both codecs find the same integers, but for ties of rounding, and the same picture."""
    whole, cut = codec.encode_latents(x), small.encode_latents(x)
    assert np.mean(whole.y_s != cut.y_s) < 1e-4
    assert np.abs(whole.y_s - cut.y_s).max() <= 1
    bits, other_bits = codec.estimate_bits(x), small.estimate_bits(x)
    assert other_bits.z == pytest.approx(bits.z, rel=1e-4)
    np.testing.assert_allclose(other_bits.y, bits.y, rtol=1e-4)
    data = codec.compress(x, level=level)
    one, other = codec.decompress(data), small.decompress(data)
    assert np.abs(one.astype(int) - other).max() <= 1
    assert np.mean(one != other) < 1e-3


@pytest.mark.thorough
def test_codec_in_windows(params: Any, tiny_run: TrainConfig, tmp_path: Path) -> None:
    # Strong convolutions, so that a margin too small would be seen.
    strong = jax.tree.map(np.copy, params)
    for transform in ("g_a", "g_s"):
        for name, p in strong[transform].items():
            if "Conv" in name or "Block" in name:
                strong[transform][name] = jax.tree.map(lambda a: 2 * a, p)
    export_bundle(tmp_path, tiny_run.model, strong)
    bundle = load_bundle(tmp_path)
    transforms = bundle.cfg.transforms
    assert (transforms.analysis_reach, transforms.synthesis_reach) == (2, 3)
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (150, 213, 3), np.uint8)
    codec, small = Codec(bundle), Codec(bundle, window=7 * 16)
    check_windows(codec, small, x, 2)
    # The estimate is that of the model, and g_a sees no more than a window for it.
    out: Any = SicModel(bundle.cfg).apply(
        {"params": bundle.params},
        jnp.asarray(pad(x, 16)[None] / 255, jnp.float32),
        jnp.array([bundle.cfg.num_levels]),
        temperature=jnp.zeros(1),
    )
    bits = small.estimate_bits(x)
    assert bits.z == pytest.approx(float(out.bits_z[0]), rel=1e-4)
    np.testing.assert_allclose(bits.y, out.bits_y[0], rtol=1e-4)
    latents, sides = small._networks._latents, []

    def seen(variables: Any, window: NDArray[Any], size: NDArray[Any]) -> jax.Array:
        sides.append(size)
        out: jax.Array = latents(16, 16)(variables, window, size)
        return out

    small._networks._latents = lambda *_: seen
    assert small.estimate_bits(x).z == bits.z
    assert len(sides) > 1
    assert np.max(sides) <= 7
    with pytest.raises(ValueError, match="window must be at least 112 for this bundle, got 111"):
        Codec(bundle, window=111)


@pytest.mark.thorough
def test_codec_with_swin_transforms_sees_pictures_whole(tmp_path: Path, quick: None) -> None:
    swin = SwinTransforms(
        analysis_widths=(8, 8, 8),
        analysis_depths=(0, 0, 0, 2),
        synthesis_widths=(8, 8, 8),
        synthesis_depths=(1, 0, 0, 0),
        num_heads=2,
        window=2,
        mlp_ratio=1,
    )
    cfg = ModelConfig(
        levels=LevelConfig(channels=(4, 4), refinements=(0, 2)),
        transforms=swin,
        entropy=CheckerboardEntropy(
            hyper_channels=2, hyper_width=8, context_width=4, anchor_width=4, head_width=8
        ),
    )
    # 6 channels of g_a are 2 heads of 3; y has 8.
    assert (cfg.levels.num_base_channels, cfg.num_channels) == (6, 8)
    rng = np.random.default_rng(7)
    params = jax.tree.map(
        lambda a: (0.5 * rng.standard_normal(a.shape)).astype(np.float32), param_shapes(cfg)
    )
    export_bundle(tmp_path, cfg, params)
    bundle = load_bundle(tmp_path)
    assert bundle.cfg == cfg
    x = rng.integers(0, 256, (40, 90, 3), np.uint8)
    codec = Codec(bundle, window=16)
    latents = codec.encode_latents(x)
    y: Any = SicModel(cfg).apply(
        {"params": bundle.params},
        jnp.asarray(pad(x, 16)[None] / 255, jnp.float32),
        method="latents",
    )
    assert np.mean(latents.y_s != np.round(np.asarray(y[0]))) < 0.02
    assert np.abs(latents.y_s).mean() > 0.2
    data = codec.compress(x)
    decoded = codec.decode_latents(unpack(data))
    np.testing.assert_array_equal(decoded.y_s, latents.y_s)
    picture = codec.decompress(data)
    x_hat: Any = SicModel(cfg).apply(
        {"params": bundle.params},
        jnp.asarray(latents.y_s[None], jnp.float32),
        jnp.array([2]),
        method="synthesise",
    )
    expected = np.clip(np.asarray(x_hat)[0, :40, :90], 0, 1) * 255
    assert np.abs(picture - expected).max() < 0.51
    assert picture.std() > 5


@pytest.mark.slow
def test_two_megapixels_in_windows() -> None:
    rng = np.random.default_rng(6)
    coarse = rng.integers(0, 256, (30, 44, 3))
    x = np.kron(coarse, np.ones((40, 40, 1))) + rng.normal(0, 8, (1200, 1760, 3))
    x = np.clip(x, 0, 255).astype(np.uint8)
    bundle = load_bundle("default")
    check_windows(Codec(bundle), Codec(bundle, window=640), x, 8)
