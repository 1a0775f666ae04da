"""The command `sic`: compress, decompress, truncate and look at files, import a model.

Errors are one line on stderr; `python -X dev -m sic_jax.cli.main ...` shows their traceback.
Nothing beyond the standard library is imported until a picture or a model is needed.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import sic_jax
from sic_jax.cli.bundles import add_bundle_commands
from sic_jax.cli.info import describe_file
from sic_jax.cli.option_flags import add_flags, options_of
from sic_jax.cli.paths import SIC, STD, Job, Plan, UsageError, check_targets, plan
from sic_jax.cli.stderr import lines_of_libraries, shown
from sic_jax.codec import container, library
from sic_jax.codec.options import DecodeOptions, EncodeOptions
from sic_jax.files import write_atomic
from sic_jax.images import io as image_io
from sic_jax.images.io import PICTURES
from sic_jax.metrics.rate import bpp
from sic_jax.progress import Progress

if TYPE_CHECKING:
    from sic_jax.codec.codec import Codec

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        # With a fixed width argparse does not import shutil (and bz2 and lzma) at every start.
        formatter = functools.partial(argparse.HelpFormatter, width=88)
        super().__init__(formatter_class=formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        Exit code: 0, 1 when a file failed, 2 for a wrong command line, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _show_warning
        try:
            args = parse(arguments)
            code: int = args.run(args)
            sys.stdout.flush()
            return code
        except UsageError as error:
            _error(str(error))
            return 2
        except KeyboardInterrupt:
            _error("interrupted")
            return 130
        except BrokenPipeError:
            # Whoever read our output has left; the interpreter must not try to flush it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            _fail(error)
            return 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; `run`, of these, does it.

    Raises:
        UsageError: If the command line is wrong.
    """
    parser, commands = _make_parsers()
    # Options may stand between IN and OUT; argparse cannot do that where commands have commands.
    if not arguments or arguments[0] not in commands or arguments[0] == "bundle":
        return parser.parse_args(arguments)
    return commands[arguments[0]].parse_intermixed_args(_without_separator(arguments[1:]))


def _without_separator(arguments: Sequence[str]) -> list[str]:
    """The words without `--`, and files after it by names that are no options."""
    if "--" not in arguments:
        return list(arguments)
    at = arguments.index("--")
    files = arguments[at + 1 :]
    is_option = [file.startswith("-") and file != STD for file in files]
    renamed = [os.path.join(".", f) if o else f for f, o in zip(files, is_option, strict=True)]
    return [*arguments[:at], *renamed]


