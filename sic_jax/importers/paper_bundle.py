"""A bundle from a checkpoint of the paper's authors."""

import hashlib
import os
from pathlib import Path

from sic_jax.codec.bundle import Bundle, export_bundle, load_bundle
from sic_jax.importers.paper_parameters import convert_state_dict
from sic_jax.importers.torch_checkpoint import read_state_dict
from sic_jax.model.tree import num_params

_CARD = """# Model card

The paper's network with parameters of the authors' checkpoint `{name}` (SHA-256 `{sha256}`),
imported by `sic import-official`.

- {parameters} parameters, rounded to float16; {levels} levels, {channels} channels of y.
- Transforms `swin`, entropy model `raster`. The entropy networks compute in floats: a file decodes
  only where the arithmetic is that of its encoder, and is refused elsewhere.
- The parameters are under the terms of whoever published the checkpoint, not of this package.
"""


def import_checkpoint(checkpoint: str | os.PathLike[str], folder: str | Path) -> Bundle:
    """Convert a checkpoint to a bundle in the new folder `folder`, and load it.

    Raises:
        ValueError: If the file is not a readable checkpoint (`read_state_dict`), or not one of the
            authors' network (`convert_state_dict`).
        OSError: If a file cannot be read or written.
    """
    name = os.fspath(checkpoint)
    arrays = read_state_dict(checkpoint)
    try:
        cfg, params = convert_state_dict(arrays)
    except ValueError as e:
        raise ValueError(f"{name} is not a checkpoint of the authors' network: {e}") from e
    card = _CARD.format(
        name=Path(name).name,
        sha256=hashlib.sha256(Path(name).read_bytes()).hexdigest(),
        parameters=num_params(params),
        levels=cfg.num_levels,
        channels=cfg.num_channels,
    )
    export_bundle(folder, cfg, params, card=card)
    return load_bundle(folder)
