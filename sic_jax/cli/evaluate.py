"""Command line of eval.py: rate and distortion of `sic` and of other codecs, from real files.

Every image is coded to a file at every setting, the file is read back and decoded, and the 8-bit
reconstruction is measured against the 8-bit original, both as RGB. Files hold pixels only, neither
colour profiles nor EXIF. `sic_jax.evaluation.report` says what ``--out DIR`` receives.
"""

import argparse
import importlib.util
import math
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sic_jax.cli.option_flags import add_flags, options_of, setting_names, with_settings
from sic_jax.codec.codec import Codec
from sic_jax.codec.options import DecodeOptions, EncodeOptions
from sic_jax.evaluation.baselines import BASELINES, external_codec, missing_baseline, pillow_codec
from sic_jax.evaluation.codecs import SIC, ImageCodec, sic_codec
from sic_jax.evaluation.fid import (
    FID_LABELS,
    FidRow,
    fid_cells,
    fid_remark,
    fid_rows,
    inception_of,
    vgg16_of_package,
)
from sic_jax.evaluation.measurer import Measurer
from sic_jax.evaluation.pictures import choose_images
from sic_jax.evaluation.report import ReportOptions, write_report
from sic_jax.evaluation.run import find_images, measure_images, one_line, setup
from sic_jax.evaluation.summary import (
    formatted,
    summary_cells,
    summary_columns,
    to_markdown,
)
from sic_jax.evaluation.survey import SURVEY_FILE, check_survey, write_survey
from sic_jax.metrics.table import METRICS
from sic_jax.progress import Progress

# Files keep the default seed and the measured grain; files and decodings have all of --levels.
_NO_ENCODE_FLAGS = ("level", "max_bytes", "max_bpp", "min_psnr", "seed", "grain")
_NO_DECODE_FLAGS = ("level", "strict")


