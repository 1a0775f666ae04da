"""Colours that alpha hides: nobody sees them, so that they may be what costs little."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_MIDDLE = 128
_STRIP_ROWS = 256
"""Rows that are interpolated at once: it bounds the memory."""


def fill_hidden(colours: Pixels, alpha: Pixels) -> Pixels:
    """Colours of which the hidden ones go on smoothly from the visible ones beside them.

    Visible colours are averaged down to a half, a quarter, ... of the resolution, until no place is
    left without one. On the way back each place without one is interpolated from the coarser ones.

    Args:
        colours: uint8 [H, W, 3] or [H, W].
        alpha: uint8 [H, W]; 0 hides.

    Returns:
        As colours, and equal to them where alpha is not 0. 128 if it is 0 everywhere.

    Source: pull and push, Gortler et al. 1996, "The Lumigraph".
    """
    visible = alpha > 0
    if visible.all():
        return colours
    if not visible.any():
        return np.full_like(colours, _MIDDLE)
    out = colours.reshape(*alpha.shape, -1).copy()
    pyramid: list[tuple[NDArray[Any], NDArray[np.bool_]]] = [(out, visible)]
    while not pyramid[-1][1].all():
        pyramid.append(_halve(*pyramid[-1]))
    coarse = pyramid.pop()[0]
    for fine, known in reversed(pyramid):
        _interpolate(coarse, fine, ~known)
        coarse = fine
    return out.reshape(colours.shape)


def _halve(
    a: NDArray[Any], known: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means of what is known in blocks of 2 x 2, and where anything is."""
    odd = (0, a.shape[0] % 2), (0, a.shape[1] % 2)
    a = np.pad(np.where(known[..., None], a, a.dtype.type(0)), (*odd, (0, 0)))
    total, count = _sum_of_four(a), _sum_of_four(np.pad(known, odd))
    total /= np.maximum(count, 1)[..., None]
    return total, count > 0


def _sum_of_four(a: NDArray[Any]) -> NDArray[np.float32]:
    total = a[::2, ::2].astype(np.float32)
    for part in (a[1::2, ::2], a[::2, 1::2], a[1::2, 1::2]):
        total += part
    return total


def _interpolate(coarse: NDArray[np.float32], fine: NDArray[Any], where: NDArray[np.bool_]) -> None:
    """Give `fine` [h, w, C], where a mask says so, the values of half its resolution."""
    tall = _double(coarse)
    for top in range(0, len(fine), _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        mask = where[rows]
        wide = _double(tall[rows].swapaxes(0, 1)).swapaxes(0, 1)
        values = wide[: mask.shape[0], : mask.shape[1]][mask]
        fine[rows][mask] = np.round(values) if fine.dtype == np.uint8 else values


def _double(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """Twice as many rows, by linear interpolation; the outermost ones are nearest to the edge."""
    out = np.empty((2 * len(a), *a.shape[1:]), a.dtype)
    out[0::2] = 0.75 * a + 0.25 * np.concatenate((a[:1], a[:-1]))
    out[1::2] = 0.75 * a + 0.25 * np.concatenate((a[1:], a[-1:]))
    return out
