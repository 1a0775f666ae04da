"""The command `sic compress`."""

from __future__ import annotations

import argparse
import functools
import warnings
from typing import Any

from sic_jax.cli.jobs import add_job_flags, job_options, loader, read, run_jobs, summary, write
from sic_jax.cli.option_flags import add_flags
from sic_jax.cli.paths import SIC, STD, Job, UsageError, plan
from sic_jax.cli.stderr import lines_of_libraries, show_warning
from sic_jax.codec import library
from sic_jax.codec.options import EncodeOptions
from sic_jax.images import io as image_io
from sic_jax.images.io import PICTURES
from sic_jax.progress import Progress


def add_compress(commands: Any) -> None:
    """Adds the command to the subparsers of `sic`."""
    compress = commands.add_parser(
        "compress", help="make .sic files of pictures", usage="sic compress IN... [OUT] [options]"
    )
    compress.set_defaults(run=_compress)
    add_flags(compress, EncodeOptions)
    compress.add_argument(
        "--bundle",
        default="default",
        metavar="B",
        help="trained model, by name or folder (default: default)",
    )
    compress.add_argument(
        "--ignore-unreadable",
        action="store_true",
        help="files in folders that are no pictures are only named, exit code 0",
    )
    compress.add_argument(
        "--background", metavar="COLOR", help="colour under transparent pixels, as white or #a0b0c0"
    )
    compress.add_argument(
        "--strip",
        action="store_true",
        help="keep no EXIF, XMP, resolution and ICC profile; the colours then count as sRGB",
    )
    add_job_flags(compress, "pictures")


def _compress(args: argparse.Namespace) -> int:
    options = job_options(args, EncodeOptions)
    highest = None if options.level is None else library.num_levels(args.bundle)
    if options.level is not None and highest and not 1 <= options.level <= highest:
        raise UsageError(f"level must be 1 to {highest}, got {options.level}")
    load = loader(args.coder)

    def work(job: Job, line: str) -> str:
        source = read(job.source) if job.source == STD else job.source
        with lines_of_libraries(functools.partial(show_warning, source=job.source)):
            picture = image_io.read_image(source, background=args.background)
        if picture.dropped and not args.strip:
            warnings.warn(f"not kept: {', '.join(picture.dropped)}", stacklevel=1)
        data = load(args.bundle).compress(
            picture.pixels,
            options,
            metadata=None if args.strip else picture.metadata,
            on_step=functools.partial(_show_optimisation, line),
        )
        write(job, job.targets[0], data)
        return summary(data)

    planned = plan(args.paths, PICTURES, SIC, ".sic", why_not=image_io.why_unreadable)
    return run_jobs(planned, work, lambda: load(args.bundle), args)


def _show_optimisation(line: str, done: int, total: int) -> None:
    Progress().show(f"{line}: optimising, {100 * done // total} %")
