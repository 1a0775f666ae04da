import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sic_jax.fields import changed, from_dict, kinds_of, to_dict
from sic_jax.model.complexity import codec_macs_per_pixel
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.entropy_models.scales import ScaleGrid
from sic_jax.model.families import FAMILIES
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.transforms.swin import SwinTransforms
from sic_jax.training.losses import LossConfig
from sic_jax.training.presets import PRESETS, paper_loss, paper_model, preset
from sic_jax.training.train_config import Stage, TrainConfig


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    channels = draw(st.lists(st.integers(1, 40), min_size=1, max_size=64))
    refinements, free = [], 0
    for count in channels:
        refinements.append(draw(st.integers(0, min(count, free))))
        free += count - 2 * refinements[-1]
    return ModelConfig(
        levels=LevelConfig(
            channels=tuple(channels),
            refinements=tuple(refinements),
            refine_factor=draw(st.integers(2, 9)),
            deadzone=draw(st.floats(0, 0.49)),
        ),
        transforms=PyramidTransforms(
            widths=draw(st.tuples(*[st.integers(1, 512)] * 4)),
            synthesis_widths=draw(st.just(()) | st.tuples(*[st.integers(1, 512)] * 4)),
            synthesis_depths=draw(st.tuples(*[st.integers(0, 9)] * 4)),
            start_step=draw(st.floats(1e-3, 10)),
        ),
        temperature=draw(st.floats(0, 2)),
    )


@given(model_configs())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_model_config_survives_json(cfg: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(cfg))), FAMILIES) == cfg
    levels = cfg.levels
    assert cfg.num_levels == len(levels.channels)
    assert levels.num_base_channels + sum(levels.refinements) == cfg.num_channels


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    cfg = preset(name)
    again = from_dict(TrainConfig, json.loads(json.dumps(to_dict(cfg))), FAMILIES)
    assert again == cfg
    assert isinstance(again.model.levels.channels, tuple)
    assert isinstance(again.loss.lmbda_rate, tuple)
    assert hash(again) == hash(cfg)


def test_nested_configs() -> None:
    cfg = paper_model()
    data = json.loads(json.dumps(to_dict(cfg)))
    assert data["transforms"]["kind"] == "swin"
    assert data["transforms"]["analysis_depths"] == [1, 2, 2, 3]
    again = from_dict(ModelConfig, data, FAMILIES)
    assert again == cfg
    assert hash(again) == hash(cfg)
    # What was stored before a part existed gets its defaults.
    del data["entropy"]["scales"], data["transforms"]["window"], data["temperature"]
    expected = dataclasses.replace(cfg, temperature=0.0)
    assert from_dict(ModelConfig, data, FAMILIES) == expected
    data["transforms"]["windows"] = 8
    with pytest.raises(ValueError, match="SwinTransforms has no field 'windows'"):
        from_dict(ModelConfig, data, FAMILIES)
    data["transforms"] = {"kind": "swin", "window": "8"}
    with pytest.raises(ValueError, match=r"SwinTransforms\.window must be int, got '8'"):
        from_dict(ModelConfig, data, FAMILIES)
    with pytest.raises(ValueError, match=r"ModelConfig\.transforms must be a JSON object, got int"):
        from_dict(ModelConfig, {"transforms": 8}, FAMILIES)
    with pytest.raises(ValueError, match="ScaleGrid must be a JSON object, got int"):
        from_dict(ModelConfig, {"entropy": {"kind": "raster", "scales": 8}}, FAMILIES)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "resnet"}, "transforms has no kind 'resnet'; there are pyramid, swin"),
        ({"kind": "raster"}, "transforms has no kind 'raster'; there are pyramid, swin"),
        ({"kind": ["swin"]}, r"transforms has no kind \['swin'\]; there are pyramid, swin"),
        ({"window": 8}, "transforms has no kind None; there are pyramid, swin"),
    ],
)
def test_unknown_kinds(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"ModelConfig\.{message}$"):
        from_dict(ModelConfig, {"transforms": value}, FAMILIES)


def test_what_may_change() -> None:
    a = ModelConfig()
    b = ModelConfig(
        levels=LevelConfig(deadzone=0.2),
        transforms=PyramidTransforms(start_step=1.0, coarse_start_step=2.0),
        temperature=1.0,
    )
    assert list(changed(a, b, on="init_from")) == []
    assert list(changed(a, b, on="resume")) == [
        "levels.deadzone", "transforms.start_step", "transforms.coarse_start_step", "temperature"
    ]  # fmt: skip
    c = dataclasses.replace(b, entropy=CheckerboardEntropy(head_width=97))
    assert list(changed(a, c, on="init_from")) == ["entropy.head_width"]
    swin = ModelConfig(
        levels=LevelConfig(channels=(16,), refinements=(0,)), transforms=SwinTransforms()
    )
    assert list(changed(a, swin, on="init_from")) == [
        "levels.channels", "levels.refinements", "transforms"
    ]  # fmt: skip


