"""docs/results: tables and plots are those of the CSV files, and those of what eval.py measured."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sic_jax.evaluation import published
from sic_jax.evaluation.bd import bd_rate
from sic_jax.evaluation.means import mean_rows
from sic_jax.evaluation.records import Record, to_json

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "results" / "update.py"
_spec = importlib.util.spec_from_file_location("update", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
update = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(update)


@pytest.mark.parametrize("path", update.texts(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_tables_are_those_of_their_files(path: Path) -> None:
    text = path.read_text()
    assert text.count("<!-- end of table -->") >= 1
    assert update.renewed(text) == text, "run: python docs/results/update.py"


def test_readme_and_cards_have_the_standard_columns_and_the_pages_are_there() -> None:
    columns = "setting bpp psnr ms_ssim lpips lpips_vgg dists wd avif.psnr/lpips"
    readme, *others = update.texts()
    *cards, results, guide = others
    for path in (readme, *cards):
        assert path.read_text().count(f": {columns} -->") == 1
    assert {path.parent.name for path in cards} >= {"pyramid-1", "pyramid-2"}
    assert [path.name for path in (results, guide)] == ["README.md", "evaluate.md"]
    kinds = re.findall(r"<!-- (\w+) kodak-default: (.*) -->", results.read_text())
    names = "psnr ms_ssim lpips lpips_vgg dists wd"
    assert kinds == [("table", f"codec setting bpp {names}"), ("bd", names)]
    assert guide.read_text().count("<!-- published -->") == 1


@pytest.mark.parametrize("file", update.PLOTS)
def test_plots_are_drawn_of_their_files(file: str) -> None:
    name, _ = update.PLOTS[file]
    assert (update.ROOT / file).read_text().endswith(update.stamp(name)), (
        "run: python docs/results/update.py"
    )


def test_one_digit_of_a_file_changes_tables_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (update.ROOT / "README.md").read_text()
    path = update.csv_path("kodak-default")
    name, _ = update.PLOTS["docs/kodak_lpips.svg"]
    before = update.stamp(name)
    results = update.read_results(path)
    row = next(row for row in results.rows if row.setting == 6)
    digits = f"{row.metrics['lpips']:.4f}", f"{row.metrics['lpips'] + 1e-4:.4f}"
    row.metrics["lpips"] += 1e-4
    monkeypatch.setattr(update, "HERE", tmp_path)
    update.csv_path("kodak-default").write_text(update.to_text(results))
    old, new = readme.splitlines(), update.renewed(readme).splitlines()
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    ((a, b),) = changed
    assert (a.replace(*digits), "| 6 | " in a) == (b, True)
    assert update.stamp(name) != before


def test_a_change_of_published_curves_changes_the_stamp_of_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = update.stamp("kodak-default")
    changed = tmp_path / "published.json"
    changed.write_bytes(update.PUBLISHED_FILE.read_bytes())
    monkeypatch.setattr(update, "PUBLISHED_FILE", changed)
    assert update.stamp("kodak-default") == before
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert update.stamp("kodak-default") != before


def test_every_file_is_read_and_written_the_same() -> None:
    files = sorted(SCRIPT.parent.glob("*.csv"))
    assert files
    for path in files:
        results = update.read_results(path)
        assert update.to_text(results) == path.read_text()
        about = {line.partition(":")[0] for line in results.about}
        assert about >= {"command", "revision", "images", results.rows[0].codec}
        assert f"images: {results.rows[0].num_images}" in results.about


def record(image: str, codec: str, setting: float, bpp: float, **metrics: float) -> Record:
    fixed: dict[str, Any] = {"height": 8, "width": 8, "num_bytes": 8, "samples": 1, "spread": {}}
    fixed |= {"encode_s": 1.0, "decode_s": 2.0, "timed_with": "", "file": "f", "file_id": ""}
    return Record(image=f"/here/{image}.png", image_id=image, codec=codec, setting=setting,
                  options=f"how {codec} works", bpp=bpp, bpp_est=0.9 * bpp, metrics=metrics,
                  **fixed)  # fmt: skip


def folder(path: Path, records: list[Record], **about: object) -> Path:
    known: dict[str, Any] = {
        "bundle": None,
        "device": "cpu",
        "versions": {"jax": "1"},
        "errors": [],
    }
    known |= {"command": "python eval.py --images /here/kodak", "revision": "abc"}
    path.mkdir()
    content = {**known, **about, "records": [to_json(r) for r in records]}
    (path / "results.json").write_text(json.dumps(content))
    return path


SIC = [
    record("a", "sic", 1, 0.1, psnr=20.0, lpips=0.3),
    record("a", "sic", 2, 0.4, psnr=30.0, lpips=0.1234567),
    record("b", "sic", 1, 0.3, psnr=22.0, lpips=0.5),
    record("b", "sic", 2, 0.6, psnr=31.0, lpips=0.1),
]
AVIF = [
    record("a", "avif", 10, 0.25, psnr=26.0),
    record("a", "avif", 20, 1.0, psnr=30.0),
    record("b", "avif", 10, 0.25, psnr=28.0),
    record("b", "avif", 20, 1.0, psnr=32.0),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a text and a plot, where the script writes."""
    home = tmp_path / "checkout"
    (home / "docs" / "results").mkdir(parents=True)
    monkeypatch.setattr(update, "ROOT", home)
    monkeypatch.setattr(update, "HERE", home / "docs" / "results")
    (home / "README.md").write_text(
        "Before\n<!-- table x: setting bpp lpips avif.psnr/bpp_est -->\n| old |\n"
        "<!-- end of table -->\nAfter\n"
    )
    monkeypatch.setattr(update, "PLOTS", {"docs/plot.svg": ("x", "psnr")})
    (home / "docs" / "plot.svg").write_text("<svg></svg>\n")
    return home


