"""The blind test: which pairs it shows, what its page holds and hides, and its scores."""

import base64
import io
import itertools
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sic_jax.cli.evaluate import main
from sic_jax.evaluation import survey
from sic_jax.evaluation.codecs import ImageCodec
from sic_jax.evaluation.records import Record, key_of
from sic_jax.evaluation.survey import MAX_RATIO, Pair, choose_pairs, write_survey

NODE = shutil.which("node")
SCORES = Path(survey.__file__).parent / "survey_scores.js"


def record(image: str, codec: str, setting: float, bpp: float) -> Record:
    return Record(image, image, codec, "", setting, "", "", 8, 8, 8, bpp, None, 1, None, None, None,
                  {}, {})  # fmt: skip


MANY = [
    record(image, codec, setting, shift * 1.3**setting)
    for image in "abcd"
    for codec, shift in (("x", 0.1), ("y", 0.105), ("z", 0.095))
    for setting in range(6)
]


def test_pairs_are_of_two_codecs_at_equal_rate_and_spread_over_codecs_and_images() -> None:
    pairs = choose_pairs(MANY, 24, seed=0)
    assert len({(pair.first.image, *map(key_of, pair)) for pair in pairs}) == 24
    for first, second in pairs:
        assert first.image == second.image
        assert first.codec != second.codec
        # 0.105 / 0.095 is 1.105: only pairs with x, at the same setting, are within 10 %.
        assert "x" in {first.codec, second.codec}
        assert first.setting == second.setting
        assert max(first.bpp, second.bpp) <= MAX_RATIO * min(first.bpp, second.bpp)
    assert Counter(second.codec for _, second in pairs) == {"y": 12, "z": 12}
    assert set(Counter((second.codec, second.image) for _, second in pairs).values()) == {3}
    assert choose_pairs(MANY, 24, seed=0) == pairs
    assert choose_pairs(MANY, 24, seed=1) != pairs
    assert len(choose_pairs(MANY, 1000, seed=0)) == 2 * 4 * 6
    assert len(choose_pairs(MANY, 1, seed=0)) == 1


def test_without_a_pair_a_clear_message() -> None:
    far = [record("a", "x", 1, 0.1), record("a", "y", 1, 0.1101), record("b", "y", 1, 0.1)]
    with pytest.raises(ValueError, match="no image has files of two codecs whose sizes are within"):
        choose_pairs(far, 5, seed=0)
    near = [record("a", "x", 1, 0.1), record("a", "y", 1, 0.1099)]
    assert choose_pairs(near, 5, seed=0) == [tuple(near)]


def test_pairs_that_do_not_differ_are_left_out_and_others_take_their_place() -> None:
    same = {("y", image, 3) for image in "abcd"} | {("z", "a", setting) for setting in range(6)}

    def differ(pair: Pair) -> bool:
        return (pair.second.codec, pair.second.image, pair.second.setting) not in same

    pairs = choose_pairs(MANY, 12, 0, differ)
    assert all(map(differ, pairs))
    assert Counter(second.codec for _, second in pairs) == {"y": 6, "z": 6}
    assert len(choose_pairs(MANY, 1000, 0, differ)) == 2 * 4 * 6 - len(same)
    with pytest.raises(ValueError, match="and whose pictures differ"):
        choose_pairs(MANY, 12, 0, lambda pair: False)


