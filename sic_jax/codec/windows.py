"""Windows over large pictures, so that the transforms' memory does not grow with the picture.

Every window lies inside the picture and has the same size, so that one compilation serves all. It
overlaps its neighbours by the transform's reach, and only what no cut edge can have touched is
kept: the result is that of the whole picture up to the rounding of floats.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Span(NamedTuple):
    """One window along one axis, in latent positions."""

    start: int
    stop: int
    keep: slice
    """Positions of the whole axis that are taken from this window."""

    @property
    def inside(self) -> slice:
        """`keep`, counted from the window's start."""
        return slice(self.keep.start - self.start, self.keep.stop - self.start)


def spans(length: int, limit: int, margin: int | None) -> list[Span]:
    """Cut `length` positions into windows of one size, at most `limit`.

    Args:
        length: At least 1.
        limit: More than twice the margin.
        margin: Positions next to a cut edge that are not kept; None for one window, whatever the
            limit.

    Raises:
        ValueError: If the limit is too small.
    """
    if margin is None:
        return [Span(0, length, slice(0, length))]
    if limit <= 2 * margin:
        raise ValueError(f"a window of {limit} positions is too small: its margins are {margin}")
    count = 1 if length <= limit else -(-(length - 2 * margin) // (limit - 2 * margin))
    size = -(-(length + 2 * margin * (count - 1)) // count)
    out: list[Span] = []
    done = 0
    for i in range(count):
        start = min(i * (size - 2 * margin), length - size)
        stop = start + size
        end = length if i == count - 1 else stop - margin
        out.append(Span(start, stop, slice(done, end)))
        done = end
    return out


def in_windows(
    function: Callable[[NDArray[Any]], Any],
    x: NDArray[Any],
    out: NDArray[Any],
    *,
    unit_in: int,
    unit_out: int,
    limit: int,
    margin: int | None,
) -> None:
    """Fill `out` with `function` of `x`, window by window.

    Args:
        function: From a window of `x` to the array of the same place in `out`.
        x: [rows * unit_in, columns * unit_in, ...].
        out: [rows * unit_out, columns * unit_out, ...].
        unit_in: Samples of `x` that a position covers in each direction.
        unit_out: Samples of `out` that it covers.
        limit: Largest side of a window, in positions.
        margin: Reach of `function`, in positions; None if it must see `x` whole.
    """
    for row in spans(x.shape[0] // unit_in, limit, margin):
        rows = slice(row.start * unit_in, row.stop * unit_in)
        for column in spans(x.shape[1] // unit_in, limit, margin):
            columns = slice(column.start * unit_in, column.stop * unit_in)
            result = np.asarray(function(x[rows, columns]))
            inside = _scaled(row.inside, unit_out), _scaled(column.inside, unit_out)
            out[_scaled(row.keep, unit_out), _scaled(column.keep, unit_out)] = result[inside]


def _scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)
