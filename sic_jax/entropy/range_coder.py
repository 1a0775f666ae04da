"""Range coding of integers with two backends that write the same bytes.

`native` is the package's own coder: safe on any bytes, compiled by Numba where that is installed,
and about a hundred times slower where it is not. `tfc` uses the ops of TensorFlow Compression
(`tensorflow-compression-ops`), whose decoder can loop for ever on forged bytes: check a stream's
checksum first. Neither is imported before it is used.
"""

import contextlib
import importlib.util
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sic_jax.entropy.cdf_tables import CdfTables, validate_tables
from sic_jax.errors import BitstreamError

if TYPE_CHECKING:
    from sic_jax.entropy.native_coder import NativeTables

VALUE_LIMIT: Final = 1 << 29
_TFC_OPS: Final = "tensorflow_compression_ops"


def available_backends() -> tuple[str, ...]:
    """Names of the backends that can be used here, the one that starts faster first."""
    return ("native", "tfc") if importlib.util.find_spec(_TFC_OPS) else ("native",)


def default_backend() -> str:
    """Name of the backend that starts faster and is safe on any bytes."""
    return "native"


class PreparedTables:
    """Validated tables for any number of coders of either backend; nobody can change them."""

    def __init__(self, tables: CdfTables) -> None:
        """Validates a copy of tables.

        Args:
            tables: Tables from any source; see `validate_tables`.

        Raises:
            ValueError: If they are invalid.
        """
        self.tables = CdfTables(*map(np.array, tables))
        validate_tables(self.tables)
        for array in self.tables:
            array.setflags(write=False)

    @cached_property
    def native(self) -> "NativeTables":
        """The form that the native coder takes."""
        from sic_jax.entropy.native_coder import prepare

        return prepare(self.tables)


class RangeEncoder:
    """Encodes integers, each with the table that its index names, into one stream."""

    def __init__(self, tables: CdfTables | PreparedTables, *, backend: str) -> None:
        """Starts a stream.

        Args:
            tables: Tables; see `validate_tables`. They are validated here if they are not prepared.
            backend: "native" or "tfc".

        Raises:
            ValueError: If the tables are invalid, or the backend is unknown or not installed.
        """
        prepared = _prepared(tables)
        self._num_tables = prepared.tables.starts.size
        self._coder = _make_encoder(prepared, backend)

    def encode(self, values: ArrayLike, indices: ArrayLike) -> None:
        """Appends values to the stream; several calls give the same bytes as one.

        Args:
            values: Integers [n] below 2**29 in magnitude.
            indices: Table of each value [n].

        Raises:
            TypeError: If either is not of an integer type.
            ValueError: If the shapes differ, or a value or an index is out of range.
        """
        v = _integers(values, "values", 1 - VALUE_LIMIT, VALUE_LIMIT)
        i = _integers(indices, "indices", 0, self._num_tables)
        if v.size != i.size:
            raise ValueError(f"values and indices must match, got {v.size} and {i.size}")
        if v.size:
            self._coder.encode(v, i)

    def finish(self) -> bytes:
        """Ends the stream and returns it; no other call may follow."""
        return self._coder.finish()


class RangeDecoder:
    """Decodes the stream of a `RangeEncoder` with the same tables, by either backend."""

    def __init__(self, tables: CdfTables | PreparedTables, data: bytes, *, backend: str) -> None:
        """Opens a stream.

        Args:
            tables: The tables that the encoder used; validated here if they are not prepared.
            data: The whole stream.
            backend: "native" or "tfc"; "tfc" must only be given streams with a verified checksum.

        Raises:
            ValueError: If the tables are invalid, or the backend is unknown or not installed.
        """
        prepared = _prepared(tables)
        self._num_tables = prepared.tables.starts.size
        self._coder = _make_decoder(prepared, bytes(data), backend)

    def decode(self, indices: ArrayLike) -> NDArray[np.int32]:
        """Decodes the next values; several calls give the same values as one.

        Args:
            indices: Table of each value [n].

        Returns:
            int32 [n], below 2**29 in magnitude.

        Raises:
            TypeError: If the indices are not of an integer type.
            ValueError: If an index is out of range.
            BitstreamError: If the stream is recognisably not one of an encoder; the decoder must
                not be used further.
        """
        i = _integers(indices, "indices", 0, self._num_tables)
        if i.size == 0:
            return i
        values = self._coder.decode(i)
        if values.min() <= -VALUE_LIMIT or values.max() >= VALUE_LIMIT:
            raise BitstreamError(f"range decoder: decoded value is not within +-{VALUE_LIMIT - 1}")
        return values

    def finish(self) -> None:
        """Checks that the stream is byte for byte the encoder's for the decoded values.

        Raises:
            BitstreamError: If it is not: bytes are missing, left over or changed.
        """
        self._coder.finish()