def test_what_runs_left_becomes_data_table_and_plot(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        folder(tmp_path / "one", SIC, bundle="/here/pyramid-9"),
        folder(tmp_path / "two", AVIF, command=None, revision=None),
    ]
    command = "python eval.py --out /there/two"
    arguments = ["x", *map(str, folders), "--command", command, "--revision", "def"]
    assert update.main(arguments) == 0
    assert capsys.readouterr().out.split() == ["docs/results/x.csv", "README.md", "docs/plot.svg"]
    assert (here / "docs" / "results" / "x.csv").read_text() == (
        "# command: python eval.py --images kodak\n# revision: abc\n"
        "# sic: bundle pyramid-9, how sic works\n# on: cpu, jax 1\n"
        "# command: python eval.py --out two\n# revision: def\n"
        "# avif: how avif works\n# on: cpu, jax 1\n# images: 2\n# size: 8x8\n"
        "codec,setting,num_images,bpp,bpp_est,psnr,lpips\n"
        "sic,1,2,0.2,0.18,21,0.4\nsic,2,2,0.5,0.45,30.5,0.111728\n"
        "avif,10,2,0.25,0.225,27,\navif,20,2,1,0.9,31,\n"
    )
    # 0.5 bpp is half way from 0.25 to 1 in logarithms; at 0.2 bpp AVIF has no value.
    assert (here / "README.md").read_text() == (
        "Before\n<!-- table x: setting bpp lpips avif.psnr/bpp_est -->\n"
        "| level | bpp | LPIPS | AVIF: PSNR / bpp_est |\n| --- | --- | --- | --- |\n"
        "| 1 | 0.2000 | 0.4000 | - |\n| 2 | 0.5000 | 0.1117 | 29.00 / - |\n"
        "<!-- end of table -->\nAfter\n"
    )
    plot = (here / "docs" / "plot.svg").read_text()
    assert ">sic</text>" in plot
    assert ">avif</text>" in plot
    assert plot.endswith(update.stamp("x"))
    assert update.main([]) == 0
    assert capsys.readouterr().out == ""  # All is up to date.
    found = update.read_results(here / "docs" / "results" / "x.csv").rows
    assert [(r.codec, r.bpp) for r in found] == [
        (r.codec, pytest.approx(r.bpp)) for r in mean_rows(SIC + AVIF)
    ]


