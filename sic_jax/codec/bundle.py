"""Bundles: a trained model as a folder of plain files, without pickle.

    config.json           {"model": ModelConfig, "latent_loss": what the encoder's latent
                          optimisation minimises}
    weights.safetensors   arrays by path: ``g_a/Conv_0/kernel`` in float16, and what the entropy
                          model keeps in a form of its own
    tables.safetensors    integer coding tables of y and z
    id                    SHA-256 over config, parameters and tables
    README.md             model card

A file names the bundle that wrote it by the first six bytes of the id.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from sic_jax.codec import library
from sic_jax.codec.container import MODEL_ID_BYTES
from sic_jax.codec.options import LatentLossConfig
from sic_jax.entropy.cdf_tables import CdfTables, validate_tables
from sic_jax.fields import Kinds, from_dict, to_dict
from sic_jax.model.complexity import codec_macs_per_pixel
from sic_jax.model.entropy_models.coding_pass import CodingPass
from sic_jax.model.entropy_models.prior import prior_tables
from sic_jax.model.families import FAMILIES
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import check_params
from sic_jax.model.tree import Params, flatten_params, num_params, unflatten_params

Arrays = dict[str, NDArray[Any]]

_MAX_BYTES = 2**30


@dataclass(frozen=True)
class Bundle:
    """A loaded model."""

    name: str
    cfg: ModelConfig
    latent_loss: LatentLossConfig
    params: Params
    """float32 arrays: the stored float16 values, and floats that stand for `integers`."""
    integers: Any
    """What the entropy model keeps in a form of its own; None if nothing."""
    tables_y: CdfTables
    """As the coding pass numbers them."""
    tables_z: CdfTables
    """One table a channel of z."""
    digest: bytes
    """SHA-256 of the content."""

    @property
    def model_id(self) -> bytes:
        """What a file's header says."""
        return self.digest[:MODEL_ID_BYTES]

    def coding_pass(self) -> CodingPass:
        """The coding pass of the model."""
        return self.cfg.entropy.coding_pass(self.cfg.levels, self.params, self.integers)


