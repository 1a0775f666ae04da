"""Bundles: a trained model as a directory of plain files, without pickle.

    config.json   architecture (ModelConfig)
    weights.npz   float16 arrays named by path, ``g_a/Conv_0/kernel``; but with the context
                  `checkerboard` the entropy networks are integers, ``context/dense_1/kernel`` int8,
                  ``bias`` int32 and ``shift`` uint8
    tables.npz    integer coding tables of y and z
    id            SHA-256 over config, parameters and tables
    README.md     model card

A file names the bundle that wrote it by the first six bytes of the id.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.codec import library
from sic_jax.codec.container import MODEL_ID_BYTES
from sic_jax.entropy.cdf_tables import CdfTables, tables_from_pmfs, validate_tables
from sic_jax.entropy.distributions import deep_factorized_logits
from sic_jax.fields import from_dict, to_dict
from sic_jax.model.complexity import codec_macs_per_pixel
from sic_jax.model.config import ModelConfig
from sic_jax.model.entropy_models.checkerboard.context import EntropyLayers, entropy_specs
from sic_jax.model.entropy_models.checkerboard.exact import (
    Layer,
    LayerSpec,
    check_layer,
    dequantise,
)
from sic_jax.model.entropy_models.checkerboard.group_coding import coding_tables, num_coding_tables
from sic_jax.model.entropy_models.checkerboard.hyper import medians
from sic_jax.model.params import (
    Params,
    check_params,
    entropy_layers,
    flatten_params,
    num_params,
    unflatten_params,
)
from sic_jax.model.sic import SicModel

_MAX_BYTES = 2**30
_Z_REACH = 256
_Z_TAIL_MASS = 2.0**-12


@dataclass(frozen=True)
class Bundle:
    """A loaded model."""

    name: str
    cfg: ModelConfig
    params: Params
    """float32 arrays: the stored float16 values, and floats that quantise to `entropy`."""
    entropy: EntropyLayers
    """Integers of the entropy networks, as float32 arrays; none with the context `raster`."""
    tables_y: CdfTables
    """As `sic_jax.model.entropy_models.checkerboard.group_coding` numbers them."""
    tables_z: CdfTables
    """One table a channel of z."""
    digest: bytes
    """SHA-256 of the content."""

    @property
    def model_id(self) -> bytes:
        """What a file's header says."""
        return self.digest[:MODEL_ID_BYTES]


def factorized_tables(params: Params, cfg: ModelConfig) -> CdfTables:
    """Coding tables of z less its medians, one a channel, over all but 2^-12 of the mass."""
    prior: Any = SicModel(cfg).apply({"params": params}, method="factorized_params")
    edges = np.arange(-_Z_REACH, _Z_REACH + 2) - 0.5
    x = jnp.asarray(edges, jnp.float32)[:, None] + medians(prior)
    logits = np.asarray(deep_factorized_logits(prior, x), np.float64)
    cdf = 0.5 * (1 + np.tanh(0.5 * logits))
    pmfs, offsets, tails = [], [], []
    for c in range(cfg.hyper_channels):
        low = max(int(np.searchsorted(cdf[:, c], _Z_TAIL_MASS / 2)) - 1, 0)
        high = min(int(np.searchsorted(cdf[:, c], 1 - _Z_TAIL_MASS / 2)), len(edges) - 1)
        pmfs.append(np.diff(cdf[low : high + 1, c]))
        offsets.append(low - _Z_REACH)
        tails.append(float(cdf[low, c] + 1 - cdf[high, c]))
    return tables_from_pmfs(pmfs, offsets, tails)


