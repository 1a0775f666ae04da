"""Compiled programs: how many a process holds, and those that outlive it."""

import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax

KEPT = 8
"""Of one function, the shapes whose programs stay in memory."""


def jit_per_shape(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` of a function, one for each shape: ``jit_per_shape(f)(height, width)(*args)``.

    The programs of the last `KEPT` shapes stay. A function of `jax.jit` itself keeps those of all
    that it ever saw, each with dozens of memory maps, and Linux allows a process 65 530.

    Args:
        function: To compile.
        options: Of `jax.jit`.

    Returns:
        From anything that tells shapes apart to the compiled function; an `lru_cache`.
    """

    @lru_cache(maxsize=KEPT)
    def compiled(*_: Any) -> Any:
        # Functions that are equal share their programs: each partial is another function.
        return jax.jit(partial(function), **options)

    return compiled


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, for the next process.

    Programs call this once at their start; a folder set by the user (JAX_COMPILATION_CACHE_DIR)
    is left as it is. With JAX before 0.10 nothing is kept, nor read: with 0.5.3, programs loaded
    on the CPU drew the same details for all seeds, and crashed where they reuse an argument.
    """
    config: Any = jax.config
    if jax.__version_info__ < (0, 10):
        config.update("jax_enable_compilation_cache", False)
        return
    if config.jax_compilation_cache_dir:
        return
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    config.update("jax_compilation_cache_dir", str(Path(base) / "sic_jax" / "jax"))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
