"""Learned perceptual image compression with synonymous variational inference, in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import sic_jax.devices  # noqa: F401 - From here on it sees forks; JAX is not imported.

if TYPE_CHECKING:
    from sic_jax.codec.codec import Codec
    from sic_jax.codec.container import read_header, read_metadata
    from sic_jax.errors import BitstreamError
    from sic_jax.images.io import read_image, write_image
    from sic_jax.metadata import Metadata

__version__ = "0.2.0"
__all__ = [
    "BitstreamError",
    "Codec",
    "Metadata",
    "__version__",
    "read_header",
    "read_image",
    "read_metadata",
    "write_image",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used, so that importing the package is instant."""
    modules = {
        "BitstreamError": "errors",
        "Codec": "codec.codec",
        "Metadata": "metadata",
        "read_header": "codec.container",
        "read_image": "images.io",
        "read_metadata": "codec.container",
        "write_image": "images.io",
    }
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{modules[name]}"), name)


def __dir__() -> list[str]:
    """Names that tab completion shows."""
    return sorted({*globals(), *__all__})
