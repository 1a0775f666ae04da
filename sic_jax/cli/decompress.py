"""The command `sic decompress`."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

from sic_jax.cli.jobs import (
    add_job_flags,
    bundle_of,
    job_options,
    loader,
    read,
    run_jobs,
    write,
)
from sic_jax.cli.option_flags import add_flags
from sic_jax.cli.paths import SIC, Job, UsageError, plan
from sic_jax.codec import container
from sic_jax.codec.options import DecodeOptions
from sic_jax.images import io as image_io
from sic_jax.images.io import PICTURES


def add_decompress(commands: Any) -> None:
    """Adds the command to the subparsers of `sic`."""
    decompress = commands.add_parser(
        "decompress",
        help="make pictures of .sic files",
        usage="sic decompress IN... [OUT] [options]",
    )
    decompress.set_defaults(run=_decompress)
    add_flags(decompress, DecodeOptions)
    decompress.add_argument(
        "--bundle",
        metavar="B",
        help="trained model, by name or folder (default: each file's own, by its id)",
    )
    decompress.add_argument(
        "--samples", type=int, metavar="M", help="write M pictures with different details"
    )
    add_job_flags(decompress, ".sic files")


def _decompress(args: argparse.Namespace) -> int:
    options = job_options(args, DecodeOptions)
    if options.level is not None and not 1 <= options.level <= container.MAX_LEVELS:
        raise UsageError(f"level must be 1 to {container.MAX_LEVELS}, got {options.level}")
    if args.samples is not None and args.samples < 1:
        raise UsageError(f"--samples must be at least 1, got {args.samples}")
    planned = plan(args.paths, SIC, PICTURES, ".png", num_samples=args.samples)
    targets = [target for job in planned.jobs for target in job.targets]
    try:
        formats = {target: image_io.output_format(target) for target in targets}
    except ValueError as error:
        raise UsageError(str(error)) from error

    load = loader(args.coder)

    def load_given() -> None:
        if args.bundle is not None:
            load(args.bundle)

    def work(job: Job, _line: str) -> str:
        data = read(job.source)
        codec = load(args.bundle or bundle_of(data))
        if args.samples is None:
            images = [codec.decompress(data, options)]
        else:
            images = list(codec.decompress_samples(data, options, num_samples=args.samples))
        metadata = container.read_metadata(data)
        with warnings.catch_warnings():
            for target, pixels in zip(job.targets, images, strict=True):
                encoded = image_io.encode_image(pixels, metadata, image_format=formats[target])
                write(job, target, encoded)
                warnings.simplefilter("ignore", UserWarning)  # Samples would all have the same.
        return f"{images[0].shape[1]} x {images[0].shape[0]} pixels"

    return run_jobs(planned, work, load_given, args)
