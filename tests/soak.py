"""Many pictures of many sizes through one process: nothing grows, and every file decodes.

python tests/soak.py --count 1000 --seed 0

Cuts of the demo photograph, of 1 to `--side` pixels a side, in colour or gray, a third of them with
alpha, at any level: each is compressed, decompressed whole and from a prefix. Alpha must be equal,
colours near, truncation exact; memory and memory maps must not grow once the programs are there.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import peak_memory
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli.demo import SAMPLE
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import read_header, truncate

MAX_GROWTH = 200
"""MiB by which the process may grow after the first fifth of the pictures."""
MAX_MAPS = 4000
"""Memory maps of the process; Linux allows 65530."""
MAX_MEAN_ERROR = 24.0
"""Of 255, at level 1; coarse textures lose that much, a wrong picture more."""


def pictures(side: int, seed: int, num_levels: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Cuts of the demo photograph and levels, without end."""
    rng = np.random.default_rng(seed)
    with Image.open(SAMPLE) as image:
        photo = np.asarray(image.convert("RGB"))
    while True:
        h, w = (min(int(side ** rng.uniform(0, 1)), n) for n in photo.shape[:2])
        top, left = (rng.integers(0, n - m + 1) for n, m in zip(photo.shape, (h, w), strict=False))
        cut = photo[top : top + h, left : left + w]
        if rng.random() < 0.3:
            cut = cut[..., 1:2]
        if rng.random() < 1 / 3:
            distance = np.hypot(*np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j])
            alpha = np.clip(255 * (2 - 2 * distance), 0, 255).astype(np.uint8)
            cut = np.dstack((cut, alpha))
        yield cut[..., 0] if cut.shape[2] == 1 else cut, int(rng.integers(num_levels)) + 1


def check(codec: Codec, picture: NDArray[np.uint8], level: int) -> float:
    """Codes a picture both ways; the mean error of its visible colours.

    Raises:
        AssertionError: If something is not as it must be.
    """
    data = codec.compress(picture, level=level, seed=level)
    header = read_header(data)
    assert (header.height, header.width) == picture.shape[:2]
    decoded = codec.decompress(data)
    assert decoded.shape == picture.shape
    lower = max(level // 2, 1)
    cut = truncate(data, lower)
    np.testing.assert_array_equal(codec.decompress(data, level=lower), codec.decompress(cut))
    assert cut == codec.compress(picture, level=lower, seed=level)
    visible = np.full(picture.shape[:2], True)
    colours, found = picture, decoded
    if picture.ndim == 3 and picture.shape[2] in (2, 4):
        np.testing.assert_array_equal(decoded[..., -1], picture[..., -1])
        visible = picture[..., -1] > 0
        colours, found = picture[..., :-1], decoded[..., :-1]
    if not visible.any():
        return 0.0
    return float(np.abs(colours[visible].astype(int) - found[visible]).mean())


def run(codec: Codec, count: int, side: int, seed: int, *, progress: int = 0) -> dict[str, Any]:
    """Codes pictures; what was seen.

    Raises:
        AssertionError: As `check`, or for growth.
    """
    began, worst, base = time.monotonic(), 0.0, 0
    cuts = itertools.islice(pictures(side, seed, codec.bundle.cfg.num_levels), count)
    for number, (picture, level) in enumerate(cuts):
        error = check(codec, picture, level)
        assert error < MAX_MEAN_ERROR, f"picture {number}, level {level}: mean error {error:.1f}"
        worst = max(worst, error)
        if number == count // 5:
            base = peak_memory()
        grown = peak_memory() - base
        assert not base or grown < MAX_GROWTH, f"memory grew by {grown} MiB up to {number}"
        if progress and number % progress == 0:
            print(number, f"{worst:.1f}", peak_memory(), file=sys.stderr, flush=True)
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    assert maps < MAX_MAPS, f"{maps} memory maps"
    return {
        "pictures": count,
        "worst_mean_error": round(worst, 2),
        "peak_mib": peak_memory(),
        "grown_mib": peak_memory() - base,
        "maps": maps,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--side", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", default="default")
    args = parser.parse_args()
    found = run(Codec.load(args.bundle), args.count, args.side, args.seed, progress=100)
    print(json.dumps(found, indent=1))