def export_bundle(
    folder: str | Path,
    cfg: ModelConfig,
    params: Params,
    *,
    latent_loss: LatentLossConfig | None = None,
    card: str = "",
) -> None:
    """Write a bundle: parameters as float16, but for what the entropy model keeps as integers.

    Args:
        folder: Is made where it is not there.
        cfg: Of the model.
        params: Of the model.
        latent_loss: Of the encoder's latent optimisation. None: the default.
        card: Model card, Markdown.

    Raises:
        ValueError: If a parameter is not finite, or not in float16.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    own = dict(cfg.entropy.to_stored(cfg.levels, params))
    networks = {path.split("/")[0] for path in own}
    with np.errstate(over="ignore"):
        rounded: Any = {
            network: jax.tree.map(lambda a: np.asarray(a).astype(np.float16), tree)
            for network, tree in params.items()
            if network not in networks
        }
    leaves: Arrays = flatten_params(rounded)
    for path, leaf in leaves.items():
        if not np.isfinite(leaf).all():
            raise ValueError(f"parameter {path} has values that float16 cannot hold")
    floats = jax.tree.map(lambda a: a.astype(np.float32), rounded)
    prior: Any = cfg.entropy.networks(cfg.levels).apply({"params": floats}, method="prior")
    tables = {"y": cfg.entropy.coding_tables(cfg.levels), "z": prior_tables(prior)}
    leaves |= own
    arrays: Arrays = {f"{k}_{f}": a for k, t in tables.items() for f, a in t._asdict().items()}
    config = {
        "model": to_dict(cfg),
        "latent_loss": to_dict(LatentLossConfig() if latent_loss is None else latent_loss),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "weights.safetensors").write_bytes(save(_contiguous(leaves)))
    (folder / "tables.safetensors").write_bytes(save(_contiguous(arrays)))
    (folder / "id").write_text(_digest(config, leaves, arrays).hex() + "\n")
    (folder / "README.md").write_text(card or "# Model card\n\nNot written yet.\n")


def load_bundle(name: str | Path = "default", *, kinds: Kinds = FAMILIES) -> Bundle:
    """Load a bundle by its name or its folder (`sic_jax.codec.library`).

    Nothing in it is trusted: names, types, shapes and values are checked, sums of the entropy
    networks are exact for any input, tables are safe for the coder, and no code runs.

    Args:
        name: Name or folder.
        kinds: Families that its config may name; with one of your own, `FAMILIES | kinds_of(...)`.

    Raises:
        ValueError: If there is none, or it is damaged, naming what is wrong.
    """
    folder = library.find(name)
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config, dict) or set(config) != {"model", "latent_loss"}:
            raise ValueError("config.json must hold 'model' and 'latent_loss', nothing else")
        cfg = from_dict(ModelConfig, config["model"], kinds)
        latent_loss = from_dict(LatentLossConfig, config["latent_loss"])
        leaves = _read_arrays(folder / "weights.safetensors")
        arrays = _read_arrays(folder / "tables.safetensors")
        digest = _digest(config, leaves, arrays)
        if digest.hex() != (folder / "id").read_text().strip():
            raise ValueError("its content does not match its id")
        tables = [
            CdfTables(*(arrays[f"{k}_{field}"] for field in CdfTables._fields)) for k in ("y", "z")
        ]
        counts = (cfg.entropy.num_coding_tables(cfg.levels), cfg.entropy.hyper_channels)
        for table, count in zip(tables, counts, strict=True):
            validate_tables(table)
            if len(table.starts) != count:
                raise ValueError(f"{len(table.starts)} coding tables where {count} are needed")
        params, integers = _params_of(cfg, leaves)
    except KeyError as e:
        raise ValueError(f"bundle {str(name)!r} is damaged: {e} is missing") from e
    except (OSError, ValueError, OverflowError, MemoryError, RecursionError) as e:
        raise ValueError(f"bundle {str(name)!r} is damaged: {e}") from e
    return Bundle(
        name=str(name),
        cfg=cfg,
        latent_loss=latent_loss,
        params=params,
        integers=integers,
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
        "config": {"model": to_dict(bundle.cfg), "latent_loss": to_dict(bundle.latent_loss)},
    }


def _read_arrays(path: Path) -> Arrays:
    """The arrays of a safetensors file that nobody trusts.

    Raises:
        ValueError: If it is damaged, or larger than 1 GiB.
        OSError: If there is none.
    """
    from safetensors.numpy import load_file

    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path.name} cannot be read: it has {size} bytes, more than {_MAX_BYTES}")
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as e:  # The library raises many kinds: for types that NumPy lacks, too.
        raise ValueError(f"{path.name} cannot be read: {e}") from e


def _contiguous(arrays: Arrays) -> Arrays:
    """In C order, as safetensors needs them."""
    return {name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())}


def _params_of(cfg: ModelConfig, leaves: Mapping[str, NDArray[Any]]) -> tuple[Params, Any]:
    """Checked parameters, float32, and what the entropy model keeps in a form of its own."""
    left = dict(leaves)
    stored = cfg.entropy.from_stored(cfg.levels, left)
    floats: dict[str, NDArray[Any]] = dict(stored.params)
    for path, leaf in left.items():
        if leaf.dtype != np.float16 or not np.isfinite(leaf).all():
            raise ValueError(f"parameter {path} is not finite float16")
        floats[path] = leaf.astype(np.float32)
    check_params(cfg, floats)
    return unflatten_params(floats), stored.integers


def _digest(
    config: dict[str, Any], leaves: Mapping[str, NDArray[Any]], tables: Mapping[str, NDArray[Any]]
) -> bytes:
    """SHA-256 over config, names, types, shapes and values.

    The config counts as config.json has it: fields that later versions add do not change it.
    """
    sha = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, array in sorted({**leaves, **tables}.items()):
        sha.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.digest()
