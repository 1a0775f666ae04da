"""Writes golden files of the current format, with what they must decode to.

python tests/golden/make_golden.py tests/golden/v2           (a tiny model; made once a version)
python tests/golden/make_golden.py tests/golden/pyramid-1 --bundle pyramid-1   (once a bundle)
python tests/golden/make_golden.py tests/golden/alpha --bundle tests/golden/v2/bundle --alpha

A folder holds files, the picture of each without grain as PNG, and golden.json: hashes of all
symbols, table indices, integer means, details, grain and alpha. A folder is never written again.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli.demo import SAMPLE
from sic_jax.codec.bundle import export_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import unpack
from sic_jax.codec.grain import add_grain
from sic_jax.codec.pixels import alpha_plane
from sic_jax.entropy.counter_noise import normal_noise
from sic_jax.model.entropy_models.coding_pass import temperature_units
from sic_jax.model.params import init_params
from sic_jax.training.presets import preset

TEMPERATURE = 0.75


def digest(*arrays: NDArray[Any]) -> str:
    """SHA-256 of integer arrays as little-endian int32, one after the other."""
    sha = hashlib.sha256()
    for a in arrays:
        assert np.issubdtype(a.dtype, np.integer)
        sha.update(a.astype("<i4").tobytes())
    return sha.hexdigest()


def decode(codec: Codec, data: bytes) -> dict[str, object]:
    """What golden.json says of a file, with details at `TEMPERATURE` above level 1."""
    container = unpack(data)
    y, z, level = codec.decode_latents(container)
    hyper = codec._pass.hyper(z, (y.shape[0], y.shape[1]))
    steps = codec._pass.run(hyper, level)
    indices, means = [], []
    request = next(steps)
    while True:
        half, channels = request.where
        indices.append(request.indices)
        means.append(request.means)
        try:
            request = steps.send(y[half, channels].ravel())
        except StopIteration:
            break
    first = y.copy()
    first[..., codec.bundle.cfg.levels.channels[0] :] = 0
    noise = normal_noise(container.header.seed, y.shape)
    details = codec._pass.complete(first, hyper, 1, noise, temperature_units(TEMPERATURE))
    units = np.asarray(details) * 256
    assert np.array_equal(units, np.round(units))
    record: dict[str, object] = {
        "model_id": container.header.model_id.hex(),
        "level": level,
        "num_symbols": y.size + z.size,
        "z": digest(z),
        "y": digest(y),
        "indices": digest(*indices),
        "means": digest(*means),
        "details": digest(units.astype(np.int64)),
    }
    header = container.header
    if header.grain:
        gray = np.full((header.height, header.width, 3), 128, np.uint8)
        record["grain"] = digest(add_grain(gray, header.grain, header.seed))
    alpha = alpha_plane(container)
    if alpha is not None:
        record["alpha"] = digest(alpha)
    return record


def pictures() -> dict[str, NDArray[Any]]:
    """A photograph, its gray corner, and edges with noise, of odd sizes."""
    with Image.open(SAMPLE) as im:
        photo = np.asarray(im.convert("RGB"))
    rng = np.random.default_rng(1)
    i, j = np.mgrid[:75, :131]
    edges = np.stack([(i // 9 + j // 13) % 2 * 200, i * 3, j + i], -1) + rng.normal(
        0, 6, (75, 131, 3)
    )
    return {
        "photo": photo[140:300, 200:425],
        "gray": np.asarray(Image.fromarray(photo[60:157, 90:150]).convert("L")),
        "edges": np.clip(edges, 0, 255).astype(np.uint8),
    }


def pictures_with_alpha() -> dict[str, NDArray[Any]]:
    """A disc of a photograph with a soft edge, and gray under a ramp: predictors 1 and 3."""
    source = pictures()
    i, j = np.mgrid[:160, :225]
    disc = np.clip(128 + 60 * (70 - np.hypot(i - 80, j - 110)), 0, 255)
    i, j = np.mgrid[:97, :60]
    ramp = (2 * i + 3 * j) % 256
    return {
        "disc": np.dstack([source["photo"], disc.astype(np.uint8)]),
        "ramp": np.dstack([source["gray"], ramp.astype(np.uint8)]),
    }


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", help="default: a tiny random model, written into the folder")
    parser.add_argument("--alpha", action="store_true", help="pictures with alpha")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    bundle = args.bundle
    if bundle is None:
        cfg = preset("smoke").model
        rng = np.random.default_rng(0)
        params = init_params(cfg, seed=0)
        # No zeros, so that no path through the model is shut.
        for network in params.values():
            for leaf in [network, *(v for v in network.values() if isinstance(v, dict))]:
                for name, a in leaf.items():
                    if not isinstance(a, dict):
                        leaf[name] = np.asarray(a) + 0.1 * rng.standard_normal(a.shape)
        # Large symbols, so that the files say something.
        params["g_a"]["linear"] *= 2
        params["h_a"]["Conv_3"]["kernel"] *= 10
        bundle = args.folder / "bundle"
        export_bundle(bundle, cfg, params, card="# A tiny random model for golden files\n")
    codec = Codec.load(bundle)
    records = {}
    made = pictures_with_alpha() if args.alpha else pictures()
    for seed, (name, x) in enumerate(made.items()):
        data = codec.compress(x, seed=seed + 5)
        (args.folder / f"{name}.sic").write_bytes(data)
        picture = codec.decompress(data, temperature=TEMPERATURE, level=2, grain=False)
        Image.fromarray(picture).save(args.folder / f"{name}.png", optimize=True)
        records[name] = decode(codec, data)
    (args.folder / "golden.json").write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