def _make_parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="sic", description="Learned perceptual image compression.")
    parser.add_argument("--version", action="version", version=f"sic {sic_jax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

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
    for command, kind in ((compress, "pictures"), (decompress, ".sic files")):
        command.add_argument(
            "paths",
            nargs="+",
            metavar="IN",
            help=f"{kind} and folders of them, then OUT: a file for one IN, a folder for several "
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

    truncate = commands.add_parser(
        "truncate",
        help="make a smaller .sic file of a .sic file",
        usage="sic truncate IN OUT (--level N | --max-bytes N)",
    )
    truncate.set_defaults(run=_truncate)
    truncate.add_argument("source", metavar="IN")
    truncate.add_argument("target", metavar="OUT")
    keep = truncate.add_mutually_exclusive_group(required=True)
    keep.add_argument("--level", type=int, metavar="N", help="levels to keep")
    keep.add_argument(
        "--max-bytes", type=int, metavar="N", help="keep as many levels as fit into N bytes"
    )

    info = commands.add_parser(
        "info",
        help="describe a .sic file or a bundle",
        usage="sic info (FILE | --bundle B) [--json]",
    )
    info.set_defaults(run=_info)
    info.add_argument("file", metavar="FILE", nargs="?")
    info.add_argument("--bundle", metavar="B", help="name or path of a bundle")
    info.add_argument("--json", action="store_true", help="print JSON")

    bundle = commands.add_parser(
        "bundle", help="list, add or remove trained models", usage="sic bundle COMMAND ..."
    )
    add_bundle_commands(bundle.add_subparsers(prog="sic bundle", metavar="COMMAND", required=True))

    importing = commands.add_parser(
        "import-official",
        help="make a bundle of a checkpoint of the paper's authors",
        usage="sic import-official CHECKPOINT --out BUNDLE",
    )
    importing.set_defaults(run=_import_official)
    importing.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="PyTorch file, safetensors or .npz"
    )
    importing.add_argument(
        "--out", metavar="BUNDLE", required=True, help="folder to write, which must not be there"
    )
    return parser, dict(commands.choices)


def _compress(args: argparse.Namespace) -> int:
    options = _options(args, EncodeOptions)
    highest = None if options.level is None else library.num_levels(args.bundle)
    if options.level is not None and highest and not 1 <= options.level <= highest:
        raise UsageError(f"level must be 1 to {highest}, got {options.level}")
    load = _loader(args.coder)

    def work(job: Job, line: str) -> str:
        source = _read(job.source) if job.source == STD else job.source
        with lines_of_libraries(functools.partial(_show_warning, source=job.source)):
            picture = image_io.read_image(source, background=args.background)
        if picture.dropped and not args.strip:
            warnings.warn(f"not kept: {', '.join(picture.dropped)}", stacklevel=1)
        data = load(args.bundle).compress(
            picture.pixels,
            options,
            metadata=None if args.strip else picture.metadata,
            on_step=functools.partial(_show_optimisation, line),
        )
        _write(job, job.targets[0], data)
        return _summary(data)

    planned = plan(args.paths, PICTURES, SIC, ".sic", why_not=image_io.why_unreadable)
    return _run_jobs(planned, work, lambda: load(args.bundle), args)


def _decompress(args: argparse.Namespace) -> int:
    options = _options(args, DecodeOptions)
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

    load = _loader(args.coder)

    def load_given() -> None:
        if args.bundle is not None:
            load(args.bundle)

    def work(job: Job, _line: str) -> str:
        data = _read(job.source)
        codec = load(args.bundle or _bundle_of(data))
        if args.samples is None:
            images = [codec.decompress(data, options)]
        else:
            images = list(codec.decompress_samples(data, options, num_samples=args.samples))
        metadata = container.read_metadata(data)
        for target, pixels in zip(job.targets, images, strict=True):
            encoded = image_io.encode_image(pixels, metadata, image_format=formats[target])
            _write(job, target, encoded)
        return f"{images[0].shape[1]} x {images[0].shape[0]} pixels"

    return _run_jobs(planned, work, load_given, args)


def _truncate(args: argparse.Namespace) -> int:
    job = Job(args.source, (args.target,), derived=False)
    check_targets([job])
    try:
        data = _read(args.source)
        if args.level is None:
            data = container.truncate_to(data, args.max_bytes)
        else:
            data = container.truncate(data, args.level)
    except Exception as error:
        _fail(error, args.source)
        return 1
    _write(job, args.target, data)
    _report(job, _summary(data))
    return 0


def _info(args: argparse.Namespace) -> int:
    if (args.file is None) == (args.bundle is None):
        raise UsageError("info takes either FILE or --bundle B")
    if args.bundle is not None:
        from sic_jax.codec import bundle

        facts = bundle.describe(args.bundle)
        text = "".join(f"{key:24} {value}\n" for key, value in facts.items())
    else:
        try:
            facts, text = describe_file(args.file, _read(args.file))
        except Exception as error:
            _fail(error, args.file)
            return 1
    if args.json:
        import json

        text = json.dumps(facts, indent=2, default=str) + "\n"
    sys.stdout.write(text)
    return 0


def _import_official(args: argparse.Namespace) -> int:
    if os.path.exists(args.out):
        raise FileExistsError(f"{args.out} is already there")
    from sic_jax.importers.paper_bundle import import_checkpoint

    bundle = import_checkpoint(args.checkpoint, args.out)
    facts = f"bundle {bundle.model_id.hex()}, {bundle.cfg.num_levels} levels"
    sys.stdout.write(f"{args.checkpoint} -> {args.out}: {facts}\n")
    return 0


def _run_jobs(
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
            _fail(error, job.source)
            failed += 1
            continue
        if not prepared:  # Not inside a try: without a model no file can succeed.
            prepare()
            prepared = True
        try:
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(_show_warning, source=job.source)
                line = work(job, progress)
        except BrokenPipeError:
            raise
        except Exception as error:
            _fail(error, job.source)
            failed += 1
        else:
            _report(job, line)
    for file, reason in left:
        _show_warning(f"left out: {reason}", source=file)
    if skipped or left or len(jobs) > 1:
        done = len(jobs) - failed - skipped
        counts = {"done": done, "skipped": skipped, "failed": failed, "left out": len(left)}
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        sys.stderr.write(f"sic: {told}\n")
    return int(failed > 0 or (bool(left) and not args.ignore_unreadable))


def _loader(coder: str | None) -> Callable[[str], Codec]:
    """The codec of a bundle, loaded when it is first asked for."""
    return functools.cache(lambda bundle: _load_codec(bundle, coder))


def _bundle_of(data: bytes) -> str:
    """The folder of the bundle that made a file."""
    return str(library.find_id(container.read_header(data).model_id).folder)


def _load_codec(bundle: str, coder: str | None) -> Codec:
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


def _read(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == STD else Path(path).read_bytes()


def _write(job: Job, target: str, data: bytes) -> None:
    if target == STD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if job.derived:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    write_atomic(target, data)


def _options(args: argparse.Namespace, options: type[T]) -> T:
    try:
        return options_of(args, options)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _summary(data: bytes) -> str:
    header = container.read_header(data)
    rate = bpp(len(data), header.height, header.width)
    return f"{len(data)} bytes, {rate:.4f} bpp, level {header.num_levels}"


def _report(job: Job, line: str) -> None:
    _clear_progress()
    target = job.targets[0] + (f" ... {job.targets[-1]}" if len(job.targets) > 1 else "")
    stream = sys.stderr if target == STD else sys.stdout
    stream.write(f"{shown(job.source)} -> {shown(target)}: {line}\n")
    stream.flush()


def _fail(error: Exception, source: str | None = None) -> None:
    """Reports an exception in one line."""
    if sys.flags.dev_mode:
        raise error
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = "not enough memory"
    elif isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        text = str(error) or type(error).__name__
    else:
        text = f"{type(error).__name__}: {error}"
    _error(_named(text, source))


def _error(text: str) -> None:
    _clear_progress()
    sys.stderr.write(f"sic: error: {shown(' '.join(text.split()))}\n")


def _show_warning(
    message: Warning | str, *_args: object, source: str | None = None, **_kwargs: object
) -> None:
    _clear_progress()
    sys.stderr.write(f"sic: warning: {shown(' '.join(_named(str(message), source).split()))}\n")


def _named(text: str, source: str | None) -> str:
    """The text with the file that it is about, once."""
    if source is None:
        return text
    name = shown(source)
    text = text.replace(source, name)
    return text if text.startswith(name) else f"{name}: {text}"


def _show_optimisation(line: str, done: int, total: int) -> None:
    Progress().show(f"{line}: optimising, {100 * done // total} %")


def _clear_progress() -> None:
    Progress().show("")


if __name__ == "__main__":
    sys.exit(main())
