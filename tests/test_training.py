import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sic_jax.config import LossConfig, TrainConfig, to_dict
from sic_jax.model.sic import SicOutput
from sic_jax.training import losses
from sic_jax.training.losses import draw_levels, svi_loss
from sic_jax.training.main import main, parse
from sic_jax.training.state import make_optimizer

Arrays = dict[str, Any]


def output(x_hat: Any, bits_z: Any, bits_y: Any) -> SicOutput:
    nothing = jnp.zeros(())
    return SicOutput(jnp.asarray(x_hat), jnp.asarray(bits_z), jnp.asarray(bits_y), nothing, nothing)


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = LossConfig(
        lmbda_rate=(7.0, 3.0, 2.0), lmbda_dist=(100.0, 10.0, 30.0), lmbda_perc=(9.0, 0.5, 4.0)
    )
    x = jnp.full((2, 4, 8, 3), 0.5)
    x_hat = x + jnp.array([0.1, -0.3])[:, None, None, None]
    # Image 0 at level 2 of 3: 32 + 64 + 128 bits over 32 pixels; image 1 at level 3.
    out = output(x_hat, [32.0, 16.0], [[64.0, 128.0, 1e6], [16.0, 16.0, 32.0]])
    level = jnp.array([2, 3])
    loss, metrics = svi_loss(out, x, level, cfg=cfg, lpips_weights=None)
    bpp, mse = (7.0, 2.5), (0.01, 0.09)
    low, full = 3 * bpp[0] + 10 * mse[0], 2 * bpp[1] + 30 * mse[1]
    assert float(loss) == pytest.approx((low + full) / 2)
    expected = {"loss": (low + full) / 2, "bpp_z": 0.75, "bpp_full": 2.5, "bpp_low": 7.0}
    expected |= {"mse_full": 0.09, "mse_low": 0.01}
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-5)

    weights = {"marker": np.zeros(1)}

    def distance(a: jax.Array, b: jax.Array, *, weights: Any) -> jax.Array:
        assert "marker" in weights
        return jnp.abs(a - b).mean((1, 2, 3))

    monkeypatch.setattr(losses, "lpips", distance)
    loss, metrics = svi_loss(out, x, level, cfg=cfg, lpips_weights=weights)  # type: ignore[arg-type]
    low, full = low + 0.5 * 0.1, full + 4 * 0.3
    assert float(loss) == pytest.approx((low + full) / 2, rel=1e-5)
    assert float(metrics["lpips_full"]) == pytest.approx(0.3)
    assert float(metrics["lpips_low"]) == pytest.approx(0.1)


def test_loss_without_images_at_full_level() -> None:
    cfg = LossConfig(lmbda_rate=(1.0, 1.0), lmbda_dist=(0.0, 0.0), lmbda_perc=(0.0, 0.0))
    x = jnp.zeros((1, 2, 2, 3))
    _, metrics = svi_loss(
        output(x, [4.0], [[4.0, 8.0]]), x, jnp.array([1]), cfg=cfg, lpips_weights=None
    )
    assert (float(metrics["bpp_low"]), float(metrics["bpp_full"])) == (2.0, 0.0)


def test_drawn_levels_are_stratified() -> None:
    for seed in range(20):
        levels = np.asarray(draw_levels(jax.random.key(seed, impl="rbg"), 12, 4, 1 / 3))
        assert levels.dtype == np.int32
        # Four at level L, then two of each quarter.
        assert levels.tolist() == [4] * 4 + [1, 1, 2, 2, 3, 3, 4, 4]
    key = jax.random.key(0, impl="rbg")
    assert np.asarray(draw_levels(key, 3, 16, 1.0)).tolist() == [16] * 3
    firsts = [int(draw_levels(jax.random.key(s, impl="rbg"), 2, 16, 0.5)[1]) for s in range(200)]
    assert (min(firsts), max(firsts)) == (1, 16)
    assert np.mean(firsts) == pytest.approx(8.5, abs=4 * 4.6 / 200**0.5)


