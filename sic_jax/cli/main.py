# PYTHON_ARGCOMPLETE_OK
"""The command `sic`: its parser and how it ends. Each command has a file beside this one.

Errors are one line on stderr; `python -X dev -m sic_jax.cli.main ...` shows their traceback.
Nothing beyond the standard library is imported until a picture or a model is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import sic_jax
from sic_jax.cli.bundles import add_bundles
from sic_jax.cli.compress import add_compress
from sic_jax.cli.decompress import add_decompress
from sic_jax.cli.info import add_info
from sic_jax.cli.paths import STD, UsageError
from sic_jax.cli.stderr import fail, show_error, show_warning
from sic_jax.cli.truncate import add_truncate


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
    if sys.stdout is None or sys.stderr is None:  # Whoever started the process closed it.
        with (
            open(os.devnull, "w", encoding="utf-8") as file,
            contextlib.redirect_stdout(sys.stdout or file),
            contextlib.redirect_stderr(sys.stderr or file),
        ):
            return main(arguments)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show_warning
        try:
            if "_ARGCOMPLETE" in os.environ:
                _complete()
            args = parse(arguments)
            if getattr(args, "quiet", False):
                warnings.simplefilter("ignore")
            code: int = args.run(args)
            sys.stdout.flush()
            return code
        except UsageError as error:
            show_error(str(error))
            return 2
        except KeyboardInterrupt:
            show_error("interrupted")
            return 130
        except BrokenPipeError:
            # Whoever read our output has left; the interpreter must not try to flush it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            fail(error)
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


def _complete() -> None:
    """Answers a shell that asks how the command line could go on, and ends the process."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(_make_parsers()[0])


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
    for add in (add_compress, add_decompress, add_truncate, add_info, add_bundles):
        add(commands)
    return parser, dict(commands.choices)


if __name__ == "__main__":
    sys.exit(main())