def test_what_parameters_do_not_depend_on() -> None:
    def free(cls: type) -> set[str]:
        fields = dataclasses.fields(cls)
        return {f.name for f in fields if f.metadata.get("may_change") == "init_from"}

    assert free(ModelConfig) == {"temperature"}
    assert free(LevelConfig) == {"deadzone"}
    assert free(PyramidTransforms) == {"start_step", "coarse_start_step"}
    for cls in (SwinTransforms, CheckerboardEntropy, RasterEntropy, ScaleGrid):
        assert free(cls) == set()


def test_a_kind_names_one_class() -> None:
    other = type("Other", (SwinTransforms,), {})
    with pytest.raises(ValueError, match=r"^SwinTransforms and Other have the same kind 'swin'$"):
        kinds_of(SwinTransforms, PyramidTransforms, other)
    assert kinds_of(SwinTransforms, SwinTransforms) == {"swin": SwinTransforms}


def test_default_model_is_sixteen_levels() -> None:
    cfg = ModelConfig()
    assert (cfg.num_levels, cfg.num_channels, cfg.levels.num_base_channels) == (16, 208, 160)


def test_the_fast_model_decodes_with_a_quarter_of_the_work() -> None:
    cost = codec_macs_per_pixel(preset("fast").model)
    of_default = codec_macs_per_pixel(preset("default").model)
    assert cost["decode"] < 25_000 < 0.26 * of_default["decode"]
    assert cost["encode"] == of_default["encode"]


def test_the_adversarial_stage_follows_those_of_the_default() -> None:
    default, gan = preset("default"), preset("default_gan")
    assert gan.model == default.model
    assert (default.loss.adversarial_weight, gan.loss.adversarial_weight) == (0, 0.1)
    assert dataclasses.replace(gan.loss, adversarial_weight=0.0) == default.loss
    assert [stage.loss for stage in gan.stages] == [default.stages[0].loss, default.loss]
    assert [gan.stage_at(at) for at in (0.26, 0.28, 0.79, 0.81)] == [0, 1, 1, 2]
    assert gan.discriminator.network == "alexnet"


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="no preset 'best'; there are default, default_gan, f"):
        preset("best")


def test_level_weights() -> None:
    paper = paper_loss()
    assert (paper.lmbda_rate[0], paper.lmbda_dist[0], paper.lmbda_perc[0]) == pytest.approx(
        (2**5.625, 128, 2**4.875)
    )
    assert (paper.lmbda_rate[15], paper.lmbda_dist[15], paper.lmbda_perc[15]) == (1, 2048, 8)
    cfg = preset("default")
    first, second = cfg.stages[0].loss, cfg.loss
    assert (first.lmbda_rate[0], first.lmbda_rate[15]) == pytest.approx((8, 1.25))
    assert (first.lmbda_dist[0], first.lmbda_dist[15]) == pytest.approx((8 * 40, 1.25 * 1100))
    ratios = [b / a for a, b in zip(first.lmbda_dist, first.lmbda_dist[1:], strict=False)]
    assert ratios == pytest.approx([(1375 / 320) ** (1 / 15)] * 15)
    assert (second.lmbda_perc[0], second.lmbda_perc[15]) == pytest.approx((8 * 0.32, 1.25 * 6.6))
    assert preset("smoke").loss.lmbda_perc == (0.0,) * 3


