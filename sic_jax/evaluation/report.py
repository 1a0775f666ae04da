"""The files that a run leaves in its output folder.

    files/NAME-ID/     the compressed files, SETTING.CODEC (SETTING-ID.sic of several bundles)
    records.jsonl      every measurement that was made into this folder, one a line
    results.json       this run
    summary.csv        means over images, then codecs at equal rate (`sic_jax.evaluation.means`)
    fid.csv            FID, KID and the stand-in, where asked for (`sic_jax.evaluation.fid`)
    bd.csv             Bjontegaard deltas (`sic_jax.evaluation.bd`)
    compressai/        one file a codec, in the JSON format of CompressAI's results; its name is the
                       codec's, with %3A for ":" and the like for what Windows allows in no name
    plots/             one PNG and one SVG a metric
    report.html        all of it, with pictures
    survey.html        a blind test, where it was asked for (`sic_jax.evaluation.survey`)

Those of earlier runs that a run does not write again are removed, except compressed files and
records.jsonl, from which runs are resumed.

results.json is an object:

    bundle, model_id, coder   of `sic`; null where it was not measured; of several of its curves the
                              first two are objects, with a key for each curve
    command, revision         of eval.py, and of the checkout that it lies in (null: in none)
    device, versions          what the times were measured on and with
    metrics                   names of the metrics
    seconds                   that the run took, without the report
    skipped                   files in folders that are not named like pictures
    errors                    a list of {image, error}: images that failed and have no records
    records                   a list with one object per image, codec and setting
                              (`sic_jax.evaluation.records`)
"""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from sic_jax.evaluation import records as records_module
from sic_jax.evaluation.codecs import SIC, ImageCodec, names_of_sic
from sic_jax.evaluation.fid import FID_FILE, FidRow
from sic_jax.evaluation.means import Curve, Row, curves_of, mean_rows, rows_at_equal_rate
from sic_jax.evaluation.page import Content, make_page
from sic_jax.evaluation.pictures import Comparison, choose_images, compare_pictures
from sic_jax.evaluation.published import CROPS, WHOLE, Published, load_published
from sic_jax.evaluation.records import Record, load_records, to_json
from sic_jax.evaluation.run import RECORDS_FILE, Measured
from sic_jax.evaluation.summary import (
    BD_COLUMNS,
    bd_cells,
    bd_rows,
    summary_cells,
    summary_columns,
    to_compressai,
    to_csv,
)
from sic_jax.evaluation.survey import SURVEY_FILE
from sic_jax.files import write_atomic
from sic_jax.metrics.table import METRICS, Metric

if TYPE_CHECKING:
    from sic_jax.evaluation.plots import Plot  # Needs matplotlib.


class ReportOptions(NamedTuple):
    """What the report shows."""

    plots: bool
    """False where matplotlib is not installed."""
    log_rate: bool
    published: bool | None
    """Draw published curves; None: if all images have names like Kodak's, and its size or that of
    crops that others measure. Curves of crops are drawn for 512x512 images alone."""
    show: Sequence[str] | None
    """Paths of images to show; None chooses three."""


def write_report(
    measured: Measured,
    about: Mapping[str, Any],
    codecs: Sequence[ImageCodec],
    metrics: Sequence[Metric],
    options: ReportOptions,
    out: Path,
    fid: Sequence[FidRow] = (),
) -> list[Row]:
    """Write everything but records and compressed files, which are there already.

    What earlier runs wrote and this one does not is removed.

    Args:
        measured: What the run measured.
        about: The other keys of results.json.
        codecs: Of the run, to decode pictures.
        metrics: Of the run.
        options: What to show.
        out: Output folder.
        fid: FID and KID, where they were computed.

    Returns:
        The rows for the terminal: codecs at equal rate, or else the means.

    Raises:
        OSError: If something cannot be written.
    """
    earlier = _codecs_of(out)
    flat = [to_json(record) for record in measured.records]
    errors = [failure._asdict() for failure in measured.failures]
    _write(out / "results.json", _json({**about, "errors": errors, "records": flat}))
    means = mean_rows(measured.records)
    ours = names_of_sic(codecs) or [SIC]
    compared = rows_at_equal_rate(means, ours[0])
    columns = summary_columns(metrics, samples=any(row.spread for row in means))
    cells = [summary_cells(row, columns) for row in (*means, *compared)]
    _write(out / "summary.csv", to_csv(columns, cells))
    curves = curves_of(means)
    published = _published_for(measured.records, options.published)
    num_images = len({record.image for record in measured.records})
    # Means over other images are no reference.
    same = published is not None and published.num_images == num_images
    bd = bd_rows(curves, published.curves if published and same else [], metrics)
    _write(out / "bd.csv", to_csv(BD_COLUMNS, [bd_cells(row) for row in bd]))
    if fid:
        _write(out / FID_FILE, to_csv(FidRow._fields, fid))
    title = f"{num_images} images" if num_images != 1 else "1 image"
    plotted = {}
    if options.plots:
        plotted = _plot_all(curves, ours, published, metrics, options, title, out)
    _remove_old(out, earlier - {row.codec for row in means}, set(plotted), fid=bool(fid))
    for codec in codecs:
        rows = [row for row in means if row.codec == codec.name]
        if rows:
            text = to_compressai(codec.name, rows, metrics, f"{title}; {codec.options}")
            _write(out / "compressai" / _file_name(codec.name), text)
    pictures = _show(measured.records, codecs, metrics, options.show, out)
    facts = {name: _plain(value) for name, value in about.items()}
    facts |= {codec.name: codec.options for codec in codecs}
    content = Content(
        title=f"Image codecs on {title}",
        facts=facts,
        metrics=metrics,
        means=means,
        equal_rate=compared,
        bd=bd,
        fid=fid,
        plots=[(plot.metric, plot.inline_svg) for plot in plotted.values()],
        legend={name: line for plot in plotted.values() for name, line in plot.legend.items()},
        pictures=pictures,
        published=published,
        failures=measured.failures,
        ours=ours,
        schema=f"{(__doc__ or '').strip()}\n\n{(records_module.__doc__ or '').strip()}",
    )
    _write(out / "report.html", make_page(content))
    return compared or means


