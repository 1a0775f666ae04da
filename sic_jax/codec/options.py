"""Options of encoding and decoding, for programs and command lines alike.

The commands make their flags of these fields (`sic_jax.cli.option_flags`): the first paragraph of a
field's docstring is the flag's help. Nothing heavy is imported, so that a command starts at once.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sic_jax.codec.container import DEFAULT_MAX_PIXELS, GRAIN_UNITS, MAX_GRAIN, MAX_SEED
from sic_jax.fields import require

MAX_TEMPERATURE = 16
"""`TEMPERATURE_MAX` of the detail sampler, whose module imports too much for a command line."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How a picture becomes a file.

    Raises:
        ValueError: If a field is out of its range; the message says which values are allowed.
    """

    level: int | None = None
    """Quality: 1 (smallest file) to the bundle's highest level (default: the highest).

    Files of lower levels are prefixes of those of higher ones, but for those with optimised
    latents.
    """

    max_bytes: int | None = None
    """Largest file in bytes: it holds as many levels as fit (default: no limit).

    Metadata and alpha count. An error if level 1 does not fit.
    """

    max_bpp: float | None = None
    """The same in bits per pixel (default: no limit)."""

    min_psnr: float | None = None
    """Quality as a PSNR in dB: the lowest level that has it without grain (default: no limit).

    Of what decoders draw with the file's seed and the bundle's temperature, where alpha does not
    hide it; simple graphics, which are stored exactly, have it. `level`, `max_bytes` and `max_bpp`
    say which levels there are to choose from. If none of them has it, it is the highest, with a
    warning. The picture is decoded at some levels to find it: 4 or 5 of 16. It is the lowest where
    the PSNR grows with the level, as it nearly always does; in any case the level below has less.
    """

    optimise_steps: int = field(default=0, metadata={"flag": "optimise"})
    """Steps of latent optimisation: slow, 30 are plenty.

    At least 0. They all look at the levels up to `level`; each takes several times as long as a
    compression without (`sic_jax.codec.latent_optimisation`).
    """

    seed: int = 0
    """Seed of the details and the grain that decoders draw unless told otherwise, 0 to 2^32 - 1."""

    grain: float | None = None
    """Grain to store: a standard deviation in steps of 8-bit samples, 0 (none) to 15.9375 (default:
    measured).

    It is rounded to 1/16. How it is measured: `sic_jax.codec.grain.measure_grain`.
    """

    def __post_init__(self) -> None:
        """Check what needs no bundle."""
        if self.optimise_steps < 0:
            raise ValueError(f"optimise_steps must be at least 0, got {self.optimise_steps}")
        for name in ("max_bytes", "max_bpp", "min_psnr"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be more than 0, got {limit}")
        _check_seed(self.seed)
        most = MAX_GRAIN / GRAIN_UNITS
        if self.grain is not None and not 0 <= self.grain <= most:
            raise ValueError(f"grain must be 0 to {most}, got {self.grain}")


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How a file becomes a picture.

    Raises:
        ValueError: If a field is out of its range; the message says which values are allowed.
    """

    level: int | None = None
    """Use only the levels up to this one (default: all that the file holds)."""

    seed: int | None = None
    """Seed of the drawn details and grain, 0 to 2^32 - 1 (default: the file's)."""

    temperature: float | None = None
    """Spread of the drawn details, 0 (their mean) to 16 (default: the bundle's)."""

    grain: bool = field(default=True, metadata={"flag_help": "leave out the file's grain"})
    """Whether the file's grain is drawn (default: yes)."""

    strict: bool = field(
        default=False, metadata={"flag_help": "an incomplete file is an error, not a lower level"}
    )
    """Whether an incomplete file is an error (default: no, its whole levels are decoded).

    The same holds of damaged metadata. What is left out is a warning.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest picture to decode, height times width; larger ones are an error.

    They are refused before anything is allocated.
    """

    def __post_init__(self) -> None:
        """Check what needs no bundle."""
        if self.seed is not None:
            _check_seed(self.seed)
        temperature = self.temperature
        if temperature is not None and not 0 <= temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature must be 0 to {MAX_TEMPERATURE}, got {temperature}")


Options = TypeVar("Options", EncodeOptions, DecodeOptions)


def with_changes(options: Options, changes: Mapping[str, Any]) -> Options:
    """The options with some fields changed.

    Raises:
        TypeError: If a name is not that of a field.
        ValueError: If a value is out of range.
    """
    names = [f.name for f in dataclasses.fields(options)]
    if unknown := sorted(set(changes) - set(names)):
        kind = type(options).__name__
        raise TypeError(f"{kind} has no field {unknown[0]!r}; its fields are {', '.join(names)}")
    return dataclasses.replace(options, **changes)


def check_level(level: Any, highest: int) -> int:
    """A level as an int.

    Raises:
        TypeError: If it is none.
        ValueError: If it is not in 1 to `highest`.
    """
    try:
        level = operator.index(level)
    except TypeError:
        raise TypeError(f"level must be an integer, got {level!r}") from None
    if not 1 <= level <= highest:
        raise ValueError(f"level must be 1 to {highest}, got {level}")
    return int(level)


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be 0 to {MAX_SEED}, got {seed}")


@dataclass(frozen=True, kw_only=True)
class LatentLossConfig:
    """Loss of latent optimisation (`sic_jax.codec.latent_optimisation`).

    At level l, with images in [0, 1], it is

        bpp + lmbda_dist(l) MSE + lmbda_perc(l) (LPIPS + dists_weight DISTS)

    A pair holds the weights of the first and the last level; they are geometric in between.
    """

    lmbda_dist: tuple[float, float] = (40.0, 1200.0)
    """Weight of the mean squared error at the first and the last level."""
    lmbda_perc: tuple[float, float] = (0.45, 2.8)
    """Weight of LPIPS at the first and the last level."""
    dists_weight: float = 1.0
    """Weight of DISTS relative to LPIPS."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("lmbda_dist", "lmbda_perc"):
            pair = getattr(self, name)
            ok = all(0 < v < math.inf for v in pair)
            require(ok, self, name, pair, "positive and finite")
        weight = self.dists_weight
        require(0 <= weight < math.inf, self, "dists_weight", weight, "at least 0 and finite")
