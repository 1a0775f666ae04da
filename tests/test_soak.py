"""Many pictures in one process: `soak.py` has the harness and what must hold."""

import pytest
from soak import run

from sic_jax.codec.codec import Codec


@pytest.mark.slow
def test_sixty_pictures() -> None:
    found = run(Codec.load("default"), 60, 200, seed=1)
    assert found["pictures"] == 60
    assert found["worst_mean_error"] > 0