def test_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig has no field 'widhts'; it has \['entropy"):
        from_dict(ModelConfig, {"widhts": 8})
    data = to_dict(preset("smoke"))
    data["loss"]["alpha"] = 1
    with pytest.raises(ValueError, match="LossConfig has no field 'alpha'"):
        from_dict(TrainConfig, data, FAMILIES)


@pytest.mark.parametrize(
    ("cls", "field", "value", "message"),
    [
        (CheckerboardEntropy, "head_width", "8", "int, got '8'"),
        (CheckerboardEntropy, "head_width", 8.0, r"int, got 8\.0"),
        (CheckerboardEntropy, "head_width", True, "int, got True"),
        (CheckerboardEntropy, "head_width", None, "int, got None"),
        (LevelConfig, "deadzone", "0.25", r"float, got '0\.25'"),
        (LevelConfig, "deadzone", False, "float, got False"),
        (ModelConfig, "transforms", 1, "a JSON object, got int"),
        (LevelConfig, "channels", 4, "a list, got 4"),
        (LevelConfig, "channels", [4, "4"], "int, got '4'"),
    ],
)
def test_wrong_types(cls: type, field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{cls.__name__}\.{field} must be {message}$"):
        from_dict(cls, {field: value}, FAMILIES)


def test_wrong_number_of_entries() -> None:
    with pytest.raises(
        ValueError, match=r"PyramidTransforms\.widths must have 4 entries, got \[1\]"
    ):
        from_dict(PyramidTransforms, {"widths": [1]})


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
        (SwinTransforms, {"num_heads": 2**15}),
        (SwinTransforms, {"analysis_widths": (2**15, 256, 256)}),
        (SwinTransforms, {"synthesis_widths": (256, 256, 2**15)}),
        (SwinTransforms, {"mlp_ratio": 65}),
        (PyramidTransforms, {"widths": (8, 8, 8, 2**15)}),
        (RasterEntropy, {"analysis_width": 2**15}),
        (RasterEntropy, {"synthesis_widths": (2**15, 8)}),
        (RasterEntropy, {"head_width": 2**15}),
    ],
)
def test_widths_are_bounded(cls: type, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changes))} is .* at most (16384|64)$"):
        cls(**changes)


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (LevelConfig, {"channels": ()}, r"channels is \(\); it must be a tuple of 1 to 64"),
        (LevelConfig, {"channels": (1,) * 65}, "it must be a tuple of 1 to 64 channel counts"),
        (LevelConfig, {"channels": (2, 0), "refinements": (0, 0)}, r"\(2, 0\).* positive everywh"),
        (LevelConfig, {"channels": (2, 2), "refinements": (0,)}, "2 counts, each at most its lev"),
        (LevelConfig, {"channels": (2, 2), "refinements": (0, 3)}, r"\(0, 3\).*at most its level"),
        (LevelConfig, {"channels": (2, 2), "refinements": (0, -1)}, r"\(0, -1\).*at most its lev"),
        (LevelConfig, {"channels": (2, 2), "refinements": (1, 0)}, "of channels of earlier levels"),
        (
            LevelConfig,
            {"channels": (1, 2, 2), "refinements": (0, 1, 2)},
            r"\(0, 1, 2\); it must be of channels of earlier levels",
        ),
        (
            ScaleGrid,
            {"sigma_min": 0.0},
            r"sigma_min, sigma_max is \(0\.0, 64\.0\); it must be rising, in",
        ),
        (ScaleGrid, {"sigma_min": 70.0}, r"sigma_min, sigma_max is \(70\.0, 64\.0\)"),
        (ScaleGrid, {"sigma_max": 128.0}, r"sigma_min, sigma_max is \(0\.11, 128\.0\)"),
        (
            LevelConfig,
            {"deadzone": 0.5},
            r"LevelConfig\.deadzone is 0\.5; it must be in \[0, 0\.5\)",
        ),
        (
            LevelConfig,
            {"refine_factor": 1},
            r"LevelConfig\.refine_factor is 1; it must be at least 2",
        ),
        (
            LevelConfig,
            {"refine_factor": 65},
            r"refine_factor is 65; it must be at least 2, at most 64",
        ),
        (
            ModelConfig,
            {"temperature": -0.5},
            r"ModelConfig\.temperature is -0\.5; it must be 0 to 16",
        ),
        (LevelConfig, {"channels": (2_000_000_000,)}, r"\(2000000000,\).*16384 in all at most"),
        (LevelConfig, {"channels": (2**13 + 1,) * 2}, "16384 in all at most"),
        (
            CheckerboardEntropy,
            {"hyper_channels": 2**14 + 1},
            r"hyper_channels is 16385; it must be positive, at most 16",
        ),
        (
            CheckerboardEntropy,
            {"head_width": 2**40},
            r"head_width is 1099511627776; it must be positive, at most 16384",
        ),
        (
            ScaleGrid,
            {"num_sigmas": 10**9},
            r"num_sigmas is 1000000000; it must be at least 2, at most 16384",
        ),
        (
            ModelConfig,
            {"temperature": 17.0},
            r"ModelConfig\.temperature is 17\.0; it must be 0 to 16",
        ),
    ],
)
def test_model_validation(cls: type, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**changes)


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
            r"PyramidTransforms\.widths is \(8, 0, 8, 8\); it must be positive, at",
        ),
        ({"start_step": 0.0}, r"PyramidTransforms\.start_step is 0\.0; it must be positive"),
        (
            {"coarse_start_step": -1.0},
            r"PyramidTransforms\.coarse_start_step is -1\.0; it must be positive",
        ),
    ],
)
def test_pyramid_validation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidTransforms(**changes)  # type: ignore[arg-type]


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
            {"loss": preset("default").loss},
            "loss is 'weights for 16 levels'; it must be for 3 levels",
        ),
        (
            {"stages": preset("default").stages},
            r"stages\[0\]\.loss is 'weights for 16 levels'; it must be for 3 levels",
        ),
        (
            {"stages": (Stage(loss=preset("smoke").loss, share=0.5),) * 2},
            "stages is 'shares of 1 together'; it must be less than 1 together",
        ),
        ({"steps_per_dispatch": 3}, r"log_every is 5; it must be a multiple of steps_per_dispatch"),
        ({"minutes": -1.0}, r"TrainConfig\.minutes is -1\.0; it must be at least 0"),
    ],
)
def test_train_validation(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(preset("smoke"), **changes)  # type: ignore[arg-type]
