"""Mutated files: `fuzz.py` has the harness and what must hold."""

import pytest
from fuzz import KINDS, run


def check(count: int, seed: int) -> None:
    outcomes = run(count, seed)["outcomes"]
    assert sum(outcomes.values()) == count
    # Every kind was tried, most are refused, and forged symbols do reach the synthesis.
    for kind in KINDS:
        assert outcomes[f"{kind}: refused"] > count / 60, kind
    for kind in ("cut", "header", "payload", "samples"):
        assert outcomes[f"{kind}: decoded"] > count / 400, kind


@pytest.mark.thorough
def test_mutated_files() -> None:
    check(1200, seed=1)


def test_a_run_ends_in_time() -> None:
    assert run(None, minutes=0)["outcomes"] == {}


@pytest.mark.slow
def test_two_hundred_thousand_mutated_files() -> None:
    check(200_000, seed=0)
