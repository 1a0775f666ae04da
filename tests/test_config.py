import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sic_jax.config import (
    LossConfig,
    ModelConfig,
    RasterConfig,
    SwinConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from sic_jax.presets import PRESETS, paper_loss, paper_model, preset


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
        step=draw(st.floats(1e-3, 10)),
        deadzone=draw(st.floats(0, 0.49)),
        deblock_jump=draw(st.floats(0, 1)),
        restoration_width=draw(st.integers(0, 64)),
        restoration_blocks=draw(st.integers(0, 9)),
        synthesis_blocks=draw(st.tuples(st.integers(0, 9), st.integers(0, 9))),
        density=draw(st.sampled_from(["normal", "logistic"])),
        detail=draw(st.sampled_from(["prior", "uniform"])),
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
    with pytest.raises(ValueError, match="no preset 'best'; there are mse, perceptual"):
        preset("best")


def test_level_weights() -> None:
    paper = paper_loss()
    assert (paper.lmbda_rate[0], paper.lmbda_dist[0], paper.lmbda_perc[0]) == pytest.approx(
        (2**5.625, 128, 2**4.875)
    )
    assert (paper.lmbda_rate[15], paper.lmbda_dist[15], paper.lmbda_perc[15]) == (1, 2048, 8)
    mse = preset("mse").loss
    assert (mse.lmbda_rate[0], mse.lmbda_rate[15]) == pytest.approx((8, 1))
    assert (mse.lmbda_dist[0], mse.lmbda_dist[15]) == pytest.approx((8 * 60, 2000))
    assert mse.lmbda_perc == (0.0,) * 16
    ratios = [b / a for a, b in zip(mse.lmbda_dist, mse.lmbda_dist[1:], strict=False)]
    assert ratios == pytest.approx([(2000 / 480) ** (1 / 15)] * 15)
    assert min(preset("perceptual").loss.lmbda_perc) > 0


def test_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig has no field 'widht_8'; it has \['analysis"):
        from_dict(ModelConfig, {"widht_8": 8})
    data = to_dict(preset("smoke"))
    data["loss"]["alpha"] = 1
    with pytest.raises(ValueError, match="LossConfig has no field 'alpha'"):
        from_dict(TrainConfig, data)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width_8", "8", r"ModelConfig\.width_8 must be int, got '8'"),
        ("width_8", 8.0, r"ModelConfig\.width_8 must be int, got 8\.0"),
        ("width_8", True, r"ModelConfig\.width_8 must be int, got True"),
        ("width_8", None, r"ModelConfig\.width_8 must be int, got None"),
        ("step", "0.25", r"ModelConfig\.step must be float, got '0\.25'"),
        ("step", False, r"ModelConfig\.step must be float, got False"),
        ("detail", 1, r"ModelConfig\.detail must be str, got 1"),
        ("level_channels", 4, r"ModelConfig\.level_channels must be a list, got 4"),
        ("level_channels", [4, "4"], r"ModelConfig\.level_channels must be int, got '4'"),
        ("analysis_blocks", [1], r"ModelConfig\.analysis_blocks must have 2 entries, got \[1\]"),
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
        ({"density": "cauchy"}, r"density is 'cauchy'; it must be one of \('normal', 'logistic'\)"),
        (
            {"density": "logistic", "context": "raster", "detail": "uniform"},
            r"density is 'logistic'; it must be one of \('normal',\) with the context raster",
        ),
        ({"detail": "gauss"}, r"ModelConfig\.detail is 'gauss'; it must be prior or uniform"),
        ({"sigma_min": 0.0}, r"sigma_min, sigma_max is \(0\.0, 64\.0\); it must be rising, in"),
        ({"sigma_min": 70.0}, r"sigma_min, sigma_max is \(70\.0, 64\.0\)"),
        ({"sigma_max": 128.0}, r"sigma_min, sigma_max is \(0\.11, 128\.0\)"),
        (
            {"analysis_blocks": (3, 10**9)},
            r"analysis_blocks is \(3, 1000000000\); it must be 0 to 64",
        ),
        ({"synthesis_blocks": (-1, 3)}, r"synthesis_blocks is \(-1, 3\); it must be 0 to 64 each"),
        ({"deblock_jump": -0.1}, r"ModelConfig\.deblock_jump is -0\.1; it must be in \[0, 1\]"),
        ({"deblock_activity": 0.0}, r"deblock_activity is 0\.0; it must be in \(0, 1\]"),
        ({"restoration_width": -1}, r"ModelConfig\.restoration_width is -1; it must be 0 to 16384"),
        ({"restoration_blocks": 65}, r"restoration_blocks is 65; it must be 0 to 64"),
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
        ({"width_16": 2**40}, r"width_16 is 1099511627776; it must be positive, at most 16384"),
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
        ({"loss": preset("mse").loss}, "loss is 'weights for 16 levels'; it must be for 3 levels"),
    ],
)
def test_train_validation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(preset("smoke"), **changes)  # type: ignore[arg-type]
