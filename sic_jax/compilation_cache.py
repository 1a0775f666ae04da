"""Compiled programs that outlive the process."""

import os
from pathlib import Path
from typing import Any

import jax


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
