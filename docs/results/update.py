"""Results as data: the CSV files beside this script, and the tables and plots made of them.

    python docs/results/update.py                   make tables and plots anew
    python docs/results/update.py NAME FOLDER...    first NAME.csv, of what eval.py left in FOLDER

A table stands in README.md, a model card or a page of docs/, between two lines:

    <!-- table NAME: setting bpp psnr lpips avif.psnr/lpips -->
    <!-- end of table -->

Each word is a column: a value of the first codec in NAME.csv, or values of another codec at the
same bpp, read off its curve as eval.py does. Where the first word is "codec", every codec has rows
at its own settings. Other first lines are

    <!-- bd NAME: psnr lpips -->     Bjontegaard rates of the first codec against each other one
    <!-- published -->               how the published curves were measured

A NAME that ends in "-default" means the file of the default bundle. tests/test_results.py says
where a table or a plot is not that of its file. A plot's last line holds digests of the CSV file
and of the published curves, not of the code that draws:
after a change of that, remove the plot's last line and run this script.
"""

import argparse
import csv
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sic_jax.codec.library import DEFAULT
from sic_jax.evaluation.codecs import setting_text
from sic_jax.evaluation.means import Row, curves_of, mean_rows, rows_at_equal_rate
from sic_jax.evaluation.page import PUBLISHED
from sic_jax.evaluation.published import (
    PROTOCOL_LABELS,
    PUBLISHED_FILE,
    load_published,
    protocol_cells,
)
from sic_jax.evaluation.records import digest, from_json
from sic_jax.evaluation.summary import bd_rows, formatted, summary_cells, to_csv, to_markdown
from sic_jax.files import write_atomic
from sic_jax.metrics.table import METRICS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLOTS = {
    "docs/kodak_lpips.svg": ("kodak-default", "lpips"),
    "docs/paper_figures/kodak_dists.svg": ("kodak-default", "dists"),
    "docs/paper_figures/kodak_psnr.svg": ("kodak-default", "psnr"),
}
"""Of each plot the file of results and the metric."""
_FIRST = ("codec", "setting", "num_images", "bpp", "bpp_est")
_SIZE = "size: "
"""Before the size of the pictures, in a file's first lines."""
_KINDS = "table|bd|published"
_TABLE = re.compile(
    rf"^(<!-- ({_KINDS})(?: (\S+): ([^\n]+?))? -->\n)(.*?)^(<!-- end of table -->)$",
    re.DOTALL | re.MULTILINE,
)
_METRICS = {metric.name: metric for metric in METRICS}


class Results(NamedTuple):
    """What a CSV file holds."""

    about: list[str]
    """Its first lines, without "# ": the command, the revision, what was measured."""
    rows: list[Row]
    """Means over images; a codec without settings has values at the rates of the first codec."""


def csv_path(name: str) -> Path:
    """The file of a name, which may end in "-default"."""
    return HERE / f"{re.sub(r'-default$', f'-{DEFAULT}', name)}.csv"


def read_results(path: Path) -> Results:
    """Reads a CSV file.

    Raises:
        ValueError: If it has no rows or a value is no number.
    """
    lines = path.read_text().splitlines()
    about = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    rows = []
    for cells in csv.DictReader(line for line in lines if not line.startswith("#")):
        codec, images = cells.pop("codec"), int(cells.pop("num_images"))
        values = {name: float(text) if text else None for name, text in cells.items()}
        setting, bpp, bpp_est = (values.pop(name) for name in ("setting", "bpp", "bpp_est"))
        if bpp is None:
            raise ValueError(f"{path.name}: a row without bpp")
        rows.append(Row(codec, setting, None, images, bpp, bpp_est, None, None, values, {}))
    if not rows:
        raise ValueError(f"{path.name}: no rows")
    return Results(about, rows)


def to_text(results: Results) -> str:
    """The CSV file, with six decimals; the inverse of `read_results`."""
    names = [name for name in _METRICS if any(name in row.metrics for row in results.rows)]
    columns = [*_FIRST, *names]
    cells = [[_short(value) for value in summary_cells(r, columns)] for r in results.rows]
    return "".join(f"# {line}\n" for line in results.about) + to_csv(columns, cells)


