import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sic_jax.fields import from_dict, to_dict
from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.raster.raster import RasterConfig
from sic_jax.model.transforms.pyramid import PyramidConfig
from sic_jax.model.transforms.swin import SwinConfig
from sic_jax.training.config import TrainConfig
from sic_jax.training.losses import LossConfig
from sic_jax.training.presets import PRESETS, paper_loss, paper_model, preset


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    channels = draw(st.lists(st.integers(1, 40), min_size=1, max_size=64))
    refinements, free = [], 0
    for count in channels:
        refinements.append(draw(st.integers(0, min(count, free))))
        free += count - 2 * refinements[-1]
    return ModelConfig(
        level_channels=tuple(channels),
        level_refinements=tuple(refinements),
        refine_factor=draw(st.integers(2, 9)),
        deadzone=draw(st.floats(0, 0.49)),
        pyramid=PyramidConfig(
            widths=draw(st.tuples(*[st.integers(1, 512)] * 4)),
            synthesis_depths=draw(st.tuples(*[st.integers(0, 9)] * 4)),
            step=draw(st.floats(1e-3, 10)),
        ),
        temperature=draw(st.floats(0, 2)),
    )


@given(model_configs())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_model_config_survives_json(cfg: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(cfg)))) == cfg
    assert cfg.num_levels == len(cfg.level_channels)
    assert cfg.num_base_channels + sum(cfg.level_refinements) == cfg.num_channels


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    cfg = preset(name)
    again = from_dict(TrainConfig, json.loads(json.dumps(to_dict(cfg))))
    assert again == cfg
    assert isinstance(again.model.level_channels, tuple)
    assert isinstance(again.loss.lmbda_rate, tuple)
    assert hash(again) == hash(cfg)


def test_nested_configs() -> None:
    cfg = paper_model()
    data = json.loads(json.dumps(to_dict(cfg)))
    assert data["swin"]["analysis_depths"] == [1, 2, 2, 3]
    again = from_dict(ModelConfig, data)
    assert again == cfg
    assert hash(again) == hash(cfg)
    # What was stored before a part existed gets its defaults.
    del data["raster"], data["swin"]["window"], data["temperature"]
    assert from_dict(ModelConfig, data) == dataclasses.replace(cfg, temperature=0.0)
    data["swin"]["windows"] = 8
    with pytest.raises(ValueError, match="SwinConfig has no field 'windows'"):
        from_dict(ModelConfig, data)
    data["swin"] = {"window": "8"}
    with pytest.raises(ValueError, match=r"SwinConfig\.window must be int, got '8'"):
        from_dict(ModelConfig, data)
    with pytest.raises(ValueError, match="SwinConfig must be a JSON object, got int"):
        from_dict(ModelConfig, {"swin": 8})


def test_default_model_is_sixteen_levels() -> None:
    cfg = ModelConfig()
    assert (cfg.num_levels, cfg.num_channels, cfg.num_base_channels) == (16, 208, 160)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="no preset 'best'; there are lpips, perceptual"):
        preset("best")


def test_level_weights() -> None:
    paper = paper_loss()
    assert (paper.lmbda_rate[0], paper.lmbda_dist[0], paper.lmbda_perc[0]) == pytest.approx(
        (2**5.625, 128, 2**4.875)
    )
    assert (paper.lmbda_rate[15], paper.lmbda_dist[15], paper.lmbda_perc[15]) == (1, 2048, 8)
    first, second = preset("lpips").loss, preset("perceptual").loss
    assert (first.lmbda_rate[0], first.lmbda_rate[15]) == pytest.approx((8, 1.25))
    assert (first.lmbda_dist[0], first.lmbda_dist[15]) == pytest.approx((8 * 40, 1.25 * 1100))
    ratios = [b / a for a, b in zip(first.lmbda_dist, first.lmbda_dist[1:], strict=False)]
    assert ratios == pytest.approx([(1375 / 320) ** (1 / 15)] * 15)
    assert (second.lmbda_perc[0], second.lmbda_perc[15]) == pytest.approx((8 * 0.32, 1.25 * 6.6))
    assert preset("smoke").loss.lmbda_perc == (0.0,) * 3


