"""What travels with a picture beside its pixels, in picture files and in sic files."""

from dataclasses import dataclass

MAX_METADATA_BYTES = 16 * 2**20
DPI_UNITS = 100
"""Resolutions count in 1/100 of a pixel per inch."""
MAX_DPI = (2**32 - 1) / DPI_UNITS


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of a picture, each None where there is none; checked when they are made.

    Attributes:
        icc_profile: ICC profile, 1 byte to 16 MiB.
        exif: EXIF as a TIFF structure, 1 byte to 16 MiB.
        xmp: XMP packet, 1 byte to 16 MiB.
        dpi: Resolution, horizontal and vertical, in pixels per inch, 0.01 to 42949672.95; files
            keep it in steps of 0.01.

    Raises:
        TypeError: If a field has another type.
        ValueError: If a field is out of these bounds.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("icc_profile", "exif", "xmp"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, bytes):
                raise TypeError(f"{name} must be bytes, got {type(value).__name__}")
            if not 1 <= len(value) <= MAX_METADATA_BYTES:
                raise ValueError(
                    f"{name} must have 1 to {MAX_METADATA_BYTES} bytes, got {len(value)}"
                )
        if self.dpi is not None:
            if not isinstance(self.dpi, tuple) or len(self.dpi) != 2:
                raise TypeError(f"dpi must be a tuple of two numbers, got {self.dpi!r}")
            least = 1 / DPI_UNITS
            if not all(least <= v <= MAX_DPI for v in self.dpi):
                raise ValueError(f"dpi must be in {least} to {MAX_DPI}, got {self.dpi}")
