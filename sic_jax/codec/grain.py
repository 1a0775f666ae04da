"""Grain: noise of the original that no level codes, drawn where the decoded picture is calmer.

An encoder measures one standard deviation a picture; a decoder tops up the noise that its picture
has at each place to that. Integers alone decide what is added; FORMAT.md has the same definition.
"""

import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.container import GRAIN_UNITS, MAX_GRAIN
from sic_jax.codec.pixels import Pixels
from sic_jax.entropy.counter_noise import normal_noise

BLOCK = 16
CALM, CALM_RATIO, MEASURED_LIMIT = (0.02, 0.1), 1.3, 3.0
"""Shares of the calmest blocks, how far apart these may be, and the largest result: see
`measure_grain`."""
BRIGHTNESS = (8, 247)
"""Mean luma of blocks that are neither black nor white lies between these."""
WINDOW = 17
"""Side of the window around a place whose noise is that of the place."""
LUMA = (77, 150, 29)
"""Weights of red, green and blue, in 1/256."""
SHARED, OWN = 857, 561
"""Square roots of 0.7 and 0.3 in 1/1024: noise that all colours share, and noise of each."""
_REACH = WINDOW // 2
_SEED = 0x47524149
_STRIP_PIXELS = 2**18


def measure_grain(image: Pixels, alpha: Pixels | None = None) -> int:
    """The grain of a picture: its noise where it is calmest.

    Of the root mean squares of the luma's second differences (down and right, scaled so that white
    noise keeps its variance) in blocks of 16 x 16 pixels that are neither black nor white, the one
    that 10 % of the blocks are below; but at most 1.3 times that of 2 %. Grain is the same in all
    calm blocks; where that is not so, the picture has few of them and much of it is texture.

    Args:
        image: uint8 [H, W, 3].
        alpha: uint8 [H, W]; blocks with a pixel that it hides do not count.

    Returns:
        Standard deviation in 1/16, at most 48; 0 if all blocks are black, white or partly hidden.
    """
    luma = _luma(image)
    rows, columns = luma.shape[0] // BLOCK, luma.shape[1] // BLOCK
    if min(rows, columns) == 0:
        return 0

    def blocks(a: NDArray[np.int32]) -> NDArray[np.float64]:
        cut = a[: rows * BLOCK, : columns * BLOCK]
        mean: NDArray[np.float64] = cut.reshape(rows, BLOCK, columns, BLOCK).mean((1, 3))
        return mean

    energy = np.zeros_like(luma)
    energy[1:, 1:] = _squared_differences(luma)
    brightness = blocks(luma) / 4
    black, white = BRIGHTNESS
    usable = (brightness > black) & (brightness < white)
    if alpha is not None:
        usable &= blocks((alpha > 0).astype(np.int32)) == 1
    if not usable.any():
        return 0
    calmest, calm = np.sqrt(np.quantile(blocks(energy)[usable] / 64, CALM))
    return grain_units(min(float(calm), CALM_RATIO * float(calmest), MEASURED_LIMIT))


def grain_units(sigma: float) -> int:
    """A standard deviation in steps of 8-bit samples in 1/16, rounded.

    Raises:
        ValueError: If it is not in [0, 15.9375].
    """
    if not 0 <= sigma <= MAX_GRAIN / GRAIN_UNITS:
        raise ValueError(f"grain must be 0 to {MAX_GRAIN / GRAIN_UNITS}, got {sigma}")
    return int(np.floor(sigma * GRAIN_UNITS + 0.5))


def add_grain(picture: Pixels, sigma: int, seed: int) -> Pixels:
    """Draw grain on a decoded picture.

    Args:
        picture: uint8 [H, W, 3].
        sigma: Standard deviation of the grain, in 1/16, 0 to 255: what noise is topped up to.
        seed: 0 to 2^32 - 1.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = picture.shape[:2]
    if sigma == 0 or min(height, width) == 1:
        return picture
    out = np.empty_like(picture)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(1, top - _REACH), min(height, bottom + _REACH)
        energy = _squared_differences(_luma(picture[first - 1 : last]))
        # Places beyond the picture's edge, and the first row and column, repeat the nearest.
        above, below = first - (top - _REACH), bottom + _REACH - last
        energy = np.pad(energy, ((above, below), (_REACH + 1, _REACH)), mode="edge")
        energy = _window_sums(_window_sums(energy).T).T
        missing = 256 * sigma**2 - 1024 * energy.astype(np.int64) // WINDOW**2
        amplitude = np.sqrt(np.maximum(missing, 0)).astype(np.int32)[..., None]
        shape = (bottom - top, width, 4)
        noise = normal_noise(seed ^ _SEED, shape, start=top * width * 4)
        noise = (SHARED * noise[..., :1] + OWN * noise[..., 1:]) >> 10
        grain = (amplitude * noise + 2**17) >> 18
        out[top:bottom] = np.clip(picture[top:bottom] + grain, 0, 255)
    return out


def _luma(picture: Pixels) -> NDArray[np.int32]:
    """Luma in quarters of a step, [H, W]."""
    r, g, b = LUMA
    red, green, blue = np.moveaxis(picture.astype(np.int32), -1, 0)
    luma: NDArray[np.int32] = (r * red + g * green + b * blue + 32) >> 6
    return luma


def _squared_differences(luma: NDArray[np.int32]) -> NDArray[np.int32]:
    """Squares of the differences down of the differences right: [H - 1, W - 1]."""
    second: NDArray[np.int32] = np.diff(np.diff(luma, axis=0), axis=1)
    return second * second


def _window_sums(a: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sums of 17 neighbours along the last axis, [m, n + 16] to [m, n]."""
    # The running sums may wrap around; their differences stay below 2^31.
    total = np.cumsum(a, axis=-1, dtype=np.int32)
    total = np.pad(total, ((0, 0), (1, 0)))
    return total[:, WINDOW:] - total[:, :-WINDOW]
