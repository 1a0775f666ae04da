"""Exceptions of the package."""


class BitstreamError(ValueError):
    """Raised when bytes are not a valid stream: damaged, truncated, foreign or hostile."""