def test_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig has no field 'widhts'; it has \['anchor"):
        from_dict(ModelConfig, {"widhts": 8})
    data = to_dict(preset("smoke"))
    data["loss"]["alpha"] = 1
    with pytest.raises(ValueError, match="LossConfig has no field 'alpha'"):
        from_dict(TrainConfig, data)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("head_width", "8", r"ModelConfig\.head_width must be int, got '8'"),
        ("head_width", 8.0, r"ModelConfig\.head_width must be int, got 8\.0"),
        ("head_width", True, r"ModelConfig\.head_width must be int, got True"),
        ("head_width", None, r"ModelConfig\.head_width must be int, got None"),
        ("deadzone", "0.25", r"ModelConfig\.deadzone must be float, got '0\.25'"),
        ("deadzone", False, r"ModelConfig\.deadzone must be float, got False"),
        ("transforms", 1, r"ModelConfig\.transforms must be str, got 1"),
        ("level_channels", 4, r"ModelConfig\.level_channels must be a list, got 4"),
        ("level_channels", [4, "4"], r"ModelConfig\.level_channels must be int, got '4'"),
        ("pyramid", {"widths": [1]}, r"PyramidConfig\.widths must have 4 entries, got \[1\]"),
    ],
)
def test_wrong_types(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(ModelConfig, {field: value})


def test_integers_become_floats() -> None:
    cfg = from_dict(ModelConfig, {"temperature": 1})
    assert cfg.temperature == 1.0
    assert isinstance(cfg.temperature, float)


def test_not_an_object_and_missing_fields() -> None:
    with pytest.raises(ValueError, match="ModelConfig must be a JSON object, got list"):
        from_dict(ModelConfig, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"LossConfig: .*missing.*'lmbda_dist' and 'lmbda_perc'"):
        from_dict(LossConfig, {"lmbda_rate": [1.0]})


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (SwinConfig, {"num_heads": 2**15}),
        (SwinConfig, {"analysis_widths": (2**15, 256, 256)}),
        (SwinConfig, {"synthesis_widths": (256, 256, 2**15)}),
        (SwinConfig, {"mlp_ratio": 65}),
        (PyramidConfig, {"widths": (8, 8, 8, 2**15)}),
        (RasterConfig, {"analysis_width": 2**15}),
        (RasterConfig, {"synthesis_widths": (2**15, 8)}),
        (RasterConfig, {"head_width": 2**15}),
    ],
)
def test_widths_are_bounded(cls: type, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changes))} is .* at most (16384|64)$"):
        cls(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level_channels": ()}, r"level_channels is \(\); it must be a tuple of 1 to 64"),
        ({"level_channels": (1,) * 65}, "it must be a tuple of 1 to 64 channel counts"),
        ({"level_channels": (2, 0), "level_refinements": (0, 0)}, r"\(2, 0\).* positive everywh"),
        ({"level_channels": (2, 2), "level_refinements": (0,)}, "2 counts, each at most its lev"),
        ({"level_channels": (2, 2), "level_refinements": (0, 3)}, r"\(0, 3\).*at most its level"),
        ({"level_channels": (2, 2), "level_refinements": (0, -1)}, r"\(0, -1\).*at most its lev"),
        ({"level_channels": (2, 2), "level_refinements": (1, 0)}, "of channels of earlier levels"),
        (
            {"level_channels": (1, 2, 2), "level_refinements": (0, 1, 2)},
            r"\(0, 1, 2\); it must be of channels of earlier levels",
        ),
        ({"sigma_min": 0.0}, r"sigma_min, sigma_max is \(0\.0, 64\.0\); it must be rising, in"),
        ({"sigma_min": 70.0}, r"sigma_min, sigma_max is \(70\.0, 64\.0\)"),
        ({"sigma_max": 128.0}, r"sigma_min, sigma_max is \(0\.11, 128\.0\)"),
        ({"deadzone": 0.5}, r"ModelConfig\.deadzone is 0\.5; it must be in \[0, 0\.5\)"),
        ({"refine_factor": 1}, r"ModelConfig\.refine_factor is 1; it must be at least 2"),
        ({"refine_factor": 65}, r"refine_factor is 65; it must be at least 2, at most 64"),
        ({"temperature": -0.5}, r"ModelConfig\.temperature is -0\.5; it must be 0 to 16"),
        ({"level_channels": (2_000_000_000,)}, r"\(2000000000,\).*16384 in all at most"),
        ({"level_channels": (2**13 + 1,) * 2}, "16384 in all at most"),
        (
            {"hyper_channels": 2**14 + 1},
            r"hyper_channels is 16385; it must be positive, at most 16",
        ),
        ({"head_width": 2**40}, r"head_width is 1099511627776; it must be positive, at most 16384"),
        ({"num_sigmas": 10**9}, r"num_sigmas is 1000000000; it must be at least 2, at most 16384"),
        ({"temperature": 17.0}, r"ModelConfig\.temperature is 17\.0; it must be 0 to 16"),
    ],
)
def test_model_validation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"analysis_depths": (3, 2, 2, 10**9)},
            r"is \(3, 2, 2, 1000000000\); it must be 0 to 64 ea",
        ),
        (
            {"synthesis_depths": (-1, 3, 3, 3)},
            r"synthesis_depths is \(-1, 3, 3, 3\); it must be 0 to",
        ),
        (
            {"widths": (8, 0, 8, 8)},
            r"PyramidConfig\.widths is \(8, 0, 8, 8\); it must be positive, at",
        ),
        ({"step": 0.0}, r"PyramidConfig\.step is 0\.0; it must be positive"),
        ({"coarse_step": -1.0}, r"PyramidConfig\.coarse_step is -1\.0; it must be positive"),
    ],
)
def test_pyramid_validation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lmbda_dist": (1.0,)}, r"LossConfig\.lmbda_\* is \(3, 1, 3\); it must be of one length"),
        ({"full_share": 1.5}, r"LossConfig\.full_share is 1\.5; it must be in \[0, 1\]"),
        ({"sampled_share": -0.1}, r"LossConfig\.sampled_share is -0\.1; it must be in \[0, 1\]"),
        ({"temperature": -1.0}, r"LossConfig\.temperature is -1\.0; it must be at least 0"),
    ],
)
def test_loss_validation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(preset("smoke").loss, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"TrainConfig\.steps is 0; it must be positive"),
        ({"batch_size": -1}, r"TrainConfig\.batch_size is -1; it must be positive"),
        ({"log_every": 0}, r"TrainConfig\.log_every is 0; it must be positive"),
        ({"save_every": 0}, r"TrainConfig\.save_every is 0; it must be positive"),
        ({"crop_size": 60}, r"TrainConfig\.crop_size is 60; it must be a positive multiple of 16"),
        ({"crop_size": 0}, r"TrainConfig\.crop_size is 0; it must be a positive multiple of 16"),
        ({"ema_decay": 1.0}, r"TrainConfig\.ema_decay is 1\.0; it must be in \[0, 1\)"),
        ({"learning_rate": 0.0}, r"TrainConfig\.learning_rate is 0\.0; it must be positive"),
        ({"compute_dtype": "half"}, r"compute_dtype is 'half'; it must be float32 or bfloat16"),
        (
            {"loss": preset("lpips").loss},
            "loss is 'weights for 16 levels'; it must be for 3 levels",
        ),
    ],
)
def test_train_validation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(preset("smoke"), **changes)  # type: ignore[arg-type]
