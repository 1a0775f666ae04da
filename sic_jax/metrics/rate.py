"""Bits per pixel, as every part of the package counts them; imports nothing."""


def bpp(num_bytes: int, height: int, width: int) -> float:
    """Bits per pixel of a whole file: every byte counts, channels do not.

    Raises:
        ValueError: `num_bytes` is negative or a side is not positive.
    """
    if num_bytes < 0 or height < 1 or width < 1:
        raise ValueError(
            f"need num_bytes >= 0 and sides >= 1, got {num_bytes} bytes for {height}x{width}"
        )
    return 8 * num_bytes / (height * width)
