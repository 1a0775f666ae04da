"""What a run measures between two records: the terms of its steps, and its speed."""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sic_jax.training.losses import mean_terms
from sic_jax.training.step import NEVER, Metrics, add_metrics

# Dense bfloat16 peak of one device in FLOP/s, from the makers' data sheets.
_PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


class Pending:
    """Metrics of the steps since the last record, added up on the device."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        """Begin with what a checkpoint left, or with nothing."""
        self._metrics = metrics

    def add(self, metrics: Metrics) -> None:
        """Add those of a step, without waiting for it."""
        mine = self._metrics
        self._metrics = metrics if mine is None else _add(mine, metrics)

    def check(self, *, stop: bool) -> dict[str, float]:
        """The terms' means.

        Raises:
            FloatingPointError: If `stop` and a step was not finite: which, and which terms.
        """
        assert self._metrics is not None
        values = {k: float(v) for k, v in mean_terms(self._metrics.terms).items()}
        first_bad = int(self._metrics.first_bad)
        if stop and first_bad != NEVER:
            bad = [k for k, v in values.items() if not np.isfinite(v)]
            raise FloatingPointError(f"{', '.join(bad)} not finite at step {first_bad}")
        return values

    def flush(self, *, stop: bool) -> dict[str, float]:
        """As `check`, and begin again."""
        values = self.check(stop=stop)
        self._metrics = None
        return values

    def to_json(self) -> Any:
        """For a checkpoint: the same sums after a restart, bit for bit."""
        if self._metrics is None:
            return None
        terms = {k: [float(a), float(b)] for k, (a, b) in self._metrics.terms.items()}
        return {"terms": terms, "first_bad": int(self._metrics.first_bad)}

    @classmethod
    def from_json(cls, data: Any) -> "Pending":
        """The inverse of `to_json`."""
        if data is None:
            return cls()
        terms = {k: (jnp.float32(a), jnp.float32(b)) for k, (a, b) in data["terms"].items()}
        return cls(Metrics(terms, jnp.int32(data["first_bad"])))


@jax.jit
def _add(a: Metrics, b: Metrics) -> Metrics:
    return add_metrics(a, b)


class Clock:
    """Speed of the steps alone: compiling, evaluating and saving do not count."""

    def __init__(self, batch_size: int, devices: list[jax.Device]) -> None:
        """Nothing is measured before the first `start`."""
        self._batch_size = batch_size
        self._devices = devices
        self._steps = 0
        self._began = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._steps, self._began = 0, time.perf_counter()

    def lap(self, flops: float | None) -> dict[str, float]:
        """Speed since the start or the lap before; the last step must be complete.

        Args:
            flops: Of a step, if known.
        """
        values = {"memory_gb": memory_gb()}
        elapsed = time.perf_counter() - self._began
        if self._steps:
            values["images_per_s"] = self._steps * self._batch_size / elapsed
            share = flops and _peak_share(self._steps * flops / elapsed, self._devices)
            if share:
                values["peak_share"] = share
        self.start()
        return values

    def tick(self, steps: int) -> None:
        """Count some steps."""
        self._steps += steps


def _peak_share(flops_per_second: float, devices: list[jax.Device]) -> float | None:
    """Share of the devices' bfloat16 peak, or None where that is not known."""
    for name, peak in _PEAK_FLOPS.items():
        if devices[0].device_kind.startswith(name):
            return flops_per_second / (peak * len(devices))
    return None


def memory_gb() -> float:
    """Most memory used so far, in 10^9 bytes: of the first device, or of this process on CPUs."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"]) / 1e9
    import resource  # Not on Windows.

    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
