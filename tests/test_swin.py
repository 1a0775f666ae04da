from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.transforms.swin import (
    PatchMerging,
    SwinAnalysis,
    SwinSynthesis,
    SwinTransforms,
    WindowAttention,
    pixel_shuffle,
    regions,
    relative_positions,
)

Arrays = dict[str, Any]


def config(**swin: Any) -> ModelConfig:
    """Swin transforms with three levels of four channels and narrow stages."""
    fields: Arrays = {
        "analysis_widths": (8, 4, 8),
        "analysis_depths": (1, 2, 0, 1),
        "synthesis_widths": (16, 12, 16),
        "synthesis_depths": (2, 0, 1, 1),
        "num_heads": 2,
        "window": 4,
        "mlp_ratio": 2,
    }
    return ModelConfig(
        levels=LevelConfig(channels=(4, 4, 4), refinements=(0, 0, 0)),
        transforms=SwinTransforms(**(fields | swin)),
    )


def swin_of(cfg: ModelConfig) -> SwinTransforms:
    assert isinstance(cfg.transforms, SwinTransforms)
    return cfg.transforms


def disturbed(shapes: Any, seed: int = 0) -> Any:
    """Random parameters of given shapes, scales of norms near 1."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> NDArray[Any]:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        out: NDArray[Any] = (centre + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
        return out

    return jax.tree_util.tree_map_with_path(draw, shapes)


def parameters(module: Any, *args: Any) -> Any:
    return disturbed(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])


def layer_norm(x: NDArray[Any], p: Arrays) -> NDArray[Any]:
    centred = x - x.mean(-1, keepdims=True)
    out: NDArray[Any] = (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]
    )
    return out


def attend(x: NDArray[Any], p: Arrays, heads: int, m: int, shift: int) -> NDArray[Any]:
    """Window attention token by token, float64: [h, w, C]."""
    h, w, c = x.shape
    rows, columns = -(-h // m) * m, -(-w // m) * m
    padded = np.zeros((rows, columns, c))
    padded[:h, :w] = x
    qkv = padded @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    out = np.zeros_like(padded)

    def part(i: int, length: int) -> int:
        # In shifted coordinates the last window holds the end of the map and, wrapped, its start.
        return 0 if i < length - m else 1 if i < length - shift else 2

    tokens = [(i, j) for i in range(rows) for j in range(columns)]
    for i, j in tokens:
        # Coordinates after the shift; the map is a torus.
        si, sj = (i - shift) % rows, (j - shift) % columns
        for head in range(heads):
            d = slice(head * c // heads, (head + 1) * c // heads)
            logits, values = [], []
            for ki, kj in tokens:
                ti, tj = (ki - shift) % rows, (kj - shift) % columns
                if (ti // m, tj // m) != (si // m, sj // m):
                    continue
                q, k, v = qkv[i, j, d], qkv[ki, kj, c:][d], qkv[ki, kj, 2 * c :][d]
                bias = p["position_bias"][(si - ti + m - 1) * (2 * m - 1) + sj - tj + m - 1, head]
                same = (part(si, rows), part(sj, columns)) == (part(ti, rows), part(tj, columns))
                mask = 0 if same or not shift else -100
                logits.append(q @ k / np.sqrt(c / heads) + bias + mask)
                values.append(v)
            weights = np.exp(np.array(logits) - max(logits))
            out[i, j, d] = weights @ np.array(values) / weights.sum()
    found: NDArray[Any] = (out @ p["proj"]["kernel"] + p["proj"]["bias"])[:h, :w]
    return found


@pytest.mark.parametrize("shifted", [False, True])
def test_attention_token_by_token(shifted: bool) -> None:
    # 5 x 8 positions: padded downwards only, 2 x 2 windows.
    x = np.random.default_rng(1).standard_normal((2, 5, 8, 8)).astype(np.float32)
    attention = WindowAttention(num_heads=2, window=4, shifted=shifted)
    params = parameters(attention, x)
    got = np.asarray(attention.apply({"params": params}, x))
    assert got.shape == x.shape
    for a, b in zip(x, got, strict=True):
        expected = attend(a.astype(np.float64), params, 2, 4, 2 if shifted else 0)
        np.testing.assert_allclose(b, expected, atol=2e-5)


def test_indices_by_hand() -> None:
    assert regions(12, 4).tolist() == [[0] * 4, [0] * 4, [1, 1, 2, 2]]
    assert regions(2, 2).tolist() == [[1, 2]]
    assert relative_positions(2).tolist() == [
        [4, 3, 1, 0],
        [5, 4, 2, 1],
        [7, 6, 4, 3],
        [8, 7, 5, 4],
    ]
    index = relative_positions(8)
    assert index.shape == (64, 64)
    assert (int(index.min()), int(index.max()), int(index[0, 0])) == (0, 224, 112)


def merged(x: NDArray[Any]) -> NDArray[Any]:
    """Blocks of four positions column by column: [h, w, C] to [h/2, w/2, 4C]."""
    return np.concatenate([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)


def shuffled(x: NDArray[Any]) -> NDArray[Any]:
    """PyTorch's PixelShuffle(2), by its definition."""
    h, w, c = x.shape
    out = np.zeros((2 * h, 2 * w, c // 4))
    for i, j, k in np.ndindex(out.shape):
        out[i, j, k] = x[i // 2, j // 2, 4 * k + 2 * (i % 2) + j % 2]
    return out


def test_merging_and_shuffling() -> None:
    x = np.random.default_rng(2).standard_normal((1, 4, 6, 3)).astype(np.float32)
    merging = PatchMerging(5)
    params = parameters(merging, x)
    expected = layer_norm(merged(x[0]), params["norm"]) @ params["reduction"]["kernel"]
    np.testing.assert_allclose(merging.apply({"params": params}, x)[0], expected, atol=1e-5)
    x = np.random.default_rng(3).standard_normal((1, 2, 3, 12)).astype(np.float32)
    np.testing.assert_array_equal(pixel_shuffle(jnp.asarray(x))[0], shuffled(x[0]))


def test_transforms_without_blocks_by_hand() -> None:
    depths = (0, 0, 0, 0)
    cfg = config(analysis_depths=depths, synthesis_depths=depths)
    rng = np.random.default_rng(4)
    x = rng.random((1, 32, 48, 3)).astype(np.float32)
    g_a = SwinAnalysis(swin_of(cfg), 12)
    p = parameters(g_a, x)
    blocks = [x[0, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    h = np.concatenate(blocks, -1) @ p["embed"]["kernel"] + p["embed"]["bias"]
    h = layer_norm(h, p["embed_norm"])
    for k in (1, 2, 3):
        q = p[f"merge_{k}"]
        h = layer_norm(merged(h), q["norm"]) @ q["reduction"]["kernel"]
    y = np.asarray(g_a.apply({"params": p}, x))
    assert y.shape == (1, 2, 3, 12)
    np.testing.assert_allclose(y[0], layer_norm(h, p["norm"]), atol=1e-4)
    # The last two layers one after the other, with zeros around the wide map.
    g_s, level = SwinSynthesis(swin_of(cfg)), jnp.ones(1, jnp.int32)
    p = parameters(g_s, y, level)
    h = y[0]
    for k in range(4):
        weights = p["split_3"] if k == 3 else p[f"split_{k}"]["kernel"]
        h = layer_norm(shuffled(h), p[f"split_norm_{k}"]) @ weights
    assert h.shape == (32, 48, 16)
    padded = np.pad(h, ((1, 1), (1, 1), (0, 0)))
    expected = p["out_bias"] + sum(
        padded[i : i + 32, j : j + 48] @ p["out_kernel"][i, j] for i in range(3) for j in range(3)
    )
    x_hat: Any = g_s.apply({"params": p}, y, level)
    np.testing.assert_allclose(x_hat[0], expected, atol=1e-4)
    again: Any = g_s.apply({"params": p}, y, 2 * level)
    np.testing.assert_array_equal(x_hat, again)


@pytest.mark.thorough
def test_low_precision_and_recomputation_change_little(quick: None) -> None:
    cfg = config(analysis_depths=(0, 2, 0, 0), synthesis_depths=(0, 0, 0, 0))
    x = np.random.default_rng(5).random((2, 32, 48, 3)).astype(np.float32)
    p_a = parameters(SwinAnalysis(swin_of(cfg), 12), x)
    y_hat, level = np.zeros((2, 2, 3, 12), np.float32), np.ones(2, np.int32)
    p_s = parameters(SwinSynthesis(swin_of(cfg)), y_hat, level)

    def run(dtype: Any, remat: bool) -> tuple[NDArray[Any], NDArray[Any], Any]:
        def total(params: Any) -> Any:
            y = SwinAnalysis(swin_of(cfg), 12, dtype, remat).apply({"params": params[0]}, x)
            x_hat = SwinSynthesis(swin_of(cfg), dtype, remat).apply({"params": params[1]}, y, level)
            assert isinstance(y, jax.Array)
            assert isinstance(x_hat, jax.Array)
            assert y.dtype == x_hat.dtype == jnp.float32
            return jnp.square(x_hat - x).mean(), (y, x_hat)

        compiled = jax.jit(jax.grad(total, has_aux=True))
        grads, (y, x_hat) = compiled((p_a, p_s))
        return np.asarray(y), np.asarray(x_hat), jax.tree.leaves(grads)

    def deviation(a: Any, b: Any) -> float:
        return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))

    y, x_hat, grads = run(None, False)
    assert y.std() > 0.5
    assert x_hat.std() > 0.1
    again = run(None, True)
    np.testing.assert_allclose(again[0], y, atol=1e-5)
    np.testing.assert_allclose(again[1], x_hat, atol=1e-5)
    for a, b in zip(again[2], grads, strict=True):
        assert np.any(b)
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    low = run(jnp.bfloat16, False)
    assert 1e-4 < deviation(low[0], y) < 0.02
    assert 1e-4 < deviation(low[1], x_hat) < 0.05
    a, b = (np.concatenate([np.ravel(g) for g in leaves]) for leaves in (low[2], grads))
    # Layer norms of three or four features magnify rounding.
    assert deviation(a, b) < 0.2


def test_recomputation_keeps_less() -> None:
    cfg = config(analysis_depths=(0, 2, 0, 0))
    x = jnp.zeros((1, 32, 48, 3))
    params = parameters(SwinAnalysis(swin_of(cfg), 12), x)

    def kept(remat: bool) -> int:
        def backward(p: Any) -> Any:
            return jax.vjp(
                lambda q: SwinAnalysis(swin_of(cfg), 12, None, remat).apply({"params": q}, x), p
            )[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, params)))

    assert kept(True) < 0.6 * kept(False)


def test_no_reach() -> None:
    assert config().transforms.analysis_reach is None
    assert config().transforms.synthesis_reach is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0}, r"SwinTransforms\.num_heads is 0; it must be positive"),
        (
            {"analysis_widths": (8, 5, 8)},
            r"\(8, 5, 8\); it must be positive multiples of num_heads",
        ),
        ({"synthesis_widths": (8, 6, 8)}, r"synthesis_widths is \(8, 6, 8\); it must be multiples"),
        ({"synthesis_widths": (8, 0, 8)}, r"synthesis_widths is \(8, 0, 8\); it must be positive"),
        ({"analysis_depths": (1, 2, 65, 1)}, r"analysis_depths is .*; it must be 0 to 64 each"),
        ({"window": 7}, r"SwinTransforms\.window is 7; it must be even, 2 to 64"),
        ({"mlp_ratio": 0}, r"SwinTransforms\.mlp_ratio is 0; it must be positive"),
        (
            {"num_heads": 8, "analysis_widths": (8, 8, 8), "synthesis_widths": (8, 8, 8)},
            r"LevelConfig\.num_channels is 12; it must be a multiple of 4 and of num_heads",
        ),
    ],
)
def test_validation(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
