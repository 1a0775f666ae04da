"""Published results of other codecs, as reference curves; `published.json` has the sources."""

import json
from pathlib import Path
from typing import NamedTuple

from sic_jax.evaluation.means import Curve

PUBLISHED_FILE = Path(__file__).parent / "published.json"


class Published(NamedTuple):
    """Curves of one data set."""

    dataset: str
    num_images: int
    about: str
    curves: list[Curve]


def load_published() -> Published:
    """The published means over the Kodak images."""
    stored = json.loads(PUBLISHED_FILE.read_text())
    curves = [
        Curve(
            name=curve["name"],
            bpp=tuple(curve["bpp"]),
            metrics={name: tuple(values) for name, values in curve["metrics"].items()},
            source=f"{curve['source']}; {curve['note']}",
        )
        for curve in stored["curves"]
    ]
    return Published(stored["dataset"], stored["num_images"], stored["about"], curves)
