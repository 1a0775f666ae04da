"""Files that are either complete or as they were before."""

import contextlib
import os
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *, like: os.stat_result | None = None
) -> None:
    """Writes a file under a temporary name in its folder and renames it into place.

    A link is followed; a device or pipe is written to directly. A file that is replaced keeps its
    permissions, so that what is private stays so.

    Args:
        path: The file; it is replaced where it is there.
        data: All of its content.
        like: Of another file, whose permissions and times it gets instead; a device or pipe keeps
            its own.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        target = Path(os.path.realpath(target))
        permissions = like or (target.stat() if target.exists() else None)
        temporary = target.with_name(f".{os.urandom(8).hex()}.tmp")
        try:
            with open(temporary, "xb") as file:
                if permissions is not None:  # First: others must not see what is private.
                    os.chmod(temporary, permissions.st_mode & 0o777)
                file.write(data)
            if like is not None:
                os.utime(temporary, ns=(like.st_atime_ns, like.st_mtime_ns))
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
