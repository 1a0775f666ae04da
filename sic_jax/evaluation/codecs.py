"""What eval.py needs of a codec, and the codec of this package."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.codec import Codec
from sic_jax.codec.container import MAX_SEED, truncate

Pixels = NDArray[np.uint8]

SIC = "sic"
"""Name of this package's codec, at whose rates the others are compared."""

_LEVELS = (1, 4, 8, 12, 16)


class ImageCodec(NamedTuple):
    """A codec to measure."""

    name: str
    """Also the suffix of its files."""
    settings: tuple[float, ...]
    """Levels or qualities, lowest rate first."""
    options: str
    """All that fixes its files and pictures beside the setting."""
    encode: Callable[[Pixels, float], bytes]
    decode: Callable[[bytes, int], Pixels]
    """Of a file and the number of a sample, from 0."""
    samples: int = 1
    """Different decodings of one file to measure."""
    estimate: Callable[[Pixels], Callable[[float], float]] | None = None
    """Of an image, the estimated bpp of each setting."""
    setting_name: str = "quality"
    compiles: bool = False
    """The first call for an image size takes longer, and is not timed."""
    times_encoding: bool = True
    """Whether every setting is encoded by itself; else encoding has no times."""
    coder: str | None = None
    """What its times depend on, but not its files: the range coder of `sic`."""


def setting_text(setting: float) -> str:
    """A level or quality as text, for file names too: other numbers have other texts."""
    return repr(float(setting)).removesuffix(".0")


def sic_codec(
    codec: Codec,
    levels: Sequence[int] | None = None,
    *,
    samples: int = 1,
    seed: int | None = None,
    temperature: float | None = None,
    grain: bool = True,
    optimise_steps: int = 0,
) -> ImageCodec:
    """The codec of this package at some levels.

    Args:
        codec: A loaded bundle.
        levels: Default: five, up to the bundle's highest.
        samples: Members of the synset to decode, with seeds seed, seed + 1, ...
        seed: First seed of the details; default: the file's, which is 0.
        temperature: Spread of the details; default: the bundle's.
        grain: Whether the files' grain is drawn.
        optimise_steps: Steps of latent optimisation (`sic_jax.codec.latent_optimisation`). One
            optimisation an image, over the levels up to the highest of `levels`: all its files are
            cut from one.

    Raises:
        ValueError: If the bundle does not have one of the levels, or a number is out of range.
    """
    highest = codec.bundle.cfg.num_levels
    first = 0 if seed is None else seed
    spread = codec.bundle.cfg.temperature if temperature is None else temperature
    if levels is None:
        levels = [*(level for level in _LEVELS if level < highest), highest]
    for level in levels:
        if not 1 <= level <= highest:
            raise ValueError(f"levels of this bundle are 1 to {highest}, got {level}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not 0 <= first <= MAX_SEED - samples + 1:
        raise ValueError(
            f"seed must be 0 to {MAX_SEED - samples + 1} for {samples} samples, got {first}"
        )
    if not 0 <= spread < float("inf"):
        raise ValueError(f"temperature must be finite and at least 0, got {spread}")

    if optimise_steps < 0:
        raise ValueError(f"optimise_steps must be at least 0, got {optimise_steps}")
    top = max(levels)
    latest: dict[bytes, bytes] = {}

    def encode(image: Pixels, level: float) -> bytes:
        if not optimise_steps:
            return codec.compress(image, level=int(level))
        key = repr(image.shape).encode() + image.tobytes()
        if key not in latest:
            latest.clear()
            latest[key] = codec.compress(image, level=top, optimise_steps=optimise_steps)
        return truncate(latest[key], int(level))

    def decode(data: bytes, sample: int) -> Pixels:
        return codec.decompress(
            data, strict=True, seed=first + sample, temperature=spread, grain=grain
        )

    def estimate(image: Pixels) -> Callable[[float], float]:
        bits = codec.estimate_bits(image)
        return lambda level: bits.bpp_est(int(level), *image.shape[:2])

    return ImageCodec(
        name=SIC,
        settings=tuple(sorted(set(levels))),
        options=f"model {codec.bundle.model_id.hex()}, temperature {spread:g}, seed {first}, "
        f"samples {samples}"
        + (", grain" if grain else "")
        + (f", optimised {optimise_steps} steps to level {top}" if optimise_steps else ""),
        encode=encode,
        decode=decode,
        samples=samples,
        # Estimates are of latents without optimisation.
        estimate=None if optimise_steps else estimate,
        setting_name="level",
        compiles=True,
        times_encoding=not optimise_steps,
        coder=codec.coder,
    )
