"""A bundle from the parameters of a run, as an `.npz` file by path.

    python -m sic_jax.cli.export PRESET PARAMS.npz BUNDLE --card CARD.md

The file names parameters as `sic_jax.model.tree.flatten_params` does, ``g_a/Conv_0/kernel``, in
float16 or float32; the preset has the model's config.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sic_jax.codec.bundle import export_bundle
from sic_jax.metrics.pretrained import read_npz
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import check_params
from sic_jax.model.tree import Params, unflatten_params
from sic_jax.training.presets import PRESETS, preset


def _read_params(path: str | Path, cfg: ModelConfig) -> Params:
    """Parameters of a model from an `.npz` file, float32.

    Raises:
        ValueError: If the file cannot be read, or its parameters are not the model's.
        OSError: If there is none.
    """
    try:
        leaves = {name: a.astype(np.float32) for name, a in read_npz(Path(path)).items()}
    except ValueError as e:
        raise ValueError(f"{path} is no .npz file of parameters: {e}") from e
    try:
        check_params(cfg, leaves)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
    return unflatten_params(leaves)


def make_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m sic_jax.cli.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("params", help="parameters by path, .npz")
    parser.add_argument("bundle", help="folder that receives the bundle")
    parser.add_argument("--card", help="model card, Markdown")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the bundle; errors are one line and exit code 1."""
    args = make_parser().parse_args(argv)
    try:
        cfg = preset(args.preset).model
        params = _read_params(args.params, cfg)
        card = "" if args.card is None else Path(args.card).read_text()
        export_bundle(args.bundle, cfg, params, card=card)
    except (ValueError, OSError) as e:
        sys.exit(f"export: error: {str(e).strip().splitlines()[0]}")


if __name__ == "__main__":
    main()
