"""survey.html: a blind test at equal file size, in one file that needs no server.

It shows pairs: the same part of an image, decoded from files of two codecs of nearly equal size.
Pairs whose pixels are equal there are left out. Who takes the test says which is closer to the
original. The browser keeps the choices and draws their order and sides; at the end it tells the
names, computes Elo scores, and saves the choices as JSON or CSV. Until then names are encoded, not
encrypted: this hides them from honest eyes only.

The page holds one object as JSON:

    id          digest of the others
    pictures    data URIs, stored without loss
    pairs       a list of {first, second, original}: numbers of pictures
    key         base64 of a JSON object: codecs, a list of names, and pairs, for every pair
                {image, codecs, settings, bpp}, where codecs are two numbers in the list of names
"""

import base64
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sic_jax.evaluation.codecs import ImageCodec
from sic_jax.evaluation.pictures import Crop, choose_crop, to_data_uri
from sic_jax.evaluation.records import Record, digest
from sic_jax.files import write_atomic
from sic_jax.images.io import read_image

SURVEY_FILE = "survey.html"
MAX_RATIO = 1.1
"""The larger file of a pair has at most this many times the bits of the smaller."""


class Pair(NamedTuple):
    """Two files of one image by different codecs."""

    first: Record
    second: Record


def check_survey(codecs: Sequence[ImageCodec], num_pairs: int, seed: int) -> None:
    """Fail before anything is measured.

    Raises:
        ValueError: If there are not two codecs, or a number is too small.
    """
    if num_pairs < 1:
        raise ValueError(f"--survey: need at least 1 pair, got {num_pairs}")
    if seed < 0:
        raise ValueError(f"--survey-seed: need at least 0, got {seed}")
    if len(codecs) < 2:
        raise ValueError(f"--survey compares codecs, this run has only {codecs[0].name}")


def choose_pairs(
    records: Sequence[Record],
    num_pairs: int,
    seed: int,
    differ: Callable[[Pair], bool] = lambda pair: True,
) -> list[Pair]:
    """Pairs whose bpp are within `MAX_RATIO`, drawn so that codecs and images have equal shares.

    Args:
        records: Of a run.
        num_pairs: At most; fewer where the run does not have as many.
        seed: Fixes the draw.
        differ: Whether one can tell the pictures of a pair apart; others are left out.

    Returns:
        Each pair of codecs gets one pair in turn, from the image that it has used least.

    Raises:
        ValueError: If there is no such pair.
    """
    rng = np.random.default_rng(seed)
    by_image: dict[str, list[Record]] = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record)
    found: dict[tuple[str, ...], dict[str, list[Pair]]] = {}
    for image, own in by_image.items():
        for pair in map(Pair._make, combinations(own, 2)):
            low, high = sorted(record.bpp for record in pair)
            codecs = tuple(sorted({record.codec for record in pair}))
            if len(codecs) == 2 and high <= MAX_RATIO * low:
                found.setdefault(codecs, {}).setdefault(image, []).append(pair)
    drawn = [_one_an_image_in_turn(list(own.values()), rng) for own in found.values()]
    # Lazily: pictures are decoded to be compared.
    queues = deque(filter(differ, drawn[k]) for k in rng.permutation(len(drawn)))
    chosen: list[Pair] = []
    while queues and len(chosen) < num_pairs:
        taken = next(queues[0], None)
        if taken is None:
            queues.popleft()
        else:
            chosen.append(taken)
            queues.rotate(-1)
    if not chosen:
        raise ValueError(
            "--survey: no image has files of two codecs whose sizes are within"
            f" {100 * (MAX_RATIO - 1):.0f} % and whose pictures differ: give more --levels or"
            " --qualities"
        )
    return chosen


def _one_an_image_in_turn(images: list[list[Pair]], rng: np.random.Generator) -> list[Pair]:
    shuffled = [[own[k] for k in rng.permutation(len(own))] for own in images]
    order = [(turn, k) for k, own in enumerate(shuffled) for turn in range(len(own))]
    places = rng.permutation(len(images))
    return [shuffled[k][turn] for turn, k in sorted(order, key=lambda at: (at[0], places[at[1]]))]


def write_survey(
    records: Sequence[Record],
    codecs: Sequence[ImageCodec],
    num_pairs: int,
    seed: int,
    out: Path,
) -> int:
    """Write `SURVEY_FILE`: the same bytes for the same files and arguments.

    Args:
        records: Of a run.
        codecs: Of the run, to decode pictures.
        num_pairs: At most.
        seed: Fixes which pairs are drawn.
        out: Folder that the files of the records are relative to, and for the page.

    Returns:
        The number of pairs.

    Raises:
        ValueError: If there is no pair.
        OSError: If something cannot be read or written.
    """
    by_name = {codec.name: codec for codec in codecs}

    @cache
    def original(path: str) -> tuple[Crop, str]:
        image = read_image(path, alpha=False).pixels
        crop = choose_crop(image)
        return crop, to_data_uri(image, crop, lossless=True)

    @cache
    def decoded(path: str, codec: str, file: str) -> str:
        crop, _ = original(path)
        return to_data_uri(by_name[codec].decode((out / file).read_bytes(), 0), crop, lossless=True)

    def sides(pair: Pair) -> list[str]:
        return [decoded(record.image, record.codec, record.file) for record in pair]

    def differ(pair: Pair) -> bool:
        # Stored without loss: equal pixels have equal addresses, others do not.
        first, second = sides(pair)
        return first != second

    pairs = choose_pairs(records, num_pairs, seed, differ)
    numbers: dict[str, int] = {}  # Each picture once.
    shown, secrets = [], []
    names = sorted({record.codec for pair in pairs for record in pair})
    for pair in pairs:
        path = pair.first.image
        first, second = sides(pair)
        uris = {"original": original(path)[1], "first": first, "second": second}
        shown.append({side: numbers.setdefault(uri, len(numbers)) for side, uri in uris.items()})
        secrets.append(
            {
                "image": Path(path).name,
                "codecs": [names.index(record.codec) for record in pair],
                "settings": [record.setting for record in pair],
                "bpp": [round(record.bpp, 5) for record in pair],
            }
        )
    key = json.dumps({"codecs": names, "pairs": secrets}).encode()
    content = {
        "pictures": list(numbers),
        "pairs": shown,
        "key": base64.b64encode(key).decode(),
    }
    content = {"id": digest(json.dumps(content).encode()), **content}
    write_atomic(out / SURVEY_FILE, _page(content).encode())
    return len(pairs)


def _page(content: Mapping[str, Any]) -> str:
    here = Path(__file__).parent
    body, style, colours, scores, script = (
        (here / name).read_text()
        for name in ("survey.html", "survey.css", "page.css", "survey_scores.js", "survey.js")
    )
    data = json.dumps(content).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Which picture is closer to the original?</title><style>{colours}{style}</style>"
        f'</head><body>{body}<script type="application/json" id="survey">{data}</script>'
        f"<script>{scores}\n{script}</script></body></html>\n"
    )