@pytest.mark.parametrize(
    ("about", "records", "message"),
    [
        ({"command": None}, AVIF, "results.json holds no command: give --command"),
        ({"errors": [{"image": "c"}]}, AVIF, "1 images failed"),
        ({}, AVIF[:2], "other images than those of"),
        ({}, SIC, "the codec 'sic' is in another folder, too"),
        ({}, [r._replace(codec="webp") for r in AVIF], "table x: x.csv: no codec 'avif', but sic"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    about: dict[str, Any],
    records: list[Record],
    message: str,
    here: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [folder(tmp_path / "one", SIC), folder(tmp_path / "two", records, **about)]
    text = (here / "README.md").read_text()
    assert update.main(["x", *map(str, folders)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("update.py: error: ")
    assert message in line
    assert (here / "README.md").read_text() == text


def test_tables_of_all_codecs_and_of_bd_rates(here: Path, tmp_path: Path) -> None:
    (here / "README.md").write_text(
        "<!-- table x: codec setting bpp psnr wd -->\n<!-- end of table -->\n\n"
        "<!-- bd x: psnr lpips -->\n<!-- end of table -->\n"
    )
    values: list[Any] = [r.metrics["psnr"] for r in AVIF]
    webp = [r._replace(codec="webp", metrics={"psnr": value - 9.9})
            for r, value in zip(AVIF, values, strict=True)]  # fmt: skip
    folders = [folder(tmp_path / name, records)
               for name, records in (("one", SIC), ("two", AVIF), ("three", webp))]  # fmt: skip
    assert update.main(["x", *map(str, folders)]) == 0
    # The means: sic 21 to 30.5 dB, avif 27 to 31, webp 17.1 to 21.1, which is a hundredth of 9.5.
    rate = bd_rate([(0.25, 27.0), (1.0, 31.0)], [(0.2, 21.0), (0.5, 30.5)], higher_is_better=True)
    assert (rate.low, rate.high) == (27, 30.5)
    assert (here / "README.md").read_text() == (
        "<!-- table x: codec setting bpp psnr wd -->\n"
        "| codec | setting | bpp | PSNR | WD |\n| --- | --- | --- | --- | --- |\n"
        "| sic | 1 | 0.2000 | 21.00 | - |\n| sic | 2 | 0.5000 | 30.50 | - |\n"
        "| avif | 10 | 0.2500 | 27.00 | - |\n| avif | 20 | 1.0000 | 31.00 | - |\n"
        "| webp | 10 | 0.2500 | 17.10 | - |\n| webp | 20 | 1.0000 | 21.10 | - |\n"
        "<!-- end of table -->\n\n<!-- bd x: psnr lpips -->\n"
        "| against | PSNR | LPIPS |\n| --- | --- | --- |\n"
        f"| avif | {rate.value:+.1f} % | - |\n<!-- end of table -->\n"
    )
    with pytest.raises(ValueError, match=r"bd x: x\.csv: no metric 'vmaf'"):
        update.renewed((here / "README.md").read_text().replace("psnr lpips", "vmaf"))


def test_published_curves_are_those_of_pictures_of_the_same_size(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = json.loads(published.PUBLISHED_FILE.read_text())
    (ours,) = (curve for curve in stored["curves"] if curve["name"] == "MS-ILLM")
    stored["curves"] += [{**ours, "name": "of crops", "size": "512x512"}]
    stored["num_images"] = 2
    (tmp_path / "published.json").write_text(json.dumps(stored))
    monkeypatch.setattr(published, "PUBLISHED_FILE", tmp_path / "published.json")
    names = {"MS-ILLM, published", "of crops, published"}
    for height, width, found in (
        (512, 768, {"MS-ILLM, published"}),
        (768, 512, {"MS-ILLM, published"}),
        (512, 512, {"of crops, published"}),
        (8, 8, set()),
    ):
        records = [r._replace(height=height, width=width) for r in SIC]
        results = update.results_of_runs([folder(tmp_path / f"{height}x{width}", records)])
        update.csv_path("x").write_text(update.to_text(results))
        plot = update.draw("x", "lpips")
        assert {name for name in names if f">{name}</text>" in plot} == found
        assert ("; dashed: published" in plot) == bool(found)
        table = update.to_bd_table(results, ["lpips"])
        assert {name for name in names if f"| {name} |" in table} == found
    without = update.Results(results.about[:-1], results.rows)
    update.csv_path("x").write_text(update.to_text(without))
    with pytest.raises(ValueError, match="0 lines 'size: '"):
        update.draw("x", "lpips")


def test_a_table_without_data_or_end_is_an_error(here: Path) -> None:
    shutil.copy(SCRIPT.parent / "kodak-pyramid-1.csv", here / "docs" / "results" / "x.csv")
    text = (here / "README.md").read_text()
    assert "| 16 | 0.6856 | 0.0338 | 34.35 / - |" in update.renewed(text)
    with pytest.raises(ValueError, match=r"x\.csv: no column 'vmaf'"):
        update.renewed(text.replace("lpips", "vmaf"))
    # A metric that was not measured.
    assert "| 16 | 0.6856 | - | 34.35 / - |" in update.renewed(text.replace("lpips", "wd"))
    with pytest.raises(ValueError, match="not the first line of a table: <!-- table -->"):
        update.renewed(text.replace("table x: setting bpp lpips avif.psnr/bpp_est", "table"))
    with pytest.raises(ValueError, match="without <!-- end of table -->"):
        update.renewed(text.replace("<!-- end", "<!-- the end"))
    with pytest.raises(OSError, match=r"y\.csv"):
        update.renewed(text.replace("table x", "table y"))
