"""Codecs to compare with: those that Pillow writes, and any command."""

import importlib
import importlib.metadata
import io
import math
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from sic_jax.evaluation.codecs import ImageCodec, Pixels, setting_text
from sic_jax.images.io import encode_image, read_image

BASELINES = ("jpeg", "webp", "avif", "jpeg2000", "jxl")
"""Names of the codecs that Pillow can write; JPEG XL by the package pillow-jxl-plugin."""

_QUALITIES: dict[str, tuple[float, ...]] = {
    "jpeg": (1, 3, 8, 15, 25, 40, 60),
    "webp": (0, 4, 8, 20, 40, 60),
    "avif": (2, 6, 12, 20, 28, 38, 48, 58),
    "jpeg2000": (480, 240, 120, 80, 60, 45, 30),
    "jxl": (1, 5, 15, 30, 45, 60),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "jpeg": {},
    "webp": {"method": 6},
    "avif": {"speed": 4},
    "jpeg2000": {"irreversible": True, "quality_mode": "rates"},
    "jxl": {},
}
_FEATURES = {"webp": "webp", "avif": "avif", "jpeg2000": "jpg_2000", "jpeg": "jpg"}
_JXL_PLUGIN = "pillow-jxl-plugin"
_TIME_LIMIT_S = 3600


def missing_baseline(name: str) -> str | None:
    """What a codec of `BASELINES` lacks here; None if it works."""
    if name == "jxl":
        try:
            importlib.import_module("pillow_jxl")  # Adds JPEG XL to Pillow's formats.
        except ImportError:
            return f"JPEG XL needs the package {_JXL_PLUGIN}, which is not installed"
        return None
    return None if features.check(_FEATURES[name]) else f"this Pillow was built without {name}"


def pillow_codec(name: str, qualities: Sequence[float] | None = None) -> ImageCodec:
    """A codec of `BASELINES` with Pillow's defaults, WebP at method 6 and AVIF at speed 4.

    The setting is Pillow's quality, an integer of 0 to 100; for JPEG 2000 (9/7 wavelet) it is the
    ratio of 8-bit samples to bytes of the file, so that lower is better.

    Args:
        name: One of `BASELINES`.
        qualities: Default: six to eight that span low rates.

    Raises:
        ValueError: If the codec is not there or cannot have one of the qualities.
    """
    if reason := missing_baseline(name):
        raise ValueError(f"{reason}; leave {name} out of --codecs")
    for quality in qualities or ():
        if name == "jpeg2000" and not quality > 0:
            raise ValueError(f"{name}: ratios are positive, got {setting_text(quality)}")
        if name != "jpeg2000" and quality not in range(101):
            raise ValueError(
                f"{name}: qualities are integers of 0 to 100, got {setting_text(quality)}"
            )

    def encode(image: Pixels, quality: float) -> bytes:
        options = dict(_OPTIONS[name])
        if name == "jpeg2000":
            options["quality_layers"] = [quality]
            # As many halvings as the smaller side allows; 6 are Pillow's default.
            options["num_resolutions"] = min(6, int(math.log2(min(image.shape[:2]))) + 1)
        else:
            options["quality"] = int(quality)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, name.upper(), **options)
        return buffer.getvalue()

    def decode(data: bytes, _: int) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    settings = sorted(set(_QUALITIES[name] if qualities is None else qualities))
    return ImageCodec(
        name=name,
        settings=tuple(reversed(settings) if name == "jpeg2000" else settings),
        options=_describe(name),
        encode=encode,
        decode=decode,
        setting_name="ratio" if name == "jpeg2000" else "quality",
    )


def external_codec(name: str, template: str, qualities: Sequence[float]) -> ImageCodec:
    """A codec that is a pair of commands.

    Each command is split into words as a shell would, and then ``{input}``, ``{output}`` and
    ``{quality}`` are replaced; no shell runs. The encoder reads a PNG file and writes a file whose
    suffix is the codec's name; the decoder reads that and writes a PNG file. Times include starting
    the programs and PNG files.

    Args:
        name: Letters, digits, "-" and "_".
        template: Encoder and decoder, separated by ";;".
        qualities: What replaces ``{quality}``, lowest rate first.

    Raises:
        ValueError: If the template is not of this form, or the commands do not code a small image.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"an external codec's name has letters, digits, - and _, got {name!r}")
    if not qualities:
        raise ValueError(f"{name}: an external codec needs qualities: --qualities {name}=20,30,40")
    parts = template.split(";;")
    if len(parts) != 2:
        raise ValueError(f"{name}: need 'ENCODER ;; DECODER', got {template!r}")
    encoder, decoder = (shlex.split(part) for part in parts)
    for words, needed in (
        (encoder, ("{input}", "{output}", "{quality}")),
        (decoder, ("{input}", "{output}")),
    ):
        for field in needed:
            if not any(field in word for word in words):
                raise ValueError(f"{name}: the command {shlex.join(words)!r} has no {field}")

    def encode(image: Pixels, quality: float) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "image.png", Path(folder) / f"image.{name}"
            source.write_bytes(encode_image(image))
            _run(encoder, input=str(source), output=str(target), quality=setting_text(quality))
            return target.read_bytes()

    def decode(data: bytes, _: int) -> Pixels:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / f"image.{name}", Path(folder) / "image.png"
            source.write_bytes(data)
            _run(decoder, input=str(source), output=str(target))
            return read_image(target, alpha=False).pixels

    sample = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (1, 64, 3))
    try:
        shape = decode(encode(sample, qualities[0]), 0).shape
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ValueError(f"{name}: the commands do not code a 64x64 image: {error}") from error
    if shape[:2] != sample.shape[:2]:
        raise ValueError(f"{name}: a 64x64 image was decoded to {shape[0]}x{shape[1]}")
    return ImageCodec(
        name=name,
        settings=tuple(dict.fromkeys(qualities)),
        options=f"{shlex.join(encoder)} ;; {shlex.join(decoder)}",
        encode=encode,
        decode=decode,
    )


def _run(words: list[str], **fields: str) -> None:
    """Runs a command.

    Raises:
        ValueError: If it fails; the message has its last line.
        OSError: If it cannot be started.
    """
    for field, value in fields.items():
        words = [word.replace("{" + field + "}", value) for word in words]
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT_S, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = f": {said[-1]}" if said else ""
        raise ValueError(f"{words[0]} ended with code {done.returncode}{reason}")


def _describe(name: str) -> str:
    """Options and version of the encoder."""
    given = [f"{option} {value}" for option, value in _OPTIONS[name].items()]
    if name == "jxl":
        return ", ".join([*given, f"{_JXL_PLUGIN} {importlib.metadata.version(_JXL_PLUGIN)}"])
    feature = "libjpeg_turbo" if features.check("libjpeg_turbo") else "jpg"
    version = features.version(feature if name == "jpeg" else _FEATURES[name])
    return ", ".join([*given, f"encoder {version}"])
