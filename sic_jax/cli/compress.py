"""The command `sic compress`."""

from __future__ import annotations

import argparse
import functools
import os
import warnings
from typing import Any

from sic_jax.cli.jobs import (
    Done,
    add_job_flags,
    bundle_name,
    job_options,
    loader,
    read,
    run_jobs,
    summary,
    write,
)
from sic_jax.cli.option_flags import add_flags
from sic_jax.cli.paths import SIC, STD, Job, UsageError, plan
from sic_jax.cli.stderr import lines_of_libraries
from sic_jax.codec import library
from sic_jax.codec.options import EncodeOptions
from sic_jax.images import io as image_io
from sic_jax.images.colour import opaque_colour
from sic_jax.images.io import PICTURES
from sic_jax.progress import Progress


def add_compress(commands: Any) -> None:
    """Adds the command to the subparsers of `sic`."""
    compress = commands.add_parser(
        "compress", help="make .sic files of pictures", usage="sic compress IN... [OUT] [options]"
    )
    compress.set_defaults(run=_compress)
    add_flags(compress.add_argument_group("quality"), EncodeOptions)
    pictures = compress.add_argument_group("pictures")
    pictures.add_argument(
        "--ignore-unreadable",
        action="store_true",
        help="files in folders that are no pictures are only named, exit code 0",
    )
    pictures.add_argument(
        "--background",
        metavar="COLOR",
        help="colour to lay transparent pixels over, as white or #a0b0c0 (default: alpha is kept)",
    )
    pictures.add_argument(
        "--frame",
        type=int,
        metavar="N",
        help="which picture of an animation or of a file with several pages: 0 is the first",
    )
    pictures.add_argument(
        "--strip",
        action="store_true",
        help="keep no EXIF, XMP, resolution and ICC profile; the colours then count as sRGB",
    )
    add_job_flags(compress, "pictures", "default")


def _compress(args: argparse.Namespace) -> int:
    options = job_options(args, EncodeOptions)
    highest = None if options.level is None else library.num_levels(args.bundle)
    if options.level is not None and highest and not 1 <= options.level <= highest:
        raise UsageError(f"level must be 1 to {highest}, got {options.level}")
    if args.frame is not None and args.frame < 0:
        raise UsageError(f"--frame must be at least 0, got {args.frame}")
    if args.background is not None:
        try:
            opaque_colour(args.background)
        except ValueError as error:
            raise UsageError(str(error)) from error
    load = loader(args.coder)

    def prepare() -> object:
        return library.find(args.bundle) if args.dry_run else load(args.bundle)

    def look(job: Job) -> None:
        if job.source == STD:
            return
        reason = image_io.why_unreadable(job.source, frame=args.frame, any_frame=False)
        if reason:
            raise ValueError(reason)

    def work(job: Job, line: str) -> Done:
        source = read(job.source) if job.source == STD else job.source
        with lines_of_libraries(functools.partial(warnings.warn, stacklevel=1)):
            picture = image_io.read_image(source, background=args.background, frame=args.frame)
        if picture.dropped and not args.strip:
            warnings.warn(f"not kept: {', '.join(picture.dropped)}", stacklevel=1)
        codec = load(args.bundle)
        data = codec.compress(
            picture.pixels,
            options,
            metadata=None if args.strip else picture.metadata,
            on_step=None if args.quiet else functools.partial(_show_optimisation, line),
        )
        write(job, job.targets[0], data, preserve=args.preserve)
        height, width = picture.pixels.shape[:2]
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        details = f"of {width} x {height} pixels, {size} bytes, bundle {bundle_name(codec)}"
        return Done(summary(data), details)

    planned = plan(
        args.paths, PICTURES, SIC, ".sic", output=args.output, why_not=image_io.why_unreadable
    )
    return run_jobs(planned, args, work=work, look=look, prepare=prepare)


def _show_optimisation(line: str, done: int, total: int) -> None:
    Progress().show(f"{line}: optimising, {100 * done // total} %")
