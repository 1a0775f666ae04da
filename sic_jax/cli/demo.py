"""A photograph through the codec: ``python -m sic_jax.cli.demo``.

Every file is written by one process of the command `sic` and read by another, so that nothing but
the file gets from the encoder to the decoder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sic_jax import metrics
from sic_jax.images.io import read_image

SAMPLE = Path(__file__).resolve().parents[1] / "demo_data" / "sample.webp"
"""The photograph that ships with the package; its source is in README.md beside it."""

_CAPTION_HEIGHT, _GAP = 26, 6


class Panel(NamedTuple):
    """One picture of the comparison."""

    picture: Image.Image
    """RGB."""
    caption: str


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        Exit code: 0; 1 when something failed, with one line on stderr; 130 when interrupted.
    """
    args = make_parser().parse_args(argv)
    try:
        _run(args)
    except (OSError, ValueError, RuntimeError) as error:
        sys.stderr.write(f"demo: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m sic_jax.cli.demo", description="Compress a photograph and get it back."
    )
    parser.add_argument("image", nargs="?", default=str(SAMPLE), help="default: a sample")
    parser.add_argument("--bundle", default="default", help="trained model")
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--out", default="demo", help="folder for the files (default: demo)")
    return parser


def side_by_side(panels: Sequence[Panel]) -> Image.Image:
    """The pictures two in a row, each with a strip that holds its caption.

    Args:
        panels: At least one; pictures of one size.

    Returns:
        RGB.
    """
    width, height = panels[0].picture.size
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    cell = (width + _GAP, height + _CAPTION_HEIGHT + _GAP)
    sheet = Image.new("RGB", (columns * cell[0] - _GAP, rows * cell[1] - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for number, panel in enumerate(panels):
        left, top = (number % columns) * cell[0], (number // columns) * cell[1]
        draw.text((left + 4, top + 4), panel.caption, fill="black", font=font)
        sheet.paste(panel.picture, (left, top + _CAPTION_HEIGHT))
    return sheet


def _run(args: argparse.Namespace) -> None:
    original = _read_rgb(args.image)
    width, height = original.size
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    _say(f"{args.image}: {width} x {height} pixels, {3 * width * height} bytes uncompressed")
    _say("level     bytes     bpp   PSNR (dB)   compress (s)   decompress (s)")
    panels = [Panel(original, "original, 24 bpp")]
    for level in args.levels:
        file, png = out / f"level_{level:02d}.sic", out / f"level_{level:02d}.png"
        bundle = ["--bundle", args.bundle]
        compress_s = _sic(["compress", args.image, str(file), "--level", str(level), *bundle])
        decompress_s = _sic(["decompress", str(file), str(png), *bundle])
        decoded = _read_rgb(png)
        size = file.stat().st_size
        bpp = metrics.bpp(size, height, width)
        psnr = float(metrics.psnr(_to_float(original), _to_float(decoded))[0])
        _say(f"{level:5} {size:9} {bpp:7.3f} {psnr:11.2f} {compress_s:14.1f} {decompress_s:16.1f}")
        panels.append(Panel(decoded, f"level {level}: {size} bytes, {bpp:.3f} bpp, {psnr:.2f} dB"))
    target = out / "side_by_side.png"
    side_by_side(panels).save(target)
    _say("Times are those of whole processes: start of Python, loading and compiling included.")
    _say(f"The pictures side by side: {target}")


def _sic(arguments: Sequence[str]) -> float:
    """Runs the command `sic` in a process of its own; returns the seconds that it took.

    Raises:
        RuntimeError: The command failed; its own message.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "sic_jax.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"sic ended with exit code {done.returncode}")
    return time.perf_counter() - start


def _read_rgb(path: str | Path) -> Image.Image:
    return Image.fromarray(read_image(path, background="white").pixels).convert("RGB")


def _to_float(picture: Image.Image) -> NDArray[np.float32]:
    """float32 [1, H, W, 3] in [0, 1]."""
    return np.asarray(picture, np.float32)[None] / np.float32(255)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