def results_of_runs(
    folders: Sequence[Path], command: str | None = None, revision: str | None = None
) -> Results:
    """Means of runs of eval.py over the same images, those of the reference first.

    Args:
        folders: Output folders, with results.json.
        command: The command, where results.json does not know it (before version 0.2).
        revision: The revision of the checkout, likewise.

    Raises:
        ValueError: If images failed or differ between the runs, a codec is there twice, or command
            or revision are not known.
    """
    about: list[str] = []
    rows: list[Row] = []
    images: set[str] = set()
    sizes: set[str] = set()
    for folder in folders:
        run = json.loads((folder / "results.json").read_bytes())
        if run["errors"]:
            raise ValueError(f"{folder}: {len(run['errors'])} images failed")
        records = [from_json(record) for record in run["records"]]
        own = {record.image_id for record in records}
        if images and own != images:
            raise ValueError(f"{folder}: other images than those of {folders[0]}")
        images = own
        sizes |= {f"{max(r.height, r.width)}x{min(r.height, r.width)}" for r in records}
        known = {"command": run.get("command") or command}
        known["revision"] = run.get("revision") or revision
        for key, text in known.items():
            if not text:
                raise ValueError(f"{folder}: results.json holds no {key}: give --{key}")
            about.append(f"{key}: {_without_folders(text)}")
        options = {record.codec: record.options for record in records}
        if twice := set(options) & {row.codec for row in rows}:
            raise ValueError(f"{folder}: the codec {min(twice)!r} is in another folder, too")
        bundles = run["bundle"] if isinstance(run["bundle"], Mapping) else {"sic": run["bundle"]}
        for codec, text in options.items():
            bundle = [f"bundle {Path(bundles[codec]).name}"] if bundles.get(codec) else []
            about.append(f"{codec}: {', '.join([*bundle, text])}")
        versions = [f"{name} {version}" for name, version in run["versions"].items()]
        about.append(f"on: {', '.join([run['device'], *versions])}")
        rows += mean_rows(records)
    return Results([*about, f"images: {len(images)}", _SIZE + ", ".join(sorted(sizes))], rows)


def to_table(results: Results, words: Sequence[str]) -> str:
    """The table of these columns; "-" is what was not measured.

    Raises:
        ValueError: If there is no such column, or the results lack a codec.
    """
    first = results.rows[0].codec
    if words[0] == "codec":
        lines = [
            [_cell({row.codec: row}, row.codec, word) for word in words] for row in results.rows
        ]
        heads = ["setting" if word == "setting" else _heading(word) for word in words]
        return to_markdown(heads, lines)
    at_level: dict[float | None, dict[str, Row]] = {}
    for row in rows_at_equal_rate(results.rows, first):
        at_level.setdefault(row.level, {})[row.codec] = row
    lines = [[_cell(rows, first, word) for word in words] for rows in at_level.values()]
    return to_markdown([_heading(word) for word in words], lines)


def to_bd_table(results: Results, names: Sequence[str]) -> str:
    """Rate of the first codec against that of each other one at equal quality, in percent.

    Published curves of the same pictures are references, too. "-" is where curves share less than
    a tenth of the range of the first codec: what holds there says nothing of the rest.

    Raises:
        ValueError: If there is no such metric.
    """
    if unknown := set(names) - set(_METRICS):
        raise ValueError(f"no metric {min(unknown)!r}")
    measured = curves_of(results.rows)
    first = results.rows[0]
    published = load_published(_size_of(results))
    others = published.curves if published.num_images == first.num_images else []
    ours = next(curve for curve in measured if curve.name == first.codec)
    found: dict[str, dict[str, str]] = {}
    for row in bd_rows(measured, others, [_METRICS[name] for name in names]):
        rate, values = row.rate, [value for _, value in ours.scaled_points(row.metric)]
        if row.test != first.codec or rate.value is None or rate.low is None or rate.high is None:
            continue
        if rate.high - rate.low >= 0.1 * (max(values) - min(values)):
            found.setdefault(row.reference, {})[row.metric.name] = f"{rate.value:+.1f} %"
    ends = {curve.name: PUBLISHED for curve in others}
    order = [curve.name for curve in (*measured, *others) if curve.name in found]
    lines = [
        [name + ends.get(name, ""), *(found[name].get(metric, "-") for metric in names)]
        for name in order
    ]
    return to_markdown(["against", *map(_heading, names)], lines)


def renewed(text: str) -> str:
    """A Markdown text with its tables made anew.

    Raises:
        ValueError: If a table cannot be made.
        OSError: If there is no file of its name.
    """

    def replace(found: re.Match[str]) -> str:
        line, kind, name, words = found.group(1, 2, 3, 4)
        if kind == "published" and name is None:
            table = to_markdown(PROTOCOL_LABELS, protocol_cells(load_published().curves))
            return line + table + found[6]
        if kind == "published" or name is None:
            raise ValueError(f"not the first line of a table: {line.strip()}")
        path = csv_path(name)
        make = to_table if kind == "table" else to_bd_table
        try:
            table = make(read_results(path), words.split())
        except ValueError as error:
            raise ValueError(f"{kind} {name}: {path.name}: {error}") from error
        return line + table + found[6]

    if len(re.findall(rf"<!-- (?:{_KINDS}) ", text)) != len(_TABLE.findall(text)):
        raise ValueError("a line <!-- table NAME: COLUMN ... --> without <!-- end of table -->")
    return _TABLE.sub(replace, text)


