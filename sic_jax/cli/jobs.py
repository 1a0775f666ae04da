"""Work on many files, one after the other: what `sic compress` and `sic decompress` share."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sic_jax.cli.option_flags import options_of
from sic_jax.cli.paths import STD, Job, Plan, UsageError
from sic_jax.cli.stderr import clear_progress, fail, show_warning, shown
from sic_jax.codec import container, library
from sic_jax.files import write_atomic
from sic_jax.metrics.rate import bpp
from sic_jax.progress import Progress

if TYPE_CHECKING:
    from sic_jax.codec.codec import Codec

T = TypeVar("T")


def add_job_flags(command: argparse.ArgumentParser, inputs: str) -> None:
    """Adds IN, OUT and the flags that both commands have.

    Args:
        command: Parser of a command.
        inputs: What IN are, for the help.
    """
    command.add_argument(
        "paths",
        nargs="+",
        metavar="IN",
        help=f"{inputs} and folders of them, then OUT: a file for one IN, a folder for several "
        "(default: beside IN); - is stdin or stdout",
    )
    command.add_argument(
        "--coder",
        choices=("tfc", "native"),
        help="range coder (default: native; tfc can hang on forged files)",
    )
    existing = command.add_mutually_exclusive_group()
    existing.add_argument(
        "--force", action="store_true", help="overwrite files that were not named as OUT"
    )
    existing.add_argument(
        "--skip-existing", action="store_true", help="pass over IN whose output is there"
    )


def job_options(args: argparse.Namespace, options: type[T]) -> T:
    """The options of a command.

    Raises:
        UsageError: If a value is out of range.
    """
    try:
        return options_of(args, options)
    except ValueError as error:
        raise UsageError(str(error)) from error


def run_jobs(
    planned: Plan,
    work: Callable[[Job, str], str],
    prepare: Callable[[], object],
    args: argparse.Namespace,
) -> int:
    """Runs every job, whatever becomes of the others; 1 when one failed or files were left out.

    `work` gets the line of progress too, to add to it; it returns what to report of the job.
    `prepare` is called before the first job that can be done; what it raises ends the command.
    """
    jobs, left = planned
    prepared = False
    failed = skipped = 0
    for number, job in enumerate(jobs, 1):
        if args.skip_existing and job.derived and all(map(os.path.exists, job.targets)):
            skipped += 1
            continue
        progress = shown(job.source)
        if len(jobs) > 1:
            progress = f"[{number}/{len(jobs)}] {progress}"
            Progress().show(progress)
        try:
            _check_files(job, force=args.force)
        except OSError as error:
            fail(error, job.source)
            failed += 1
            continue
        if not prepared:  # Not inside a try: without a model no file can succeed.
            prepare()
            prepared = True
        try:
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(show_warning, source=job.source)
                line = work(job, progress)
        except BrokenPipeError:
            raise
        except Exception as error:
            fail(error, job.source)
            failed += 1
        else:
            report(job, line)
    for file, reason in left:
        show_warning(f"left out: {reason}", source=file)
    if skipped or left or len(jobs) > 1:
        done = len(jobs) - failed - skipped
        counts = {"done": done, "skipped": skipped, "failed": failed, "left out": len(left)}
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        sys.stderr.write(f"sic: {told}\n")
    return int(failed > 0 or (bool(left) and not args.ignore_unreadable))


def loader(coder: str | None) -> Callable[[str], Codec]:
    """The codec of a bundle, loaded when it is first asked for."""
    return functools.cache(lambda bundle: load_codec(bundle, coder))


def bundle_of(data: bytes) -> str:
    """The folder of the bundle that made a file."""
    return str(library.find_id(container.read_header(data).model_id).folder)


def load_codec(bundle: str, coder: str | None) -> Codec:
    """A bundle's codec; this imports JAX."""
    from sic_jax.codec.codec import Codec
    from sic_jax.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    return Codec.load(bundle, coder=coder)


def _check_files(job: Job, *, force: bool) -> None:
    if job.problem:
        raise FileExistsError(job.problem)
    if job.source != STD:
        os.stat(job.source)
    if job.derived and not force:
        for target in job.targets:
            if os.path.exists(target):
                raise FileExistsError(f"{target} is already there; --force overwrites it")


def read(path: str) -> bytes:
    """The bytes of a file or of stdin."""
    return sys.stdin.buffer.read() if path == STD else Path(path).read_bytes()


def write(job: Job, target: str, data: bytes) -> None:
    """Writes a job's output whole or not at all, or to stdout."""
    if target == STD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if job.derived:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    write_atomic(target, data)


def summary(data: bytes) -> str:
    """What to report of a file that was written."""
    header = container.read_header(data)
    rate = bpp(len(data), header.height, header.width)
    return f"{len(data)} bytes, {rate:.4f} bpp, level {header.num_levels}"


def report(job: Job, line: str) -> None:
    """Tells what was made of a job's input: on stdout, or on stderr if that has the output."""
    clear_progress()
    target = job.targets[0] + (f" ... {job.targets[-1]}" if len(job.targets) > 1 else "")
    stream = sys.stderr if target == STD else sys.stdout
    stream.write(f"{shown(job.source)} -> {shown(target)}: {line}\n")
    stream.flush()
