import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sic_jax.entropy.cdf_tables import (
    CdfTables,
    gaussian_tables,
    joined_tables,
    limited_tables,
    logistic_tables,
    quantise_pmf,
    tables_from_pmfs,
    validate_tables,
)

SIGMAS = np.exp(np.linspace(math.log(0.11), math.log(64.0), 64))


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def row_of(tables: CdfTables, index: int) -> NDArray[Any]:
    """Cumulative distribution of one table, without its precision entry."""
    ends = np.append(tables.starts[1:], tables.lookup.size)
    return tables.lookup[tables.starts[index] + 1 : ends[index]]


@pytest.mark.parametrize(
    ("pmf", "precision", "expected"),
    [
        ([0.5, 0.25, 0.25], 2, [0, 2, 3, 4]),
        ([1.0, 1.0, 1.0], 4, [0, 6, 11, 16]),
        ([2.0], 16, [0, 65536]),
        ([1.0, 0.0, 0.0], 16, [0, 65534, 65535, 65536]),
        ([0.0, 0.7, 0.3], 3, [0, 1, 6, 8]),
        ([1e-30, 1.0], 16, [0, 1, 65536]),
        (np.ones(65536), 16, np.arange(65537)),
    ],
)
def test_quantize_pmf_by_hand(pmf: list[float], precision: int, expected: list[int]) -> None:
    cdf = quantise_pmf(pmf, precision=precision)
    assert cdf.dtype == np.int32
    np.testing.assert_array_equal(cdf, expected)


