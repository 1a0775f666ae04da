"""report.html: one file that needs no other, for light and dark screens."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from sic_jax.evaluation.bd import BdResult
from sic_jax.evaluation.codecs import SIC
from sic_jax.evaluation.fid import FID_LABELS, FidRow, fid_cells, fid_remark
from sic_jax.evaluation.means import Row
from sic_jax.evaluation.pictures import MATCH_FACTOR, WEBP_QUALITY, Comparison, Crop, Shown
from sic_jax.evaluation.published import PROTOCOL_LABELS, Published, protocol_cells
from sic_jax.evaluation.run import Failure
from sic_jax.evaluation.summary import BdRow, formatted, summary_cells, summary_columns
from sic_jax.metrics.table import Metric

PUBLISHED = ", published"
"""Ends the names of published curves in legends."""


class Content(NamedTuple):
    """What the page shows."""

    title: str
    facts: Mapping[str, Any]
    """About the run: name and value."""
    metrics: Sequence[Metric]
    means: Sequence[Row]
    equal_rate: Sequence[Row]
    bd: Sequence[BdRow]
    fid: Sequence[FidRow]
    plots: Sequence[tuple[Metric, str]]
    """SVG elements."""
    legend: Mapping[str, str]
    """Of each line in the plots the name and a sample, an SVG element."""
    pictures: Sequence[Comparison]
    published: Published | None
    failures: Sequence[Failure]
    schema: str
    ours: Sequence[str] = (SIC,)
    """Names of this package's curves; codecs are compared at the rates of the first."""


