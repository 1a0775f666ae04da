"""Hostile files: mutants of real ones through the decoder, in this process.

python tests/fuzz.py --count 200000 --seed 0
python tests/fuzz.py --minutes 60 --seed 1

Each mutant must decode to a picture or raise BitstreamError, within `MAX_SECONDS` and without the
process growing beyond `MAX_GROWTH` MiB. Half of the mutants that keep a valid structure are decoded
with the symbols' checksum ignored, as if a forger had computed it, so that any symbols reach the
networks and the synthesis.
"""

import argparse
import collections
import contextlib
import itertools
import json
import random
import resource
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from sic_jax.codec import symbols as symbols_module
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import Container, Segment, pack, symbols_checksum, unpack
from sic_jax.codec.wire import crc16
from sic_jax.errors import BitstreamError
from sic_jax.metadata import Metadata

BUNDLE = Path(__file__).parent / "golden" / "v2" / "bundle"
MAX_SECONDS = 2.0
MAX_GROWTH = 300
MAX_PIXELS = 64 * 64
# Sizes that a mutated header claims: few, as each size of latents is compiled once.
SIZES = ((16, 16), (1, 1), (33, 20), (64, 64), (1, 4096), (4096, 1))


def seeds_of_corpus(codec: Codec) -> list[bytes]:
    """Small valid files: colour, gray and alpha, one to all levels, some with metadata."""
    rng = np.random.default_rng(0)
    out = []
    for k, (h, w) in enumerate(SIZES[:4]):
        smooth = np.add.outer(np.arange(h) * 3, np.arange(w) * 2)[..., None] + rng.normal(
            0, 30, (h, w, 3)
        )
        x = np.clip(smooth, 0, 255).astype(np.uint8)
        out.append(codec.compress(x, level=1 + k % 3, seed=k))
        metadata = Metadata(icc_profile=b"profile" * k or None, exif=b"exif", dpi=(300, k + 1))
        out.append(codec.compress(x[..., 0], metadata=metadata))
    alpha = (x[..., :1] // 64 * 85).astype(np.uint8)
    out.append(codec.compress(np.dstack([x, alpha])))
    out.append(codec.compress(np.dstack([x[:9, :20, 0], alpha[:9, :20]])))
    return out


KINDS = ("flip", "cut", "splice", "random", "length", "header", "payload", "segments", "samples")


def mutants(corpus: list[bytes], seed: int) -> Iterator[tuple[str, bytes]]:
    """Mutants without end, each with the name of what was done to it."""
    rng = random.Random(seed)
    parsed = [unpack(data) for data in corpus]
    while True:
        kind = rng.choice(KINDS)
        at = rng.randrange(len(corpus))
        data, container = bytearray(corpus[at]), parsed[at]
        if kind == "flip":
            for _ in range(rng.choice((1, 1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[rng.randrange(len(data)) :]
        elif kind == "splice":
            other = rng.choice(corpus)
            data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]
        elif kind == "random":
            end = header_end(bytes(data))
            data[end:] = rng.randbytes(rng.choice((0, 1, 10, 200)))
        elif kind == "length":
            spot = header_end(bytes(data)) + rng.choice((0, 0, 5, 9))
            data[spot : spot + 1] = rng.choice((b"\xff\xff\xff\xff\x0f", b"\x80", b"\xff\x7f"))
        elif kind == "header":
            data = bytearray(forged_header(rng, container))
        elif kind == "payload":
            segments = [forged_segment(rng, s) for s in container.segments]
            alpha = container.alpha and forged_segment(rng, container.alpha)
            header = container.header
            data = bytearray(pack(header, segments, forged_metadata(rng), alpha=alpha))
        elif kind == "samples":
            header = replace(container.header, alpha=True)
            segments = list(container.segments)
            if header.exact:
                size = header.height * header.width * (1 if header.mode == "gray" else 3)
                segments = [forged_samples(rng, size, 1)]
            alpha = forged_samples(rng, 1 + header.height * header.width, 2)
            data = bytearray(pack(header, segments, alpha=alpha))
        else:
            segments = list(container.segments)
            rng.shuffle(segments)
            extra = [forged_segment(rng, rng.choice(segments)) for _ in range(rng.randrange(3))]
            segments = (segments + extra)[: rng.randrange(2, 6)]
            levels = max(len(segments) - 1, 1)
            header = replace(container.header, num_levels=levels, exact=False)
            if len(segments) > 1:
                data = bytearray(pack(header, segments, alpha=container.alpha))
        yield kind, bytes(data)


def header_end(data: bytes) -> int:
    """Where the header's CRC ends: the first place whose two bytes are that CRC."""
    ends = (i + 2 for i in range(12, 40) if crc16(data[:i]).to_bytes(2, "big") == data[i : i + 2])
    return next(ends)


def forged_header(rng: random.Random, container: Container) -> bytes:
    """A file whose header lies, with the CRCs that fit."""
    header, segments, alpha = container.header, container.segments, container.alpha
    height, width = rng.choice((*SIZES, (2**24 - 1, 2**24 - 1), (14142, 14142), (65, 65)))
    change: dict[str, Any] = {"height": height, "width": width}
    if rng.random() < 0.3:
        change |= {"seed": rng.choice((0, 2**32 - 1)), "mode": rng.choice(("rgb", "gray"))}
        change |= {"grain": rng.choice((0, 1, 255))}
    if rng.random() < 0.2:
        change |= {"float_entropy": True}
    if rng.random() < 0.2:
        change |= {"model_id": rng.randbytes(6)}
    if rng.random() < 0.2:
        count = rng.choice((1, 2, 3, 4, 64))
        segments = (segments * 65)[: count + 1]
        change |= {"num_levels": count}
    if rng.random() < 0.2:
        change |= {"exact": not header.exact}
    if rng.random() < 0.2:
        alpha = None if alpha else forged_segment(rng, segments[0])
        change |= {"alpha": alpha is not None}
    header = replace(header, **change)
    return pack(header, (segments * header.num_segments)[: header.num_segments], alpha=alpha)


def forged_segment(rng: random.Random, segment: Segment) -> Segment:
    """Another payload, with the CRCs that fit but those of the symbols."""
    payload = bytearray(segment.payload)
    kind = rng.randrange(6)
    if kind == 0:
        payload = bytearray(rng.randbytes(rng.choice((0, 1, 2, 30, 300))))
    elif kind == 1:
        payload = bytearray(rng.choice((b"\x00", b"\xff", b"\x80")) * rng.choice((1, 7, 500)))
    elif kind == 2:
        payload += rng.randbytes(rng.randrange(1, 9))
    elif kind == 3 and payload:
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    elif kind == 4:
        del payload[rng.randrange(len(payload) + 1) :]
    return Segment(bytes(payload), rng.choice((segment.symbols_crc, rng.randrange(65536))))


def forged_samples(rng: random.Random, size: int, times: int) -> Segment:
    """Samples with the checksum that fits, deflated so many times; their number may be wrong."""
    samples = rng.randbytes(rng.choice((size, size, size, 0, size - 1, size + 1)))
    if samples and rng.random() < 0.7:
        samples = bytes([rng.randrange(6)]) + samples[1:]  # A predictor of alpha, or none.
    payload = samples
    for _ in range(times):
        payload = zlib.compress(payload, rng.choice((0, 9)))
    return Segment(payload, symbols_checksum(samples))


def forged_metadata(rng: random.Random) -> Metadata | None:
    """Metadata of any content, or none."""
    if rng.random() < 0.7:
        return None
    field = rng.choice(("exif", "xmp"))
    content: dict[str, Any] = {field: rng.randbytes(rng.choice((1, 40))) * rng.choice((1, 1000))}
    return Metadata(**content)


def peak_memory() -> int:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(
    count: int | None, seed: int = 0, *, minutes: float = float("inf"), progress: int = 0
) -> dict[str, Any]:
    """Decode mutants; the counts of what came out, by kind.

    Args:
        count: How many; None: until the time is over.
        seed: Which.
        minutes: Time to spend at most.
        progress: Mutants after which to tell the counts; 0: never.

    Raises:
        AssertionError: For another exception than BitstreamError, a slow mutant, or growth.
    """
    codec = Codec.load(BUNDLE)
    corpus = seeds_of_corpus(codec)
    results: collections.Counter[str] = collections.Counter()
    slowest, base = 0.0, 0
    end = time.monotonic() + 60 * minutes
    warm = 1000 if count is None else min(1000, count // 2)
    for number, (kind, data) in enumerate(itertools.islice(mutants(corpus, seed), count)):
        if time.monotonic() > end:
            break
        forged = kind in ("header", "payload", "segments") and number % 2 == 0
        with forged_checksums() if forged else contextlib.nullcontext():
            outcome, seconds = decode(codec, data)
            if seconds > MAX_SECONDS / 4:
                # The first file of a size waits for the compiler.
                outcome, seconds = decode(codec, data)
        assert seconds < MAX_SECONDS, f"{kind} {data.hex()} took {seconds:.1f} s"
        slowest = max(slowest, seconds)
        results[f"{kind}: {outcome}"] += 1
        if number == warm:
            base = peak_memory()
        if base and number % 100 == 0:
            grown = peak_memory() - base
            assert grown < MAX_GROWTH, f"memory grew by {grown} MiB up to {kind} {data.hex()}"
        if progress and number % progress == 0:
            print(number, dict(results), f"{slowest:.2f} s", file=sys.stderr, flush=True)
    outcomes = dict(sorted(results.items()))
    return {"outcomes": outcomes, "slowest_s": round(slowest, 3), "peak_mib": peak_memory()}


def forged_checksums() -> AbstractContextManager[Any]:
    """Within it, any symbols have the checksum that a file says."""

    class Any16(int):
        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = None  # type: ignore[assignment]

    return mock.patch.object(symbols_module, "symbols_checksum", return_value=Any16())


def decode(codec: Codec, data: bytes) -> tuple[str, float]:
    """What came of a file, and after how many seconds."""
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = codec.decompress(data, max_pixels=MAX_PIXELS)
    except BitstreamError:
        return "refused", time.perf_counter() - began
    header = unpack(data, max_pixels=MAX_PIXELS).header
    assert x.dtype == np.uint8
    channels = (3 + header.alpha,) if header.mode == "rgb" else (2,) if header.alpha else ()
    assert x.shape == (header.height, header.width, *channels)
    return "decoded", time.perf_counter() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, help="default: 200000, or what the time allows")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.count is None and args.minutes == float("inf"):
        args.count = 200_000
    found = run(args.count, args.seed, minutes=args.minutes, progress=10_000)
    print(json.dumps(found, indent=1))
