"""Integer tables for range coding, built once and stored with a model.

A table is one row of TensorFlow Compression's one-dimensional lookup: `[-P, 0, c_1, ..., 2**P]`,
P = 16. Its last symbol is the escape: any value outside the table is coded as the escape followed
by an Elias gamma code, so tables may be short without ever clipping a value.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISION: Final = 16
MAX_OFFSET: Final = 1 << 24
MAX_ENTRIES: Final = 1 << 24

# Half width of a Gaussian table in standard deviations. Expected excess over the ideal code with
# escapes, mean over scales 0.11 to 64: 2.5 -> 5.0e-3 bit, 3 -> 9.6e-4, 3.5 -> 1.7e-4,
# 3.75 -> 8.5e-5 (the minimum), 4 -> 9.3e-5, 4.5 -> 2.7e-4: beyond, the floor of one unit per
# symbol costs more than the escapes save.
_GAUSSIAN_REACH: Final = 3.75
# The same for the logistic density: 4 -> 7.3e-4, 5 -> 1.7e-4 (the minimum), 6 -> 3.2e-4.
_LOGISTIC_REACH: Final = 5.0
_PER_SIGMA: Final = math.pi / math.sqrt(3.0)
"""Scale of the logistic density of variance 1."""
_LIMITED_TAIL: Final = 2.0**-14
"""Probability that a value is none of those of `limited_tables`: ties of rounding are."""


class CdfTables(NamedTuple):
    """Cumulative distributions in TensorFlow Compression's one-dimensional layout.

    Attributes:
        lookup: int32, rows `[-16, 0, c_1, ..., 2**16]` one after the other; strictly increasing,
            the last symbol of each row is the escape.
        starts: int32 [n], position of each row's first entry in `lookup`.
        offsets: int32 [n], value of symbol 0 of each row: symbol = value - offset.
    """

    lookup: NDArray[np.int32]
    starts: NDArray[np.int32]
    offsets: NDArray[np.int32]


def quantise_pmf(pmf: ArrayLike, *, precision: int = PRECISION) -> NDArray[np.int32]:
    """Turns probabilities into an integer cumulative distribution.

    Of all distributions with a mass of at least 1 per symbol it is the one with the shortest
    expected code: from the masses rounded down, single units move to where they save most, until no
    move helps. Ties go to the first symbol.

    Args:
        pmf: Probabilities [n], finite and not negative, any positive sum; 1 <= n <= 2**precision.
        precision: Bits, 1 to 16.

    Returns:
        int32 [n + 1], strictly increasing from 0 to 2**precision.

    Raises:
        ValueError: If `pmf` or `precision` is out of these bounds.
    """
    if not 1 <= precision <= PRECISION:
        raise ValueError(f"precision must be 1 to {PRECISION}, got {precision}")
    total = 1 << precision
    p = np.asarray(pmf, dtype=np.float64)
    if p.ndim != 1 or not 1 <= p.size <= total:
        raise ValueError(f"pmf must be 1-D with 1 to {total} entries, got shape {p.shape}")
    if not np.all(np.isfinite(p)) or np.any(p < 0) or not p.sum() > 0:
        raise ValueError("pmf must be finite and not negative, with a positive sum")
    p = p / p.sum()
    mass = np.maximum(np.floor(p * total), 1.0)
    # What a unit more saves and a unit less costs, in expected nats. Both come from one formula, so
    # that moving a unit and moving it back cancel exactly and the exchange below ends.
    gain = np.array([_unit_gain(a, m) for a, m in zip(p, mass, strict=True)])
    loss = np.array([_unit_gain(a, m - 1.0) for a, m in zip(p, mass, strict=True)])
    missing = total - int(mass.sum())
    while True:
        giver, taker = int(np.argmin(loss)), int(np.argmax(gain))
        if missing == 0 and gain[taker] <= loss[giver]:
            cdf: NDArray[np.int32] = np.concatenate([[0], np.cumsum(mass)]).astype(np.int32)
            return cdf
        i, unit = (taker, 1) if missing >= 0 else (giver, -1)
        mass[i] += unit
        missing -= unit
        gain[i] = _unit_gain(p[i], mass[i])
        loss[i] = _unit_gain(p[i], mass[i] - 1.0)


def tables_from_pmfs(
    pmfs: Sequence[ArrayLike], offsets: Sequence[int], tail_masses: Sequence[float]
) -> CdfTables:
    """Builds one table per probability vector, with an escape symbol after its last entry.

    Args:
        pmfs: Per table, the probabilities [n] of the values `offset`, `offset + 1`, ...
        offsets: Per table, the value of its first entry.
        tail_masses: Per table, the probability of all other values, in the scale of its pmf.

    Returns:
        The tables, in the given order.

    Raises:
        ValueError: If the three lengths differ, or an entry is out of bounds.
    """
    if not 0 < len(pmfs) == len(offsets) == len(tail_masses):
        raise ValueError(
            "pmfs, offsets and tail_masses must have one equal positive length, got "
            f"{len(pmfs)}, {len(offsets)} and {len(tail_masses)}"
        )
    rows = [
        np.concatenate([[-PRECISION], quantise_pmf(np.append(np.asarray(pmf, np.float64), tail))])
        for pmf, tail in zip(pmfs, tail_masses, strict=True)
    ]
    starts = np.cumsum([0] + [row.size for row in rows[:-1]])
    tables = CdfTables(
        lookup=np.concatenate(rows).astype(np.int32),
        starts=starts.astype(np.int32),
        offsets=np.asarray(offsets, dtype=np.int32),
    )
    validate_tables(tables)
    return tables


def gaussian_tables(sigmas: ArrayLike, num_mean_bins: int) -> CdfTables:
    """Builds tables of the discretised Gaussian for every scale [S] and fractional mean.

    Arguments, result and errors are those of `logistic_tables`, but that each table covers 3.75
    standard deviations.
    """
    return _fractional_tables(sigmas, num_mean_bins, _normal_tail, _GAUSSIAN_REACH)


def logistic_tables(sigmas: ArrayLike, num_mean_bins: int) -> CdfTables:
    """Builds tables of the discretised logistic density for every scale and fractional mean.

    Table `scale_index * num_mean_bins + mean_bin` has standard deviation `sigmas[scale_index]` and
    mean `mean_bin / num_mean_bins`. The coded value is relative to the integer floor of the mean,
    and has the probability of the unit interval around it.

    Args:
        sigmas: Standard deviations [S], finite and positive.
        num_mean_bins: Fractional means per scale, at least 1.

    Returns:
        S * num_mean_bins tables, each covering 5 standard deviations and at least -1 to 2.

    Raises:
        ValueError: If `sigmas` or `num_mean_bins` is out of these bounds.
    """
    return _fractional_tables(sigmas, num_mean_bins, _logistic_tail, _LOGISTIC_REACH)


def limited_tables(
    sigmas: ArrayLike, num_mean_bins: int, *, limit: int, mean_limit: int
) -> CdfTables:
    """Builds tables of logistic densities that are cut to the values -limit to limit.

    Table `scale_index * (2 * mean_limit + 1) + mean + mean_limit` has, before the cut, standard
    deviation `sigmas[scale_index]` and mean `mean / num_mean_bins`. The coded value is the symbol;
    others than those cost an escape.

    Args:
        sigmas: Standard deviations [S], finite and positive.
        num_mean_bins: Parts of an integer that means are counted in, at least 1.
        limit: Largest magnitude of a value.
        mean_limit: Largest magnitude of a mean, in those parts.

    Raises:
        ValueError: If `sigmas` or `num_mean_bins` is out of these bounds.
    """
    pmfs = limited_pmfs(sigmas, num_mean_bins, limit=limit, mean_limit=mean_limit)
    pmfs = pmfs.reshape(-1, pmfs.shape[-1])
    return tables_from_pmfs(list(pmfs), [-limit] * len(pmfs), [_LIMITED_TAIL] * len(pmfs))


def limited_pmfs(
    sigmas: ArrayLike, num_mean_bins: int, *, limit: int, mean_limit: int
) -> NDArray[np.float64]:
    """The probabilities of `limited_tables`: [S, 2 * mean_limit + 1, 2 * limit + 1]."""
    scales = _checked(sigmas, num_mean_bins)
    means = np.arange(-mean_limit, mean_limit + 1)[:, None] / num_mean_bins
    edges = np.arange(-limit, limit + 2) - 0.5
    pmfs = []
    for sigma in scales:
        x = (edges - means) / sigma
        # Both ends of an interval from its nearer tail: nothing cancels.
        a, b = x[:, :-1], x[:, 1:]
        near, far = np.where(a > 0, a, -b), np.where(a > 0, b, -a)
        mass = _logistic_tail(near) - _logistic_tail(far)
        pmfs.append(mass / mass.sum(-1, keepdims=True))
    return np.stack(pmfs)


def joined_tables(first: CdfTables, second: CdfTables) -> CdfTables:
    """The tables of both, those of `second` numbered after those of `first`."""
    return CdfTables(
        np.concatenate([first.lookup, second.lookup]),
        np.concatenate([first.starts, second.starts + np.int32(first.lookup.size)]),
        np.concatenate([first.offsets, second.offsets]),
    )


def _checked(sigmas: ArrayLike, num_mean_bins: int) -> list[float]:
    scales = np.asarray(sigmas, dtype=np.float64)
    if scales.ndim != 1 or scales.size == 0:
        raise ValueError(f"sigmas must be 1-D and not empty, got shape {scales.shape}")
    if not np.all(np.isfinite(scales) & (scales > 0)):
        raise ValueError(f"sigmas must be finite and positive, got {scales}")
    if num_mean_bins < 1:
        raise ValueError(f"num_mean_bins must be at least 1, got {num_mean_bins}")
    values: list[float] = scales.tolist()
    return values


def _fractional_tables(
    sigmas: ArrayLike, num_mean_bins: int, tail: Callable[[float], float], reach: float
) -> CdfTables:
    """Tables of a symmetric density, given the probability that it exceeds x, for sigma 1."""
    pmfs: list[list[float]] = []
    offsets: list[int] = []
    tails: list[float] = []
    for sigma in _checked(sigmas, num_mean_bins):
        for mean_bin in range(num_mean_bins):
            mean = mean_bin / num_mean_bins
            low = min(-1, math.floor(mean - reach * sigma))
            high = max(2, math.ceil(mean + reach * sigma))
            edges = [(v - 0.5 - mean) / sigma for v in range(low, high + 2)]
            pmfs.append([_mass(tail, a, b) for a, b in pairwise(edges)])
            offsets.append(low)
            tails.append(tail(-edges[0]) + tail(edges[-1]))
    return tables_from_pmfs(pmfs, offsets, tails)


def validate_tables(tables: CdfTables) -> None:
    """Checks that tables are safe for both coder backends.

    Args:
        tables: Tables from any source, for example a file.

    Raises:
        ValueError: If a shape or type is wrong, a row does not start with -16 and 0, does not
            strictly increase to 2**16, or does not end where the next one starts; if there are more
            than 2**24 entries or an offset beyond +-2**24.
    """
    for name, array in zip(tables._fields, tables, strict=True):
        if array.dtype != np.int32 or array.ndim != 1:
            raise ValueError(f"{name} must be 1-D int32, got {array.dtype} with {array.ndim} axes")
    lookup, starts, offsets = tables
    if not 0 < starts.size == offsets.size:
        raise ValueError(
            "starts and offsets must have one equal positive length, got "
            f"{starts.size} and {offsets.size}"
        )
    if lookup.size > MAX_ENTRIES:
        raise ValueError(f"lookup has {lookup.size} entries, at most {MAX_ENTRIES} are allowed")
    lengths = np.diff(starts, append=np.int32(lookup.size))
    if starts[0] != 0 or np.any(starts < 0) or np.any(lengths < 3):
        raise ValueError("starts must rise from 0 in steps of at least 3 and stay inside lookup")
    if np.any(lookup[starts] != -PRECISION):
        raise ValueError(f"every row must start with {-PRECISION} (precision with escape)")
    if np.any(lookup[starts + 1] != 0) or np.any(lookup[starts + lengths - 1] != 1 << PRECISION):
        raise ValueError(f"every row must run from 0 to {1 << PRECISION}")
    steps = np.diff(lookup)
    steps[starts[1:] - 1] = 1  # from the end of one row to the start of the next
    if np.any(steps <= 0):
        row = int(np.searchsorted(starts, np.argmax(steps <= 0), side="right")) - 1
        raise ValueError(f"row {row} must strictly increase: each symbol needs a mass >= 1")
    if np.any(np.abs(offsets.astype(np.int64)) > MAX_OFFSET):
        raise ValueError(f"offsets must be within +-{MAX_OFFSET}, got {offsets}")


def _unit_gain(p: float, mass: float) -> float:
    """Expected code length, in nats, that a symbol saves when its mass grows by one."""
    return p * math.log1p(1.0 / mass) if mass > 0.0 else math.inf


def _normal_tail(x: float) -> float:
    """Probability that a standard normal variable exceeds x."""
    return 0.5 * math.erfc(x * math.sqrt(0.5))


def _logistic_tail(x: Any) -> Any:
    """Probability that logistic variables of mean 0 and variance 1 exceed x."""
    e = np.exp(-_PER_SIGMA * np.abs(x))
    return np.where(np.asarray(x) > 0, e, 1.0) / (1.0 + e)


def _mass(tail: Callable[[float], float], a: float, b: float) -> float:
    """Probability of the interval [a, b], free of cancellation in either tail."""
    return tail(a) - tail(b) if a > 0 else tail(-b) - tail(-a)
