"""The command line of train.py, and the presets."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sic_jax.cli.config_flags import flag_groups
from sic_jax.cli.train import main, parse
from sic_jax.fields import to_dict
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.model.transforms.swin import SwinTransforms
from sic_jax.training.presets import PRESETS, preset
from sic_jax.training.train_config import Stage, TrainConfig, used_kinds


def flags(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Every field of a config as a flag with its value; of a family, first the one of its kind."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flags(value, f"{prefix}{name}.")
        elif name == "kind":
            yield f"--{prefix}".replace("_", "-").rstrip("."), [value]
        else:
            values = value if isinstance(value, tuple) else (value,)
            yield f"--{prefix}{name}".replace("_", "-"), [str(v) for v in values]


RUN = ["--data", "images", "--workdir", "run"]


def test_every_field_is_a_flag(tiny_run: TrainConfig) -> None:
    every = list(flags(to_dict(tiny_run)))
    assert len({flag for flag, _ in every}) == len(every) > 60
    argv = [word for flag, values in every for word in (flag, *values)]
    # The values of `smoke`, all of them on the command line of another preset.
    cfg, args = parse(["default", *RUN, *argv])
    assert cfg == tiny_run
    assert (args.data, args.workdir, args.init_from, args.export) == ("images", "run", None, None)


def test_flags_override_the_preset(tiny_run: TrainConfig) -> None:
    assert parse(["smoke", *RUN])[0] == tiny_run
    words = (
        "--steps 7 --learning-rate 1e-2 --loss.lmbda-perc 0 1 2.5 --model.transforms.widths 2 3 4 5"
    )
    cfg, _ = parse(["smoke", *RUN, *words.split(), "--compute-dtype", "bfloat16"])
    assert (cfg.steps, cfg.learning_rate, cfg.compute_dtype) == (7, 0.01, "bfloat16")
    assert cfg.loss.lmbda_perc == (0.0, 1.0, 2.5)
    assert isinstance(tiny_run.model.transforms, PyramidTransforms)
    assert cfg.model.transforms == dataclasses.replace(
        tiny_run.model.transforms, widths=(2, 3, 4, 5)
    )
    assert cfg.loss.lmbda_rate == tiny_run.loss.lmbda_rate
    words = "--model.transforms swin --model.transforms.window 4 --model.transforms.num-heads 2"
    words += " --model.transforms.analysis-depths 1 1 0 2 --model.levels.channels 4 4 4"
    swin = parse(["smoke", *RUN, *words.split()])[0].model.transforms
    assert swin == SwinTransforms(window=4, num_heads=2, analysis_depths=(1, 1, 0, 2))
    assert swin.synthesis_depths == (3, 2, 2, 1)


@pytest.mark.parametrize("argv", [["--help"], ["smoke", "--help"]])
def test_help_explains_every_flag(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(argv)
    assert info.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    cfg = preset("default" if len(argv) == 1 else argv[0])
    for group in flag_groups(cfg, argv, used_kinds(cfg)):
        for flag in group.flags:
            assert flag.help, f"{flag.field} has no docstring"
            assert f" {flag.option} " in shown
    assert f"Images per step, over all devices of all hosts. (default: {cfg.batch_size})" in shown
    assert "`skip` counts the step and goes on. (default: stop)" in shown


def test_fields_that_may_change_when_a_run_is_resumed(tiny_run: TrainConfig) -> None:
    def names(config: Any, prefix: str = "") -> Iterator[str]:
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.metadata.get("may_change") == "resume":
                yield f"{prefix}{field.name}"
            if dataclasses.is_dataclass(value):
                yield from names(value, f"{prefix}{field.name}.")

    assert " ".join(sorted(names(tiny_run))) == (
        "accumulate data.prefetch data.workers fsdp keep_last log_every non_finite parallel remat "
        "save_every steps_per_dispatch validation_every validation_images validation_levels"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--workdir", "smoke", "default"],
            "smoke is a preset's name too: give the preset d",
        ),
        (["--steps", "3"], "the following arguments are required: preset"),
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
    with pytest.raises(SystemExit, match=r"^train.py: error: .*widths must have 4 entr"):
        main(["smoke", *RUN, "--model.transforms.widths", "1"])
    with pytest.raises(SystemExit, match=r"^train.py: error: data folder '.*none' does not exist"):
        main(["smoke", "--data", str(tmp_path / "none"), "--workdir", str(tmp_path)])


def test_stages_are_json(tiny_run: TrainConfig) -> None:
    stage = Stage(loss=dataclasses.replace(tiny_run.loss, temperature=0.5), share=0.25)
    words = ["smoke", *RUN, "--stages", json.dumps(to_dict(stage))]
    assert parse(words)[0] == dataclasses.replace(tiny_run, stages=(stage,))
    assert parse([*words, "--init-from", "default"])[0] == tiny_run
    assert parse(["default", *RUN, "--stages"])[0].stages == ()
    with pytest.raises(ValueError, match=r"Stage has no field 'lenght'"):
        parse([*words[:-1], '{"lenght": 1}'])


def test_stages_that_are_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["smoke", *RUN, "--stages", "{half"])
    assert "argument --stages: '{half' is no JSON" in capsys.readouterr().err


def test_switches(tiny_run: TrainConfig) -> None:
    for words, value in (([], True), (["true"], True), (["false"], False)):
        cfg, _ = parse(["smoke", *RUN, "--remat", *words])
        assert cfg == dataclasses.replace(tiny_run, remat=value)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_lab_notes(name: str) -> None:
    cfg = preset(name)
    notes = PRESETS[name].__doc__
    assert notes is not None
    for part in ("Source: ", f"Command: python train.py {name} --data", "Hardware"):
        assert part in notes
    words = notes[notes.index("train.py") :].split("    - Hardware")[0].split()
    assert parse(words[1:])[0] == cfg


def test_the_paper_s_stages() -> None:
    warmup, main_stage, gan = preset("paper_warmup"), preset("paper"), preset("paper_gan")
    # 2048 MSE + 8 LPIPS + bpp at level 16, in all of them.
    for cfg in (warmup, main_stage, gan):
        loss = cfg.loss
        assert (loss.lmbda_dist[15], loss.lmbda_perc[15], loss.lmbda_rate[15]) == (2048, 8, 1)
        assert loss.lmbda_rate[0] == pytest.approx(2 ** (6 - 3 / 8))
        assert (cfg.crop_size, cfg.clip_norm, cfg.learning_rate) == (256, 0.5, 1e-4)
        assert (cfg.decay, cfg.ema_decay, cfg.data.flip, cfg.data.transpose) == (
            "constant", 0, False, 0,
        )  # fmt: skip
        assert loss.clamp
    assert (warmup.loss.full_share, warmup.loss.lmbda_balance) == (1, 1)
    assert (main_stage.loss.levels, main_stage.loss.lmbda_consistency) == ("cyclic", 1)
    assert (main_stage.loss.adversarial_weight, gan.loss.adversarial_weight) == (0, 1)
    assert dataclasses.replace(gan.loss, adversarial_weight=0.0) == main_stage.loss


def test_dry_run(tiny_run: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    main(["smoke", "--dry-run", "--batch-size", "4"])
    told = json.loads(capsys.readouterr().out)
    assert told["config"] == json.loads(
        json.dumps(to_dict(dataclasses.replace(tiny_run, batch_size=4)))
    )
    parameters = told["parameters"]
    assert parameters["total"] == 25752 == sum(v for k, v in parameters.items() if k != "total")
    # Parameters, their average and two moments, four bytes each.
    assert told["memory_gb"]["state"] == pytest.approx(16 * 25752 / 1e9, abs=6e-4)
    assert told["kmac_per_pixel"] > 1
    assert told["gmac_per_step"] == pytest.approx(
        told["kmac_per_pixel"] * 1e3 * 4 * 64 * 64 / 1e9, abs=1e-3
    )


def test_dry_run_of_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    main(["smoke", "--dry-run"])
    whole = json.loads(capsys.readouterr().out)
    main(["smoke", "--dry-run", "--train-only", "g_s/Conv_0", "g_s/linear"])
    part = json.loads(capsys.readouterr().out)
    assert part["config"]["train_only"] == ["g_s/Conv_0", "g_s/linear"]
    assert part["parameters"] == whole["parameters"]
    assert part["kmac_per_pixel"] < 0.7 * whole["kmac_per_pixel"]