def export_bundle(folder: str | Path, cfg: ModelConfig, params: Params, *, card: str = "") -> None:
    """Write a bundle: integer entropy networks as integers, all other parameters as float16.

    Raises:
      ValueError: If a parameter is not finite, or not in float16.
    """
    folder = Path(folder)
    specs = entropy_specs(cfg)
    with np.errstate(over="ignore"):
        rounded = {
            network: jax.tree.map(lambda a: np.asarray(a).astype(np.float16), tree)
            for network, tree in params.items()
            if network not in specs
        }
    leaves: dict[str, Any] = flatten_params(rounded)
    for path, leaf in leaves.items():
        if not np.isfinite(leaf).all():
            raise ValueError(f"parameter {path} has values that float16 cannot hold")
    tables = {"y": coding_tables(cfg)}
    tables["z"] = factorized_tables(jax.tree.map(lambda a: a.astype(np.float32), rounded), cfg)
    for network, layers in entropy_layers(cfg, params).items():
        for name, layer in layers.items():
            path = f"{network}/{name}"
            _check_layer(path, layer, specs[network][name])
            leaves |= _layer_leaves(path, layer)
    arrays: dict[str, Any] = {
        f"{k}_{f}": a for k, t in tables.items() for f, a in t._asdict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = to_dict(cfg)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    np.savez(folder / "weights.npz", **leaves)
    np.savez_compressed(folder / "tables.npz", **arrays)
    (folder / "id").write_text(_digest(config, leaves, arrays).hex() + "\n")
    (folder / "README.md").write_text(card or "# Model card\n\nNot written yet.\n")


def load_bundle(name: str | Path = "default") -> Bundle:
    """Load a bundle by its name or its folder (`sic_jax.codec.library`).

    Nothing in it is trusted: names, types, shapes and values are checked, sums of the entropy
    networks are exact for any input, tables are safe for the coder, and no code runs.

    Raises:
        ValueError: If there is none, or it is damaged, naming what is wrong.
    """
    folder = library.find(name)
    try:
        config = json.loads((folder / "config.json").read_text())
        cfg = from_dict(ModelConfig, _with_todays_names(config))
        leaves = read_npz(folder / "weights.npz")
        arrays = read_npz(folder / "tables.npz")
        digest = _digest(config, leaves, arrays)
        if digest.hex() != (folder / "id").read_text().strip():
            raise ValueError("its content does not match its id")
        tables = [
            CdfTables(*(arrays[f"{k}_{field}"] for field in CdfTables._fields)) for k in ("y", "z")
        ]
        counts = (num_coding_tables(cfg), cfg.hyper_channels)
        for table, count in zip(tables, counts, strict=True):
            validate_tables(table)
            if len(table.starts) != count:
                raise ValueError(f"{len(table.starts)} coding tables where {count} are needed")
        params, entropy = _split_leaves(cfg, leaves)
    except (OSError, KeyError, ValueError, OverflowError, MemoryError, RecursionError) as e:
        raise ValueError(f"bundle {str(name)!r} is damaged: {e}") from e
    return Bundle(
        name=str(name),
        cfg=cfg,
        params=params,
        entropy=entropy,
        tables_y=tables[0],
        tables_z=tables[1],
        digest=digest,
    )


def describe(name: str | Path = "default") -> dict[str, object]:
    """What `sic info --bundle` prints: id, architecture, size and cost of a bundle."""
    bundle = load_bundle(name)
    folder = library.find(name)
    macs = codec_macs_per_pixel(bundle.cfg)
    return {
        "bundle": str(name),
        "id": bundle.model_id.hex(),
        "bytes": sum(p.stat().st_size for p in folder.iterdir() if p.is_file()),
        "parameters": num_params(bundle.params),
        "kmac_per_pixel_encode": round(macs["encode"] / 1000, 1),
        "kmac_per_pixel_decode": round(macs["decode"] / 1000, 1),
        "levels": bundle.cfg.num_levels,
        "channels": bundle.cfg.num_channels,
        "coding_tables": len(bundle.tables_y.starts) + len(bundle.tables_z.starts),
        "config": to_dict(bundle.cfg),
    }


def _with_todays_names(config: Any) -> Any:
    """A stored config whose fields have today's names; the id counts it as it is stored."""
    match config:
        case {"search": {"lmbda_dists": weight, **others}} if "dists_weight" not in others:
            return {**config, "search": {**others, "dists_weight": weight}}
    return config


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file that nobody trusts.

    Raises:
      ValueError: If it is damaged, or unpacks to more than 1 GiB.
      OSError: If there is none.
    """
    try:
        # Opened here: NumPy leaves a file that is no ZIP open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            size = sum(member.file_size for member in data.zip.infolist())
            if size > _MAX_BYTES:
                raise ValueError(f"it unpacks to {size} bytes, more than {_MAX_BYTES}")
            return {k: data[k] for k in data.files}
    except OSError:
        raise
    except Exception as e:  # zipfile, zlib and NumPy raise many kinds on damaged files.
        raise ValueError(f"{path.name} cannot be read: {e}") from e


def _check_layer(path: str, layer: Layer, spec: LayerSpec) -> None:
    try:
        check_layer(layer, spec)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _layer_leaves(path: str, layer: Layer) -> dict[str, NDArray[Any]]:
    """The arrays of a layer as a bundle stores them."""
    kernel, bias, scale = (np.asarray(a) for a in layer)
    return {
        f"{path}/kernel": kernel.astype(np.int8),
        f"{path}/bias": bias.astype(np.int32),
        f"{path}/shift": (-np.log2(scale)).astype(np.uint8),
    }


def _split_leaves(
    cfg: ModelConfig, leaves: dict[str, NDArray[Any]]
) -> tuple[Params, EntropyLayers]:
    """Checked parameters, those of the entropy networks dequantised, and the integers of these."""
    left = dict(leaves)
    floats: dict[str, NDArray[Any]] = {}
    entropy: EntropyLayers = {}
    for network, specs in entropy_specs(cfg).items():
        entropy[network] = {}
        for name, spec in specs.items():
            path = f"{network}/{name}"
            arrays = [left.pop(f"{path}/{part}") for part in ("kernel", "bias", "shift")]
            types = tuple(a.dtype.str for a in arrays)
            if types != ("|i1", "<i4", "|u1"):
                raise ValueError(f"{path} has types {types}, not int8, int32 and uint8")
            arrays[2] = np.float32(2.0) ** -arrays[2].astype(np.float32)
            layer = Layer(*(jnp.asarray(a, jnp.float32) for a in arrays))
            _check_layer(path, layer, spec)
            entropy[network][name] = layer
            floats[f"{path}/kernel"], floats[f"{path}/bias"] = dequantise(layer, spec)
    for path, leaf in left.items():
        if leaf.dtype != np.float16 or not np.isfinite(leaf).all():
            raise ValueError(f"parameter {path} is not finite float16")
        floats[path] = leaf.astype(np.float32)
    check_params(cfg, floats)
    return unflatten_params(floats), entropy


def _digest(
    config: dict[str, Any], leaves: dict[str, NDArray[Any]], tables: dict[str, NDArray[Any]]
) -> bytes:
    """SHA-256 over config, names, types, shapes and values, whatever the files' compression.

    The config counts as config.json has it: fields that later versions add do not change it.
    """
    sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, array in sorted({**leaves, **tables}.items()):
        sha.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.digest()
