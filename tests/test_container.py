import dataclasses
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sic_jax.codec.container import (
    MAX_LEVELS,
    Container,
    Header,
    Segment,
    level_sizes,
    pack,
    read_header,
    read_metadata,
    symbols_checksum,
    truncate,
    truncate_to,
    unpack,
)
from sic_jax.codec.pixels import alpha_plane
from sic_jax.codec.wire import Reader, crc16, varint
from sic_jax.errors import BitstreamError
from sic_jax.metadata import MAX_DPI, MAX_METADATA_BYTES, Metadata

DATA = Path(__file__).resolve().parent / "data"
GOLDEN = DATA / "container"
MODEL_ID = bytes.fromhex("0123456789ab")
FAST = settings(max_examples=60, deadline=None, derandomize=True)


def checksum(*symbols: int) -> int:
    return symbols_checksum(struct.pack(f"<{len(symbols)}i", *symbols))


RGB = Header(model_id=MODEL_ID, height=512, width=768, num_levels=3)
SEGMENTS = (
    Segment(b"\xde\xad\x01", checksum(0, 1, -1)),
    Segment(b"", checksum(0, 0)),
    Segment(bytes(range(128)), checksum(5)),
    Segment(b"\xff", checksum(-(2**31), 2**31 - 1)),
)
SHORT = (Segment(b"\x80", checksum(7)), Segment(b"\x12\x34", checksum(-7)))
MINIMAL = Header(model_id=bytes(6), height=1, width=1, num_levels=1, mode="gray")
EXACT = Header(model_id=bytes(6), height=1, width=2, num_levels=3, mode="gray", exact=True)
EXACT_SEGMENT = Segment(bytes.fromhex("7801 01 0200 fdff 07c8 00d800d0"), crc16(b"\x07\xc8"))
LARGEST = Header(
    model_id=b"\xff" * 6,
    height=2**24 - 1,
    width=2**24 - 1,
    num_levels=1,
    seed=2**32 - 1,
    float_entropy=True,
)
SEE_THROUGH = dataclasses.replace(MINIMAL, height=2, alpha=True)
ALPHA = Segment(
    bytes.fromhex("7801 01 0e00 f1ff 7801 01 0300 fcff 02ff41 02480143 201e0449"),
    crc16(b"\x02\xff\x41"),
)
METADATA = Metadata(icc_profile=b"a colour profile", exif=b"Exif\x00\x00II*\x00")
XMP = Metadata(xmp=b"<x:xmpmeta/>", dpi=(300.0, 72.01))


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.sic").read_bytes()


