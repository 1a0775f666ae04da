"""The command `sic decompress`."""

from __future__ import annotations

import argparse
import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sic_jax.cli.arriving import decompress_arriving
from sic_jax.cli.jobs import (
    Done,
    add_job_flags,
    bundle_name,
    bundle_of,
    job_options,
    loader,
    read,
    run_jobs,
    summary,
    write,
)
from sic_jax.cli.option_flags import add_flags
from sic_jax.cli.paths import SIC, Job, UsageError, plan
from sic_jax.codec import container, library
from sic_jax.codec.options import DecodeOptions
from sic_jax.images import io as image_io
from sic_jax.images.io import PICTURES, WRITTEN
from sic_jax.metadata import Metadata
from sic_jax.progress import Progress

if TYPE_CHECKING:
    from sic_jax.codec.codec import Codec
    from sic_jax.codec.pixels import Pixels


def add_decompress(commands: Any) -> None:
    """Adds the command to the subparsers of `sic`."""
    decompress = commands.add_parser(
        "decompress",
        help="make pictures of .sic files",
        usage="sic decompress IN... [OUT] [options]",
    )
    decompress.set_defaults(run=_decompress)
    pictures = decompress.add_argument_group("pictures")
    add_flags(pictures, DecodeOptions)
    pictures.add_argument(
        "--samples", type=int, metavar="M", help="write M pictures with different details"
    )
    pictures.add_argument(
        "--format",
        choices=[suffix[1:] for suffix in WRITTEN],
        metavar="F",
        help="format of files that OUT does not name, as in folders: "
        f"{', '.join(suffix[1:] for suffix in WRITTEN)} (default: png); jpg, jpeg and avif have "
        "quality 95, all others are lossless",
    )
    pictures.add_argument(
        "--progressive",
        action="store_true",
        help="write OUT anew at every level that arrives, as from a slow pipe",
    )
    add_job_flags(decompress, ".sic files", None)


def _decompress(args: argparse.Namespace) -> int:
    options = job_options(args, DecodeOptions)
    if options.level is not None and not 1 <= options.level <= container.MAX_LEVELS:
        raise UsageError(f"level must be 1 to {container.MAX_LEVELS}, got {options.level}")
    if args.samples is not None and args.samples < 1:
        raise UsageError(f"--samples must be at least 1, got {args.samples}")
    if args.samples is not None and args.progressive:
        raise UsageError("--progressive writes one picture, so it cannot be used with --samples")
    suffix = f".{args.format or 'png'}"
    planned = plan(
        args.paths,
        SIC,
        PICTURES.union(WRITTEN),
        suffix,
        output=args.output,
        num_samples=args.samples,
    )
    targets = [target for job in planned.jobs for target in job.targets]
    formats = {target: _format(target, suffix, args.format) for target in targets}
    load = loader(args.coder)

    def prepare() -> None:
        if args.bundle is not None:
            (library.find if args.dry_run else load)(args.bundle)

    def codec_of(data: bytes) -> Codec:
        return load(args.bundle or bundle_of(data))

    def put(job: Job, target: str, pixels: Pixels, metadata: Metadata) -> int:
        encoded = image_io.encode_image(pixels, metadata, image_format=formats[target])
        write(job, target, encoded, preserve=args.preserve)
        return len(encoded)

    def look(job: Job) -> None:
        data = read(job.source)
        if args.bundle is None:
            bundle_of(data)
        elif (model_id := library.model_id_of(library.find(args.bundle))) is not None:
            file_id = container.read_header(data).model_id
            library.check_made_by(model_id, file_id, args.bundle)
        file = container.unpack(data, strict=options.strict, max_pixels=options.max_pixels)
        if options.level is not None and options.level > file.level:
            raise ValueError(f"level must be 1 to {file.level}, got {options.level}")

    def work(job: Job, _line: str) -> Done:
        data = read(job.source)
        codec = codec_of(data)
        if args.samples is None:
            images = [codec.decompress(data, options)]
        else:
            images = list(codec.decompress_samples(data, options, num_samples=args.samples))
        file = container.unpack(data, max_pixels=None)
        size = 0
        with warnings.catch_warnings():
            for target, pixels in zip(job.targets, images, strict=True):
                size += put(job, target, pixels, file.metadata)
                warnings.simplefilter("ignore", UserWarning)  # Samples would all have the same.
        line = f"{images[0].shape[1]} x {images[0].shape[0]} pixels"
        of = summary(data, options.level or file.level)
        return Done(line, f"{size} bytes, of {of}, bundle {bundle_name(codec)}")

    def work_progressively(job: Job, line: str) -> Done:
        def show(text: str) -> None:
            if not args.quiet:
                Progress().show(f"{line}: {text}")

        put_picture = functools.partial(put, job, job.targets[0])
        return decompress_arriving(
            job.source, options, codec_of=codec_of, put=put_picture, show=show
        )

    do = work_progressively if args.progressive else work
    return run_jobs(planned, args, work=do, look=look, prepare=prepare)


def _format(target: str, suffix: str, asked: str | None) -> str:
    """The format of an output, for `images.io.encode_image`.

    Args:
        target: The file, or "-".
        suffix: Of files without one.
        asked: --format.
    """
    try:
        found = image_io.output_format(target if Path(target).suffix else target + suffix)
        if asked is not None and found != image_io.output_format(f"a{suffix}"):
            raise UsageError(f"--format {asked} contradicts the name {target}")
    except ValueError as error:
        raise UsageError(str(error)) from error
    return found
