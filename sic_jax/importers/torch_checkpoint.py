"""State dicts from checkpoint files: PyTorch's formats, safetensors and .npz.

PyTorch is not needed, and nothing that a file holds is executed (`restricted_pickle`).
Sizes are compared with what the file holds before they are used.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from sic_jax.importers import restricted_pickle
from sic_jax.importers.restricted_pickle import MAX_AXES, Storage, Tensor

Arrays = dict[str, NDArray[Any]]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "params")
_PREFIXES = ("module.", "_orig_mod.")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_MAX_NPZ_BYTES = 2**32
_MAX_WRAPPERS = 8
_MAX_AXIS = 2**62


def read_state_dict(path: str | os.PathLike[str]) -> Arrays:
    """Read the tensors of a checkpoint; the content decides on the format, not the name.

    PyTorch checkpoints often wrap the state dict: of a dict, the entry `state_dict`,
    `model_state_dict`, `model`, `net`, `module` or `params`, the first that is a dict, takes its
    place, up to 8 times. Entries that are not tensors are left out. A prefix `module.` or
    `_orig_mod.` that all names share is removed.

    Args:
        path: A file of torch.save (zip or the older format), safetensors or NumPy's .npz.

    Returns:
        Arrays by name, of which some are read-only. float16 and bfloat16 become float32, other
        types stay.

    Raises:
        ValueError: If the file is none of these, damaged, or holds anything but a state dict.
        OSError: If it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        arrays = _without_prefix(_read(data))
    except ValueError as e:
        reason = " ".join(str(e).split())  # Names of tensors can hold line breaks.
        raise ValueError(f"{os.fspath(path)} is not a readable checkpoint: {reason}") from e
    if not arrays:
        raise ValueError(f"{os.fspath(path)} holds no tensors")
    return arrays


def _read(data: bytes) -> Arrays:
    if data[:4] == b"PK\x03\x04":
        return _read_zip(data)
    if data[8:9] == b"{":
        return _read_safetensors(data)
    if data[:1] == b"\x80":
        return _read_legacy(data)
    raise ValueError("it is no file of torch.save, safetensors or NumPy (.npz)")


def _without_prefix(arrays: Arrays) -> Arrays:
    for prefix in _PREFIXES * 2:
        if arrays and all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def _read_zip(data: bytes) -> Arrays:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) == 1:
                return _read_torch_zip(archive, pickles[0].removesuffix("data.pkl"), len(data))
            if names and all(name.endswith(".npy") for name in names):
                return _read_npz(data, archive)
    except ValueError:
        raise
    except Exception as e:  # zipfile raises many kinds on damaged files.
        raise ValueError(f"the archive is damaged: {e}") from e
    raise ValueError("the archive is neither of torch.save nor of NumPy")


def _read_npz(data: bytes, archive: zipfile.ZipFile) -> Arrays:
    size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_NPZ_BYTES:
        raise ValueError(f"it unpacks to {size} bytes, more than {_MAX_NPZ_BYTES}")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: _widened(arrays[name]) for name in arrays.files}


def _read_torch_zip(archive: zipfile.ZipFile, folder: str, size: int) -> Arrays:
    def read(name: str) -> bytes:
        member = archive.getinfo(folder + name)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
            raise ValueError(f"{folder}{name} is compressed, or larger than the file")
        return archive.read(member)

    if f"{folder}byteorder" in archive.namelist() and read("byteorder") != b"little":
        raise ValueError("its values are not little-endian")
    tensors = _tensors(restricted_pickle.load(io.BytesIO(read("data.pkl"))))
    left = size

    def block(storage: Storage) -> bytes:
        nonlocal left
        if f"{folder}data/{storage.key}" not in archive.namelist():
            raise ValueError(f"storage {storage.key!r} is missing")
        values = read(f"data/{storage.key}")
        left -= len(values)
        if left < 0:
            raise ValueError("its storages are larger than the file")
        return values

    return _resolve(tensors, block)


