"""Weights of pretrained networks: reading .npz files, decoding rounded kernels, checking arrays."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.metrics.convnet import Weights

__all__ = [
    "WEIGHTS_FOLDER",
    "check_weights",
    "decode_kernel",
    "load_weights",
    "on_device",
    "read_npz",
]

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
"""Where the packaged files are; its ``README.md`` has their origin and licences."""

_MAX_BYTES = 2**32


def load_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Reads the arrays of a network.

    Args:
        path: An .npz file made by `sic_jax.importers.perceptual_weights`. Each array is there under
            its name, or as ``NAME_codes`` and ``NAME_scale``, which `decode_kernel` takes.
        shapes: Names and shapes of the arrays; others in the file are not used.

    Returns:
        The arrays in float32.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or an array is missing, has the wrong shape, holds no floats or
            is not finite.
    """
    stored = read_npz(path)
    weights: dict[str, NDArray[Any]] = {}
    for name in shapes:
        codes, scale = stored.get(f"{name}_codes"), stored.get(f"{name}_scale")
        if codes is not None and scale is not None:
            try:
                weights[name] = decode_kernel(codes, scale)
            except ValueError as error:
                raise ValueError(f"the codes of {name} in {path} are damaged: {error}") from error
        elif name in stored:
            array = stored[name]
            weights[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    check_weights(weights, shapes, source=str(path))
    return weights


@functools.cache
def on_device(load: Callable[[], Weights]) -> Weights:
    """What `load` reads, on the device: read and moved once a process.

    A program that is compiled around it keeps the arrays as constants.
    """
    # Where a program is being traced, device_put gives values of that program, not to be kept.
    with jax.ensure_compile_time_eval():
        found: Weights = jax.device_put(load())
    return found


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file by name, of any shape; nothing in it is executed.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no .npz file, is damaged, or unpacks to more than 4 GiB.
    """
    data = path.read_bytes()
    try:
        if not data.startswith(b"PK"):
            raise ValueError("it is no archive of NumPy (.npz)")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            size = sum(member.file_size for member in stored.zip.infolist())
            if size > _MAX_BYTES:
                raise ValueError(f"it unpacks to {size} bytes, more than {_MAX_BYTES}")
            return {name: np.asarray(stored[name]) for name in stored.files}
    except Exception as error:  # NumPy and zipfile raise many kinds on damaged files.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error


def check_weights(weights: Weights, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Checks that all arrays are there, of the right shape, of floats and finite.

    Args:
        weights: Arrays by name.
        shapes: Names and shapes that there must be.
        source: Where the arrays are from, for messages.

    Raises:
        ValueError: They are not; the message names the array and `source`.
    """
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"{source} has no array {name!r}")
        array = weights[name]
        if array.shape != shape:
            raise ValueError(f"{name} in {source} has shape {array.shape}, not {shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} in {source} is of type {array.dtype}, not of floats")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} in {source} is not finite")


def decode_kernel(codes: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    """The kernel of integer codes.

    Args:
        codes: int8 ``[3, 3, I, O]``, or uint8 ``[2, 3, 3, I, O]``: the low and the high bytes of
            16-bit codes in two's complement.
        scale: Step of each output channel, float32 ``[O]``.
    """
    if codes.dtype == np.uint8:
        low, high = codes
        codes = low + high.view(np.int8).astype(np.int16) * np.int16(256)
    return codes.astype(np.float32) * scale.astype(np.float32)