class _Encoder(Protocol):
    def encode(self, values: NDArray[np.int32], indices: NDArray[np.int32]) -> None: ...
    def finish(self) -> bytes: ...


class _Decoder(Protocol):
    def decode(self, indices: NDArray[np.int32]) -> NDArray[np.int32]: ...
    def finish(self) -> None: ...


def _prepared(tables: CdfTables | PreparedTables) -> PreparedTables:
    return tables if isinstance(tables, PreparedTables) else PreparedTables(tables)


def _make_encoder(prepared: PreparedTables, backend: str) -> _Encoder:
    _check_backend(backend)
    if backend == "tfc":
        return _TfcEncoder(prepared.tables)
    from sic_jax.entropy.native_coder import NativeEncoder

    return NativeEncoder(prepared.native)


def _make_decoder(prepared: PreparedTables, data: bytes, backend: str) -> _Decoder:
    _check_backend(backend)
    if backend == "tfc":
        return _TfcDecoder(prepared.tables, data)
    from sic_jax.entropy.native_coder import NativeDecoder

    return NativeDecoder(prepared.native, data)


def _check_backend(backend: str) -> None:
    if backend not in available_backends():
        raise ValueError(f"backend must be one of {available_backends()} here, got {backend!r}")


def _integers(array: ArrayLike, name: str, low: int, high: int) -> NDArray[np.int32]:
    """Returns a contiguous int32 array with low <= x < high, or raises."""
    x = np.asarray(array)
    if x.ndim != 1:
        raise ValueError(f"{name} must be 1-D, got shape {x.shape}")
    if x.size == 0:
        return np.empty(0, dtype=np.int32)
    if not np.issubdtype(x.dtype, np.integer):
        raise TypeError(f"{name} must be of an integer type, got {x.dtype}")
    if x.min() < low or x.max() >= high:
        raise ValueError(f"{name} must be {low} to {high - 1}, got {x.min()} to {x.max()}")
    return np.ascontiguousarray(x, dtype=np.int32)


def _tfc_ops() -> Any:
    """Imports the ops without TensorFlow's log lines and without taking a GPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import tensorflow_compression_ops as ops

    with contextlib.suppress(RuntimeError):  # devices are in use already: leave them
        tf.config.set_visible_devices([], "GPU")
    return ops


class _TfcEncoder:
    def __init__(self, tables: CdfTables) -> None:
        self._ops = _tfc_ops()
        self._offsets = tables.offsets
        self._handle = self._ops.create_range_encoder([], tables.lookup)

    def encode(self, values: NDArray[np.int32], indices: NDArray[np.int32]) -> None:
        symbols = values - self._offsets[indices]
        self._handle = self._ops.entropy_encode_index(self._handle, indices, symbols)

    def finish(self) -> bytes:
        stream: bytes = self._ops.entropy_encode_finalize(self._handle).numpy()
        return stream


class _TfcDecoder:
    """Encodes again what it decodes: the library's own final check passes most damaged streams."""

    def __init__(self, tables: CdfTables, data: bytes) -> None:
        self._ops = _tfc_ops()
        self._offsets = tables.offsets
        self._data = data
        self._handle = self._ops.create_range_decoder(data, tables.lookup)
        self._encoder = _TfcEncoder(tables)

    def decode(self, indices: NDArray[np.int32]) -> NDArray[np.int32]:
        self._handle, symbols = self._ops.entropy_decode_index(
            self._handle, indices, indices.shape, np.int32
        )
        values: NDArray[np.int32] = symbols.numpy() + self._offsets[indices]
        # Values beyond the limit are refused by the caller; the library must not encode them.
        self._encoder.encode(np.clip(values, 1 - VALUE_LIMIT, VALUE_LIMIT - 1), indices)
        return values

    def finish(self) -> None:
        if self._encoder.finish() != self._data:
            raise BitstreamError(
                f"range decoder: the stream of {len(self._data)} bytes does not end with its last "
                "symbol"
            )
