"""Reports: means and comparisons by hand, files that others read, plots and the page."""

import csv
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli.evaluate import main
from sic_jax.evaluation import published as published_module
from sic_jax.evaluation.baselines import pillow_codec
from sic_jax.evaluation.bd import bd_rate
from sic_jax.evaluation.codecs import ImageCodec
from sic_jax.evaluation.means import (
    Curve,
    Row,
    curves_of,
    interpolate,
    mean_rows,
    rows_at_equal_rate,
)
from sic_jax.evaluation.pictures import choose_crop, choose_images, nearest_rate, to_data_uri
from sic_jax.evaluation.plots import draw_plot
from sic_jax.evaluation.published import CROPS, WHOLE, load_published, protocol_cells
from sic_jax.evaluation.records import Record
from sic_jax.evaluation.report import ReportOptions, write_report
from sic_jax.evaluation.run import Failure, Measured
from sic_jax.evaluation.summary import (
    BD_COLUMNS,
    bd_cells,
    bd_rows,
    formatted,
    summary_cells,
    summary_columns,
    to_compressai,
    to_markdown,
)
from sic_jax.metrics.table import METRICS, Metric

ANCHORS = Path(__file__).resolve().parents[2] / "shared" / "anchors"
PSNR = METRICS[0]
USUAL = tuple(metric for metric in METRICS if metric.default)


def record(
    image: str, codec: str, setting: float, bpp: float, psnr: float | None, **other: Any
) -> Record:
    fixed = {"height": 8, "width": 8, "num_bytes": 8, "bpp_est": None, "samples": 1}
    metrics = {"psnr": psnr, "ms_ssim": 0.5, "lpips": other.pop("lpips", 0.25)}
    times = {"encode_s": 1.0, "decode_s": 2.0, "timed_with": "", "spread": {}}
    names = {"image_id": image, "options": "", "file": f"{setting}.{codec}", "file_id": ""}
    return Record(image=image, codec=codec, setting=setting, bpp=bpp, metrics=metrics,
                  **{**fixed, **times, **names, **other})  # fmt: skip


EXAMPLE = [
    record("a", "sic", 1, 0.1, 25.0, bpp_est=0.09),
    record("a", "sic", 2, 0.7, 33.0, bpp_est=0.69),
    record("a", "jpeg", 10, 0.1, 20.0, lpips=0.5),
    record("a", "jpeg", 50, 0.5, 30.0, lpips=0.1),
    record("b", "sic", 1, 0.5, 27.0, bpp_est=0.47),
    record("b", "sic", 2, 0.9, 31.0, bpp_est=0.87),
    record("b", "jpeg", 10, 0.2, 24.0, lpips=0.3),
    record("b", "jpeg", 50, 0.7, 32.0, lpips=0.1),
]


def test_interpolation_is_linear_in_log_bpp_and_never_extrapolates() -> None:
    points = [(0.4, 32.0), (0.1, 26.0), (1.6, 35.0)]
    assert interpolate(points, 0.2) == pytest.approx(29.0)  # Half way from 0.1 to 0.4 in logs.
    assert interpolate(points, 0.8) == pytest.approx(33.5)
    assert interpolate(points, 0.4 * 4**0.25) == pytest.approx(32.75)
    assert [interpolate(points, rate) for rate in (0.1, 1.6)] == [26.0, 35.0]
    assert [interpolate(points, rate) for rate in (0.0999, 1.6001)] == [None, None]
    assert interpolate([*points, (3.0, None)], 0.2) is None


