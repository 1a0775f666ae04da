"""Bjontegaard deltas against closed forms and values of an independent package."""

import json
from pathlib import Path

import numpy as np
import pytest

from sic_jax.evaluation.bd import bd_metric, bd_rate

ANCHORS = Path(__file__).resolve().parents[2] / "shared" / "anchors" / "compressai_kodak.json"
CURVE = [(0.1, 26.0), (0.25, 29.5), (0.5, 32.0), (1.0, 36.0), (1.8, 38.5)]


def scaled(factor: float) -> list[tuple[float, float]]:
    return [(factor * bpp, value) for bpp, value in CURVE]


def test_a_curve_against_itself_is_zero_over_its_whole_range() -> None:
    rate = bd_rate(CURVE, CURVE, higher_is_better=True)
    assert rate == (0.0, 26.0, 38.5, "", 0)
    delta = bd_metric(CURVE, CURVE, higher_is_better=True)
    assert delta.value == 0
    assert (delta.low, delta.high) == pytest.approx((0.1, 1.8), rel=1e-12)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.25, 3.0])
def test_a_constant_factor_of_rate_is_exactly_that(factor: float) -> None:
    found = bd_rate(CURVE, scaled(factor), higher_is_better=True)
    assert found.value == pytest.approx(100 * (factor - 1), rel=1e-12)
    assert (found.low, found.high) == (26.0, 38.5)


def test_a_constant_difference_of_quality_is_exactly_that() -> None:
    better = [(bpp, value + 1.25) for bpp, value in CURVE]
    found = bd_metric(CURVE, better, higher_is_better=True)
    assert found.value == pytest.approx(1.25, rel=1e-12)


def test_lower_is_better_judges_the_other_way_round() -> None:
    distances = [(bpp, 1 / value) for bpp, value in CURVE]
    fewer = [(0.8 * bpp, value) for bpp, value in distances]
    rate = bd_rate(distances, fewer, higher_is_better=False)
    assert rate.value == pytest.approx(-20, rel=1e-12)
    assert (rate.low, rate.high) == (1 / 38.5, 1 / 26)
    less = [(bpp, value - 0.001) for bpp, value in distances]
    delta = bd_metric(distances, less, higher_is_better=False)
    assert delta.value == pytest.approx(-0.001, rel=1e-9)


def test_only_the_common_range_counts() -> None:
    # Straight lines in log bpp: over the common 30 to 34 dB the rates differ by e^0.5.
    a = [(np.exp(v / 10), v) for v in (20.0, 34.0)]
    b = [(np.exp(v / 10 + 0.5), v) for v in (30.0, 50.0)]
    found = bd_rate(a, b, higher_is_better=True)
    assert found.value == pytest.approx(100 * np.expm1(0.5), rel=1e-12)
    assert (found.low, found.high) == (30.0, 34.0)


@pytest.mark.parametrize("shift", [12.5, 100.0])
def test_curves_without_a_common_quality_have_no_rate_delta(shift: float) -> None:
    above = [(bpp, value + shift) for bpp, value in CURVE]
    found = bd_rate(CURVE, above, higher_is_better=True)
    assert (found.value, found.low, found.high, found.reason) == (None, None, None, "no overlap")
    assert bd_metric(CURVE, above, higher_is_better=True).value == pytest.approx(shift)
    beyond = [(20 * bpp, value) for bpp, value in CURVE]
    assert bd_metric(CURVE, beyond, higher_is_better=True).reason == "no overlap"


def test_one_point_is_no_curve() -> None:
    assert bd_rate(CURVE, CURVE[:1], higher_is_better=True).reason == "fewer than 2 points"
    assert bd_rate(CURVE, [], higher_is_better=True).value is None


def test_points_that_a_cheaper_one_equals_are_left_out_and_counted() -> None:
    worse = [*CURVE, (0.6, 31.0), (0.25, 28.0), (2.5, 38.5)]
    found = bd_rate(CURVE, worse, higher_is_better=True)
    assert (found.value, found.num_dropped) == (0.0, 3)


def test_interpolation_of_three_points_by_hand() -> None:
    """Fritsch and Carlson's slopes 5/4, 3/7 and 0 (limited at the end) at qualities 0, 1 and 3."""
    reference = [(np.exp(log_bpp), v) for v, log_bpp in ((0.0, 1.0), (1.0, 2.0), (3.0, 2.5))]
    line = [(1.0, 0.0), (np.e, 3.0)]
    area = 1 * (1 + 2) / 2 + 1**2 * (5 / 4 - 3 / 7) / 12 + 2 * (2 + 2.5) / 2 + 2**2 * (3 / 7) / 12
    found = bd_rate(reference, line, higher_is_better=True)
    assert found.value == pytest.approx(100 * np.expm1((1.5 - area) / 3), rel=1e-12)
    assert (found.low, found.high, found.num_dropped) == (0.0, 3.0, 0)


@pytest.mark.skipif(not ANCHORS.exists(), reason="needs the shared files")
@pytest.mark.parametrize(
    ("reference", "test", "rate", "psnr"),
    [  # By the package bjontegaard 1.3.0, method "pchip".
        ("bpg444", "bmshj2018-hyperprior-mse", 3.9301598216622713, -0.18441108900756173),
        ("bmshj2018-hyperprior-mse", "bpg444", -3.7815392840790274, 0.18441108900756173),
        ("vtm", "bmshj2018-hyperprior-mse", 30.48464647591056, -1.2564956358053914),
        ("bpg444", "vtm", -18.023572552702237, 0.9774147488800783),
        ("vtm", "vtm", 0.0, 0.0),
    ],
)
def test_published_curves_give_the_values_of_an_independent_package(
    reference: str, test: str, rate: float, psnr: float
) -> None:
    codecs = json.loads(ANCHORS.read_text())["codecs"]
    a, b = (list(zip(codecs[k]["bpp"], codecs[k]["psnr"], strict=True)) for k in (reference, test))
    assert bd_rate(a, b, higher_is_better=True).value == pytest.approx(rate, rel=1e-10, abs=1e-12)
    assert bd_metric(a, b, higher_is_better=True).value == pytest.approx(psnr, rel=1e-7, abs=1e-12)
