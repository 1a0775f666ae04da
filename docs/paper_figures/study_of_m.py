"""What M does, the draws of an image in the loss: the study of the paper's Figure 5, made small.

    python docs/paper_figures/study_of_m.py --data memory:photos/ --images kodak/
    python docs/paper_figures/study_of_m.py

The first trains and measures, and writes study_of_m.csv beside this script; both draw its plots.

Every M has the paper's loss and schedule (`sic_jax.training.presets.paper`): each image of a batch
is decoded at level 16 and M times at the level whose turn it is, with details drawn at temperature
1. Only the network is another, small one. The learning rate is constant, as the paper's, so that
one run is measured at two of its steps: when it has seen as many images as the others, and when it
has made as many decodings, 1 + M an image. Runs of one seed start from the same parameters and see
the same crops in the same order.

Measured are averaged parameters (EMA) on centre crops of images that were not trained on: rates are
estimates for rounded latents, and every metric is the mean over draws at temperature 1, the same
draws for every run.
"""

import argparse
import csv
import dataclasses
import io
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.data.batches import batches
from sic_jax.data.open_source import open_source
from sic_jax.data.samples import validation_crops
from sic_jax.data.source import Source
from sic_jax.evaluation.means import interpolate
from sic_jax.evaluation.page import metric_text
from sic_jax.evaluation.records import digest
from sic_jax.files import write_atomic
from sic_jax.metrics import table
from sic_jax.model.entropy_models.checkerboard.checkerboard import CheckerboardEntropy
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.transforms.pyramid import PyramidTransforms
from sic_jax.training.loop import initial_params
from sic_jax.training.losses import load_perceptual_weights
from sic_jax.training.presets import paper
from sic_jax.training.state import create_train_state
from sic_jax.training.step import NEVER, make_train_step
from sic_jax.training.train_config import TrainConfig
from sic_jax.training.validation import Validate, make_validate

HERE = Path(__file__).resolve().parent
CSV, PLOT, PAGE = HERE / "study_of_m.csv", HERE / "study_of_m.svg", HERE / "README.md"
DRAWS_IN_TRAINING = (1, 2, 5)
"""The values of M."""
LEVELS = (1, 4, 8, 12, 16)
"""Measured."""
CROPS, CROP_SIZE, DRAWS = 8, 128, 2
"""Measured images, their sides in pixels, and draws of each."""
METRICS = ("psnr", "lpips", "dists")
COLOURS = {1: "#0072b2", 2: "#009e73", 5: "#d55e00"}


class Row(NamedTuple):
    """What was measured of one run, at one of its steps, at one level: means over crops, draws."""

    num_samples: int
    """M."""
    seed: int
    images: int
    """Crops seen."""
    decodings: int
    """Crops decoded, at level L and at others."""
    level: int
    bpp_est: float
    """Estimated bits per pixel of rounded latents."""
    mse: float
    """Of images in [0, 1]."""
    psnr: float
    lpips: float
    dists: float


Curves = dict[int, list[list[Row]]]
"""Of each M a list of rows for each seed."""


class Results(NamedTuple):
    """What the CSV file holds."""

    about: list[str]
    """Its first lines, without "# "."""
    rows: list[Row]


def small_run() -> TrainConfig:
    """The preset `paper` with a small network, short: 0.6 million parameters, crops of 64 pixels.

    A pyramid of a quarter of the default widths and half of its blocks, 16 equal levels as in the
    paper. A higher learning rate for short runs, and an average of the parameters over some 100
    steps.
    """
    model = ModelConfig(
        levels=LevelConfig(channels=(4,) * 16, refinements=(0,) * 16),
        transforms=PyramidTransforms(
            widths=(16, 24, 40, 64), analysis_depths=(1, 1, 1, 1), synthesis_depths=(1, 2, 2, 1)
        ),
        entropy=CheckerboardEntropy(
            hyper_channels=12, hyper_width=32, context_width=12, head_width=32
        ),
    )
    return dataclasses.replace(
        paper(), model=model, batch_size=4, crop_size=64, learning_rate=1e-3, ema_decay=0.99
    )


