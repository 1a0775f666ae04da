"""What docs/guide/evaluate.md says is true: its commands parse, its numbers are the code's."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from sic_jax.cli import evaluate
from sic_jax.cli.option_flags import options_of
from sic_jax.codec.options import DecodeOptions
from sic_jax.evaluation.baselines import external_codec
from sic_jax.metrics.frechet import patches
from sic_jax.metrics.inception import INPUT_SIDE, NUM_FEATURES
from sic_jax.metrics.table import METRICS
from sic_jax.metrics.vgg import STAGE_CHANNELS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "evaluate.md"
TEXT = PAGE.read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_command_line_parses(line: str) -> None:
    python, program, *arguments = shlex.split(line)
    assert (python, program) == ("python", "eval.py")
    args = evaluate.parse(arguments)
    assert args.fid_patch in (None, 64)
    assert options_of(args, DecodeOptions) == DecodeOptions()
    for text in args.external:
        name, _, template = text.partition("=")
        assert args.qualities == [f"{name}=10,30,50"]
        # All that is wrong with it is that there is no such program.
        with pytest.raises(ValueError, match=f"{name}: the commands do not code .* 'enc'"):
            external_codec(name, template, [10, 30, 50])


def test_every_flag_of_the_page_is_in_a_command() -> None:
    assert len(COMMANDS) == 5
    flags = {word for line in COMMANDS for word in line.split() if word.startswith("--")}
    assert flags >= {"--fid-weights", "--fid-patch", "--vgg-frechet", "--external", "--metrics"}
    assert evaluate.parse(["--images", "x", "--out", "y", "--survey"]).survey == 20


def test_every_metric_is_explained() -> None:
    found = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(found) == sorted(metric.name for metric in METRICS)


def test_numbers_of_patches_and_features() -> None:
    picture = np.zeros((512, 768, 3), np.uint8)
    assert "6 + 2 patches of 256 pixels, so the 24 have 192" in TEXT
    assert 24 * len(patches(picture)) == 24 * (6 + 2) == 192
    assert "96 + 77 a picture, 4152 in all" in TEXT
    assert 24 * len(patches(picture, size=64)) == 24 * (96 + 77) == 4152
    assert f"{INPUT_SIDE} pixels itself" in TEXT
    assert f"covariance of its {NUM_FEATURES} features" in TEXT
    assert f"the {STAGE_CHANNELS[-1]} features of VGG16's last stage" in TEXT


def test_links_lead_somewhere() -> None:
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", TEXT) if not t.startswith("https://")]
    assert len(targets) >= 3
    assert [t for t in targets if not (PAGE.parent / t.partition("#")[0]).is_file()] == []
    results = (PAGE.parents[1] / "results" / "README.md").read_text()
    assert "(../guide/evaluate.md#published-curves)" in results
    assert "\n## Published curves\n" in TEXT