def _read_legacy(data: bytes) -> Arrays:
    file = io.BytesIO(data)
    if restricted_pickle.load(file) != _LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save")
    protocol, system = restricted_pickle.load(file), restricted_pickle.load(file)
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise ValueError(f"it has the protocol {_shown(protocol)}, not {_LEGACY_PROTOCOL}")
    if system.get("little_endian") is not True:
        raise ValueError("its values are not little-endian")
    storages: dict[str, Storage] = {}
    tensors = _tensors(restricted_pickle.load(file, storages))
    blocks: dict[str, bytes] = {}
    keys = restricted_pickle.load(file)
    if not isinstance(keys, list):
        raise ValueError("the list of storages is damaged")
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in blocks:
            raise ValueError(f"the list of storages is damaged at {_shown(key)}")
        count, head = storages[key].count, file.read(8)
        if len(head) < 8 or int.from_bytes(head, "little") != count:
            raise ValueError(f"storage {key!r} is cut off or damaged")
        blocks[key] = file.read(min(count * _item_size(storages[key].dtype), len(data)))

    def block(storage: Storage) -> bytes:
        if storage.key not in blocks:
            raise ValueError(f"storage {storage.key!r} is missing")
        return blocks[storage.key]

    return _resolve(tensors, block)


def _shown(value: Any) -> str:
    """A value for a message: tuples in tuples can be endless in print, or too deep for it."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, int) and value.bit_length() <= 64:
        return repr(value)
    return f"a value of type {type(value).__name__}"


def _tensors(root: Any) -> dict[str, Tensor]:
    """The tensors of the state dict in what a checkpoint holds."""
    # A pickle can put a dict into itself.
    for _ in range(_MAX_WRAPPERS + 1):
        if not isinstance(root, dict):
            raise ValueError(f"it holds a {type(root).__name__}, not a state dict")
        inner = [root[name] for name in _WRAPPERS if isinstance(root.get(name), dict)]
        if not inner:
            break
        root = inner[0]
    else:
        raise ValueError(f"its state dict is wrapped in more than {_MAX_WRAPPERS} dicts")
    tensors = {k: v for k, v in root.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        names = ", ".join(key[:40] for key in list(root)[:8])
        raise ValueError(f"no tensors are where a state dict would be; there are: {names}")
    return tensors


def _resolve(tensors: dict[str, Tensor], block: Callable[[Storage], bytes]) -> Arrays:
    """Views of the storages."""
    values: dict[str, NDArray[Any]] = {}
    arrays: Arrays = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        if key not in values:
            values[key] = _values(tensor.storage, block(tensor.storage))
        arrays[name] = _view(name, tensor, values[key])
    return arrays


def _values(storage: Storage, data: bytes) -> NDArray[Any]:
    if storage.count * _item_size(storage.dtype) != len(data):
        raise ValueError(
            f"storage {storage.key!r} of {storage.count} values {storage.dtype} has {len(data)} "
            "bytes: the file is truncated or damaged"
        )
    return _from_bytes(storage.dtype, data)


def _view(name: str, tensor: Tensor, values: NDArray[Any]) -> NDArray[Any]:
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    if len(shape) != len(strides) or len(shape) > MAX_AXES or min((offset, *shape, *strides)) < 0:
        raise ValueError(f"tensor {name} has shape {shape}, strides {strides}, offset {offset}")
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # More values than the storage has would be a small file's way to fill the memory.
    if count > values.size or (count and last >= values.size):
        raise ValueError(
            f"tensor {name} of shape {shape}, strides {strides} and offset {offset} does not fit "
            f"into its {values.size} values"
        )
    if not count:
        return np.zeros(shape, values.dtype)
    # The stride of an axis of one position means nothing, and may be any number.
    steps = tuple(
        stride * values.itemsize if n > 1 else 0 for n, stride in zip(shape, strides, strict=True)
    )
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)


def _read_safetensors(data: bytes) -> Arrays:
    # The library's NumPy interface knows no bfloat16: bytes, types and shapes are taken instead.
    try:
        tensors = deserialize(data)
    except SafetensorError as e:
        raise ValueError(f"the safetensors file is damaged: {e}") from e
    arrays: Arrays = {}
    for name, tensor in sorted(tensors):  # The library's order is another one each time.
        dtype, shape = tensor["dtype"], tuple(tensor["shape"])
        if dtype not in _SAFETENSORS_TYPES:
            known = ", ".join(_SAFETENSORS_TYPES)
            raise ValueError(f"tensor {name} is of type {dtype}; types that are read: {known}")
        # Shapes of no values can have axes of any number and size.
        if len(shape) > MAX_AXES or max(shape, default=0) > _MAX_AXIS:
            raise ValueError(f"tensor {name} has shape {shape}")
        arrays[name] = _from_bytes(_SAFETENSORS_TYPES[dtype], tensor["data"]).reshape(shape)
    return arrays


def _item_size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _from_bytes(dtype: str, data: bytes | bytearray) -> NDArray[Any]:
    if dtype == "bfloat16":
        # The upper half of a float32.
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return _widened(np.frombuffer(data, dtype))


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float16 else array
