"""survey.html: a blind test at equal file size, in one file that needs no server.

It shows pairs: the same part of an image, decoded from files of two codecs of nearly equal size.
Who takes the test says which is closer to the original. The browser keeps the choices and draws
their order and sides; at the end it tells the names, computes Elo scores, and saves the choices as
JSON or CSV. Until then names are encoded, not encrypted: this hides them from honest eyes only.

The page holds one object as JSON:

    id          digest of the others
    pictures    data URIs, stored without loss
    pairs       a list of {first, second, original}: numbers of pictures
    key         base64 of a JSON object: codecs, a list of names, and pairs, for every pair
                {image, codecs, settings, bpp}, where codecs are two numbers in the list of names
"""

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sic_jax.evaluation.codecs import ImageCodec, Pixels
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


def choose_pairs(records: Sequence[Record], num_pairs: int, seed: int) -> list[Pair]:
    """Pairs whose bpp are within `MAX_RATIO`, drawn so that codecs and images have equal shares.

    Args:
        records: Of a run.
        num_pairs: At most; fewer where the run does not have as many.
        seed: Fixes the draw.

    Returns:
        Two codecs after two others have a pair each, of images that they had least, until there are
        enough.

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
    if not found:
        raise ValueError(
            "--survey: no image has files of two codecs whose sizes are within"
            f" {100 * (MAX_RATIO - 1):.0f} %: give more --levels or --qualities"
        )
    queues = [_one_an_image_in_turn(list(own.values()), rng) for own in found.values()]
    queues = [queues[k] for k in rng.permutation(len(queues))]
    chosen = []
    for turn in range(max(map(len, queues))):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    return chosen[:num_pairs]


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
    pairs = choose_pairs(records, num_pairs, seed)
    by_name = {codec.name: codec for codec in codecs}
    images = {path: read_image(path).pixels for path in {pair.first.image for pair in pairs}}
    crops = {path: choose_crop(image) for path, image in images.items()}
    pictures = _Pictures()

    def number(record: Record) -> int:
        key = record.image, record.codec, record.setting
        if key not in pictures.numbers:
            decoded = by_name[record.codec].decode((out / record.file).read_bytes(), 0)
            pictures.add(key, decoded, crops[record.image])
        return pictures.numbers[key]

    shown, secrets = [], []
    names = sorted({record.codec for pair in pairs for record in pair})
    for pair in pairs:
        path = pair.first.image
        if (path,) not in pictures.numbers:
            pictures.add((path,), images[path], crops[path])
        first, second = map(number, pair)
        original = pictures.numbers[(path,)]
        shown.append({"first": first, "second": second, "original": original})
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
        "pictures": pictures.uris,
        "pairs": shown,
        "key": base64.b64encode(key).decode(),
    }
    content = {"id": digest(json.dumps(content).encode()), **content}
    write_atomic(out / SURVEY_FILE, _page(content).encode())
    return len(pairs)


class _Pictures:
    """Each picture once."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.numbers: dict[tuple[Any, ...], int] = {}

    def add(self, key: tuple[Any, ...], picture: Pixels, crop: Crop) -> None:
        self.numbers[key] = len(self.uris)
        self.uris.append(to_data_uri(picture, crop, lossless=True))


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
