import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from sic_jax.entropy import native_coder, range_coder
from sic_jax.entropy.cdf_tables import CdfTables, gaussian_tables, tables_from_pmfs
from sic_jax.entropy.range_coder import (
    PreparedTables,
    RangeDecoder,
    RangeEncoder,
    available_backends,
)
from sic_jax.errors import BitstreamError

needs_tfc = pytest.mark.skipif(
    "tfc" not in available_backends(), reason="tensorflow-compression-ops is not installed"
)
LIMIT = 2**29 - 1

# Table 0: values 0 and 1 with masses 1/2 and 1/2 - 2**-16. Table 1: nothing but the escape.
# Table 2: value 0 in the middle half, so that the interval of many zeros straddles 1/2 for ever.
TINY = CdfTables(
    lookup=np.array(
        [-16, 0, 32768, 65535, 65536, -16, 0, 65536, -16, 0, 16384, 49152, 65535, 65536], np.int32
    ),
    starts=np.array([0, 5, 8], np.int32),
    offsets=np.array([0, -2, -1], np.int32),
)

# The bytes are TensorFlow Compression's. All but the last are also easy to derive by hand: 2**16
# of the 2**32 states are left after an escape, hence ff ff; then gamma = 1 is "1", gamma = 2 is
# "010", and the sign follows.
GOLDEN = [
    ([], [], ""),
    ([0], [0], ""),
    ([1], [0], "80"),
    ([2], [0], "ffff80"),
    ([-1], [0], "ffffc0"),
    ([3], [0], "ffff40"),
    ([0] * 1000, [2] * 1000, "80"),
    ([0] * 40 + [-1], [2] * 41, "7fffffffff80"),
    ([0] * 40 + [1], [2] * 41, "800000000040"),
    (
        [0, 1, -1, 2, 0, -5, 7, 0, -2, -3, -1, LIMIT, -LIMIT],
        [0, 0, 1, 2, 2, 0, 2, 1, 1, 1, 2, 0, 1],
        "53ffd6bfff97fffe6359fffe0000001ffffffe00000007ffffff60",
    ),
]