def test_comparison_reads_the_mean_curve_at_the_mean_rate() -> None:
    rows = rows_at_equal_rate(mean_rows(EXAMPLE))
    assert [(row.codec, row.level) for row in rows] == [
        ("sic", 1), ("jpeg", 1), ("sic", 2), ("jpeg", 2)
    ]  # fmt: skip
    sic, jpeg, _, outside = rows
    assert (sic.bpp, sic.bpp_est, sic.metrics["psnr"]) == pytest.approx((0.3, 0.28, 26.0))
    assert jpeg.setting is None
    assert jpeg.num_images == 2
    # JPEG's means: 0.15 bpp, 22 dB, 0.4 and 0.6 bpp, 31 dB, 0.1; 0.3 is the middle in logs.
    assert jpeg.bpp == pytest.approx(0.3)
    assert (jpeg.metrics["psnr"], jpeg.metrics["lpips"]) == pytest.approx((26.5, 0.25))
    assert (jpeg.encode_s, jpeg.bpp_est) == (None, None)
    assert outside.bpp == pytest.approx(0.8)
    assert outside.metrics == {"psnr": None, "ms_ssim": None, "lpips": None}
    columns = summary_columns(USUAL, samples=False)
    cells = [formatted(columns, summary_cells(row, columns), USUAL) for row in rows]
    table = to_markdown(columns, cells).splitlines()
    first = "| sic | 1 | 1 | 2 | 0.3000 | 0.2800 | 26.00 | 0.5000 | 0.2500 | 1.000 | 2.000 |"
    assert table[2] == first
    assert table[3] == "| jpeg | - | 1 | 2 | 0.3000 | - | 26.50 | 0.5000 | 0.2500 | - | - |"
    assert table[5] == "| jpeg | - | 2 | 2 | 0.8000 | - | - | - | - | - | - |"


def test_a_mean_needs_every_image() -> None:
    rows = mean_rows([record("a", "jpeg", 1, 0.1, 20.0), record("b", "jpeg", 1, 0.3, None)])
    assert rows[0].metrics["psnr"] is None
    assert rows[0].metrics["lpips"] == 0.25
    assert rows[0].bpp == pytest.approx(0.2)


def test_spread_is_a_column_where_there_are_samples() -> None:
    with_spread = record("a", "sic", 1, 0.1, 20.0, spread={"psnr": 0.5, "lpips": None})
    other = with_spread._replace(image="b", spread={"psnr": 0.1, "lpips": 0.2})
    (row,) = mean_rows([with_spread, other])
    columns = summary_columns(USUAL, samples=True)
    cells = dict(zip(columns, summary_cells(row, columns), strict=True))
    assert cells["psnr_spread"] == pytest.approx(0.3)
    assert cells["lpips_spread"] is None


def test_deltas_are_of_every_pair_and_against_published_curves() -> None:
    measured = curves_of(mean_rows(EXAMPLE))
    published = [Curve("old", (0.2, 0.8), {"psnr": (24.0, 33.0)}, "paper")]
    rows = bd_rows(measured, published, USUAL)
    psnr = {(row.reference, row.test) for row in rows if row.metric.name == "psnr"}
    assert psnr == {("sic", "jpeg"), ("jpeg", "sic"), ("old", "sic"), ("old", "jpeg")}
    assert {row.reference for row in rows if row.metric.name == "lpips"} == {"sic", "jpeg"}
    (row,) = (r for r in rows if (r.metric.name, r.reference, r.test) == ("psnr", "jpeg", "sic"))
    jpeg, sic = [(0.15, 22.0), (0.6, 31.0)], [(0.3, 26.0), (0.8, 32.0)]
    assert row.rate.value == pytest.approx(bd_rate(jpeg, sic, higher_is_better=True).value)
    assert (row.rate.low, row.rate.high) == (26.0, 31.0)


def test_ms_ssim_is_compared_in_decibels() -> None:
    (ms_ssim,) = (metric for metric in METRICS if metric.name == "ms_ssim")
    assert ms_ssim.scale(0.99) == pytest.approx(20)
    assert ms_ssim.scale(0.5) == pytest.approx(10 * np.log10(2))
    curves = [Curve(n, (0.1, 0.2), {"ms_ssim": (0.9, v)}) for n, v in (("a", 0.99), ("b", 0.999))]
    row = bd_rows(curves, [], [ms_ssim])[0]
    assert (row.rate.low, row.rate.high) == pytest.approx((10, 20))
    assert row.delta.value == pytest.approx(5)  # From 0 to 10 dB on a line.


