"""Quality as a PSNR: the smallest prefix of a file whose picture comes near enough."""

import bisect
import functools
import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.container import truncate
from sic_jax.codec.pixels import PictureLike, Pixels, split_alpha
from sic_jax.metrics.fidelity import psnr


def cut_at_psnr(
    data: bytes, image: PictureLike, min_psnr: float, decode: Callable[[int], Pixels], *, level: int
) -> bytes:
    """The file up to the lowest level whose picture has a PSNR; all of it, with a warning, if none.

    Args:
        data: The file.
        image: What it was made of. Of a picture with alpha, the pixels that it does not hide count.
        min_psnr: PSNR in dB.
        decode: From a level to its picture, of the shape of `image`.
        level: Levels of the file.
    """
    colours, alpha = split_alpha(image)
    visible = np.full(colours.shape[:2], True) if alpha is None else alpha > 0

    def samples(colours: Pixels) -> NDArray[np.float32]:
        shown = colours[visible].astype(np.float32) / np.float32(255)
        return shown.reshape(1, 1, len(shown), -1)

    @functools.cache
    def psnr_at(k: int) -> float:
        if not visible.any():
            return math.inf
        return float(psnr(samples(colours), samples(split_alpha(decode(k)).colours))[0])

    lowest = lowest_level(psnr_at, min_psnr, level)
    if lowest == level:
        if psnr_at(level) < min_psnr:
            warnings.warn(
                f"a PSNR of {min_psnr:g} dB is not reached: level {level} has "
                f"{psnr_at(level):.2f} dB",
                stacklevel=3,
            )
        return data
    return truncate(data, lowest)


def lowest_level(psnr_at: Callable[[int], float], min_psnr: float, highest: int) -> int:
    """A level with `psnr_at(level) >= min_psnr` above one that has less; `highest` if none is seen.

    Found by bisection. Where the PSNR grows with the level, it is the lowest such level.
    """
    return 1 + bisect.bisect_left(range(1, highest), min_psnr, key=psnr_at)
