"""Command line of eval.py: rate and distortion of `sic` and of other codecs, from real files.

Every image is coded to a file at every setting, the file is read back and decoded, and the 8-bit
reconstruction is measured against the 8-bit original, both as RGB. Files hold pixels only, neither
colour profiles nor EXIF. ``--out DIR`` receives

    files/NNN_NAME/   the compressed files
    results.json      everything that was measured
    summary.csv       means over images, then codecs at equal rate (`sic_jax.evaluation_report`)

results.json is an object:

    bundle, model_id, coder   of `sic`; null where it was not measured
    device, versions          what the numbers were measured on and with
    errors                    a list of {image, error}: images that failed and have no records
    records                   a list with one object per image, codec and setting:
        image                 path as given
        codec, setting        "sic" and its level, or "jpeg", "webp", "avif" and Pillow's quality
        file                  compressed file, relative to DIR
        height, width         pixels
        num_bytes, bpp        size of the file; 8 num_bytes / (height width)
        bpp_est               bpp by the model's probabilities; null for other codecs
        psnr                  dB over all channels; null for equal images
        ms_ssim, lpips        LPIPS with AlexNet; null for images smaller than the metric allows
        encode_s, decode_s    seconds of one call in memory, compilation excluded
"""

import argparse
import importlib.metadata
import io
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from sic_jax import lpips, metrics
from sic_jax.cli_paths import PICTURES
from sic_jax.codec.codec import Codec
from sic_jax.evaluation_report import (
    SIC,
    Record,
    mean_rows,
    rows_at_equal_rate,
    to_csv,
    to_markdown,
)
from sic_jax.image_io import read_image, write_bytes_atomic

Pixels = NDArray[np.uint8]

PEERS = ("jpeg", "webp", "avif")
_LEVELS = (1, 4, 8, 12, 16)
_QUALITIES = {
    "jpeg": (1, 3, 8, 15, 25, 40, 60),
    "webp": (0, 4, 8, 20, 40, 60),
    "avif": (2, 6, 12, 20, 28, 38, 48, 58),
}
_SAVE_OPTIONS: dict[str, dict[str, int]] = {"jpeg": {}, "webp": {"method": 6}, "avif": {"speed": 4}}


class ImageCodec(NamedTuple):
    """A codec to measure."""

    name: str
    settings: tuple[int, ...]
    """Levels or qualities, lowest rate first."""
    encode: Callable[[Pixels, int], bytes]
    decode: Callable[[bytes], Pixels]
    estimate: Callable[[Pixels], Callable[[int], float]] | None = None
    """Of an image, the estimated bpp of each setting."""


