"""Range coder that writes the streams of TensorFlow Compression without TensorFlow.

The coder follows G. N. N. Martin, "Range coding" (1979), in the variant of TensorFlow Compression's
`range_coder.cc`: an interval [base, base + size) of 32 bits with size >= 2**16 is narrowed by each
symbol, and widened by 16 bits, of which two bytes are written, when it becomes too small. When the
interval then straddles a multiple of 2**32 the two bytes are not known yet: `delay` holds the upper
of the two candidates, `zeros` the number of zero bytes that follow it.

The two kernels are plain Python over integers. Numba compiles them; without it they run as they
are, over lists.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sic_jax.entropy.cdf_tables import CdfTables
from sic_jax.errors import BitstreamError

# The gamma of an escape stays below 2**30, since |value| < 2**29 and |offset| <= 2**24. (A kernel
# must read its constants from this file: the cache of compiled code looks at no other.)
MAX_GAMMA_ZEROS: Final = 29
_CHUNK: Final = 1 << 20
_TOP: Final = 1 << 32
_MASK: Final = _TOP - 1
_ERRORS: Final = {
    1: "stream ends before its last symbol",
    2: f"escape code has more than {MAX_GAMMA_ZEROS} leading zeros",
}


def _encode_kernel(
    lookup: Any, bounds: Any, offsets: Any, values: Any, indices: Any, state: Any, out: Any
) -> int:
    """Encodes values into `out` and returns the number of bytes written; updates `state`."""
    base, size, delay, zeros = state[0], state[1], state[2], state[3]
    count = 0
    for i in range(len(values)):
        index = indices[i]
        first = bounds[index] + 1
        escape = bounds[index + 1] - 2 - first
        symbol = values[i] - offsets[index]
        code = 0
        bits = 0
        if symbol < 0 or symbol >= escape:
            # Elias gamma is gamma itself with as many leading zeros as it has further bits; the
            # sign comes last.
            code = -2 * symbol + 1 if symbol < 0 else 2 * (symbol - escape + 1)
            while code >> (bits // 2 + 1):
                bits += 2
            symbol = escape
        low = (size * lookup[first + symbol]) >> 16
        high = (size * lookup[first + symbol + 1]) >> 16
        while True:
            base += low
            size = high - low
            if delay != 0:
                fill = -1
                if base >= _TOP:
                    base -= _TOP
                    fill = 0
                elif base + size <= _TOP:
                    delay -= 1
                    fill = 255
                if fill >= 0:
                    out[count] = delay >> 8
                    out[count + 1] = delay & 255
                    count += 2
                    for _ in range(zeros):
                        out[count] = fill
                        count += 1
                    delay = 0
                    zeros = 0
            if size <= 65536:
                top = base >> 16
                base = (base & 65535) << 16
                size <<= 16
                if delay != 0:
                    zeros += 2
                elif base + size <= _TOP:
                    out[count] = top >> 8
                    out[count + 1] = top & 255
                    count += 2
                else:
                    delay = top + 1
            if bits == 0:
                break
            bits -= 1
            half = size >> 1
            if (code >> bits) & 1:
                low = half
                high = size
            else:
                low = 0
                high = half
    state[0], state[1], state[2], state[3] = base, size, delay, zeros
    return count


def _decode_kernel(
    lookup: Any, bounds: Any, offsets: Any, indices: Any, data: Any, state: Any, out: Any
) -> int:
    """Decodes values into `out`; returns 0, or the number of an error; updates `state`.

    `position` counts the bytes read, past the end too, where zeros are implied. `emitted` counts
    those that the encoder has written at this point; more of them than there are is an error.
    """
    base, size, offset = state[0], state[1], state[2]
    position, delay, emitted = state[3], state[4], state[5]
    length = len(data)
    for i in range(len(indices)):
        index = indices[i]
        first = bounds[index] + 1
        last = bounds[index + 1] - 1
        target = (offset + 1) << 16
        left = first + 1
        right = last
        while left < right:
            middle = (left + right) >> 1
            if size * lookup[middle] < target:
                left = middle + 1
            else:
                right = middle
        symbol = left - first - 1
        escape = last - first - 1
        low = (size * lookup[left - 1]) >> 16
        high = (size * lookup[left]) >> 16
        zeros = 0
        code = 0
        bits = -1  # bits of the escape code still to come, unknown at first
        while True:
            base = (base + low) & _MASK
            offset -= low
            size = high - low
            if size <= 65536:
                straddled = base + size > _TOP
                top = base >> 16
                base = (base << 16) & _MASK
                size <<= 16
                offset <<= 16
                if position < length:
                    offset += data[position] << 8
                if position + 1 < length:
                    offset += data[position + 1]
                position += 2
                if not straddled:
                    if base + size > _TOP:
                        delay = top + 1
                        emitted = position - 6
                    else:
                        emitted = position - 4
                    if emitted > length:
                        return 1
            if symbol != escape or bits == 0:
                break
            half = size >> 1
            if offset >= half:
                bit = 1
                low = half
                high = size
            else:
                bit = 0
                low = 0
                high = half
            if bits > 0:
                code = (code << 1) | bit
                bits -= 1
            elif bit == 1:
                code = 1
                bits = zeros + 1
            else:
                zeros += 1
                if zeros > MAX_GAMMA_ZEROS:
                    return 2
        value = offsets[index] + symbol
        if symbol == escape:
            gamma = code >> 1
            value = offsets[index] + (-gamma if code & 1 else escape + gamma - 1)
        out[i] = value
    state[0], state[1], state[2] = base, size, offset
    state[3], state[4], state[5] = position, delay, emitted
    return 0


def _final_bytes(base: int, size: int, delay: int) -> bytes:
    """Shortest end of a stream that lies in the last interval; zeros after it are implied."""
    if delay:
        end = delay
    elif base == 0:
        return b""
    else:
        end = -(-base >> 24) << 8
        if end << 16 >= base + size:
            end = -(-base >> 16)
    return bytes([end >> 8, end & 255]) if end & 255 else bytes([end >> 8])


def _compile() -> tuple[Callable[..., int], Callable[..., int], Callable[[Any], Any]]:
    """Returns both kernels, and what brings an integer array into the form that they take."""
    try:
        import numba
    except ImportError:
        return _encode_kernel, _decode_kernel, lambda array: array.tolist()
    constant = numba.types.Array(numba.int32, 1, "C", readonly=True)
    constant_bytes = numba.types.Array(numba.uint8, 1, "C", readonly=True)
    state = numba.int64[::1]
    encode_type = numba.int64(*[constant] * 5, state, numba.uint8[::1])
    decode_type = numba.int64(*[constant] * 4, constant_bytes, state, numba.int32[::1])

    def compile_both(*, cache: bool) -> tuple[Callable[..., int], Callable[..., int]]:
        return (
            numba.njit(encode_type, cache=cache, nogil=True)(_encode_kernel),
            numba.njit(decode_type, cache=cache, nogil=True)(_decode_kernel),
        )

    try:
        encode, decode = compile_both(cache=True)
    except (RuntimeError, OSError):  # no writable place for the cache
        encode, decode = compile_both(cache=False)
    return encode, decode, lambda array: array


_ENCODE, _DECODE, _FORM = _compile()


class NativeTables(NamedTuple):
    """Validated tables in the form that the kernels take."""

    lookup: Any
    bounds: Any
    offsets: Any


def prepare(tables: CdfTables) -> NativeTables:
    """The form of validated tables that the kernels take, for any number of coders."""
    bounds = np.append(tables.starts, np.int32(tables.lookup.size))
    arrays = (tables.lookup, bounds, tables.offsets)
    return NativeTables(*(_FORM(np.ascontiguousarray(array)) for array in arrays))


class NativeEncoder:
    """Range encoder over validated tables; see `sic_jax.entropy.range_coder.RangeEncoder`."""

    def __init__(self, tables: CdfTables | NativeTables) -> None:
        """Starts a stream."""
        self._tables = tables if isinstance(tables, NativeTables) else prepare(tables)
        self._state = _FORM(np.array([0, _TOP, 0, 0], dtype=np.int64))
        self._chunks: list[bytes] = []

    def encode(self, values: NDArray[np.int32], indices: NDArray[np.int32]) -> None:
        """Encodes values [n] with the tables of the given (valid) indices [n]."""
        for i in range(0, values.size, _CHUNK):
            part = slice(i, i + _CHUNK)
            v, n = _FORM(values[part]), _FORM(indices[part])
            # One widening of two bytes per symbol, and four more for the at most 60 bits of an
            # escape code; what was delayed before can come on top.
            out = np.empty(2 + int(self._state[3]) + 12 * len(v), dtype=np.uint8)
            count = _ENCODE(*self._tables, v, n, self._state, out)
            self._chunks.append(out[:count].tobytes())

    def finish(self) -> bytes:
        """Returns the stream."""
        base, size, delay, _ = (int(x) for x in self._state)
        return b"".join([*self._chunks, _final_bytes(base, size, delay)])


class NativeDecoder:
    """Range decoder over validated tables; see `sic_jax.entropy.range_coder.RangeDecoder`.

    Work is bounded by the number of values asked for, whatever the bytes are.
    """

    def __init__(self, tables: CdfTables | NativeTables, data: bytes) -> None:
        """Opens a stream."""
        self._tables = tables if isinstance(tables, NativeTables) else prepare(tables)
        self._data = data
        self._bytes = _FORM(np.frombuffer(data, dtype=np.uint8))
        start = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._state = _FORM(np.array([0, _TOP, start, 4, 0, 0], dtype=np.int64))

    def decode(self, indices: NDArray[np.int32]) -> NDArray[np.int32]:
        """Decodes one value per (valid) index: [n] for [n].

        Raises:
            BitstreamError: If the stream is recognisably not one of an encoder.
        """
        out = np.empty(indices.size, dtype=np.int32)
        error = _DECODE(*self._tables, _FORM(indices), self._bytes, self._state, out)
        if error:
            raise BitstreamError(f"range decoder: {_ERRORS[error]}")
        return out

    def finish(self) -> None:
        """Checks that the stream is exactly the one that the encoder writes for these values.

        Raises:
            BitstreamError: If it is not.
        """
        base, size, _, position, delay, emitted = (int(x) for x in self._state)
        if base + size <= _TOP:
            delay, emitted = 0, position - 4
        if emitted > len(self._data) or self._data[emitted:] != _final_bytes(base, size, delay):
            raise BitstreamError(
                f"range decoder: the stream of {len(self._data)} bytes does not end with its last "
                "symbol"
            )