@pytest.mark.parametrize("seed", range(20))
def test_quantize_pmf_gives_the_shortest_code(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.exponential(size=4) ** rng.uniform(0.5, 6.0)
    p /= p.sum()
    best = min(
        -(p @ np.log2(np.diff([0, *cuts, 16]) / 16))
        for cuts in itertools.combinations(range(1, 16), 3)
    )
    mass = np.diff(quantise_pmf(p, precision=4))
    assert mass.min() >= 1
    assert mass.sum() == 16
    assert -(p @ np.log2(mass / 16)) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("pmf", "precision", "match"),
    [
        ([0.5, 0.5], 0, "precision must be 1 to 16, got 0"),
        ([0.5, 0.5], 17, "precision must be 1 to 16, got 17"),
        ([], 16, r"got shape \(0,\)"),
        ([[0.5, 0.5]], 16, r"got shape \(1, 2\)"),
        ([0.2] * 5, 2, "1 to 4 entries"),
        ([0.5, -0.1], 16, "finite and not negative"),
        ([0.5, math.nan], 16, "finite and not negative"),
        ([0.0, 0.0], 16, "positive sum"),
    ],
)
def test_quantize_pmf_refuses(pmf: list[float], precision: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        quantise_pmf(pmf, precision=precision)


@pytest.fixture(scope="module")
def tables() -> CdfTables:
    return gaussian_tables(SIGMAS, 16)


def test_gaussian_tables_layout(tables: CdfTables) -> None:
    validate_tables(tables)
    assert tables.starts.size == 64 * 16
    assert tables.lookup.size == 85_003
    np.testing.assert_array_equal(tables.lookup[tables.starts], -16)
    # sigma 0.11 covers -1 to 2: four values and the escape.
    assert tables.offsets[0] == -1
    assert row_of(tables, 0).size == 6
    # sigma 64, mean 15/16: 3.75 sigma are 240.
    assert tables.offsets[-1] == -240
    assert row_of(tables, -1 % 1024).size == 240 + 241 + 1 + 2


@pytest.mark.parametrize(("scale", "mean_bin"), [(0, 0), (0, 8), (20, 3), (40, 15), (63, 7)])
def test_gaussian_tables_masses(tables: CdfTables, scale: int, mean_bin: int) -> None:
    index = scale * 16 + mean_bin
    mass = np.diff(row_of(tables, index)) / 65536
    values = tables.offsets[index] + np.arange(mass.size - 1)
    edges = [(v - 0.5 - mean_bin / 16) / SIGMAS[scale] for v in [*values, values[-1] + 1]]
    expected = np.diff([normal_cdf(x) for x in edges])
    tail = normal_cdf(edges[0]) + normal_cdf(-edges[-1])
    # One unit for rounding; the units that rare symbols must have come from the frequent ones.
    np.testing.assert_allclose(mass[:-1], expected, rtol=2e-4, atol=1.01 / 65536)
    assert mass[-1] == pytest.approx(tail, abs=1.01 / 65536)


@pytest.mark.parametrize(
    ("scale", "bound"), [(0, 1e-4), (14, 1e-4), (30, 1e-4), (50, 1.5e-4), (63, 5e-4)]
)
def test_gaussian_tables_overhead(scale: int, bound: float) -> None:
    """Expected bits, escapes included, against the entropy of the discretised Gaussian."""
    sigma = float(SIGMAS[scale])
    tables = gaussian_tables(SIGMAS[scale : scale + 1], 4)
    for mean_bin in range(4):
        mean, offset = mean_bin / 4, int(tables.offsets[mean_bin])
        bits = -np.log2(np.diff(row_of(tables, mean_bin)) / 65536)
        escape = bits.size - 1
        ideal = coded = 0.0
        for v in range(math.floor(-9 * sigma) - 1, math.ceil(9 * sigma) + 3):
            a, b = (v - 0.5 - mean) / sigma, (v + 0.5 - mean) / sigma
            p = normal_cdf(b) - normal_cdf(a) if b < 0 else normal_cdf(-a) - normal_cdf(-b)
            if p == 0.0:
                continue
            ideal -= p * math.log2(p)
            symbol = v - offset
            if 0 <= symbol < escape:
                coded += p * bits[symbol]
            else:
                gamma = -symbol if symbol < 0 else symbol - escape + 1
                coded += p * (bits[escape] + 2 * gamma.bit_length())
        assert -1e-9 < coded - ideal < bound


def logistic_cdf(x: float) -> float:
    return 1 / (1 + math.exp(-math.pi / math.sqrt(3) * x))


@pytest.mark.parametrize(("scale", "bound"), [(0, 1e-4), (14, 1e-4), (30, 1e-4), (50, 3e-4)])
def test_logistic_tables(scale: int, bound: float) -> None:
    """Masses by the formula; expected bits, escapes included, against the entropy."""
    sigma = float(SIGMAS[scale])
    tables = logistic_tables(SIGMAS[scale : scale + 1], 4)
    validate_tables(tables)
    for mean_bin in range(4):
        mean, offset = mean_bin / 4, int(tables.offsets[mean_bin])
        mass = np.diff(row_of(tables, mean_bin)) / 65536
        escape = mass.size - 1
        assert (offset, offset + escape - 1) == (
            min(-1, math.floor(mean - 5 * sigma)), max(2, math.ceil(mean + 5 * sigma))
        )  # fmt: skip
        ideal = coded = 0.0
        for v in range(math.floor(-18 * sigma) - 1, math.ceil(18 * sigma) + 3):
            a, b = (v - 0.5 - mean) / sigma, (v + 0.5 - mean) / sigma
            p = logistic_cdf(b) - logistic_cdf(a) if b < 0 else logistic_cdf(-a) - logistic_cdf(-b)
            ideal -= p * math.log2(p)
            symbol = v - offset
            if 0 <= symbol < escape:
                assert mass[symbol] == pytest.approx(p, rel=3e-4, abs=1.01 / 65536)
                coded -= p * math.log2(mass[symbol])
            else:
                gamma = -symbol if symbol < 0 else symbol - escape + 1
                coded += p * (2 * gamma.bit_length() - math.log2(mass[escape]))
        assert -1e-9 < coded - ideal < bound


def test_limited_tables() -> None:
    tables = limited_tables([0.3, 2.0], 4, limit=1, mean_limit=8)
    validate_tables(tables)
    assert tables.starts.size == 2 * 17
    np.testing.assert_array_equal(tables.offsets, -1)
    for index, (sigma, mean) in {8: (0.3, 0.0), 17 + 8 + 3: (2.0, 0.75), 16: (0.3, 2.0)}.items():
        edges = [logistic_cdf((v - mean) / sigma) for v in (-1.5, -0.5, 0.5, 1.5)]
        expected = np.diff(edges) / (edges[-1] - edges[0])
        mass = np.diff(row_of(tables, index)) / 65536
        # 2^-14 are left for the values beyond.
        np.testing.assert_allclose(mass, [*expected, 2**-14], rtol=2e-4, atol=1.01 / 65536)
    mirrored = np.diff(row_of(tables, 17 + 8 - 3))
    np.testing.assert_allclose(mirrored[:3][::-1], np.diff(row_of(tables, 28))[:3], atol=1)


def test_joined_tables_are_numbered_one_after_the_other() -> None:
    first = tables_from_pmfs([[0.5, 0.25]], [-3], [0.25])
    second = tables_from_pmfs([[], [0.5]], [7, 2], [1.0, 0.5])
    both = joined_tables(first, second)
    validate_tables(both)
    np.testing.assert_array_equal(both.offsets, [-3, 7, 2])
    np.testing.assert_array_equal(row_of(both, 0), row_of(first, 0))
    np.testing.assert_array_equal(row_of(both, 2), row_of(second, 1))


def test_tables_from_pmfs_by_hand() -> None:
    tables = tables_from_pmfs([[0.5, 0.25], []], [-3, 7], [0.25, 1.0])
    np.testing.assert_array_equal(tables.lookup, [-16, 0, 32768, 49152, 65536, -16, 0, 65536])
    np.testing.assert_array_equal(tables.starts, [0, 5])
    np.testing.assert_array_equal(tables.offsets, [-3, 7])
    assert {array.dtype for array in tables} == {np.dtype(np.int32)}


def test_tables_from_pmfs_refuses() -> None:
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        tables_from_pmfs([[0.5]], [0, 1], [0.5])
    with pytest.raises(ValueError, match="got 0, 0 and 0"):
        tables_from_pmfs([], [], [])
    with pytest.raises(ValueError, match="offsets must be within"):
        tables_from_pmfs([[0.5]], [(1 << 24) + 1], [0.5])


@pytest.mark.parametrize(
    ("sigmas", "bins", "match"),
    [
        ([], 4, r"got shape \(0,\)"),
        ([1.0, 0.0], 4, "finite and positive"),
        ([math.inf], 4, "finite and positive"),
        ([1.0], 0, "num_mean_bins must be at least 1, got 0"),
    ],
)
def test_gaussian_tables_refuses(sigmas: list[float], bins: int, match: str) -> None:
    for make in (gaussian_tables, logistic_tables):
        with pytest.raises(ValueError, match=match):
            make(sigmas, bins)
    with pytest.raises(ValueError, match=match):
        limited_tables(sigmas, bins, limit=1, mean_limit=2)


def put(name: str, position: int, value: int) -> Callable[[CdfTables], CdfTables]:
    def change(tables: CdfTables) -> CdfTables:
        array = getattr(tables, name).copy()
        array[position] = value
        return tables._replace(**{name: array})

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t._replace(lookup=t.lookup.astype(np.int64)), "lookup must be 1-D int32, got"),
        (lambda t: t._replace(starts=t.starts.astype(np.float32)), "starts must be 1-D int32"),
        (lambda t: t._replace(offsets=t.offsets[None]), "int32 with 2 axes"),
        (lambda t: t._replace(offsets=t.offsets[:1]), "got 2 and 1"),
        (lambda t: t._replace(starts=t.starts[:0], offsets=t.offsets[:0]), "got 0 and 0"),
        (lambda t: t._replace(lookup=t.lookup[:0]), "stay inside lookup"),
        (lambda t: t._replace(lookup=np.zeros((1 << 24) + 1, np.int32)), "at most 16777216"),
        (lambda t: t._replace(lookup=t.lookup[:-1]), "from 0 to 65536"),
        (put("starts", 0, 1), "starts must rise from 0"),
        (put("starts", 1, -(2**31)), "starts must rise from 0"),
        (put("starts", 1, 2**31 - 1), "starts must rise from 0"),
        (put("starts", 1, 2), "in steps of at least 3"),
        (put("starts", 1, 4), "must start with -16"),
        (put("lookup", 0, 16), "must start with -16"),
        (put("lookup", 5, -12), "must start with -16"),
        (put("lookup", 1, 1), "from 0 to 65536"),
        (put("lookup", 4, 65535), "from 0 to 65536"),
        (put("lookup", 3, 32768), "row 0 must strictly increase"),
        (put("lookup", 7, 65536), "row 1 must strictly increase"),
        (put("lookup", 7, -(2**31)), "row 1 must strictly increase"),
        (put("lookup", 7, 2**31 - 1), "row 1 must strictly increase"),
        (put("offsets", 1, -(2**31)), "offsets must be within"),
    ],
)
def test_validate_tables_refuses(change: Callable[[CdfTables], CdfTables], match: str) -> None:
    tables = tables_from_pmfs([[0.5, 0.25], [0.5]], [-3, 7], [0.25, 0.5])
    validate_tables(tables)
    with pytest.raises(ValueError, match=match):
        validate_tables(change(tables))
