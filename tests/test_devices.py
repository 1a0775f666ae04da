"""Forked processes, in which JAX would wait for ever."""

import os
import subprocess
import sys

import pytest

from sic_jax.devices import is_forked

FORK = """
import os, sys
import jax.numpy as jnp
import numpy as np
import sic_jax
from sic_jax import metrics

if sys.argv[1] == "started":
    assert jnp.ones(3).sum() == 3
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
x = np.zeros((1, 64, 64, 3), np.float32)
for call in (
    lambda: sic_jax.Codec.load("absent"),
    lambda: metrics.psnr(x, x[:, 1:]),
    lambda: metrics.lpips(x, x[:, 1:]),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, str(error).partition(":")[0].partition(",")[0])
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("jax", "lines"),
    [
        ("started", 3 * ["RuntimeError this process was forked after JAX had started"]),
        (
            "imported",
            [
                "ValueError no bundle 'absent'",
                "ValueError images to compare must have one shape [B",
                "ValueError images to compare must have one shape",
            ],
        ),
    ],
)
def test_a_child_of_a_process_that_used_jax_is_refused(jax: str, lines: list[str]) -> None:
    """Uses of JAX that the package had no part in count; a mere import does not."""
    argv = [sys.executable, "-W", "ignore", "-c", FORK, jax]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.splitlines(), done.returncode) == (lines, 0), done.stderr


def test_this_process_is_none() -> None:
    assert not is_forked()
