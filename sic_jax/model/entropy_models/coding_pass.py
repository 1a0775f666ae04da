"""What a coding pass is: latents to and from integers, asked for request by request."""

from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = jax.Array | NDArray[np.float32]

TEMPERATURE_BITS: Final = 8
"""Coding passes count temperatures in 2^-8."""
TEMPERATURE_MAX: Final = 16


def temperature_units(temperature: float) -> int:
    """A temperature in 1/256, rounded.

    Raises:
        ValueError: If it is not in [0, `TEMPERATURE_MAX`].
    """
    if not 0 <= temperature <= TEMPERATURE_MAX:
        raise ValueError(f"temperature must be 0 to {TEMPERATURE_MAX}, got {temperature}")
    return int(np.floor(temperature * 2**TEMPERATURE_BITS + 0.5))


class Request(NamedTuple):
    """What a coding pass asks for: the next n symbols of a level, in coding order."""

    level: int
    indices: Ints
    """Coding table of each symbol, [n]."""
    means: Ints
    """Integer part of each mean, [n]: the coded value is symbol - mean."""
    where: tuple[NDArray[Any] | slice, ...]
    """Index of the symbols in y [h, w, C]: positions and channels."""
    last: bool
    """Whether the level ends with them."""


class CodingPass(Protocol):
    """The pass that encoder and decoder share; made once a model, used for all pictures."""

    def hyper(self, z_hat: Ints, shape: tuple[int, int]) -> Floats:
        """h_s: what `EntropyNetworks.hyper_features` gives, [1, h, w, F], from a file's integers.

        Args:
            z_hat: int32 [ceil(h/s), ceil(w/s), C_z], the hyper latents less their medians.
            shape: (h, w), that of the latents.
        """

    def run(
        self, hyper: Floats, level: int, known: int = 0, y_s: Ints | None = None
    ) -> Generator[Request, Ints, Ints]:
        """Code the levels `known` + 1 to `level`.

        Yields requests and expects the symbols of each, int32 [n], by `send`.

        Args:
            hyper: Of `hyper`.
            level: The last level to code.
            known: Levels that are coded already, fewer than `level`.
            y_s: What the pass of those returned; None where `known` is 0. It stays as it is.

        Returns:
            y_s: int32 [h, w, C], zeros above `level`.
        """

    def noise(self, seed: int, shape: tuple[int, ...]) -> Ints:
        """Noise of the details, int32, of a seed and a shape [h, w, C]."""

    def complete(
        self, y_s: Ints, hyper: Floats, level: int, noise: Ints, temperature: int
    ) -> Floats:
        """Latents for g_s, float32 [1, h, w, C]: y_s and, above `level`, details.

        `noise` is that of a seed, `temperature` in 1/256.
        """


def code_levels(
    coding: Generator[Request, Ints, Ints],
    code: Callable[[Request], Ints],
    finish: Callable[[int, bytes], None] = lambda level, symbols: None,
) -> tuple[Ints, dict[int, bytes]]:
    """Run a coding pass.

    Args:
        coding: Of `CodingPass.run`.
        code: Codes the symbols of a request and returns them.
        finish: Is called with the bytes of its symbols when a level ends.

    Returns:
        (y_s int32 [h, w, C], bytes of the symbols of each level).
    """
    parts: dict[int, list[bytes]] = {}
    done: dict[int, bytes] = {}
    request = next(coding)
    while True:
        values = code(request)
        parts.setdefault(request.level, []).append(values.astype("<i4").tobytes())
        if request.last:
            done[request.level] = b"".join(parts.pop(request.level))
            finish(request.level, done[request.level])
        try:
            request = coding.send(values)
        except StopIteration as end:
            return end.value, done