def test_a_page_has_no_pair_of_equal_pixels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    (tmp_path / "f").write_bytes(b"")

    def codec(name: str, shift: int) -> ImageCodec:
        return ImageCodec(name, (1,), "", lambda image, _: b"", lambda data, _: x ^ np.uint8(shift))

    codecs = [codec("p", 1), codec("q", 1), codec("r", 2)]
    records = [record(str(tmp_path / "x.png"), c.name, 1, 0.1)._replace(file="f") for c in codecs]
    assert write_survey(records, codecs, 9, 0, tmp_path) == 2
    content = content_of((tmp_path / "survey.html").read_text())
    key = json.loads(base64.b64decode(content["key"]))
    found = {tuple(key["codecs"][k] for k in pair["codecs"]) for pair in key["pairs"]}
    assert found == {("p", "r"), ("q", "r")}
    assert len(content["pictures"]) == 3  # The original, that of p and q, that of r.
    with pytest.raises(ValueError, match="and whose pictures differ"):
        write_survey(records[:2], codecs, 9, 0, tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run with a blind test, and the command that made it."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        noise = Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8))
        noise.resize((56, 48), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    qualities = ",".join(map(str, range(5, 100, 6)))
    command = ["--images", *(str(folder / f"{n}.png") for n in ("one", "two")), "--codecs", "jpeg",
               "webp", "--qualities", f"jpeg={qualities}", f"webp={qualities}", "--metrics", "psnr",
               "--show", "--out", str(folder / "out")]  # fmt: skip
    assert main([*command, "--survey", "6"]) == 0
    return folder / "out", command


def content_of(text: str) -> dict[str, Any]:
    (data,) = re.findall('<script type="application/json" id="survey">(.*?)</script>', text)
    out: dict[str, Any] = json.loads(data)
    return out


def test_the_page_holds_pairs_and_hides_names(page: tuple[Path, list[str]]) -> None:
    out, _ = page
    text = (out / "survey.html").read_text()
    content = content_of(text)
    key = json.loads(base64.b64decode(content["key"]))
    assert key["codecs"] == ["jpeg", "webp"]
    assert len(content["pairs"]) == len(key["pairs"]) == 6
    lines = (out / "records.jsonl").read_text().splitlines()
    records = {(Path(r["image"]).name, r["codec"], r["setting"]): r for r in map(json.loads, lines)}
    pictures = []
    for uri in content["pictures"]:
        kind, _, data = uri.partition(";base64,")
        assert kind == "data:image/webp"
        pictures.append(np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")))
    for shown, secret in zip(content["pairs"], key["pairs"], strict=True):
        with Image.open(out.parent / secret["image"]) as image:
            assert np.array_equal(pictures[shown["original"]], np.array(image))
        low, high = sorted(secret["bpp"])
        assert high <= MAX_RATIO * low
        assert sorted(secret["codecs"]) == [0, 1]
        for k, side in enumerate(("first", "second")):
            name, setting = key["codecs"][secret["codecs"][k]], secret["settings"][k]
            found = records[secret["image"], name, setting]
            assert found["bpp"] == pytest.approx(secret["bpp"][k], abs=1e-5)
            with Image.open(out / found["file"]) as image:
                assert np.array_equal(pictures[shown[side]], np.array(image.convert("RGB")))
    assert (
        len(pictures)
        == len(set(content["pictures"]))
        == 2 + len({s[side] for s in content["pairs"] for side in ("first", "second")})
    )
    # One file, and no word of codecs, images or settings outside of the pictures and the key.
    open_text = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(src|href)=\"[^#\"]", open_text)
    assert "http" not in open_text
    open_text = open_text.replace(content["key"], "")
    for word in ("jpeg", "webp", "sic", "one.png", "two.png"):
        assert not re.search(rf"\b{re.escape(word)}\b", open_text, re.IGNORECASE)
    assert "prefers-color-scheme: dark" in text
    assert [file.name for file in out.glob("*survey*")] == ["survey.html"]


def test_the_page_is_fixed_by_its_seed_and_goes_with_the_option(
    page: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, command = page
    before = (out / "survey.html").read_bytes()
    assert main([*command, "--survey", "6"]) == 0
    assert (out / "survey.html").read_bytes() == before
    assert "blind test of 6 pairs" in capsys.readouterr().err
    assert main([*command, "--survey", "6", "--survey-seed", "1"]) == 0
    other = content_of((out / "survey.html").read_text())
    assert other["id"] != content_of(before.decode())["id"]
    assert main(command) == 0
    assert not (out / "survey.html").exists()
    (out / "survey.html").write_bytes(before)  # For the other tests.


def test_errors_are_one_line_and_the_report_is_there(
    page: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, command = page
    image = command[1]
    base = ["--images", image, "--metrics", "psnr", "--show", "--out", str(tmp_path / "out")]
    far = ["--codecs", "jpeg", "webp", "--qualities", "jpeg=95", "webp=1", "--survey"]
    assert main([*base, *far]) == 1
    assert "eval.py: error: --survey: no image has files" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "survey.html").exists()
    for wrong, message in (
        (["--codecs", "jpeg", "--survey"], "this run has only jpeg"),
        (["--codecs", "jpeg", "webp", "--survey", "0"], "need at least 1 pair, got 0"),
        (["--codecs", "jpeg", "webp", "--survey", "--survey-seed=-1"], "at least 0, got -1"),
    ):
        assert main([*base, *wrong]) == 1
        assert message in capsys.readouterr().err


def in_node(expression: str) -> Any:
    """The value of an expression that uses the page's functions."""
    assert NODE is not None
    script = f"{SCORES.read_text()}\nconsole.log(JSON.stringify({expression}))"
    done = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def votes(*counts: tuple[int, int, float, int]) -> str:
    flat = [
        {"first": first, "second": second, "result": result}
        for first, second, result, count in counts
        for _ in range(count)
    ]
    return json.dumps(flat)


needs_node = pytest.mark.skipif(NODE is None, reason="needs node, to run the page's functions")


@needs_node
def test_scores_of_two_codecs_are_the_log_odds() -> None:
    # 9 wins, 2 losses and 2 ties are 10 of 13.
    found = in_node(
        f"eloScores(2, {votes((0, 1, 1, 4), (1, 0, 0, 5), (0, 1, 0, 2), (1, 0, 0.5, 2))})"
    )
    assert found["imagined"] is False
    first, second = found["scores"]
    assert first["elo"] - second["elo"] == pytest.approx(400 * math.log10(10 / 3))
    assert first["elo"] + second["elo"] == pytest.approx(3000)
    assert (first["codec"], first["won"], first["lost"], first["tied"]) == (0, 9, 2, 2)
    assert (second["codec"], second["won"], second["lost"], second["tied"]) == (1, 2, 9, 2)
    # The difference has the variance 1 / (n p q); each score is half of it from the mean.
    deviation = 400 / math.log(10) / math.sqrt(13 * (10 / 13) * (3 / 13)) / 2
    assert [first["half"], second["half"]] == pytest.approx([1.96 * deviation] * 2)


@needs_node
def test_scores_of_counts_that_follow_the_model_are_its_strengths() -> None:
    # Strengths 4, 2, 1: 2 to 1, 2 to 1 and 4 to 1.
    counts = votes(
        (0, 1, 1, 10), (0, 1, 0, 5), (1, 2, 1, 10), (1, 2, 0, 5), (0, 2, 1, 12), (2, 0, 1, 3)
    )  # fmt: skip
    found = in_node(f"eloScores(4, {counts})")
    unit = 400 * math.log10(2)
    assert [(s["codec"], s["elo"]) for s in found["scores"]] == [
        (0, pytest.approx(1500 + unit)), (1, pytest.approx(1500)), (2, pytest.approx(1500 - unit))
    ]  # fmt: skip
    # Intervals by the pseudo-inverse of the Fisher information.
    fisher = np.zeros((3, 3))
    for i, j in itertools.combinations(range(3), 2):
        p = 2.0 ** (j - i) / (1 + 2.0 ** (j - i))
        fisher[i, i] += 15 * p * (1 - p)
        fisher[j, j] += 15 * p * (1 - p)
        fisher[i, j] = fisher[j, i] = -15 * p * (1 - p)
    deviations = 400 / math.log(10) * np.sqrt(np.diag(np.linalg.pinv(fisher)))
    assert [s["half"] for s in found["scores"]] == pytest.approx(1.96 * deviations)


@needs_node
def test_scores_are_finite_or_there_is_a_reason() -> None:
    found = in_node(f"eloScores(2, {votes((0, 1, 1, 3))})")
    assert found["imagined"] is True  # 3 wins and a tie: 3.5 to 0.5.
    first, second = found["scores"]
    assert first["elo"] - second["elo"] == pytest.approx(400 * math.log10(7))
    assert (first["won"], first["lost"], first["tied"]) == (3, 0, 0)
    # A circle has a maximum: all are equal.
    found = in_node(f"eloScores(3, {votes((0, 1, 1, 2), (1, 2, 1, 2), (2, 0, 1, 2))})")
    assert found["imagined"] is False
    assert [s["elo"] for s in found["scores"]] == pytest.approx([1500] * 3)
    # A far one: 999 to 1.
    found = in_node(f"eloScores(2, {votes((0, 1, 1, 999), (0, 1, 0, 1))})")
    assert found["scores"][0]["elo"] - 1500 == pytest.approx(200 * math.log10(999))
    assert "no choice" in in_node("eloScores(2, [])")["reason"]
    apart = in_node(f"eloScores(4, {votes((0, 1, 0.5, 2), (2, 3, 0.5, 2))})")
    assert "Not all codecs were compared" in apart["reason"]
    # A chain of 40, each 1e15 times as strong as the next: too far for 500 rounds.
    chain = json.dumps([{"first": k, "second": k + 1, "result": 1 - 1e-15} for k in range(39)])
    assert "could not be computed" in in_node(f"eloScores(40, {chain})")["reason"]


@needs_node
def test_orders_are_permutations_and_sides_are_even() -> None:
    orders = in_node("[0, 1, 2, 4294967295].map((seed) => drawOrder(20, seed))")
    for order in orders:
        assert sorted(step["pair"] for step in order) == list(range(20))
    assert len({json.dumps(order) for order in orders}) == 4
    assert orders[1] == in_node("drawOrder(20, 1)")
    # Over 2000 seeds: sides and first places as often as chance has it, within 5 deviations.
    drawn = in_node(
        "[...Array(2000).keys()].map((seed) => drawOrder(4, seed * 7919))"
        ".map((order) => [order[0].pair, order.filter((step) => step.swapped).length])"
    )
    assert sum(swapped for _, swapped in drawn) == pytest.approx(4000, abs=5 * math.sqrt(2000))
    for pair, count in Counter(pair for pair, _ in drawn).items():
        assert count == pytest.approx(500, abs=5 * math.sqrt(2000 * 3 / 16)), pair
