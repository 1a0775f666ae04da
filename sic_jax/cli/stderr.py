"""What the command `sic` writes about files: one line each, and nothing that a name smuggles in."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from sic_jax.progress import Progress


def shown(text: str) -> str:
    r"""A file's name as it is printed: control characters and bytes that are no text as escapes.

    A name with a line break would make two lines, one with an escape sequence could change what
    the terminal shows. ``a<line break>b`` becomes ``a\nb``.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def fail(error: Exception, source: str | None = None) -> None:
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
    show_error(_named(text, source))


def show_error(text: str) -> None:
    """An error in one line."""
    clear_progress()
    sys.stderr.write(f"sic: error: {shown(' '.join(text.split()))}\n")


def show_warning(
    message: Warning | str, *_args: object, source: str | None = None, **_kwargs: object
) -> None:
    """A warning in one line; takes the arguments of `warnings.showwarning`, too."""
    clear_progress()
    sys.stderr.write(f"sic: warning: {shown(' '.join(_named(str(message), source).split()))}\n")


def _named(text: str, source: str | None) -> str:
    """The text with the file that it is about, once."""
    if source is None:
        return text
    name = shown(source)
    text = text.replace(source, name)
    return text if text.startswith((f"{name}:", f"{name} ")) else f"{name}: {text}"


def clear_progress() -> None:
    """Takes the line of progress from the terminal."""
    Progress().show("")


@contextlib.contextmanager
def lines_of_libraries(show: Callable[[str], None]) -> Iterator[None]:
    """Gives `show` what C libraries write to the process's stderr, as libtiff does of bad files.

    Each different line once, when the block ends. What Python writes there goes its usual way.
    Without a stderr, or a folder for a temporary file, the lines go where they go.
    """
    import tempfile

    with contextlib.ExitStack() as stack:
        try:
            if sys.stderr is None:
                raise OSError("descriptor 2 may be any file now")
            sys.stderr.flush()
            usual = os.dup(2)
            stack.callback(os.close, usual)
            file = stack.enter_context(tempfile.TemporaryFile())
        except (OSError, ValueError):
            yield
            return
        if _writes_to_stderr():
            stream = os.fdopen(usual, "w", encoding="utf-8", closefd=False)
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(stream)))
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(usual, 2)
            file.seek(0)
            written = file.read().decode("utf-8", "replace")
            for line in dict.fromkeys(filter(None, map(str.strip, written.splitlines()))):
                show(line)


def _writes_to_stderr() -> bool:
    """Whether Python's stderr is the process's, and not one that a program put in its place."""
    try:
        return sys.stderr.fileno() == 2
    except (OSError, ValueError):
        return False