def with_draws(cfg: TrainConfig, num_samples: int) -> TrainConfig:
    """The same run with another M."""
    return dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, num_samples=num_samples))


def measured_steps(num_samples: int, steps: int, most: int = max(DRAWS_IN_TRAINING)) -> list[int]:
    """Steps of a run with M draws at which it is measured.

    Args:
        num_samples: M.
        steps: Of every run for the comparison at the same number of images.
        most: The largest M, whose run ends there.

    Returns:
        `steps`, and the step with as many decodings as the run with the most draws makes.

    Raises:
        ValueError: If there is no such step.
    """
    decodings = steps * (1 + most)
    if decodings % (1 + num_samples):
        raise ValueError(
            f"steps is {steps}: {decodings} decodings an image of a batch are no multiple of "
            f"{1 + num_samples}"
        )
    return sorted({steps, decodings // (1 + num_samples)})


def study(
    base: TrainConfig,
    source: Source,
    measure: Callable[..., dict[str, float]],
    *,
    steps: int,
    seeds: Sequence[int],
    draws_in_training: Sequence[int] = DRAWS_IN_TRAINING,
    levels: Sequence[int] = LEVELS,
) -> Iterator[list[Row]]:
    """Trains and measures.

    Args:
        base: The run; its M and seed do not count.
        source: Training images.
        measure: Of parameters, named values ``METRIC/LEVEL`` at `levels`.
        steps: Of every run, for the comparison at the same number of images.
        seeds: Of parameters, crops and noise.
        draws_in_training: The values of M.
        levels: As `measure` has them.

    Yields:
        The rows of each step at which a run is measured, all runs of a seed after one another.
    """
    programs: dict[int, Any] = {}
    weights = load_perceptual_weights(base.loss)
    places = jnp.arange(base.batch_size)
    for seed in seeds:
        params = initial_params(dataclasses.replace(base, seed=seed), source)
        # Noise depends on an image's place in the batch: other places are other noise, without
        # compiling the step for each seed.
        rows = places + seed * base.batch_size
        for m in draws_in_training:
            stops = measured_steps(m, steps, max(draws_in_training))
            state, first_bad = create_train_state(base, params), jnp.int32(NEVER)
            stream = batches(
                source, crop_size=base.crop_size, batch_size=base.batch_size, seed=seed,
                data=base.data, first_step=0, rows=slice(None),
            )  # fmt: skip
            for step in range(1, stops[-1] + 1):
                arguments = (state, next(stream), rows, weights)
                if m not in programs:  # Compiled here: a call of a jitted function does it twice.
                    program = jax.jit(make_train_step(with_draws(base, m)), donate_argnums=0)
                    programs[m] = program.lower(*arguments).compile()
                state, metrics = programs[m](*arguments)
                first_bad = jnp.minimum(first_bad, metrics.first_bad)
                if step in stops:
                    if first_bad < NEVER:
                        raise FloatingPointError(f"M = {m}, seed {seed}: step {first_bad} is bad")
                    images = step * base.batch_size
                    values = measure(state.ema)
                    yield [
                        Row(m, seed, images, images * (1 + m), k,
                            *(values[f"{name}/{k}"] for name in Row._fields[5:]))
                        for k in levels
                    ]  # fmt: skip
            stream.close()


def make_measure(
    cfg: TrainConfig,
    images: NDArray[np.uint8],
    *,
    levels: Sequence[int] = LEVELS,
    draws: int = DRAWS,
    metrics: Sequence[str] = METRICS,
) -> Callable[..., dict[str, float]]:
    """A function of parameters: rates, and means of metrics over images and draws of each."""
    validate: Validate = make_validate(
        cfg.model, levels=levels, metrics=metrics, batch_size=len(images), temperature=1.0
    )
    # A copy of an image has a number, and so draws, of its own.
    copies = np.tile(images, (draws, 1, 1, 1))
    return lambda params: validate(params, copies)


def to_text(results: Results) -> str:
    """The CSV file, with six decimals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in results.rows:
        writer.writerow([round(v, 6) if isinstance(v, float) else v for v in row])
    return "".join(f"# {line}\n" for line in results.about) + out.getvalue()


def read_results(path: Path) -> Results:
    """The inverse of `to_text`."""
    lines = path.read_text().splitlines()
    about = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    rows = [
        Row(*(Row.__annotations__[name](text) for name, text in cells.items())) for cells in table
    ]
    return Results(about, rows)


def comparisons(rows: Sequence[Row]) -> dict[str, Curves]:
    """The curves at the same number of images, and at the same number of decodings."""
    images, decodings = min(row.images for row in rows), max(row.decodings for row in rows)
    chosen = {
        "the same images": [row for row in rows if row.images == images],
        "the same decodings": [row for row in rows if row.decodings == decodings],
    }
    found: dict[str, Curves] = {}
    for name, some in chosen.items():
        found[name] = {
            m: [
                [row for row in some if (row.num_samples, row.seed) == (m, seed)]
                for seed in sorted({row.seed for row in some if row.num_samples == m})
            ]
            for m in sorted({row.num_samples for row in some})
        }
    return found


def common_rates(rows: Sequence[Row], count: int = 9) -> NDArray[np.float64]:
    """Rates, evenly spread in logarithms, that all curves reach."""
    curves: dict[tuple[int, int, int], list[float]] = {}
    for row in rows:
        curves.setdefault((row.num_samples, row.seed, row.images), []).append(row.bpp_est)
    low, high = max(map(min, curves.values())), min(map(max, curves.values()))
    # Rounding must not lead out of the curves.
    return np.clip(np.geomspace(low, high, count), low, high)


def at_rates(curve: Sequence[Row], name: str, rates: Sequence[float]) -> list[float]:
    """A metric of one run, read off its curve."""
    points = [(row.bpp_est, getattr(row, name)) for row in curve]
    values = [interpolate(points, rate) for rate in rates]
    return [value for value in values if value is not None]


def mean_loss_of(curve: Sequence[Row]) -> float:
    """What training minimises, without consistency: its mean over the measured levels."""
    cfg, at = small_run().loss, [row.level - 1 for row in curve]
    terms = [
        cfg.lmbda_rate[k] * row.bpp_est
        + cfg.lmbda_dist[k] * row.mse
        + cfg.lmbda_perc[k] * row.lpips
        for k, row in zip(at, curve, strict=True)
    ]
    return float(np.mean(terms))


def to_table(rows: Sequence[Row]) -> str:
    """Of every setting the loss, and means over the common rates; in brackets the seeds' range."""
    rates = common_rates(rows).tolist()
    lines = [
        "| at | M | images | decodings | loss | DISTS | LPIPS | PSNR, dB |",
        "| --- " * 8 + "|",
    ]

    def summary(curve: Sequence[Row]) -> list[float]:
        metrics = [np.mean(at_rates(curve, name, rates)) for name in ("dists", "lpips", "psnr")]
        return [mean_loss_of(curve), *map(float, metrics)]

    def add(cells: Sequence[object], values: NDArray[np.float64], sign: str = "") -> None:
        ranges = [_range(v, n, sign) for v, n in zip(values.T, (2, 4, 4, 2), strict=True)]
        lines.append("| " + " | ".join([*map(str, cells), *ranges]) + " |")

    for name, curves in comparisons(rows).items():
        found = {m: np.array([summary(curve) for curve in of]) for m, of in curves.items()}
        for m, values in found.items():
            first = curves[m][0][0]
            add((name, m, first.images, first.decodings), values)
        least = min(found)
        for m in sorted(set(found) - {least}):
            add((name, f"{m}, less that of {least}", "", ""), found[m] - found[least], "+")
    return "\n".join(lines) + "\n"


def renewed(text: str, rows: Sequence[Row]) -> str:
    """The page with its table made anew."""
    pattern = r"(<!-- table of study_of_m.csv -->\n).*?(<!-- end of table -->)"
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError("the page has no place for the table")
    return re.sub(pattern, lambda f: f[1] + to_table(rows) + f[2], text, flags=re.DOTALL)


def stamp() -> str:
    """The last line of the plot: what it is drawn of."""
    return f"<!-- of {CSV.name}, {digest(CSV.read_bytes())} -->\n"


def draw(rows: Sequence[Row]) -> str:
    """The SVG: metrics by rate, means over seeds in bands from the least to the greatest."""
    import matplotlib as mpl  # Only drawing needs it.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rates = common_rates(rows)
    style: Any = {"svg.hashsalt": "study_of_m", "svg.fonttype": "none", "font.size": 11}
    known = {metric.name: metric for metric in table.METRICS}
    with mpl.rc_context(style):
        figure = Figure(figsize=(11, 6.6), layout="constrained")
        axes = figure.subplots(2, 3, sharex=True, sharey="col")
        for line, (title, curves) in zip(axes, comparisons(rows).items(), strict=True):
            for ax, name in zip(line, ("dists", "lpips", "psnr"), strict=True):
                for m, seeds in curves.items():
                    values = np.array([at_rates(curve, name, rates.tolist()) for curve in seeds])
                    least, most = values.min(0), values.max(0)
                    ax.fill_between(rates, least, most, color=COLOURS[m], alpha=0.2, linewidth=0)
                    ax.plot(rates, values.mean(0), color=COLOURS[m], label=f"M = {m}")
                ax.set_ylabel(metric_text(known[name]))
                ax.set_title(title, fontsize=11, loc="left")
                ax.grid(visible=True, alpha=0.25)
        for ax in axes[-1]:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.3, 0.4, 0.5]))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xlabel("estimated bits per pixel, logarithmic")
        axes[0, 0].legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().rstrip() + "\n" + stamp()


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and measures where there are images for it; then table and plot."""
    parser = argparse.ArgumentParser(prog="study_of_m.py", description="What M does.")
    parser.add_argument("--data", help="training images, as train.py takes them")
    parser.add_argument("--images", help="folder of images to measure on")
    parser.add_argument("--steps", type=int, default=160, help="of every run, same images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(argv)
    if bool(args.data) != bool(args.images):
        parser.error("--data and --images belong together")
    if args.data:
        run(args.data, args.images, args.steps, args.seeds)
    rows = read_results(CSV).rows
    write_atomic(PAGE, renewed(PAGE.read_text(), rows).encode())
    write_atomic(PLOT, draw(rows).encode())
    return 0


def run(data: str, images: str, steps: int, seeds: Sequence[int]) -> None:
    """Trains and measures; the CSV file grows with every run."""
    base = small_run()
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    crops = validation_crops(images, CROP_SIZE, CROPS)
    words = ["--data", _short(data), "--images", _short(images), "--steps", str(steps)]
    about = [
        f"command: python docs/paper_figures/study_of_m.py {shlex.join(words)} "
        f"--seeds {' '.join(map(str, seeds))}",
        f"revision: {revision}",
        f"training: batches of {base.batch_size} crops of {base.crop_size} pixels",
        f"measured: {len(crops)} centre crops of {CROP_SIZE} pixels, {DRAWS} draws of each at "
        "temperature 1; estimated rates",
    ]
    measure = make_measure(base, crops)
    source = open_source(data, crop_size=base.crop_size)
    rows: list[Row] = []
    began = time.monotonic()
    for found in study(base, source, measure, steps=steps, seeds=seeds):
        rows += found
        write_atomic(CSV, to_text(Results(about, rows)).encode())
        first, minutes = found[0], (time.monotonic() - began) / 60
        sys.stdout.write(
            f"M = {first.num_samples}, seed {first.seed}, {first.images} images: {minutes:.1f} "
            f"minutes, DISTS {' '.join(f'{row.dists:.3f}' for row in found)}\n"
        )
        sys.stdout.flush()


def _range(values: NDArray[np.float64], decimals: int, sign: str) -> str:
    low, mean, high = (f"{f(values):{sign}.{decimals}f}" for f in (np.min, np.mean, np.max))
    return f"{mean} ({low} to {high})"


def _short(spec: str) -> str:
    kind, _, path = spec.rpartition(":")
    return f"{kind}:{Path(path).name}/" if kind else f"{Path(path).name}/"


if __name__ == "__main__":
    sys.exit(main())