def _published_for(records: Sequence[Record], wanted: bool | None) -> Published | None:
    """The published curves that were measured on such pictures; None: none are wanted or there."""
    sizes = {f"{max(r.height, r.width)}x{min(r.height, r.width)}" for r in records}
    if wanted is None:
        named = all(Path(record.image).stem.lower().startswith("kodim") for record in records)
        wanted = named and sizes in ({WHOLE}, {CROPS})
    published = load_published(CROPS if sizes == {CROPS} else WHOLE)
    return published if wanted and published.curves else None


def _plot_all(
    curves: Sequence[Curve],
    ours: Sequence[str],
    published: Published | None,
    metrics: Sequence[Metric],
    options: ReportOptions,
    title: str,
    out: Path,
) -> dict[str, "Plot"]:
    """Draws and writes the plots; returns them by the metric's name."""
    from sic_jax.evaluation.plots import draw_plot  # Needs matplotlib.

    title = f"Means over {title}"
    if published:
        title += f"; dashed: published means over {published.num_images} of {published.dataset}"
    drawn = {}
    for metric in metrics:
        others = published.curves if published else []
        plot = draw_plot(metric, curves, others, log_rate=options.log_rate, title=title, ours=ours)
        if plot is not None:
            _write(out / "plots" / f"{metric.name}.svg", plot.svg)
            write_atomic(out / "plots" / f"{metric.name}.png", plot.png)
            drawn[metric.name] = plot
    return drawn


def _codecs_of(out: Path) -> set[str]:
    """Names of the codecs of earlier runs into this folder, those of curves from the last one."""
    names = {key.codec for key in load_records(out / RECORDS_FILE)}
    try:
        last = json.loads((out / "results.json").read_bytes())
        return names | {record["codec"] for record in last["records"]}
    except (OSError, ValueError, TypeError, KeyError):
        return names


def _remove_old(out: Path, codecs: Set[str], plotted: Set[str], *, fid: bool) -> None:
    """Removes what earlier runs wrote of these codecs and of metrics that are not plotted now."""
    # Found in the folder, not made of the names, which a records file from elsewhere may hold.
    names = set(map(_file_name, codecs))
    old = [file for file in (out / "compressai").glob("*.json") if file.name in names]
    for metric in METRICS:
        if metric.name not in plotted:
            old += [out / "plots" / f"{metric.name}.{kind}" for kind in ("png", "svg")]
    if not fid:
        old.append(out / FID_FILE)
    old.append(out / SURVEY_FILE)  # Written after the report.
    for file in old:
        if file.is_file():
            file.unlink()


def _show(
    records: Sequence[Record],
    codecs: Sequence[ImageCodec],
    metrics: Sequence[Metric],
    show: Sequence[str] | None,
    out: Path,
) -> list[Comparison]:
    ours = names_of_sic(codecs)
    by_name = {c.name: c for c in sorted(codecs, key=lambda codec: codec.name not in ours)}
    order = list(by_name)
    comparisons = []
    measured = list(dict.fromkeys(record.image for record in records))
    wanted = choose_images(measured, None) if show is None else show
    for path in (path for path in wanted if path in measured):
        own = [record for record in records if record.image == path]
        own.sort(key=lambda record: (order.index(record.codec), record.bpp))
        comparisons.append(compare_pictures(path, own, by_name, metrics, out))
    return comparisons


def _file_name(codec: str) -> str:
    """Of the file in compressai/; other codecs have other names."""
    return quote(codec, safe="=, ") + ".json"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
