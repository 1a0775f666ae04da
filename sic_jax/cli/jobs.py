"""Work on files, one after the other: what the commands that write some share."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeVar

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


def add_output_flags(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the flags about OUT and about what is told, for all commands that write files.

    Returns:
        The group of those about files.
    """
    files = command.add_argument_group("files")
    files.add_argument("-o", "--output", metavar="OUT", help="OUT; all other paths are IN then")
    files.add_argument(
        "--preserve", action="store_true", help="give OUT the times and permissions of IN"
    )
    files.add_argument(
        "-n", "--dry-run", action="store_true", help="only tell what would be written or left out"
    )
    told = command.add_argument_group("messages").add_mutually_exclusive_group()
    told.add_argument("-q", "--quiet", action="store_true", help="tell errors only")
    told.add_argument("-v", "--verbose", action="store_true", help="tell more of each file")
    return files


def add_job_flags(command: argparse.ArgumentParser, inputs: str, bundle: str | None) -> None:
    """Adds IN, OUT and the flags that `sic compress` and `sic decompress` have both.

    Args:
        command: Parser of a command.
        inputs: What IN are, for the help.
        bundle: The default of --bundle; None for each file's own.
    """
    command.add_argument(
        "paths",
        nargs="+",
        metavar="IN",
        help=f"{inputs} and folders of them, then OUT: a file for one IN, a folder for several "
        "(default: beside IN); - is stdin or stdout",
    )
    existing = add_output_flags(command).add_mutually_exclusive_group()
    existing.add_argument(
        "--force", action="store_true", help="overwrite files that were not named as OUT"
    )
    existing.add_argument(
        "--skip-existing", action="store_true", help="pass over IN whose output is there"
    )
    model = command.add_argument_group("model")
    model.add_argument(
        "--bundle",
        default=bundle,
        metavar="B",
        help="trained model, by name or folder (default: "
        f"{bundle or 'that which made the file, by its id'})",
    )
    model.add_argument(
        "--coder",
        choices=("tfc", "native"),
        help="range coder (default: native; tfc can hang on forged files)",
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


class Done(NamedTuple):
    """What to tell of a job that is done."""

    line: str
    details: str
    """For --verbose."""


def run_jobs(
    planned: Plan,
    args: argparse.Namespace,
    *,
    work: Callable[[Job, str], Done],
    look: Callable[[Job], object],
    prepare: Callable[[], object] = lambda: None,
) -> int:
    """Runs every job, whatever becomes of the others; 1 when one failed or files were left out.

    Args:
        planned: The jobs.
        args: Of `add_output_flags` and, unless no name is derived, `add_job_flags`.
        work: Does a job. It gets the line of progress too, to add to it.
        look: Does of a job what costs little and writes nothing, for --dry-run; raises what `work`
            would raise.
        prepare: Called before the first job that can be done; what it raises ends the command.

    Raises:
        UsageError: --preserve with - as a file.
    """
    jobs, left = planned
    if args.preserve and any(STD in (job.source, *job.targets) for job in jobs):
        raise UsageError("--preserve needs files as IN and OUT, not -")
    prepare_once = functools.cache(prepare)
    counts: Counter[str] = Counter()
    for number, job in enumerate(jobs, 1):
        if getattr(args, "skip_existing", False) and all(map(_is_there, job.targets)):
            counts["skipped"] += 1
            if args.verbose or (args.dry_run and not args.quiet):
                _tell(sys.stdout, f"{shown(job.source)}: skipped, {shown(job.targets[0])} is there")
            continue
        progress = shown(job.source)
        if len(jobs) > 1:
            progress = f"[{number}/{len(jobs)}] {progress}"
            if not args.quiet:
                Progress().show(progress)
        try:
            _check_files(job, force=job.derived and args.force)
        except OSError as error:
            fail(error, job.source)
            counts["failed"] += 1
            continue
        prepare_once()  # Not inside a try: without a model no file can succeed.
        try:
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(show_warning, source=job.source)
                line = _look(job, look) if args.dry_run else _work(job, progress, work, args)
        except BrokenPipeError:
            raise
        except Exception as error:
            fail(error, job.source)
            counts["failed"] += 1
        else:
            counts["to do" if args.dry_run else "done"] += 1
            if not args.quiet:
                _report(job, line)
    for file, reason in left:
        counts["left out"] += 1
        if not args.quiet or not args.ignore_unreadable:
            show_warning(f"left out: {reason}", source=file)
    if (counts["skipped"] or left or len(jobs) > 1) and not args.quiet:
        order = ("to do", "done", "skipped", "failed", "left out")
        told = ", ".join(f"{counts[what]} {what}" for what in order if counts[what])
        sys.stderr.write(f"sic: {told}\n")
    return int(counts["failed"] > 0 or (bool(left) and not args.ignore_unreadable))


def _look(job: Job, look: Callable[[Job], object]) -> str:
    look(job)
    return f"would be {'overwritten' if any(map(_is_there, job.targets)) else 'written'}"


def _is_there(target: str) -> bool:
    return target != STD and os.path.exists(target)


def _work(
    job: Job, progress: str, work: Callable[[Job, str], Done], args: argparse.Namespace
) -> str:
    start = time.perf_counter()
    done = work(job, progress)
    seconds = time.perf_counter() - start
    return f"{done.line}; {done.details}, {seconds:.2f} s" if args.verbose else done.line


def loader(coder: str | None) -> Callable[[str], Codec]:
    """The codec of a bundle, loaded when it is first asked for."""
    return functools.cache(lambda bundle: load_codec(bundle, coder))


def bundle_of(data: bytes) -> str:
    """The folder of the bundle that made a file."""
    return str(library.find_id(container.read_header(data).model_id).folder)


def bundle_name(codec: Codec) -> str:
    """The name of a codec's bundle, for reports, however it was asked for."""
    name = Path(codec.bundle.name).name
    return library.DEFAULT if name == "default" else name


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
    for target in job.targets:
        folder = os.path.dirname(target)
        if not job.derived and folder and not os.path.exists(folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target)
        if job.derived and not force and os.path.exists(target):
            raise FileExistsError(f"{target} is already there; --force overwrites it")


def read(path: str) -> bytes:
    """The bytes of a file or of stdin."""
    return sys.stdin.buffer.read() if path == STD else Path(path).read_bytes()


def write(job: Job, target: str, data: bytes, *, preserve: bool) -> None:
    """Writes a job's output whole or not at all, or to stdout.

    Args:
        job: The job.
        target: Of its targets.
        data: The file's bytes.
        preserve: Give the file times and permissions of the job's source.
    """
    if target == STD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if job.derived:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    write_atomic(target, data, like=os.stat(job.source) if preserve else None)


def summary(data: bytes, level: int | None = None) -> str:
    """What to tell of a .sic file; the level is that of its header unless it is given."""
    header = container.read_header(data)
    rate = bpp(len(data), header.height, header.width)
    return f"{len(data)} bytes, {rate:.4f} bpp, level {level or header.num_levels}"


def _report(job: Job, line: str) -> None:
    """Tells what was made of a job's input: on stdout, or on stderr if that has the output."""
    target = job.targets[0] + (f" ... {job.targets[-1]}" if len(job.targets) > 1 else "")
    stream = sys.stderr if target == STD else sys.stdout
    _tell(stream, f"{shown(job.source)} -> {shown(target)}: {line}")


def _tell(stream: TextIO, line: str) -> None:
    clear_progress()
    stream.write(line + "\n")
    stream.flush()