def texts() -> list[Path]:
    """The files that have tables."""
    cards = sorted((ROOT / "sic_jax" / "bundles").glob("*/README.md"))
    pages = (ROOT / "docs" / "results" / "README.md", ROOT / "docs" / "guide" / "evaluate.md")
    return [ROOT / "README.md", *cards, *(page for page in pages if page.exists())]


def stamp(name: str) -> str:
    """The last line of a plot: what it is drawn of."""
    files = (csv_path(name), PUBLISHED_FILE)
    digests = "; ".join(f"{path.name}, {digest(path.read_bytes())}" for path in files)
    return f"<!-- of {digests} -->\n"


def draw(name: str, metric: str) -> str:
    """The SVG of a metric by rate, beside published curves of the same pictures.

    Raises:
        ValueError: If the file lacks the metric or the size of its pictures.
    """
    from sic_jax.evaluation.plots import draw_plot  # Needs matplotlib.

    results = read_results(csv_path(name))
    rows = results.rows
    ours = [rows[0].codec]
    published = load_published(_size_of(results))
    title = f"Means over {rows[0].num_images} images"
    if published.curves:
        title += f"; dashed: published means over {published.num_images} of {published.dataset}"
    plot = draw_plot(
        _METRICS[metric], curves_of(rows), published.curves, log_rate=True, title=title, ours=ours
    )
    if plot is None:
        raise ValueError(f"{csv_path(name).name}: no {metric} to plot")
    return plot.svg.rstrip() + "\n" + stamp(name)


def _size_of(results: Results) -> str:
    sizes = [line.removeprefix(_SIZE) for line in results.about if line.startswith(_SIZE)]
    if len(sizes) != 1:
        raise ValueError(f"{len(sizes)} lines {_SIZE!r}, which says what curves are comparable")
    return sizes[0]


def _cell(rows: Mapping[str, Row], first: str, word: str) -> str:
    codec, _, names = word.rpartition(".")
    columns = names.split("/")
    if (codec or first) not in rows:
        raise ValueError(f"no codec {codec!r}, but {', '.join(rows)}")
    row = rows[codec or first]
    if unknown := [c for c in columns if c not in (*_FIRST, *_METRICS)]:
        raise ValueError(f"no column {unknown[0]!r}")
    # Values read off a curve are not known to four decimals.
    most = 3 if codec else 4
    metrics = [m._replace(decimals=min(m.decimals, most)) for m in METRICS]
    cells = formatted(columns, summary_cells(row, columns), metrics)
    return "-" if set(cells) == {"-"} else " / ".join(cells)


def _heading(word: str) -> str:
    codec, _, names = word.rpartition(".")
    # LPIPS is that of AlexNet, here as in the field.
    labels = {name: m.label.removesuffix(" (AlexNet)") for name, m in _METRICS.items()}
    labels |= {"setting": "level", "wd": "WD"}
    text = " / ".join(labels.get(name, name) for name in names.split("/"))
    return f"{codec.upper()}: {text}" if codec else text


def _short(value: Any) -> Any:
    return setting_text(round(value, 6)) if isinstance(value, float) else value


def _without_folders(command: str) -> str:
    """The command with the last part of each absolute path."""
    words = [Path(w).name if w.startswith("/") else w for w in shlex.split(command)]
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes what is not up to date, and says what; exit code 1 and one line if it cannot."""
    parser = argparse.ArgumentParser(prog="update.py", description="Tables and plots of results.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the CSV file to make")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of eval.py")
    parser.add_argument("--command", help="of eval.py, where results.json does not know it")
    parser.add_argument("--revision", help="of its checkout, likewise")
    args = parser.parse_args(argv)
    if args.name and not args.folders:
        parser.error("NAME needs a FOLDER with results.json")
    try:
        if args.name:
            results = results_of_runs(args.folders, args.command, args.revision)
            _write(csv_path(args.name), to_text(results))
        for path in texts():
            _write(path, renewed(path.read_text()))
        for file, (name, metric) in PLOTS.items():
            if not (ROOT / file).read_text().endswith(stamp(name)):
                _write(ROOT / file, draw(name, metric))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"update.py: error: {error}\n")
        return 1
    return 0


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text.encode())
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    sys.exit(main())