def test_linear_branches_learn_ten_times_slower(tiny_run: TrainConfig) -> None:
    cfg = dataclasses.replace(tiny_run, steps=100, warmup_steps=2, clip_norm=1e9)
    leaf = jnp.full((2, 3), 0.5)
    params: Arrays = {
        "g_a": {"linear": leaf, "Conv_0": {"kernel": leaf}},
        "g_s": {"linear": leaf},
        "context": {"linear": leaf},
    }
    optimizer = make_optimizer(cfg)
    state = optimizer.init(params)
    grads = jax.tree.map(lambda a: -jnp.ones_like(a), params)
    for step, rate in enumerate((0.0, 0.5, 1.0)):
        updates, state = optimizer.update(grads, state, params)
        # Adam's update of a constant gradient is its sign; the rate warms up over two steps.
        full = rate * cfg.learning_rate
        expected = {"g_a": full / 10, "g_s": full / 10, "context": full}
        for module, value in expected.items():
            np.testing.assert_allclose(updates[module]["linear"], value, rtol=1e-4, err_msg=step)
        np.testing.assert_allclose(updates["g_a"]["Conv_0"]["kernel"], full, rtol=1e-4)


def flags(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Every field of a config as a flag with its value."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flags(value, f"{prefix}{name}.")
        else:
            values = value if isinstance(value, tuple) else (value,)
            yield f"--{prefix}{name}".replace("_", "-"), [str(v) for v in values]


RUN = ["--data", "images", "--workdir", "run"]


def test_every_field_is_a_flag(tiny_run: TrainConfig) -> None:
    every = list(flags(to_dict(tiny_run)))
    model = tiny_run.model
    assert len(every) == sum(
        len(dataclasses.fields(c))
        for c in (tiny_run, model, tiny_run.loss, model.swin, model.raster)
    ) - len(("model", "loss", "swin", "raster"))
    argv = [word for flag, values in every for word in (flag, *values)]
    # The values of `smoke`, all of them on the command line of another preset.
    cfg, args = parse(["mse", *RUN, *argv])
    assert cfg == tiny_run
    assert (args.data, args.workdir, args.init_from, args.export) == ("images", "run", None, None)


def test_flags_override_the_preset(tiny_run: TrainConfig) -> None:
    assert parse(["smoke", *RUN])[0] == tiny_run
    words = "--steps 7 --learning-rate 1e-2 --loss.lmbda-perc 0 1 2.5 --model.analysis-blocks 2 3"
    cfg, _ = parse(["smoke", *RUN, *words.split(), "--compute-dtype", "bfloat16"])
    assert (cfg.steps, cfg.learning_rate, cfg.compute_dtype) == (7, 0.01, "bfloat16")
    assert cfg.loss.lmbda_perc == (0.0, 1.0, 2.5)
    assert cfg.model.analysis_blocks == (2, 3)
    assert cfg.loss.lmbda_rate == tiny_run.loss.lmbda_rate
    words = "--model.transforms swin --model.swin.window 4 --model.swin.analysis-depths 1 1 0 2"
    words += " --model.swin.num-heads 2 --model.level-channels 4 4 4"
    swin = parse(["smoke", *RUN, *words.split()])[0].model.swin
    assert (swin.window, swin.num_heads, swin.analysis_depths) == (4, 2, (1, 1, 0, 2))
    assert swin.synthesis_depths == (3, 2, 2, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["smoke", *RUN, "--model.widht-8", "3"], "unrecognized arguments: --model.widht-8 3"),
        (["smoke", *RUN, "--step", "3"], "unrecognized arguments: --step 3"),
        (["smoke", *RUN, "--steps", "3.5"], "argument --steps: invalid int value: '3.5'"),
        (["best", *RUN], "invalid choice: 'best'"),
        (["smoke", "--workdir", "run"], "the following arguments are required: --data"),
    ],
)
def test_wrong_command_lines(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        parse(argv)
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_wrong_values_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^train.py: error: .*analysis_blocks must have 2 entr"):
        main(["smoke", *RUN, "--model.analysis-blocks", "1"])
    with pytest.raises(SystemExit, match=r"^train.py: error: data folder '.*none' does not exist"):
        main(["smoke", "--data", str(tmp_path / "none"), "--workdir", str(tmp_path)])