@pytest.fixture(params=["native", "interpreted", pytest.param("tfc", marks=needs_tfc)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend, and the native one as it runs where Numba is not installed."""
    if request.param != "interpreted":
        return str(request.param)
    monkeypatch.setattr(native_coder, "_ENCODE", native_coder._encode_kernel)
    monkeypatch.setattr(native_coder, "_DECODE", native_coder._decode_kernel)
    monkeypatch.setattr(native_coder, "_FORM", lambda array: array.tolist())
    return "native"


def encode(
    tables: CdfTables, values: ArrayLike, indices: ArrayLike, *, backend: str = "native"
) -> bytes:
    encoder = RangeEncoder(tables, backend=backend)
    encoder.encode(values, indices)
    return encoder.finish()


def decode(
    tables: CdfTables, data: bytes, indices: ArrayLike, *, backend: str = "native"
) -> NDArray[Any]:
    decoder = RangeDecoder(tables, data, backend=backend)
    values = decoder.decode(indices)
    decoder.finish()
    return values


def random_case(rng: np.random.Generator) -> tuple[CdfTables, NDArray[Any], NDArray[Any]]:
    """Tables from flat to peaked, and values from all in the table to mostly escaped."""
    count = int(rng.integers(1, 6))
    tables = tables_from_pmfs(
        [rng.exponential(size=rng.integers(0, 30)) ** rng.uniform(0.3, 6.0) for _ in range(count)],
        rng.integers(-20, 20, count).tolist(),
        rng.uniform(0.01, 2.0, count).tolist(),
    )
    size = int(rng.integers(0, 200))
    indices = rng.integers(0, count, size)
    spread = rng.choice([0.0, 1.0, 5.0, 30.0, 1e5])
    values = np.rint(rng.standard_t(1, size=size) * spread).clip(-LIMIT, LIMIT).astype(np.int32)
    return tables, values, indices


def random_cases(count: int) -> Iterator[tuple[CdfTables, NDArray[Any], NDArray[Any]]]:
    return (random_case(np.random.default_rng(seed)) for seed in range(count))


@pytest.mark.parametrize(("values", "indices", "stream"), GOLDEN)
def test_golden_streams(values: list[int], indices: list[int], stream: str, backend: str) -> None:
    v, i = np.array(values, np.int32), np.array(indices, np.int32)
    assert encode(TINY, v, i, backend=backend).hex() == stream
    decoded = decode(TINY, bytes.fromhex(stream), i, backend=backend)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, v)


@needs_tfc
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_native_bytes_are_those_of_tfc(count: int) -> None:
    escapes = 0
    for tables, values, indices in random_cases(count):
        data = encode(tables, values, indices, backend="tfc")
        assert encode(tables, values, indices) == data
        np.testing.assert_array_equal(decode(tables, data, indices), values)
        escapes += int(np.sum(np.abs(values) > 50))
    assert escapes > 10 * count


@needs_tfc
def test_tfc_decodes_native_streams() -> None:
    for tables, values, indices in random_cases(30):
        data = encode(tables, values, indices)
        np.testing.assert_array_equal(decode(tables, data, indices, backend="tfc"), values)


def test_calls_can_be_split(backend: str) -> None:
    for tables, values, indices in random_cases(25):
        whole = encode(tables, values, indices, backend=backend)
        cuts = np.sort(np.random.default_rng(len(whole)).integers(0, values.size + 1, 5))
        encoder = RangeEncoder(tables, backend=backend)
        decoder = RangeDecoder(tables, whole, backend=backend)
        decoded = []
        for v, i in zip(np.split(values, cuts), np.split(indices, cuts), strict=True):
            encoder.encode(v, i)
            decoded.append(decoder.decode(i))
        assert encoder.finish() == whole
        decoder.finish()
        np.testing.assert_array_equal(np.concatenate(decoded), values)


def test_long_streams_are_split_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [encode(*case) for case in random_cases(20)]
    monkeypatch.setattr(native_coder, "_CHUNK", 7)
    assert [encode(*case) for case in random_cases(20)] == whole


def test_size_is_the_information_content() -> None:
    rng = np.random.default_rng(0)
    sigmas = np.array([0.3, 1.0, 4.0, 16.0])
    tables = gaussian_tables(sigmas, 4)
    index = rng.integers(0, 16, 100_000)
    values = np.rint(rng.normal(size=index.size) * sigmas[index // 4] + index % 4 / 4)
    position = tables.starts[index] + 1 + (values - tables.offsets[index]).astype(int)
    ends = np.append(tables.starts[1:], tables.lookup.size)[index] - 1
    inside = (values >= tables.offsets[index]) & (position + 1 < ends)
    assert 0.999 < inside.mean() < 1.0
    index, position = index[inside], position[inside]
    bits = -np.log2((tables.lookup[position + 1] - tables.lookup[position]) / 65536).sum()
    size = 8 * len(encode(tables, values[inside].astype(np.int32), index))
    # Rounding the interval at each symbol costs below 2**-15 of it; the end, up to two bytes.
    assert bits <= size < bits * 1.0001 + 16


@pytest.mark.parametrize("stream", [b"", b"\x00", b"\xff" * 50])
def test_no_symbols(stream: bytes, backend: str) -> None:
    decoder = RangeDecoder(TINY, stream, backend=backend)
    assert decoder.decode(np.empty(0, np.int32)).shape == (0,)
    if stream:
        with pytest.raises(BitstreamError, match=f"stream of {len(stream)} bytes does not end"):
            decoder.finish()
    else:
        decoder.finish()


def test_finish_detects_a_wrong_end(backend: str) -> None:
    for tables, values, indices in random_cases(40):
        data = encode(tables, values, indices)
        if len(data) < 12:
            continue
        for extra in (b"\x00", bytes(9)):
            with pytest.raises(BitstreamError, match="does not end with its last symbol"):
                decode(tables, data + extra, indices, backend=backend)
        with pytest.raises(BitstreamError, match="does not end with its last symbol"):
            decode(tables, data, indices[: indices.size // 2], backend=backend)


def accepted(tables: CdfTables, data: bytes, indices: NDArray[Any]) -> bool:
    """Decodes any bytes; what is accepted must be exactly the encoder's stream."""
    try:
        values = decode(tables, data, indices)
    except BitstreamError:
        return False
    assert encode(tables, values, indices) == data
    return True


def test_damaged_streams_are_refused_or_are_other_valid_streams() -> None:
    rng = np.random.default_rng(7)
    outcomes = []
    for tables, values, indices in random_cases(150):
        data = encode(tables, values, indices)
        for _ in range(20):
            wrong = bytearray(data)
            kind = rng.integers(0, 4)
            position = int(rng.integers(0, len(data) + 1))
            if kind == 0:
                del wrong[position:]
            elif kind == 1:
                wrong[position:position] = rng.bytes(int(rng.integers(1, 9)))
            elif kind == 2 and data:
                wrong[position % len(data)] ^= 1 << int(rng.integers(0, 8))
            else:
                wrong[:] = rng.bytes(int(rng.integers(0, 40)))
            outcomes.append(accepted(tables, bytes(wrong), indices))
    assert len(outcomes) == 3000
    assert 0 < sum(outcomes) < 1500


def test_short_streams_are_decoded_exactly_when_an_encoder_writes_them() -> None:
    indices = np.array([2, 0, 1, 2], np.int32)
    values = [np.array(v, np.int32) for v in np.ndindex(3, 2, 4, 3)]
    written = {encode(TINY, v - [1, 0, 2, 1], indices) for v in values}
    short = {data for data in written if len(data) <= 2}
    grid = {bytes([a, b]) for a in range(0, 256, 15) for b in range(0, 256, 15)}
    streams = {b"", *(bytes([a]) for a in range(256)), *grid, *short}
    valid = {data for data in streams if accepted(TINY, data, indices)}
    assert short <= valid
    assert len(short) > 30
    assert len(streams - valid) > 100


@pytest.mark.parametrize(
    ("data", "count", "match"),
    [
        (b"", 10**6, "stream ends before its last symbol"),
        (b"\x00" * 100, 10**6, "more than 29 leading zeros"),
        (b"\xff" * 10, 10**6, "stream ends before its last symbol"),
    ],
)
def test_hostile_escapes_end(data: bytes, count: int, match: str) -> None:
    """The first makes TensorFlow Compression's decoder loop for ever."""
    with pytest.raises(BitstreamError, match=match):
        RangeDecoder(TINY, data, backend="native").decode(np.ones(count, np.int32))


def test_values_beyond_the_limit_are_refused(backend: str) -> None:
    data = encode(TINY, [LIMIT], [0])
    shifted = TINY._replace(offsets=np.array([1, 0, 0], np.int32))
    with pytest.raises(BitstreamError, match="not within"):
        RangeDecoder(shifted, data, backend=backend).decode([0])
    # The longest escape that can be written: both extremes against the extreme offsets.
    for value, offset in ((LIMIT, -(2**24)), (-LIMIT, 2**24)):
        far = TINY._replace(offsets=np.full(3, offset, np.int32))
        stream = encode(far, [value], [1], backend=backend)
        np.testing.assert_array_equal(decode(far, stream, [1], backend=backend), [value])


@pytest.mark.parametrize(
    ("values", "indices", "error", "match"),
    [
        ([LIMIT + 1], [0], ValueError, "values must be -536870911 to 536870911"),
        ([-LIMIT - 1], [0], ValueError, "values must be -536870911 to 536870911"),
        (np.array([2**40]), [0], ValueError, "values must be"),
        ([0], [3], ValueError, "indices must be 0 to 2, got 3 to 3"),
        ([0], [-1], ValueError, "indices must be 0 to 2, got -1 to -1"),
        ([0, 1], [0], ValueError, "must match, got 2 and 1"),
        ([0], [], ValueError, "must match, got 1 and 0"),
        ([[0]], [[0]], ValueError, r"values must be 1-D, got shape \(1, 1\)"),
        ([0.0], [0], TypeError, "values must be of an integer type, got float64"),
        ([0], [False], TypeError, "indices must be of an integer type, got bool"),
    ],
)
def test_encoder_refuses(
    values: object, indices: object, error: type[Exception], match: str, backend: str
) -> None:
    encoder = RangeEncoder(TINY, backend=backend)
    encoder.encode([1], [0])
    with pytest.raises(error, match=match):
        encoder.encode(values, indices)  # type: ignore[arg-type]
    assert encoder.finish() == b"\x80"  # the refused call left no trace


def test_decoder_refuses(backend: str) -> None:
    decoder = RangeDecoder(TINY, b"\x80", backend=backend)
    with pytest.raises(ValueError, match="indices must be 0 to 2, got 0 to 3"):
        decoder.decode([0, 3])
    with pytest.raises(TypeError, match="got float32"):
        decoder.decode(np.zeros(1, np.float32))
    np.testing.assert_array_equal(decoder.decode([0]), [1])
    decoder.finish()


def test_bad_tables_and_backends_are_refused() -> None:
    bad = TINY._replace(lookup=np.where(TINY.lookup == 32768, 65535, TINY.lookup))
    with pytest.raises(ValueError, match="row 0 must strictly increase"):
        RangeEncoder(bad, backend="native")
    with pytest.raises(ValueError, match="row 0 must strictly increase"):
        RangeDecoder(bad, b"", backend="native")
    with pytest.raises(ValueError, match="here, got 'rans'"):
        RangeEncoder(TINY, backend="rans")


def test_any_integer_array_is_taken(backend: str) -> None:
    values = np.arange(-40, 40)[::2]
    indices = np.zeros(40, np.uint8)
    expected = encode(TINY, values.astype(np.int32), indices.astype(np.int32), backend=backend)
    values.setflags(write=False)
    assert encode(TINY, values, indices, backend=backend) == expected
    np.testing.assert_array_equal(decode(TINY, expected, indices, backend=backend), values)


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert range_coder.default_backend() == "native"
    assert available_backends() in {("native",), ("native", "tfc")}
    monkeypatch.setattr(range_coder, "_TFC_OPS", "no_such_module")
    assert available_backends() == ("native",)
    with pytest.raises(ValueError, match="got 'tfc'"):
        RangeDecoder(TINY, b"", backend="tfc")


def test_import_is_light() -> None:
    code = (
        "import sys, sic_jax.entropy.range_coder as r; r.available_backends();"
        "print(sorted({'jax', 'numba', 'scipy', 'tensorflow'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_prepared_tables_are_validated_once_and_cannot_change(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = CdfTables(*(array.copy() for array in TINY))
    prepared = PreparedTables(tables)
    tables.lookup[2], tables.offsets[0] = 65535, 7  # What was prepared is a copy.
    with pytest.raises(ValueError, match="read-only"):
        prepared.tables.lookup[2] = 65535
    validated: list[CdfTables] = []
    monkeypatch.setattr(range_coder, "validate_tables", validated.append)
    for values, indices, expected in GOLDEN:
        encoder = RangeEncoder(prepared, backend=backend)
        encoder.encode(values, indices)
        data = encoder.finish()
        assert data.hex() == expected
        decoder = RangeDecoder(prepared, data, backend=backend)
        np.testing.assert_array_equal(decoder.decode(indices), values)
        decoder.finish()
    assert not validated
    RangeEncoder(TINY, backend=backend)
    RangeDecoder(TINY, b"", backend=backend)
    assert len(validated) == 2


@pytest.mark.parametrize("make", [PreparedTables, lambda t: RangeEncoder(t, backend="native")])
def test_tables_of_other_types_are_refused(make: Callable[[CdfTables], object]) -> None:
    with pytest.raises(ValueError, match="lookup must be 1-D int32, got int64 with 1 axes"):
        make(TINY._replace(lookup=TINY.lookup.tolist()))
    with pytest.raises(ValueError, match="offsets must be 1-D int32, got float32 with 1 axes"):
        make(TINY._replace(offsets=TINY.offsets.astype(np.float32)))
    with pytest.raises(ValueError, match="row 0 must strictly increase"):
        make(TINY._replace(lookup=np.where(TINY.lookup == 32768, 65535, TINY.lookup)))


def test_native_coder_works_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from sic_jax.entropy.native_coder import NativeEncoder\n"
        "from sic_jax.entropy.cdf_tables import tables_from_pmfs\n"
        "import numpy as np\n"
        "e = NativeEncoder(tables_from_pmfs([[1.0, 1.0]], [0], [0.0]))\n"
        "e.encode(np.array([1, 0, 5], np.int32), np.zeros(3, np.int32)); print(e.finish().hex())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    tables = tables_from_pmfs([[1.0, 1.0]], [0], [0.0])
    assert result.stdout.strip() == encode(tables, [1, 0, 5], [0, 0, 0]).hex()


@pytest.mark.slow
def test_native_coder_compiles_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    compiled_encode, _, _ = native_coder._compile()
    monkeypatch.setattr(native_coder, "_ENCODE", compiled_encode)
    assert encode(TINY, [2], [0]).hex() == "ffff80"