def test_a_similarity_of_1_is_in_no_delta_and_no_plot() -> None:
    (ms_ssim,) = (metric for metric in METRICS if metric.name == "ms_ssim")
    a = Curve("a", (0.1, 0.2, 4.0), {"ms_ssim": (0.9, 0.99, 1.0)})
    b = Curve("b", (0.1, 0.2, 5.0), {"ms_ssim": (0.9, 0.999, 1.0)})
    found = bd_rows([a, b], [], [ms_ssim])
    cut = [Curve(c.name, c.bpp[:2], {"ms_ssim": c.metrics["ms_ssim"][:2]}) for c in (a, b)]
    assert [bd_cells(row) for row in found] == [bd_cells(r) for r in bd_rows(cut, [], [ms_ssim])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot, wanted = (
            draw_plot(ms_ssim, curves, [], log_rate=True, title="") for curves in ([a, b], cut)
        )
    assert plot is not None
    assert wanted is not None
    assert plot.png == wanted.png
    same = Curve("same", (4.0, 5.0), {"ms_ssim": (1.0, 1.0)})
    assert draw_plot(ms_ssim, [same], [a], log_rate=True, title="") is None
    row = bd_rows([same, a], [], [ms_ssim])[0]
    assert (row.rate.value, row.rate.reason) == (None, "fewer than 2 points")


def test_published_curves_are_whole_and_have_sources() -> None:
    published = load_published()
    assert (published.dataset, published.num_images) == ("Kodak", 24)
    names = {curve.name for curve in published.curves}
    assert names >= {"VTM", "BPG 4:4:4", "Hyperprior (MSE)", "MS-ILLM", "No-GAN", "HiFiC"}
    assert names >= {"CRDR (beta 3.84)", "DC-VIC (OASIS)"}
    for curve in published.curves:
        assert re.search(r"\w+/\w+ .* at [0-9a-f]{12}; .", curve.source)
        assert list(curve.bpp) == sorted(set(curve.bpp))
        assert set(curve.metrics) <= {"psnr", "ms_ssim", "lpips", "dists"}
        assert curve.protocol is not None
        assert curve.protocol.size == WHOLE
        assert all((curve.protocol.rate, curve.protocol.rounding))
        assert set(curve.protocol.networks) == {"lpips"} & set(curve.metrics)
        for values in curve.metrics.values():
            assert len(values) == len(curve.bpp)
        metrics: Mapping[str, Any] = curve.metrics
        if "psnr" in metrics:
            assert all(19 < value < 50 for value in metrics["psnr"])
        if "lpips" in metrics:
            assert list(metrics["lpips"]) == sorted(metrics["lpips"], reverse=True)


@pytest.fixture
def with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published curves and two more: LPIPS of VGG16, and values of crops."""
    stored = json.loads(published_module.PUBLISHED_FILE.read_text())
    ms_illm = next(curve for curve in stored["curves"] if curve["name"] == "MS-ILLM")
    values = ms_illm["metrics"]["lpips"]
    networks = {"lpips_vgg": "VGG16, v0.1"}
    vgg = {"name": "of VGG16", "networks": networks, "metrics": {"lpips_vgg": values}}
    crops = {"name": "of crops", "size": CROPS}
    stored["curves"] += [{**ms_illm, **vgg}, {**ms_illm, **crops}]
    file = tmp_path / "published.json"
    file.write_text(json.dumps(stored))
    monkeypatch.setattr(published_module, "PUBLISHED_FILE", file)
    return file


@pytest.mark.parametrize(
    ("height", "width", "name", "wanted", "in_plots"),
    [
        (512, 768, "kodim", None, {"MS-ILLM"}),
        (768, 512, "kodim", None, {"MS-ILLM"}),
        (512, 512, "kodim", None, {"of crops"}),
        (512, 768, "kodim", True, {"MS-ILLM"}),
        (512, 512, "other", True, {"of crops"}),
        (512, 512, "other", None, set()),
        (512, 640, "kodim", None, set()),
        (512, 768, "kodim", False, set()),
    ],
)
def test_curves_of_crops_are_in_no_plot_of_whole_pictures(
    with_others: Path,
    height: int,
    width: int,
    name: str,
    wanted: bool | None,
    in_plots: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = {}

    def keep(metric: Metric, measured: Any, published: Sequence[Curve], **options: Any) -> None:
        drawn[metric.name] = {curve.name for curve in published if curve.points(metric.name)}

    monkeypatch.setattr("sic_jax.evaluation.plots.draw_plot", keep)
    sizes: dict[str, Any] = {"height": height, "width": width}
    records = [r._replace(image=f"{name}{r.image}.png", **sizes) for r in EXAMPLE]
    records = [r._replace(metrics={**r.metrics, "lpips_vgg": 0.3}) for r in records]
    metrics = [m for m in METRICS if m.name in ("lpips", "lpips_vgg")]
    options = ReportOptions(plots=True, log_rate=True, published=wanted, show=[])
    write_report(Measured(records, [], 0), {}, [], metrics, options, tmp_path / "out")
    others = {"MS-ILLM", "of crops", "of VGG16"}
    assert drawn["lpips"] & others == in_plots
    # The LPIPS of VGG16 is in its own plot alone.
    assert drawn["lpips_vgg"] == ({"of VGG16"} if "MS-ILLM" in in_plots else set())


def test_a_curve_of_another_network_is_refused(with_others: Path) -> None:
    assert {c.name for c in load_published(CROPS).curves} == {"of crops"}
    assert "of crops" not in {c.name for c in load_published().curves}
    text = with_others.read_text()
    for old, new, message in (
        ('"lpips": "AlexNet, v0.1"', '"lpips": "VGG16, v0.1"', "curve MS-ILLM: lpips by VGG16"),
        ('"lpips_vgg": "VGG16, v0.1"', '"lpips_vgg": "AlexNet, v0.1"', "of VGG16: lpips_vgg by A"),
        ('"lpips_vgg": "VGG16, v0.1"', "", "curve of VGG16: lpips_vgg by None"),
    ):
        with_others.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            load_published()


def test_protocols_are_cells_of_a_table() -> None:
    published = load_published()
    cells = {row[0]: row[1:] for row in protocol_cells(published.curves)}
    assert list(cells) == [curve.name for curve in published.curves]
    assert cells["CRDR (beta 3.84)"][:4] == ["bytes of the file", "8 bits", WHOLE, "AlexNet, v0.1"]
    assert cells["VTM"][:4] == ["bytes of the file", "8 bits, cut off", WHOLE, "-"]


@pytest.mark.skipif(not ANCHORS.exists(), reason="needs the shared files")
def test_published_curves_are_those_of_the_collected_sources() -> None:
    curves = {curve.name: curve for curve in load_published().curves}
    codecs = json.loads((ANCHORS / "compressai_kodak.json").read_text())["codecs"]
    for name, key in (("VTM", "vtm"), ("Hyperprior (MSE)", "bmshj2018-hyperprior-mse")):
        assert curves[name].bpp == tuple(codecs[key]["bpp"])
        assert curves[name].metrics["psnr"] == tuple(codecs[key]["psnr"])
        assert curves[name].metrics["ms_ssim"] == tuple(codecs[key]["ms_ssim"])
    rows = json.loads((ANCHORS / "msillm_nogan.json").read_text())["rows"]
    for name in ("MS-ILLM", "No-GAN"):
        own = sorted((r for r in rows if (r["model"], r["dataset"]) == (name, "kodak")),
                     key=lambda r: r["bpp"])  # fmt: skip
        assert curves[name].bpp == pytest.approx([r["bpp"] for r in own], abs=5e-6)
        for metric in ("psnr", "lpips", "dists"):
            wanted = [r[metric] for r in own]
            assert curves[name].metrics[metric] == pytest.approx(wanted, abs=5e-6)


def bright(x: NDArray[Any], level: int) -> NDArray[Any]:
    out: NDArray[Any] = np.clip(x.astype(int) + level, 0, 255).astype(np.uint8)
    return out


def test_the_crop_is_where_the_detail_is() -> None:
    image = np.full((700, 900, 3), 128, np.uint8)
    image[352:688, 448:896] = np.random.default_rng(0).integers(0, 256, (336, 448, 3))
    assert choose_crop(image) == (352, 448, 336, 448)
    assert choose_crop(image[:100, :60, 0]) == (0, 0, 100, 60)
    uri = to_data_uri(image, choose_crop(image[:100, :60]))
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/webp"
    assert len(data) > 40


def test_pictures_are_matched_by_rate() -> None:
    records = [record("a", "jpeg", q, bpp, 20.0) for q, bpp in ((1, 0.1), (2, 0.2), (3, 0.4))]
    second, third = nearest_rate(records, 0.25), nearest_rate(records, 0.3)
    assert second is not None
    assert third is not None
    assert (second.setting, third.setting) == (2, 3)  # Nearer in logs.
    assert nearest_rate(records, 0.61) is None  # 0.4 is less than 0.61 / 1.5.
    assert nearest_rate([], 0.1) is None
    images = [f"x/{n}.png" for n in "abcdef"]
    assert choose_images(images, None) == ["x/a.png", "x/c.png", "x/e.png"]
    assert choose_images(images, ["f", "b.png"]) == ["x/f.png", "x/b.png"]
    assert choose_images(images, []) == []
    with pytest.raises(ValueError, match="--show: no image of this run is called 'z'"):
        choose_images(images, ["z"])


@pytest.mark.parametrize("log_rate", [True, False])
def test_plots_are_readable_files_with_nothing_overlapping(log_rate: bool) -> None:
    curves = curves_of(mean_rows(EXAMPLE))
    published = load_published().curves
    plot = draw_plot(PSNR, curves, published, log_rate=log_rate, title="Means over 2 images")
    assert plot is not None
    with Image.open(io.BytesIO(plot.png)) as image:
        assert image.size == (1260, 750)
    assert plot.svg.startswith("<?xml")
    assert plot.inline_svg.startswith("<svg ")
    head = plot.inline_svg[: plot.inline_svg.index(">")]
    assert "viewBox" in head
    assert " width=" not in head
    assert "#01020a" in plot.svg
    assert "#01020a" not in plot.inline_svg
    assert "currentColor" in plot.inline_svg
    ids = re.findall(r'\bid="([^"]+)"', plot.inline_svg)
    assert all(name.startswith("psnr-") for name in ids)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', plot.inline_svg)
    assert {a or b for a, b in used} <= set(ids)
    # Text is text, and where the page is 390 pixels wide, 344 of them the plot's, 11 or more high.
    for svg in (plot.svg, plot.inline_svg):
        assert len(re.findall(r"<text[^>]*>[^<]+</text>", svg)) > 8
    (box,) = re.findall(r'viewBox="([^"]+)"', head)
    _, _, width, _ = box.split()
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", plot.inline_svg)]
    assert min(sizes) * 344 / float(width) >= 11
    # The page has the legend; its samples have the colours of the lines.
    names = {curve.name for curve in curves}
    assert set(re.findall(r'data-codec="([^"]+)"', plot.inline_svg)) == names
    assert {*names, "VTM, published"} <= set(plot.legend)
    for name, sample in plot.legend.items():
        assert ("stroke-dasharray" in sample) == name.endswith(", published")
        (colour,) = set(re.findall("#[0-9a-f]{6}", sample))
        assert colour in plot.inline_svg
    nothing = [Curve("x", (0.1, 0.2), {"psnr": (None, None)})]
    assert draw_plot(PSNR, nothing, published, log_rate=log_rate, title="") is None


class Page(HTMLParser):
    """Tags and addresses of a page; open elements at its end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "input", "br", "link"):
            self.open.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A report of two codecs on two pictures and a failure, and the folder that it is in."""
    out = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    records = []
    for name in ("kodim01", "a <b>"):
        x = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(x).save(out / f"{name}.png")
        for r in EXAMPLE[:4]:
            Image.fromarray(bright(x, int(r.setting))).save(out / f"{name}-{r.file}", "PNG")
            records.append(r._replace(image=str(out / f"{name}.png"), file=f"{name}-{r.file}"))
    jpeg = pillow_codec("jpeg")
    codecs = [jpeg, ImageCodec("sic", (1, 2), "model 00", jpeg.encode, jpeg.decode,
                               setting_name="level")]  # fmt: skip
    failures = [Failure("bad.png", "bad.png: the picture is damaged")]
    options = ReportOptions(plots=True, log_rate=True, published=True, show=None)
    rows = write_report(
        Measured(records, failures, 0), {"seconds": 1.5, "bundle": None}, codecs, USUAL,
        options, out,
    )  # fmt: skip
    return out, rows


def test_curves_of_ours_are_thick_and_no_two_look_alike() -> None:
    names = [f"c{k}" for k in range(9)]
    curves = [Curve(name, (0.1, 0.2), {"psnr": (20.0 + k, 30.0)}) for k, name in enumerate(names)]
    plot = draw_plot(PSNR, curves, [], log_rate=True, title="", ours=("c3", "c8"))
    assert plot is not None
    found = set(re.findall(r'<path d="M [^>]*style="(fill: none; [^"]*)"', plot.svg))
    curves_only = {style for style in found if "stroke-width: 1.7" in style or "2.6" in style}
    assert len(curves_only) == 9
    thick = {style for style in curves_only if "stroke-width: 2.6" in style}
    assert {re.findall("#[0-9a-f]{6}", style)[0] for style in thick} == {"#d55e00", "#0072b2"}
    assert sum("stroke-dasharray" in style for style in curves_only) == 2
    # So do the samples of the page's legend: the two colours that come again have dashes and dots.
    dashed = {name for name, sample in plot.legend.items() if "stroke-dasharray" in sample}
    again = {re.findall("#[0-9a-f]{6}", plot.legend[name])[0] for name in dashed}
    assert (len(dashed), len(again)) == (2, 2)
    assert len(set(plot.legend.values())) == 9


def test_results_hold_records_and_errors(report: tuple[Path, list[Row]]) -> None:
    out, rows = report
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["seconds", "bundle", "errors", "records"]
    assert results["errors"] == [{"image": "bad.png", "error": "bad.png: the picture is damaged"}]
    assert len(results["records"]) == 8
    assert (results["records"][0]["psnr"], results["records"][0]["lpips"]) == (25.0, 0.25)
    assert [row.codec for row in rows] == ["sic", "jpeg", "sic", "jpeg"]


def test_csv_files_hold_means_comparison_and_deltas(report: tuple[Path, list[Row]]) -> None:
    out, _ = report
    with open(out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == summary_columns(USUAL, samples=False)
    assert [(row["codec"], row["setting"], row["level"]) for row in rows] == [
        ("sic", "1", ""), ("sic", "2", ""), ("jpeg", "10", ""), ("jpeg", "50", ""),
        ("sic", "1", "1"), ("jpeg", "", "1"), ("sic", "2", "2"), ("jpeg", "", "2"),
    ]  # fmt: skip
    assert (rows[0]["psnr"], rows[2]["lpips"], rows[7]["psnr"]) == ("25.0", "0.5", "")
    with open(out / "bd.csv", newline="") as file:
        deltas = list(csv.DictReader(file))
    assert tuple(deltas[0]) == BD_COLUMNS
    # Two images are not Kodak's 24: published curves are drawn, but give no deltas.
    assert {row["reference"] for row in deltas} == {"sic", "jpeg"}
    first = next(row for row in deltas if (row["metric"], row["test"]) == ("psnr", "sic"))
    assert (float(first["quality_low"]), float(first["quality_high"])) == (25.0, 30.0)
    same = next(row for row in deltas if row["metric"] == "ms_ssim")
    assert same["bd_rate_percent"] == ""
    assert "fewer than 2 points" in same["remark"]


def test_compressai_files_have_its_names(report: tuple[Path, list[Row]]) -> None:
    out, _ = report
    content = json.loads((out / "compressai" / "sic.json").read_text())
    assert list(content) == ["name", "description", "results"]
    assert content["name"] == "sic"
    assert content["description"] == "2 images; model 00"
    results = content["results"]
    assert set(results) == {
        "bpp", "psnr-rgb", "ms-ssim-rgb", "lpips", "encoding_time", "decoding_time"
    }  # fmt: skip
    assert results["bpp"] == pytest.approx([0.1, 0.7])
    assert results["psnr-rgb"] == [25.0, 33.0]
    assert results["encoding_time"] == [1.0, 1.0]
    rows = mean_rows([r._replace(encode_s=None) for r in EXAMPLE[:1]] + EXAMPLE[1:2])
    untimed = json.loads(to_compressai("sic", rows, USUAL, ""))["results"]
    assert (untimed["decoding_time"], "encoding_time" in untimed) == ([2.0, 2.0], False)


def test_the_page_is_one_file_with_everything(report: tuple[Path, list[Row]]) -> None:
    out, _ = report
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    sections = ("pictures", "curves", "equal", "bd", "means", "about")
    local = {f"#{name}" for name in sections}
    outside = [s for s in page.sources if not s.startswith(("data:image/", "#"))]
    assert outside == []
    assert local <= set(page.sources)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert re.findall('<section id="([^"]+)"', text) == list(sections)
    plots = text[text.index('<div class="plots">') : text.index('<section id="equal"')]
    assert plots.count("<svg") == 3
    # The original, two levels, and the JPEG near the second: 0.5 bpp is 0.7 / 1.4.
    shown = [s for s in page.sources if s.startswith("data:")]
    assert len(shown) == 2 * (1 + 2 + 2)
    assert len(re.findall('<img loading="lazy" [^>]*src="data:', text)) == len(shown)
    # Filters: two rates of which the second is chosen, and the codecs; what they hide is marked.
    assert re.findall('name="rate" value="([^"]*)"( checked)?><span>([^<]*)', text) == [
        ("0", "", "0.1"), ("1", " checked", "0.7"), ("", "", "all")
    ]  # fmt: skip
    assert re.findall('name="codec" value="([^"]*)" checked', text) == ["sic", "jpeg"]
    assert re.findall('class="group" data-rate="([^"]*)"><h4>([^<]*)', text) == 2 * [
        ("0", "Near 0.100 bpp"), ("1", "Near 0.700 bpp")
    ]  # fmt: skip
    assert len(re.findall('<figure data-codec="sic">', text)) == 4
    assert len(re.findall('<tr class="[^"]*" data-codec="jpeg">', text)) == 4
    assert "a &lt;b&gt;.png" in text
    assert "<b>.png" not in text
    assert "bad.png: the picture is damaged" in text
    assert "prefers-color-scheme: dark" in text
    assert "0.1000</td>" in text
    assert "25.00 to 30.00" in text or "25.0 to 30.0" in text
    assert "fewer than 2 points" in text
    assert "encode_s, decode_s" in text  # The schema.
    assert plots.count("How the published curves were measured") == 1
    cells = ["MS-ILLM", "bytes of the pickled strings", "8 bits; LPIPS of floats", WHOLE]
    cells += ["AlexNet, v0.1"]
    row = "".join(f'<td class="text">{cell}</td>' for cell in cells)
    assert f'{row}<td class="text">facebookresearch/NeuralCompression ' in plots
    for metric in USUAL:
        assert (out / "plots" / f"{metric.name}.svg").stat().st_size > 5000
        assert (out / "plots" / f"{metric.name}.png").stat().st_size > 5000


def test_results_of_earlier_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    out = tmp_path / "out"
    keep = [out / "plots" / "mine.png", out / "compressai" / "mine.json", out / "fid.csv.old"]
    for file in keep:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a user's file")
    arguments = ["--images", str(tmp_path / "x.png"), "--out", str(out), "--show"]
    others = ["--codecs", "jpeg", "webp", "--metrics", "psnr", "ssim"]
    assert main([*arguments, *others, "--qualities", "jpeg=10,60", "webp=10,60"]) == 0
    (out / "fid.csv").write_text("of an earlier run")
    with open(out / "records.jsonl", "a") as records:
        line = json.loads((out / "records.jsonl").read_text().splitlines()[0])
        records.write(json.dumps({**line, "codec": "../plots/mine"}) + "\n")
        records.write(json.dumps({**line, "codec": "../mine"}) + "\n")
    keep.append(out / "mine.json")
    keep[-1].write_text("a user's file")
    files = {file for file in (out / "files").rglob("*") if file.is_file()}
    assert len(files) == 4
    again = ["--codecs", "jpeg", "--metrics", "psnr", "--qualities", "jpeg=60"]
    assert main([*arguments, *again]) == 0
    assert {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()} == {
        *(file.relative_to(out).as_posix() for file in (*keep, *files)),
        "records.jsonl", "results.json", "summary.csv", "bd.csv", "report.html",
        "compressai/jpeg.json", "plots/psnr.png", "plots/psnr.svg",
    }  # fmt: skip
    assert {file.read_text() for file in keep} == {"a user's file"}


def test_without_matplotlib_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.arange(40 * 40 * 3).reshape(40, 40, 3).astype(np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = ["--images", str(tmp_path / "x.png"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--codecs", "jpeg", "--metrics", "psnr"]) == 0
    assert "no plots: matplotlib is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "plots").exists()
    assert "<svg" not in (tmp_path / "out" / "report.html").read_text()
