"""Cuts paper_reference.npz out of the full fixture of the authors' network (8 MB).

It holds the names and shapes of all parameters, and what some kilobytes can show with numbers: the
prior of z, the entropy-parameter network at sixteen positions of a picture, and the details there.

    python tests/data/make_paper_reference.py .../sic_official_tiny.npz
"""

import json
import sys
from pathlib import Path

import numpy as np

ROW = 3
COLUMNS = slice(0, 16)


def main(source: str) -> None:
    with np.load(source) as data:
        shapes = {
            name.removeprefix("state_dict/"): data[name].shape
            for name in data.files
            if name.startswith("state_dict/")
        }
        arrays = {
            name: data[name]
            for name in data.files
            if name.startswith(
                ("state_dict/entropy_bottleneck.", "state_dict/entropy_parameters.", "case1/z")
            )
        }
        for name in (
            "hyper_params",
            "context_params",
            "scales_hat",
            "means_hat",
            "y_hat",
            "y_likelihoods",
            "u",
            "y_eps",
        ):
            arrays[f"case1/{name}"] = data[f"case1/{name}"][:1, :, ROW : ROW + 1, COLUMNS]
        meta = {"shapes": shapes, "config": json.loads(str(data["meta"]))}
    path = Path(__file__).with_name("paper_reference.npz")
    np.savez_compressed(path, meta=json.dumps(meta), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