def peer_codec(name: str) -> ImageCodec:
    """JPEG (Pillow's defaults), WebP (method 6) or AVIF (speed 4), over a ladder of qualities.

    Raises:
        ValueError: If this Pillow was built without the codec.
    """
    if name != "jpeg" and not features.check(name):
        raise ValueError(f"this Pillow has no {name}; leave it out of --codecs")

    def encode(image: Pixels, quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, name, quality=quality, **_SAVE_OPTIONS[name])
        return buffer.getvalue()

    def decode(data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return ImageCodec(name, _QUALITIES[name], encode, decode)


def sic_codec(codec: Codec, levels: Sequence[int] | None = None) -> ImageCodec:
    """The codec of this package at some levels; default: five, up to the bundle's highest.

    Raises:
        ValueError: If the bundle does not have one of the levels.
    """
    highest = codec.bundle.cfg.num_levels
    if levels is None:
        levels = [*(level for level in _LEVELS if level < highest), highest]
    for level in levels:
        if not 1 <= level <= highest:
            raise ValueError(f"levels of this bundle are 1 to {highest}, got {level}")

    def estimate(image: Pixels) -> Callable[[int], float]:
        bits = codec.estimate_bits(image)
        return lambda level: bits.bpp_est(level, *image.shape[:2])

    return ImageCodec(
        SIC,
        tuple(sorted(set(levels))),
        lambda image, level: codec.compress(image, level=level),
        lambda data: codec.decompress(data, strict=True),
        estimate,
    )


class Metrics:
    """Distortion of 8-bit pictures; compiles once an image size."""

    def __init__(self) -> None:
        """Load the LPIPS weights."""
        self._weights = jax.device_put(lpips.load_alexnet_weights())

        def extract(x: jax.Array, weights: lpips.Weights) -> lpips.Features:
            return lpips.lpips_features(x, weights=weights)

        def compare(
            x: jax.Array, x_hat: jax.Array, wanted: lpips.Features | None, weights: lpips.Weights
        ) -> dict[str, jax.Array]:
            values = {"psnr": metrics.psnr(x, x_hat)}
            if min(x.shape[1:3]) >= metrics.MS_SSIM_MIN_SIZE:
                values["ms_ssim"] = metrics.ms_ssim(x, x_hat)
            if wanted is not None:
                found = lpips.lpips_features(x_hat, weights=weights)
                values["lpips"] = lpips.lpips_from_features(wanted, found, weights=weights)
            return values

        self._extract = jax.jit(extract)
        self._compare = jax.jit(compare)

    def against(self, image: Pixels) -> Callable[[Pixels], dict[str, float | None]]:
        """Prepare the measurement of reconstructions of an image.

        Args:
            image: Original, uint8 [H, W, 3] or [H, W].

        Returns:
            A function of a reconstruction [H, W, 3] or [H, W] that gives psnr, ms_ssim and lpips.
        """
        x = jax.device_put(_to_batch(image))
        large = min(x.shape[1:3]) >= lpips.MIN_SIZE
        wanted = self._extract(x, self._weights) if large else None

        def measure(image_hat: Pixels) -> dict[str, float | None]:
            values = self._compare(x, _to_batch(image_hat), wanted, self._weights)
            found = {name: float(value[0]) for name, value in values.items()}
            return {
                name: found[name] if math.isfinite(found.get(name, math.nan)) else None
                for name in ("psnr", "ms_ssim", "lpips")
            }

        return measure


class Evaluator:
    """Measures codecs image by image, and keeps what is compiled."""

    def __init__(self, codecs: Sequence[ImageCodec], out: Path) -> None:
        """Prepare; compressed files will go below ``out/files``."""
        self._codecs = codecs
        self._out = out
        self._metrics = Metrics()
        self._warm: set[tuple[int, ...]] = set()

    def measure(self, path: Path, folder: str) -> list[Record]:
        """All records of one image; its compressed files go to ``out/files/folder``.

        Raises:
            OSError, ValueError: If the image cannot be read or coded.
        """
        image = read_image(path).pixels
        height, width = image.shape[:2]
        measure = self._metrics.against(image)
        (self._out / "files" / folder).mkdir(parents=True, exist_ok=True)
        records = []
        for codec in self._codecs:
            if image.shape not in self._warm:
                codec.decode(codec.encode(image, codec.settings[-1]))
            bpp_est = codec.estimate(image) if codec.estimate else None
            for setting in codec.settings:
                start = time.perf_counter()
                data = codec.encode(image, setting)
                encode_s = time.perf_counter() - start
                file = f"files/{folder}/{setting:02d}.{codec.name}"
                (self._out / file).write_bytes(data)
                data = (self._out / file).read_bytes()
                start = time.perf_counter()
                image_hat = codec.decode(data)
                decode_s = time.perf_counter() - start
                records.append(
                    Record(
                        image=str(path),
                        codec=codec.name,
                        setting=setting,
                        file=file,
                        height=height,
                        width=width,
                        num_bytes=len(data),
                        bpp=metrics.bpp(len(data), height, width),
                        bpp_est=bpp_est(setting) if bpp_est else None,
                        **measure(image_hat),
                        encode_s=encode_s,
                        decode_s=decode_s,
                    )
                )
        self._warm.add(image.shape)
        return records


def find_images(paths: Sequence[str]) -> list[Path]:
    """The files, and the pictures that lie directly in the folders; each once.

    Raises:
        ValueError: If a folder holds no picture.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
            inside = [p for p in inside if p.is_file() and not p.name.startswith(".")]
            if not inside:
                raise ValueError(f"{path}: the folder holds no picture")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation and print the table.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        Exit code: 0, or 1 when anything failed; each error is one line on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="eval.py", description="Measure codecs on images, by real files.", allow_abbrev=False
    )
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="PATH", help="files, or folders of images"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--codecs", nargs="+", choices=(SIC, *PEERS), help="default: all that Pillow can write"
    )
    parser.add_argument("--bundle", default="default", metavar="B", help="trained model of sic")
    parser.add_argument("--coder", choices=("tfc", "native"), help="range coder of sic")
    parser.add_argument(
        "--levels", nargs="+", type=int, metavar="N", help="levels of sic (default: 1 4 8 12 16)"
    )
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        _say(f"eval.py: error: {_one_line(error)}")
        return 1


def _run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    paths = find_images(args.images)
    names = args.codecs or [
        SIC,
        *(name for name in PEERS if name == "jpeg" or features.check(name)),
    ]
    codecs = [peer_codec(name) for name in PEERS if name in names]
    sic = None
    if SIC in names:
        sic = Codec.load(args.bundle, coder=args.coder)
        codecs.insert(0, sic_codec(sic, args.levels))
    evaluator = Evaluator(codecs, out)
    records: list[Record] = []
    errors: list[dict[str, str]] = []
    for number, path in enumerate(paths, 1):
        start = time.perf_counter()
        try:
            found = evaluator.measure(path, f"{number:03d}_{path.stem}")
        except Exception as error:  # Whatever is wrong with one image, the others are measured.
            errors.append({"image": str(path), "error": _one_line(error, path)})
            _say(f"eval.py: error: {errors[-1]['error']}")
            continue
        records += found
        _say(f"[{number}/{len(paths)}] {path}: {time.perf_counter() - start:.1f} s")
    report = {
        "bundle": args.bundle if sic else None,
        "model_id": sic.bundle.model_id.hex() if sic else None,
        "coder": sic.coder if sic else None,
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "pillow")},
        "errors": errors,
        "records": [record._asdict() for record in records],
    }
    means = mean_rows(records)
    compared = rows_at_equal_rate(means)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_bytes_atomic(out / "results.json", text.encode())
    write_bytes_atomic(out / "summary.csv", to_csv([*means, *compared]).encode())
    sys.stdout.write(to_markdown(compared or means))
    return 1 if errors else 0


def _to_batch(image: Pixels) -> NDArray[np.float32]:
    """One 8-bit picture as an RGB batch in [0, 1].

    In NumPy, since XLA may scale the two pictures of a comparison with different roundings.
    """
    rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    return rgb[None].astype(np.float32) / np.float32(255)


def _one_line(error: Exception, path: Path | str = "") -> str:
    """What went wrong, beginning with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        text, path = error.strerror, error.filename or path
    elif isinstance(error, (ValueError, TypeError, OSError)):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    prefix = f"{path}: " if path and not text.startswith(str(path)) else ""
    return prefix + " ".join(text.split())


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
