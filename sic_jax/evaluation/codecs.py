"""What eval.py needs of a codec, and the codec of this package."""

import dataclasses
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.codec import Codec
from sic_jax.codec.container import MAX_SEED, truncate
from sic_jax.codec.options import DecodeOptions, EncodeOptions
from sic_jax.codec.pixels import exact_segment
from sic_jax.evaluation.records import digest

Pixels = NDArray[np.uint8]

SIC = "sic"
"""Name of this package's codec, at whose rates the others are compared.

Where a run has several of its curves, they have names of their own, and it is their `kind`.
"""

_LEVELS = (1, 4, 8, 12, 16)


class ImageCodec(NamedTuple):
    """A codec to measure."""

    name: str
    """Of its curve."""
    settings: tuple[float, ...]
    """Levels or qualities, lowest rate first."""
    options: str
    """All that fixes its files and pictures beside the setting."""
    encode: Callable[[Pixels, float], bytes]
    """Of an image [H, W, 3] or [H, W] and a setting."""
    decode: Callable[[bytes, int], Pixels]
    """Of a file and the number of a sample, from 0: an image of the original's shape."""
    samples: int = 1
    """Different decodings of one file to measure."""
    estimate: Callable[[Pixels], Callable[[float], float] | None] | None = None
    """Of an image [H, W, 3] or [H, W], the estimated bpp of each setting; None of one without an
    estimate."""
    setting_name: str = "quality"
    compiles: bool = False
    """The first call for an image size takes longer, and is not timed."""
    times_encoding: bool = True
    """False where encoding takes so long that none is made but for its file."""
    cut: Callable[[bytes, float], bytes] | None = None
    """Of the file of the highest setting, makes that of another: an image is encoded once."""
    coder: str | None = None
    """What its times depend on, but not its files: the range coder of `sic`."""
    kind: str = ""
    """What its records and the suffix of its files say; empty if that is `name`."""

    def file_name(self, setting: float) -> str:
        """Of its file at a setting, unlike that of any other codec of the run."""
        # Two curves of one kind differ in their options, also if another run names them otherwise.
        tag = f"-{digest(self.options.encode())}" if self.kind else ""
        return f"{setting_text(setting)}{tag}.{self.kind or self.name}"


def setting_text(setting: float) -> str:
    """A level or quality as text, for file names too: other numbers have other texts."""
    return repr(float(setting)).removesuffix(".0")


def sic_codec(
    codec: Codec,
    levels: Sequence[int] | None = None,
    encoding: EncodeOptions = EncodeOptions(),
    decoding: DecodeOptions = DecodeOptions(),
    *,
    samples: int = 1,
    name: str = "",
) -> ImageCodec:
    """The codec of this package at some levels.

    Args:
        codec: A loaded bundle.
        levels: Default: five, up to the bundle's highest.
        encoding: How files are made, but for the level. An image is encoded once, at the highest of
            `levels`, and all its files are cut from that one. They are those that encoding at each
            level makes; but latents are optimised over all levels up to the highest.
        decoding: How they are decoded; always `strict`. Its seed is the first of `samples`.
        samples: Members of the synset to decode, with seeds seed, seed + 1, ...
        name: Of its curve, where a run has several of this codec; default: `SIC`.

    Raises:
        ValueError: If the bundle does not have one of the levels, or a number is out of range.
    """
    highest = codec.bundle.cfg.num_levels
    first = encoding.seed if decoding.seed is None else decoding.seed
    spread = codec.bundle.cfg.temperature if decoding.temperature is None else decoding.temperature
    if levels is None:
        levels = [*(level for level in _LEVELS if level < highest), highest]
    for level in levels:
        if not 1 <= level <= highest:
            raise ValueError(f"levels of this bundle are 1 to {highest}, got {level}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if first > MAX_SEED - samples + 1:
        raise ValueError(
            f"seed must be 0 to {MAX_SEED - samples + 1} for {samples} samples, got {first}"
        )
    decoding = dataclasses.replace(decoding, strict=True, seed=first, temperature=spread)
    steps = encoding.optimise_steps

    def encode(image: Pixels, level: float) -> bytes:
        return codec.compress(image, encoding, level=int(level))

    def cut(data: bytes, level: float) -> bytes:
        return truncate(data, int(level))

    def decode(data: bytes, sample: int) -> Pixels:
        return codec.decompress(data, decoding, seed=first + sample)

    def estimate(image: Pixels) -> Callable[[float], float] | None:
        if exact_segment(image) is not None:
            return None  # Its files hold no latents.
        bits = codec.estimate_bits(image)
        return lambda level: bits.bpp_est(int(level), *image.shape[:2])

    return ImageCodec(
        name=name or SIC,
        settings=tuple(sorted(set(levels))),
        options=f"model {codec.bundle.model_id.hex()}, temperature {spread:g}, seed {first}, "
        f"samples {samples}"
        + (", grain" if decoding.grain else "")
        + (f", optimised {steps} steps to level {max(levels)}" if steps else "")
        + _others(encoding, {"level", "optimise_steps"})
        + _others(decoding, {"seed", "temperature", "grain", "strict", "max_pixels"}),
        encode=encode,
        decode=decode,
        samples=samples,
        # Estimates are of latents without optimisation.
        estimate=None if steps else estimate,
        setting_name="level",
        compiles=True,
        times_encoding=not steps,
        cut=cut,
        coder=codec.coder,
        kind=SIC if name else "",
    )


def names_of_sic(codecs: Sequence[ImageCodec]) -> list[str]:
    """The names of this package's curves; the others are compared at the rates of the first."""
    return [codec.name for codec in codecs if SIC in (codec.name, codec.kind)]


def _others(options: EncodeOptions | DecodeOptions, named: Set[str]) -> str:
    """Fields that are not named already and differ from their default."""
    kind = type(options).__name__
    values = {f.name: (getattr(options, f.name), f.default) for f in dataclasses.fields(options)}
    changed = {k: v for k, (v, default) in values.items() if k not in named and v != default}
    return "".join(f", {kind}.{name} {value}" for name, value in changed.items())