def make_page(content: Content) -> str:
    """The page."""
    here = Path(__file__).parent
    css, js = (here / "page.css").read_text(), (here / "page.js").read_text()
    sections = [
        ("pictures", "Pictures", _pictures(content)),
        ("curves", "Rate and quality", _plots(content)),
        ("equal", f"At the rates of {escape(content.ours[0])}", _equal_rate(content)),
        ("bd", "Bjøntegaard deltas", _bd(content)),
        ("means", "Means over images", _means(content)),
        ("fid", "Distances of patches", _fid(content)),
        ("about", "About this run", _about(content)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(_section(name, title, text) for name, title, text in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(content.title)}</title><style>{css}</style></head><body>"
        f"<h1>{escape(content.title)}</h1>{_failures(content.failures)}<nav>{links}</nav>"
        f"{_filters(content)}{body}<script>{js}</script></body></html>\n"
    )


def metric_text(metric: Metric) -> str:
    """What an axis of the metric is called."""
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "higher" if metric.higher_is_better else "lower"
    return f"{metric.label}{unit}, {better} is better"


def _section(name: str, title: str, text: str) -> str:
    """Open; the script closes tables where the screen is narrow."""
    if name in ("pictures", "curves"):
        return f'<section id="{name}"><h2>{title}</h2>{text}</section>'
    return (
        f'<section id="{name}"><details class="part" open><summary><h2>{title}</h2></summary>'
        f"{text}</details></section>"
    )


def _filters(content: Content) -> str:
    """Choices of rate, for the pictures, and of codecs; shown where the script runs."""
    groups = [shown.groups for shown in content.pictures]
    most = max(map(len, groups), default=0)
    rates = [[own[k].bpp for own in groups if k < len(own)] for k in range(most)]
    names = [_range_text(min(found), max(found)) for found in rates]
    chips = [
        f'<label><input type="radio" name="rate" value="{value}"'
        f"{' checked' if value == str(len(rates) // 2) else ''}><span>{name}</span></label>"
        for value, name in [*((str(k), name) for k, name in enumerate(names)), ("", "all")]
    ]
    parts = [f"<fieldset><legend>bpp</legend>{''.join(chips)}</fieldset>" if rates else ""]
    codecs = dict.fromkeys(row.codec for row in content.means)
    chips = [
        f'<label><input type="checkbox" name="codec" value="{escape(name)}" checked>'
        f"<span>{content.legend.get(name, '')}{escape(name)}</span></label>"
        for name in codecs
    ]
    parts.append(f"<fieldset><legend>codecs</legend>{''.join(chips)}</fieldset>")
    return f'<form class="filters" autocomplete="off">{"".join(parts)}</form>'


def _range_text(low: float, high: float) -> str:
    ends = list(dict.fromkeys((f"{low:.2g}", f"{high:.2g}")))
    return "&ndash;".join(ends)


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    items = "".join(f"<li>{escape(failure.error)}</li>" for failure in failures)
    return (
        '<div class="errors"><p>These images failed and are in no table or plot:</p>'
        f"<ul>{items}</ul></div>"
    )


def _plots(content: Content) -> str:
    if not content.plots:
        return ""
    note = "bpp is 8 &times; bytes of the file / pixels; every point is a mean over the images."
    if content.published:
        note += (
            f" Dashed: published means over the {content.published.num_images} images of"
            f" {escape(content.published.dataset)}, measured by others."
        )
    legend = "".join(
        f"<li>{sample}{escape(name.removesuffix(PUBLISHED))}</li>"
        for name, sample in sorted(content.legend.items(), key=lambda item: PUBLISHED in item[0])
    )
    figures = "".join(
        f"<figure><figcaption>{escape(metric_text(metric))}</figcaption>{plot}</figure>"
        for metric, plot in content.plots
    )
    return (
        f'<p class="soft">{note}</p><ul class="legend">{legend}</ul>'
        f'<div class="plots">{figures}</div>{_protocols(content.published)}'
    )


def _protocols(published: Published | None) -> str:
    """How published curves were measured, and where they are from."""
    if not published:
        return ""
    head = "".join(f"<th>{title}</th>" for title in PROTOCOL_LABELS)
    lines = [
        "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        for cells in protocol_cells(published.curves)
    ]
    return (
        "<details><summary>How the published curves were measured</summary>"
        f"<p>{escape(published.about)}</p>{_grid(head, lines)}</details>"
    )


def _pictures(content: Content) -> str:
    if not content.pictures:
        return ""
    note = (
        "Parts of the images at 100 %, where they have most detail. Move over the large picture to"
        " wipe between two; the buttons choose them. The numbers are of the whole image. Codecs"
        f" without a file within {MATCH_FACTOR:g} times the bits of the first are left out. For"
        f" this page the pictures were stored once more, as WebP of quality {WEBP_QUALITY}."
    )
    return f'<p class="soft">{note}</p>' + "".join(map(_comparison, content.pictures))


def _comparison(shown: Comparison) -> str:
    top, left, height, width = shown.crop
    where = (
        f"{width} &times; {height} pixels at ({left}, {top}) of "
        f"{shown.full_width} &times; {shown.full_height}"
    )
    groups = "".join(
        f'<div class="group" data-rate="{k}"><h4>Near {group.bpp:.3f} bpp</h4>'
        f'<div class="shots">{"".join(_shot(picture, shown.crop) for picture in group.pictures)}'
        "</div></div>"
        for k, group in enumerate(shown.groups)
    )
    size = f'width="{width}" height="{height}"'
    return (
        f'<div class="card"><h3>{escape(shown.name)} <small>{where}</small></h3>'
        f'<div class="large" style="max-width:{width}px"><div class="stage"><img {size} alt="">'
        f'<img {size} alt=""><i></i><b class="l"></b><b class="r"></b></div>'
        '<input class="slide" type="range" min="0" max="100" value="50" step="0.5"'
        ' aria-label="Wipe between two pictures"></div>'
        '<div class="row"><div class="group"><h4>Original</h4><div class="shots">'
        f"{_shot(shown.original, shown.crop)}</div></div>{groups}</div></div>"
    )


def _shot(shown: Shown, crop: Crop) -> str:
    codec = f' data-codec="{escape(shown.codec)}"' if shown.codec else ""
    return (
        f'<figure{codec}><div class="window"><img loading="lazy" decoding="async"'
        f' width="{crop.width}" height="{crop.height}" src="{shown.uri}"'
        f' alt="{escape(shown.label)}"></div>'
        f"<figcaption><strong>{escape(shown.label)}</strong> {shown.rate}"
        f"<br>{escape(shown.facts)}<br>"
        '<button type="button" class="l">left</button>'
        '<button type="button" class="r">right</button></figcaption></figure>'
    )


def _equal_rate(content: Content) -> str:
    if not content.equal_rate:
        return ""
    columns = ["codec", "level", "bpp", *(metric.name for metric in content.metrics)]
    note = (
        "The other codecs are read off their curves of means at the mean bpp of each level, linear"
        " in log bpp; - where they have no such rate."
    )
    return f'<p class="soft">{note}</p>' + _summary_table(content.equal_rate, columns, content)


def _means(content: Content) -> str:
    samples = any(row.spread for row in content.means)
    columns = [c for c in summary_columns(content.metrics, samples=samples) if c != "level"]
    note = "Times are seconds an image, in memory, compilation excluded; external commands start."
    if any(row.codec in content.ours for row in content.means):
        note += f" {SIC} encodes an image once, at the highest level: its files are cut from one."
    if any(row.encode_s is None for row in content.means):
        note += (
            " - where some were measured with another coder, device or version,"
            " or with optimised latents."
        )
    if samples:
        note += " Spread: standard deviation over the samples of an image, mean over images."
    return f'<p class="soft">{note}</p>' + _summary_table(content.means, columns, content)


def _summary_table(rows: Sequence[Row], columns: Sequence[str], content: Content) -> str:
    labels = {metric.name: metric.label for metric in content.metrics}
    labels |= {"num_images": "images", "encode_s": "encode (s)", "decode_s": "decode (s)"}
    head = "".join(f"<th>{escape(labels.get(column, column))}</th>" for column in columns)
    lines, last = [], None
    for row in rows:
        cells = formatted(columns, summary_cells(row, columns), content.metrics)
        group = row.codec if row.level is None else row.level
        ours = row.codec in content.ours
        names = [name for name, on in (("first", group != last), ("ours", ours)) if on]
        last = group
        text = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        codec = escape(row.codec)
        lines.append(f'<tr class="{" ".join(names)}" data-codec="{codec}">{text}</tr>')
    body = "".join(lines)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _bd(content: Content) -> str:
    parts = [
        '<p class="soft">Columns are judged against rows: the mean difference of rate at equal'
        " quality (below 0: fewer bits), and of quality at equal rate, between the curves of means"
        " (PCHIP, log bpp), with the range in which both have values below it. MS-SSIM is taken"
        " in dB, -10 log10(1 - MS-SSIM).</p>"
    ]
    for metric in content.metrics:
        rows = [row for row in content.bd if row.metric.name == metric.name]
        if not rows:
            continue
        tests = list(dict.fromkeys(row.test for row in rows))
        tests.sort(key=lambda name: name not in content.ours)
        head = "<th>against</th>" + "".join(_codec_cell("th", name, escape(name)) for name in tests)
        rates: list[str] = []
        deltas: list[str] = []
        for reference in dict.fromkeys(row.reference for row in rows):
            found = {row.test: row for row in rows if row.reference == reference}
            first = _codec_cell("td", reference, escape(reference))
            for lines, text in ((rates, _rate_text), (deltas, _delta_text)):
                texts = ((name, text(found[name]) if name in found else "") for name in tests)
                lines.append(first + "".join(_codec_cell("td", *item) for item in texts))
        label = escape(metric.label)
        parts.append(f"<h3>BD-rate by {label}</h3>{_grid(head, rates)}")
        title = f"Differences of {label}{' in ' + metric.unit if metric.unit else ''}"
        parts.append(f"<details><summary>{title}</summary>{_grid(head, deltas)}</details>")
    return "".join(parts) if len(parts) > 1 else ""


def _fid(content: Content) -> str:
    if not content.fid:
        return ""
    note = escape(fid_remark(content.fid[0])) + (
        " The values depend on size and number of the patches: compare only those of the same"
        " images."
    )
    head = "".join(f"<th>{title}</th>" for title in FID_LABELS)
    lines = []
    for row in content.fid:
        first, *others = map(escape, fid_cells(row))
        cells = "".join(f"<td>{cell}</td>" for cell in others)
        lines.append(_codec_cell("td", row.codec, first) + cells)
    return f'<p class="soft">{note}</p>{_grid(head, lines)}'


def _grid(head: str, lines: Sequence[str]) -> str:
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _codec_cell(tag: str, codec: str, text: str) -> str:
    """A cell that the filter of codecs hides."""
    return f'<{tag} data-codec="{escape(codec)}">{text}</{tag}>'


def _rate_text(row: BdRow) -> str:
    decimals = 1 if row.metric.unit == "dB" else 3
    return _bd_text(row.rate, f"{row.rate.value or 0:+.1f} %", decimals, good=-1)


def _delta_text(row: BdRow) -> str:
    decimals = 2 if row.metric.unit == "dB" else row.metric.decimals
    good = 1 if row.metric.higher_is_better else -1
    return _bd_text(row.delta, f"{row.delta.value or 0:+.{decimals}f}", 3, good=good)


def _bd_text(result: BdResult, text: str, decimals: int, *, good: int) -> str:
    """A number, green or red, with its range; or why there is none."""
    if result.value is None:
        return f'<span class="soft">{escape(result.reason)}</span>'
    name = "good" if result.value * good > 0 else "bad" if result.value else ""
    return (
        f'<span class="{name}">{text.replace("-", "&minus;")}</span>'
        f"<small>{result.low:.{decimals}f} to {result.high:.{decimals}f}</small>"
    )


def _about(content: Content) -> str:
    facts = "".join(
        f"<tr><td>{escape(name)}</td><td style='text-align:left;white-space:normal'>"
        f"{escape(str(value))}</td></tr>"
        for name, value in content.facts.items()
    )
    parts = [f'<div class="scroll"><table><tbody>{facts}</tbody></table></div>']
    if not content.plots:
        parts.append(_protocols(content.published))
    parts.append(
        "<details><summary>What results.json holds</summary>"
        f"<pre>{escape(content.schema)}</pre></details>"
    )
    return "".join(parts)