class _Curve(NamedTuple):
    """A curve of `sic`."""

    bundle: str
    """As the command line calls it."""
    loaded: Codec
    codec: ImageCodec


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; a wrong command line ends the program with exit code 2.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="eval.py", description="Measure codecs on images, by real files.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--images",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images and folders; not transparent",
    )
    add("--out", required=True, metavar="DIR", help="where results go; a rerun resumes there")
    add("--codecs", nargs="*", choices=(SIC, *BASELINES), help="default: all that work here")
    names = [metric.name for metric in METRICS]
    usual = [metric.name for metric in METRICS if metric.default]
    add(
        "--metrics",
        nargs="+",
        choices=(*names, "all"),
        metavar="METRIC",
        default=usual,
        help="all, or of " + " ".join(names) + "; default: " + " ".join(usual),
    )
    add(
        "--qualities",
        action="extend",
        nargs="+",
        default=[],
        metavar="CODEC=Q,Q,...",
        help="other than usual",
    )
    add(
        "--external",
        action="append",
        default=[],
        metavar="NAME=ENCODER ;; DECODER",
        help="a codec made of two commands with {input}, {output} and, in the first, {quality}; "
        "needs --qualities NAME=...; may be repeated",
    )
    add(
        "--fid-weights",
        type=Path,
        metavar="FILE",
        help="Inception weights (.npz or .safetensors, see sic_jax/metrics/inception.py): FID and "
        "KID over patches of all images, into fid.csv",
    )
    add(
        "--vgg-frechet",
        action="store_true",
        help="into fid.csv also the Frechet distance of VGG16 features: a stand-in for FID without "
        "other weights, on a scale of its own",
    )
    add(
        "--fid-patch",
        type=int,
        choices=(256, 64),
        help="side of the patches of both (default: 256, as in HiFiC and MS-ILLM; newer papers "
        "take 64 on Kodak, which has 192 patches of 256 pixels)",
    )
    add("--batch-size", type=int, metavar="N", help="pictures measured at once (CPU: 1; else 8)")
    sic = parser.add_argument_group("sic")
    sic.add_argument(
        "--bundle",
        nargs="+",
        default=["default"],
        metavar="B[:NAME=VALUE,...]",
        help="trained models, each a curve; with flags below of its own, as in "
        "default default:temperature=0.25 default:optimise=12,grain=no",
    )
    sic.add_argument("--coder", choices=("tfc", "native"), help="range coder")
    sic.add_argument("--levels", nargs="+", type=int, metavar="N", help="default: 1 4 8 12 16")
    sic.add_argument("--samples", type=int, default=1, metavar="M", help="decodings of each file")
    add_flags(sic, EncodeOptions, without=_NO_ENCODE_FLAGS)
    add_flags(sic, DecodeOptions, without=_NO_DECODE_FLAGS)
    page = parser.add_argument_group("report")
    page.add_argument("--rate-axis", choices=("log", "linear"), default="log", help="of the plots")
    page.add_argument(
        "--published",
        choices=("auto", "yes", "no"),
        default="auto",
        help="published curves on Kodak (auto: if all are kodimNN of 768x512)",
    )
    page.add_argument(
        "--show", nargs="*", metavar="IMAGE", help="images on the page (default: three)"
    )
    page.add_argument(
        "--survey",
        nargs="?",
        type=int,
        const=20,
        metavar="PAIRS",
        help="also survey.html, a blind test: pairs of files of equal size, choices, Elo scores; "
        "default: 20 pairs",
    )
    page.add_argument(
        "--survey-seed", type=int, default=0, metavar="N", help="which pairs (default 0)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation and print the table.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        Exit code: 0; 1 when anything failed or was left out (files in a folder that are not named
        like pictures); 130 when interrupted. Each is one line on stderr.
    """
    args = parse(argv)
    progress = Progress()
    try:
        return _run(args, progress, sys.argv[1:] if argv is None else argv)
    except (ValueError, OSError) as error:
        progress.say(f"eval.py: error: {one_line(error)}")
        return 1
    except KeyboardInterrupt:
        progress.say("eval.py: interrupted; the same command goes on from here")
        return 130


def _run(args: argparse.Namespace, progress: Progress, argv: Sequence[str]) -> int:
    start = time.perf_counter()
    found = find_images(args.images)
    for path in found.skipped:
        progress.say(f"eval.py: skipped: {path}: not named like a picture")
    paths = [str(path) for path in found.images]
    show = None if args.show is None else choose_images(paths, args.show)
    curves, codecs = _make_codecs(args, progress)
    if args.survey is not None:
        check_survey(codecs, args.survey, args.survey_seed)
    metrics = [m for m in METRICS if m.name in args.metrics or "all" in args.metrics]
    on_cpu = jax.default_backend() == "cpu"
    batch_size = args.batch_size if args.batch_size is not None else (1 if on_cpu else 8)
    out = Path(args.out)
    inception = None if args.fid_weights is None else inception_of(args.fid_weights)
    vgg16 = vgg16_of_package() if args.vgg_frechet else None
    if args.fid_patch is not None and inception is None and vgg16 is None:
        raise ValueError("--fid-patch needs --fid-weights or --vgg-frechet")
    measured = measure_images(found.images, codecs, Measurer(metrics, batch_size), out, progress)
    seconds = time.perf_counter() - start
    if untimed := sum(record.decode_s is None for record in measured.records):
        progress.say(
            f"eval.py: no times of {untimed} measurements: made before with another coder, device "
            f"or version; without {out / 'files'} they are made again"
        )
    about: dict[str, Any] = {
        "bundle": _of_each([(curve, curve.bundle) for curve in curves]),
        "model_id": _of_each([(curve, curve.loaded.bundle.model_id.hex()) for curve in curves]),
        "coder": curves[0].loaded.coder if curves else None,
        "command": shlex.join(["python", "eval.py", *argv]),
        "revision": _revision(),
        **setup(),
        "metrics": [metric.name for metric in metrics],
        "seconds": round(seconds, 1),
        "skipped": [str(path) for path in found.skipped],
    }
    plots = importlib.util.find_spec("matplotlib") is not None
    if not plots:
        progress.say("eval.py: no plots: matplotlib is not installed (pip install sic_jax[eval])")
    published = {"auto": None, "yes": True, "no": False}[args.published]
    options = ReportOptions(plots, args.rate_axis == "log", published, show)
    found_fid: list[FidRow] = []
    fid_error = None
    if inception is not None or vgg16 is not None:
        progress.show("comparing patches")
        side = 256 if args.fid_patch is None else args.fid_patch
        try:
            found_fid = fid_rows(
                measured.records, codecs, out, inception=inception, vgg16=vgg16, side=side
            )
        except (ValueError, OSError) as error:  # The report is written without them.
            fid_error = error
    progress.show("writing the report")
    rows = write_report(measured, about, codecs, metrics, options, out, found_fid)
    columns = summary_columns(metrics, samples=args.samples > 1)
    cells = [formatted(columns, summary_cells(row, columns), metrics) for row in rows]
    progress.say(
        f"{len(measured.records)} measurements ({measured.num_reused} from before) in "
        f"{seconds:.0f} s, report in {time.perf_counter() - start - seconds:.0f} s: "
        f"{out / 'report.html'}"
    )
    sys.stdout.write(to_markdown(columns, cells))
    if found_fid:
        sys.stdout.write("\n" + to_markdown(FID_LABELS, list(map(fid_cells, found_fid))))
        progress.say(fid_remark(found_fid[0]))
    failed = bool(measured.failures or found.skipped)
    if args.survey is not None:
        progress.show("writing the blind test")
        try:
            pairs = write_survey(measured.records, codecs, args.survey, args.survey_seed, out)
            progress.say(f"blind test of {pairs} pairs: {out / SURVEY_FILE}")
        except ValueError as error:
            progress.say(f"eval.py: error: {one_line(error)}")
            failed = True
    if fid_error is not None:
        raise fid_error
    return 1 if failed else 0


def _of_each(values: Sequence[tuple[_Curve, str]]) -> str | dict[str, str] | None:
    """As results.json says it: what holds of the only curve, or of each by its name."""
    if len(values) > 1:
        return {curve.codec.name: text for curve, text in values}
    return values[0][1] if values else None


def _revision() -> str | None:
    """Of the checkout that this file lies in, "-dirty" where it was changed; None: in none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _make_codecs(
    args: argparse.Namespace, progress: Progress
) -> tuple[list[_Curve], list[ImageCodec]]:
    """The curves of `sic`, if it is measured, and all codecs, those of `sic` first.

    Raises:
        ValueError: If one is not there or the options contradict each other.
    """
    qualities = _parse_qualities(args.qualities)
    names = args.codecs
    if names is None:
        missing = {name: missing_baseline(name) for name in BASELINES}
        for reason in filter(None, missing.values()):
            progress.say(f"eval.py: skipped: {reason}")
        names = [SIC, *(name for name in BASELINES if not missing[name])]
    externals = {}
    for text in args.external:
        name, _, template = text.partition("=")
        if name in externals:
            raise ValueError(f"--external: the name {name!r} is given twice")
        externals[name] = template
    if unknown := [name for name in qualities if name not in (*names, *externals)]:
        raise ValueError(f"--qualities: no codec {unknown[0]!r} in this run")
    if twice := [name for name in externals if name in (SIC, *BASELINES)]:
        raise ValueError(f"--external: the name {twice[0]!r} belongs to another codec")
    codecs = [pillow_codec(name, qualities.get(name)) for name in BASELINES if name in names]
    for name, template in externals.items():
        codecs.append(external_codec(name, template, qualities.get(name, [])))
    curves = _make_curves(args) if SIC in names else []
    codecs = [*(curve.codec for curve in curves), *codecs]
    if not codecs:
        raise ValueError("no codec to measure: give --codecs or --external")
    ((name, count),) = Counter(codec.name for codec in codecs).most_common(1)
    if count > 1:
        raise ValueError(f"--bundle: {count} codecs are called {name!r}; rename the folder")
    return curves, codecs