def segment_ends(
    header: Header, segments: tuple[Segment, ...], alpha: Segment | None = None
) -> list[int]:
    """Where what precedes segment 0, and each segment, ends, by the sizes that FORMAT.md gives."""

    def size(value: int) -> int:
        return max(1, -(-value.bit_length() // 7))

    ends = [15 + size(header.height) + size(header.width) + size(header.seed) + (header.grain > 0)]
    if alpha is not None:
        ends[0] += size(len(alpha.payload)) + 4 + len(alpha.payload)
    for segment in segments:
        ends.append(ends[-1] + size(len(segment.payload)) + 4 + len(segment.payload))
    return ends


headers = st.builds(
    Header,
    model_id=st.binary(min_size=6, max_size=6),
    height=st.integers(1, 2**24 - 1),
    width=st.integers(1, 2**24 - 1),
    num_levels=st.just(1),
    mode=st.sampled_from(["rgb", "gray"]),
    seed=st.integers(0, 2**32 - 1),
    grain=st.integers(0, 255),
    float_entropy=st.booleans(),
)
segments_of_any = st.builds(Segment, st.binary(max_size=300), st.integers(0, 65535))
segment_lists = st.lists(segments_of_any, min_size=2, max_size=8).map(tuple)
optional_bytes = st.none() | st.binary(min_size=1, max_size=200)
resolutions = st.integers(1, 2**32 - 1).map(lambda hundredths: hundredths / 100)
metadatas = st.builds(
    Metadata,
    icc_profile=optional_bytes,
    exif=optional_bytes,
    xmp=optional_bytes,
    dpi=st.none() | st.tuples(resolutions, resolutions),
)
alphas = st.none() | segments_of_any


@FAST
@given(headers, segment_lists, metadatas, alphas)
def test_round_trip(
    header: Header, segments: tuple[Segment, ...], metadata: Metadata, alpha: Segment | None
) -> None:
    levels = len(segments) - 1
    header = dataclasses.replace(header, num_levels=levels, alpha=alpha is not None)
    data = pack(header, segments, metadata, alpha=alpha)
    expected = Container(header, segments, metadata, alpha=alpha)
    assert unpack(data, strict=True, max_pixels=None) == expected
    assert read_header(data) == header
    ends = segment_ends(header, segments, alpha)
    assert len(pack(header, segments, alpha=alpha)) == ends[-1]
    for level, end in enumerate(ends[2:], 1):
        part = unpack(data[:end], max_pixels=None)
        assert (part.segments, part.alpha) == (segments[: level + 1], alpha)
    assert read_header(data[:29]) == header


@FAST
@given(headers, segment_lists, metadatas, alphas, st.data())
def test_truncate_equals_coding_at_that_level(
    header: Header,
    segments: tuple[Segment, ...],
    metadata: Metadata,
    alpha: Segment | None,
    data: st.DataObject,
) -> None:
    levels = len(segments) - 1
    header = dataclasses.replace(header, num_levels=levels, alpha=alpha is not None)
    level = data.draw(st.integers(1, header.num_levels))
    lower = dataclasses.replace(header, num_levels=level)
    expected = pack(lower, segments[: level + 1], metadata, alpha=alpha)
    assert truncate(pack(header, segments, metadata, alpha=alpha), level) == expected
    assert truncate(expected, level) == expected
    assert level_sizes(expected)[-1] == len(expected)


@FAST
@given(headers, segments_of_any, metadatas, alphas, st.integers(1, MAX_LEVELS), st.data())
def test_an_exact_picture_has_one_segment_whatever_the_level(
    header: Header,
    segment: Segment,
    metadata: Metadata,
    alpha: Segment | None,
    levels: int,
    draw: st.DataObject,
) -> None:
    header = dataclasses.replace(header, num_levels=levels, exact=True, alpha=alpha is not None)
    data = pack(header, [segment], metadata, alpha=alpha)
    file = unpack(data, strict=True, max_pixels=None)
    assert file == Container(header, (segment,), metadata, alpha=alpha)
    assert (file.level, file.truncated) == (levels, False)
    level = draw.draw(st.integers(1, levels))
    lower = dataclasses.replace(header, num_levels=level)
    assert truncate(data, level) == pack(lower, [segment], metadata, alpha=alpha)
    # A part of it is no picture, strict or not.
    first, end = segment_ends(header, (segment,), alpha)
    cut = draw.draw(st.integers(29, max(29, end - 1)))
    if cut < end:
        where = "picture" if cut >= first else "alpha segment"
        with pytest.raises(BitstreamError, match=f"truncated: it ends inside its {where}"):
            unpack(data[:cut], max_pixels=None)


def test_max_levels_round_trip() -> None:
    header = dataclasses.replace(RGB, num_levels=MAX_LEVELS)
    segments = tuple(Segment(bytes([k]) * k, k) for k in range(MAX_LEVELS + 1))
    assert unpack(pack(header, segments), strict=True) == Container(header, segments)


def test_bytes_like_inputs() -> None:
    data = golden("three_levels")
    for form in (bytearray(data), memoryview(data), memoryview(data + b"x")[:-1]):
        assert unpack(form) == unpack(data)
        assert read_header(form) == RGB
        assert truncate(form, 2) == golden("three_levels_cut_to_two")


@pytest.mark.parametrize("data", ["text", 7, None])
def test_other_inputs_are_type_errors(data: object) -> None:
    with pytest.raises(TypeError, match=r"data must be bytes-like, got (str|int|NoneType)"):
        unpack(data)  # type: ignore[arg-type]


def test_checksum_test_vectors() -> None:
    assert crc16(b"123456789") == 0x31C3
    assert symbols_checksum(bytes.fromhex("0000000001000000ffffffff")) == 0xDE1C
    assert symbols_checksum(b"") == 0


@pytest.mark.parametrize(
    ("name", "header", "segments"),
    [
        ("minimal_gray", MINIMAL, SHORT),
        ("grain", dataclasses.replace(MINIMAL, grain=21), SHORT),
        ("exact", EXACT, (EXACT_SEGMENT,)),
        ("largest_fields", LARGEST, SHORT),
        ("three_levels", RGB, SEGMENTS),
        ("three_levels_cut_to_two", dataclasses.replace(RGB, num_levels=2), SEGMENTS[:3]),
    ],
)
def test_golden_bytes(name: str, header: Header, segments: tuple[Segment, ...]) -> None:
    data = golden(name)
    assert pack(header, segments) == data
    assert unpack(data, strict=True, max_pixels=None) == Container(header, segments)


def test_golden_alpha() -> None:
    data = golden("alpha")
    assert pack(SEE_THROUGH, SHORT, alpha=ALPHA) == data
    assert unpack(data, strict=True) == Container(SEE_THROUGH, SHORT, alpha=ALPHA)
    plane = alpha_plane(unpack(data))
    assert plane is not None
    assert plane.tolist() == [[255], [64]]
    assert truncate(data, 1) == data
    with pytest.raises(
        ValueError, match="the header says alpha = True, and no alpha segment is given"
    ):
        pack(SEE_THROUGH, SHORT)
    with pytest.raises(
        ValueError, match="the header says alpha = False, and an alpha segment is given"
    ):
        pack(MINIMAL, SHORT, alpha=ALPHA)


def test_golden_metadata() -> None:
    data = golden("three_levels_metadata")
    assert unpack(data, strict=True) == Container(RGB, SEGMENTS, METADATA)
    # The bytes of a zlib stream depend on the library; everything before the chunks does not.
    end = segment_ends(RGB, SEGMENTS)[-1]
    assert pack(RGB, SEGMENTS, METADATA)[:end] == data[:end]


def test_golden_xmp_and_resolution() -> None:
    data = golden("minimal_xmp")
    assert unpack(data, strict=True) == Container(MINIMAL, SHORT, XMP)
    assert read_metadata(data) == XMP
    end = segment_ends(MINIMAL, SHORT)[-1]
    packed = pack(MINIMAL, SHORT, XMP)
    assert packed[:end] == data[:end]
    resolution = bytes.fromhex("04 05") + data[-7:]
    assert packed.endswith(resolution)
    assert data.endswith(resolution)


def test_resolutions_are_kept_in_steps_of_a_hundredth() -> None:
    for dpi, kept in (((1 / 3, 299.9994), (0.33, 300.0)), ((0.01, MAX_DPI), (0.01, MAX_DPI))):
        assert read_metadata(pack(MINIMAL, SHORT, Metadata(dpi=dpi))).dpi == kept
    for per_metre in (1, 2835, 11811, 2**30):
        dpi = (per_metre * 0.0254,) * 2
        again = read_metadata(pack(MINIMAL, SHORT, Metadata(dpi=dpi))).dpi
        assert again is not None
        assert round(again[0] / 0.0254) == per_metre


def test_golden_files_are_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("golden", DATA / "make_container_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = module.golden_files()
    assert {path.name: path.read_bytes() for path in GOLDEN.glob("*.sic")} == files
    assert len(files) == 9


def test_format_document_shows_the_golden_file() -> None:
    text = (Path(__file__).resolve().parents[1] / "sic_jax/codec/FORMAT.md").read_text("utf-8")
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| `0x")]
    assert bytes.fromhex("".join(rows).replace("`", "")) == golden("minimal_gray")


def test_truncate_golden() -> None:
    assert truncate(golden("grain"), 1) == golden("grain")
    assert truncate(golden("three_levels"), 2) == golden("three_levels_cut_to_two")
    assert truncate(golden("three_levels"), 3) == golden("three_levels")


def test_truncate_keeps_chunks_it_does_not_know() -> None:
    data = golden("three_levels_metadata")
    ends = segment_ends(RGB, SEGMENTS)
    cut = truncate(data, 1)
    assert cut[ends[2] :] == data[ends[4] :]
    one_level = dataclasses.replace(RGB, num_levels=1)
    assert unpack(cut, strict=True) == Container(one_level, SEGMENTS[:2], METADATA)


def test_truncate_of_a_cut_file() -> None:
    data = golden("three_levels_metadata")
    assert truncate(data[: segment_ends(RGB, SEGMENTS)[4] - 1], 2) == golden(
        "three_levels_cut_to_two"
    )


@pytest.mark.parametrize("level", [-1, 0, 4, 65])
def test_truncate_level_out_of_range(level: int) -> None:
    with pytest.raises(ValueError, match=f"level must be in 1 to 3, got {level}"):
        truncate(golden("three_levels"), level)


@pytest.mark.parametrize("name", ["three_levels", "exact"])
def test_level_sizes_are_those_of_truncate(name: str) -> None:
    data = golden(name)
    levels = range(1, unpack(data).level + 1)
    assert len(levels) == 3
    sizes = level_sizes(data)
    assert sizes == [len(truncate(data, level)) for level in levels]
    for level in levels:
        if name != "exact":
            assert truncate_to(data, sizes[level - 1]) == truncate(data, level)
    assert truncate_to(data, 10**30) == truncate(data, 3)
    with pytest.raises(ValueError, match=f"the smallest file has {sizes[0]} bytes; -1 are allowed"):
        truncate_to(data, -1)
    with pytest.raises(TypeError, match="max_bytes must be an int, got float"):
        truncate_to(data, 1e6)  # type: ignore[arg-type]


def test_truncate_to_a_level_that_is_cut_off() -> None:
    with pytest.raises(ValueError, match="level must be in 1 to 2, got 3"):
        truncate(golden("three_levels")[:-1], 3)


@pytest.mark.parametrize(
    ("side", "seed", "size"),
    [
        (127, 0, 18),
        (16383, 0, 20),
        (16383, 2**32 - 1, 24),
        (2**21 - 1, 2**21 - 1, 24),
        (2**24 - 1, 127, 24),
        (2**21 - 1, 2**21, 25),
        (2**24 - 1, 2**32 - 1, 28),
    ],
)
def test_header_overhead(side: int, seed: int, size: int) -> None:
    header = Header(model_id=MODEL_ID, height=side, width=side, num_levels=1, seed=seed)
    assert len(pack(header, (Segment(b"", 0), Segment(b"", 0)))) == size + 2 * 5
    grain = dataclasses.replace(header, grain=255)
    assert len(pack(grain, (Segment(b"", 0), Segment(b"", 0)))) == size + 1 + 2 * 5


@pytest.mark.parametrize(("length", "overhead"), [(127, 5), (128, 6), (16383, 6), (16384, 7)])
def test_segment_overhead(length: int, overhead: int) -> None:
    data = pack(MINIMAL, (Segment(b"", 0), Segment(bytes(length), 0)))
    assert len(data) == 18 + 5 + overhead + length


@FAST
@given(st.integers(0, 2**32 - 1))
def test_varint_round_trip(value: int) -> None:
    data = varint(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert Reader(data).varint("value") == value


def test_varint_test_vectors() -> None:
    vectors = {0: "00", 127: "7f", 128: "8001", 768: "8006", 2**24 - 1: "ffffff07"}
    assert {value: varint(value).hex() for value in vectors} == vectors


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_id", b"12345", "model_id must have 6 to 6 bytes, got 5"),
        ("height", 0, "height must be in 1 to 16777215, got 0"),
        ("width", 2**24, "width must be in 1 to 16777215, got 16777216"),
        ("num_levels", 65, "num_levels must be in 1 to 64, got 65"),
        ("mode", "cmyk", "mode must be 'rgb' or 'gray', got 'cmyk'"),
        ("seed", -1, "seed must be in 0 to 4294967295, got -1"),
        ("seed", 2**32, "seed must be in 0 to 4294967295, got 4294967296"),
        ("grain", 256, "grain must be in 0 to 255, got 256"),
        ("version", 1, "version must be in 2 to 2, got 1"),
    ],
)
def test_header_value_errors(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RGB, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_id", "012345", "model_id must be bytes, got str"),
        ("height", 5.0, "height must be an int, got float"),
        ("seed", True, "seed must be an int, got bool"),
        ("float_entropy", 1, "float_entropy must be a bool, got 1"),
        ("exact", 1, "exact must be a bool, got 1"),
    ],
)
def test_header_type_errors(field: str, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dataclasses.replace(RGB, **{field: value})  # type: ignore[arg-type]


def test_other_field_errors() -> None:
    with pytest.raises(ValueError, match="symbols_crc must be in 0 to 65535, got 65536"):
        Segment(b"", 65536)
    with pytest.raises(TypeError, match="payload must be bytes, got bytearray"):
        Segment(bytearray(), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exif must have 1 to 16777216 bytes, got 0"):
        Metadata(exif=b"")
    with pytest.raises(ValueError, match="icc_profile must have 1 to 16777216 bytes, got 167772"):
        Metadata(icc_profile=bytes(MAX_METADATA_BYTES + 1))
    with pytest.raises(TypeError, match="icc_profile must be bytes, got str"):
        Metadata(icc_profile="sRGB")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="xmp must have 1 to 16777216 bytes, got 0"):
        Metadata(xmp=b"")
    for dpi in ((0.009, 72.0), (72.0, 42949673.0), (float("nan"), 72.0)):
        with pytest.raises(ValueError, match=r"dpi must be in 0\.01 to 42949672\.95, got \("):
            Metadata(dpi=dpi)
    with pytest.raises(TypeError, match="dpi must be a tuple of two numbers, got 300"):
        Metadata(dpi=300)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an exact picture needs 1 segments, got 4"):
        pack(dataclasses.replace(RGB, exact=True), SEGMENTS)
    with pytest.raises(ValueError, match="num_levels = 3 needs 4 segments, got 3"):
        pack(RGB, SEGMENTS[:3])


def test_imports_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import sic_jax.codec.container; "
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(names - sys.stdlib_module_names))"
    )
    root = Path(__file__).resolve().parents[1]
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert out.stdout.strip() == "['sic_jax']"
