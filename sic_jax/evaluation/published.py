"""Published results of other codecs, as reference curves; `published.json` has the sources."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sic_jax.evaluation.means import Curve, Protocol

PUBLISHED_FILE = Path(__file__).parent / "published.json"

WHOLE, CROPS = "768x512", "512x512"
"""Sizes of pictures that codecs are measured on: Kodak's own, and crops of them."""

_NETWORKS = {"lpips": ("AlexNet, v0.1", "not stated"), "lpips_vgg": ("VGG16, v0.1",)}
"""What the network of each LPIPS metric can be, and the version of its heads."""

PROTOCOL_LABELS = ("curve", "bpp counts", "rounding", "pictures", "LPIPS network", "source")
"""Of the columns of `protocol_cells`."""


class Published(NamedTuple):
    """Curves of one data set."""

    dataset: str
    num_images: int
    about: str
    curves: list[Curve]


def load_published(size: str = WHOLE) -> Published:
    """The published means over the Kodak images, of the curves that were measured at a size.

    No caller gets curves of two sizes: crops are other pictures, with other rates and values.

    Args:
        size: `WHOLE` or `CROPS`; no curve is of another size.

    Raises:
        ValueError: If a curve has the LPIPS of one network under the name of another.
    """
    stored = json.loads(PUBLISHED_FILE.read_text())
    curves = []
    for curve in stored["curves"]:
        protocol = Protocol(*(curve[name] for name in Protocol._fields))
        for metric in set(_NETWORKS) & {*curve["metrics"], *protocol.networks}:
            if (network := protocol.networks.get(metric)) not in _NETWORKS[metric]:
                raise ValueError(f"published curve {curve['name']}: {metric} by {network}")
        if protocol.size == size:
            metrics = {name: tuple(values) for name, values in curve["metrics"].items()}
            source = f"{curve['source']}; {curve['note']}"
            curves.append(Curve(curve["name"], tuple(curve["bpp"]), metrics, source, protocol))
    return Published(stored["dataset"], stored["num_images"], stored["about"], curves)


def protocol_cells(curves: Sequence[Curve]) -> list[list[str]]:
    """How each curve was measured, as text for tables."""
    return [
        [
            curve.name,
            curve.protocol.rate,
            curve.protocol.rounding,
            curve.protocol.size,
            ", ".join(curve.protocol.networks.values()) or "-",
            curve.source,
        ]
        for curve in curves
        if curve.protocol
    ]