def _make_curves(args: argparse.Namespace) -> list[_Curve]:
    """Each bundle of the command line, with the flags and its own settings.

    Raises:
        ValueError: If one is not there, a setting is wrong, or two are the same.
    """
    split = [_split_settings(text) for text in args.bundle]
    short = _short_names({bundle for bundle, _ in split})
    loaded: dict[str, Codec] = {}
    curves: list[_Curve] = []
    for text, (bundle, settings) in zip(args.bundle, split, strict=True):
        if bundle not in loaded:
            loaded[bundle] = Codec.load(bundle, coder=args.coder)
        encoding, decoding = options_of(args, EncodeOptions), options_of(args, DecodeOptions)
        try:
            encoding = with_settings(encoding, settings, without=_NO_ENCODE_FLAGS)
            decoding = with_settings(decoding, settings, without=_NO_DECODE_FLAGS)
        except ValueError as error:
            raise ValueError(f"--bundle {text}: {error}") from error
        name = short[bundle] + text.removeprefix(bundle) if len(split) > 1 else ""
        codec = sic_codec(
            loaded[bundle], args.levels, encoding, decoding, samples=args.samples, name=name
        )
        for text_before, before in zip(args.bundle, curves, strict=False):
            if before.codec.options == codec.options:
                raise ValueError(f"--bundle: {text_before} and {text} are one model, set alike")
        curves.append(_Curve(bundle, loaded[bundle], codec))
    return curves


def _split_settings(text: str) -> tuple[str, dict[str, str]]:
    """Bundle and settings of "BUNDLE:NAME=VALUE,...".

    Raises:
        ValueError: If there is no such setting, or one is there twice.
    """
    bundle, _, rest = text.rpartition(":")
    if not bundle or "=" not in rest:  # A path may hold colons.
        return text, {}
    known = setting_names(EncodeOptions, without=_NO_ENCODE_FLAGS)
    known += setting_names(DecodeOptions, without=_NO_DECODE_FLAGS)
    settings: dict[str, str] = {}
    for part in rest.split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise ValueError(f"--bundle {text}: no setting {name!r}, but {', '.join(known)}")
        if name in settings:
            raise ValueError(f"--bundle {text}: {name} is given twice")
        settings[name] = value
    return bundle, settings


def _short_names(bundles: Collection[str]) -> dict[str, str]:
    """The last part of each path, or as many as tell it from the others."""
    parts = {bundle: Path(os.path.abspath(bundle)).parts for bundle in bundles}
    names = {}
    for bundle, own in parts.items():
        others = [other for other in parts.values() if other != own]
        count = 1
        while count < len(own) and any(other[-count:] == own[-count:] for other in others):
            count += 1
        names[bundle] = "-".join(own[-count:])
    return names


def _parse_qualities(texts: Sequence[str]) -> dict[str, list[float]]:
    """The numbers of each codec.

    Raises:
        ValueError: If a text is of another form, or a codec has no qualities or is there twice.
    """
    qualities: dict[str, list[float]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name == SIC:
            raise ValueError(f"--qualities: {SIC} has levels, see --levels; got {text!r}")
        if name in qualities:
            raise ValueError(f"--qualities: the codec {name!r} is given twice")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise ValueError(f"--qualities: need CODEC=Q,Q,..., got {text!r}") from error
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"--qualities: need finite numbers, got {text!r}")
        qualities[name] = [int(q) if q.is_integer() else q for q in numbers]
    return qualities
