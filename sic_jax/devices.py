"""What JAX computes on, and in which process. JAX is imported when it is needed."""

import functools
import os
import sys
from typing import Any


def check_devices() -> None:
    """Starts JAX's backends, so that a platform which is not there is an error with a name.

    Raises:
        ValueError: If JAX has no device, or none of the platform that it was told to use.
        RuntimeError: As `check_process`.
    """
    check_process()
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        config: Any = jax.config
        text = "JAX has no device here"
        if config.jax_platforms:
            text = (
                f"JAX has no device of the platform {config.jax_platforms!r} here; with "
                "JAX_PLATFORMS unset it takes what there is"
            )
        reason = str(error).partition("\n")[0]  # Some of JAX's errors have no text.
        raise ValueError(f"{text} ({reason})" if reason else text) from error


def check_process() -> None:
    """Refuses to go on in a child that was forked after JAX had started: it would wait for ever.

    It does not matter who started JAX. Forks are seen from the first import of the package on; a
    child that imports it first is not known.

    Raises:
        RuntimeError: If this is such a process.
    """
    if is_forked():
        raise RuntimeError(
            "this process was forked after JAX had started, and JAX's threads are not in it; start "
            'workers with multiprocessing.get_context("spawn")'
        )


def is_forked() -> bool:
    """Whether this process was forked from one that had used JAX."""
    return os.getpid() != _first_process()


@functools.cache
def _first_process() -> int:
    """The process that asked first; a forked child inherits the answer."""
    return os.getpid()


def _before_fork() -> None:
    """Names this process for its children, if JAX's backends have started in it."""
    # JAX has no public name for this, and its private function takes a lock that another thread,
    # or even this one, may hold. Without the name, only what this package started counts.
    if getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None):
        _first_process()


if hasattr(os, "register_at_fork"):  # Not on Windows.
    os.register_at_fork(before=_before_fork)
