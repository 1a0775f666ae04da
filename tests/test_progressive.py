"""Files that are still arriving: the same pictures as of whole files, each symbol decoded once."""

import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from conftest import quick_compilation
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli.main import main, parse
from sic_jax.codec.bundle import export_bundle, load_bundle
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import Segment, level_sizes, pack, unpack
from sic_jax.codec.progressive import ProgressiveDecoder
from sic_jax.entropy.range_coder import RangeDecoder
from sic_jax.errors import BitstreamError
from sic_jax.metadata import Metadata
from sic_jax.model.entropy_models.raster.raster import RasterEntropy
from sic_jax.model.levels import LevelConfig
from sic_jax.model.model_config import ModelConfig
from sic_jax.model.params import param_shapes
from sic_jax.training.presets import preset

LEVELS = 3
ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "tests" / "golden" / "v2" / "bundle"
FAST = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(SMALL)


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """A bundle whose pass codes all levels at once, diagonal by diagonal, in floats."""
    cfg = ModelConfig(
        levels=LevelConfig(channels=(2,) * LEVELS, refinements=(0,) * LEVELS),
        transforms=preset("smoke").model.transforms,
        entropy=RasterEntropy(
            hyper_channels=3, analysis_width=6, synthesis_widths=(6, 8), head_width=6
        ),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: (0.2 * rng.standard_normal(a.shape)).astype(np.float32), param_shapes(cfg)
    )
    folder = tmp_path_factory.mktemp("bundle") / "raster"
    export_bundle(folder, cfg, params)
    return Codec(load_bundle(folder))


@pytest.fixture(params=["codec", "raster"])
def either(request: pytest.FixtureRequest) -> Codec:
    """A codec of each entropy model."""
    codec: Codec = request.getfixturevalue(request.param)
    return codec


def photo(height: int = 48, width: int = 70, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    i, j = np.mgrid[:height, :width]
    waves = [np.sin(i / 9 + k) + np.cos(j / 7 - k) for k in range(3)]
    x = 128 + 45 * np.stack(waves, -1) + rng.normal(0, 4, (height, width, 3))
    out: NDArray[Any] = np.clip(x, 0, 255).astype(np.uint8)
    return out


def pictures(codec: Codec, data: bytes, **options: Any) -> list[NDArray[Any]]:
    """What `decompress` gives of each level."""
    return [codec.decompress(data, level=k, **options) for k in range(1, LEVELS + 1)]


def feed(decoder: ProgressiveDecoder, data: bytes, size: int = 1) -> Iterator[int]:
    """Feeds pieces of a size; yields how many bytes there were whenever a level was new."""
    for start in range(0, len(data), size):
        if decoder.feed(data[start : start + size]):
            yield min(start + size, len(data))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_byte_by_byte(either: Codec, channels: int) -> None:
    x = photo()
    image = {1: x[..., 1], 3: x, 4: np.concatenate((x, x[..., :1]), axis=2)}[channels]
    data = either.compress(image, seed=7, grain=2, metadata=Metadata(xmp=b"x"))
    expected = pictures(either, data, temperature=1.0)
    assert (expected[0] != expected[1]).any()
    decoder = either.decoder(temperature=1.0)
    assert (decoder.header, decoder.num_levels, decoder.level) == (None, None, 0)
    seen = []
    for count in feed(decoder, data):
        seen.append((decoder.level, decoder.complete))
        # With the last byte of a level, and not a byte later.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert unpack(data[:count]).level == decoder.level
            cut = unpack(data[: count - 1]).level if decoder.level > 1 else 0
        assert cut == decoder.level - 1
        np.testing.assert_array_equal(decoder.picture(), expected[decoder.level - 1])
    assert seen == [(1, False), (2, False), (3, True)]
    assert (decoder.header, decoder.num_levels) == (unpack(data).header, LEVELS)
    assert decoder.metadata == Metadata()
    decoder.close()
    assert decoder.metadata == Metadata(xmp=b"x")
    # Lower levels and other members of the synset can still be had.
    for level in (2, 1, 3):
        np.testing.assert_array_equal(decoder.picture(level), expected[level - 1])
    members = either.decompress_samples(data, level=1, temperature=1.0, num_samples=2)
    np.testing.assert_array_equal(decoder.picture(1, member=1), members[1])
    assert (members[0] != members[1]).any()


class Known(NamedTuple):
    """A file with metadata."""

    data: bytes
    ends: list[int]
    """Bytes up to the end of each level."""
    pictures: list[NDArray[Any]]


@pytest.fixture(scope="module")
def known(codec: Codec) -> Known:
    data = codec.compress(photo(), seed=1, metadata=Metadata(exif=b"exif", dpi=(300, 300)))
    return Known(data, level_sizes(codec.compress(photo(), seed=1)), pictures(codec, data))


@FAST
@given(st.data())
def test_pieces_of_any_size(codec: Codec, known: Known, draw: st.DataObject) -> None:
    data, _, expected = known
    cuts = draw.draw(st.lists(st.integers(0, len(data)), max_size=8).map(sorted))
    end = draw.draw(st.sampled_from([len(data), *cuts]))
    decoder = codec.decoder()
    levels = [0]
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        is_new = decoder.feed(memoryview(data)[start : min(stop, end)] if start < end else b"")
        assert is_new == (decoder.level > levels[-1])
        levels.append(decoder.level)
        if is_new and draw.draw(st.booleans()):
            np.testing.assert_array_equal(decoder.picture(), expected[decoder.level - 1])
    if decoder.level:
        level = draw.draw(st.integers(1, decoder.level))
        np.testing.assert_array_equal(decoder.picture(level), expected[level - 1])
        np.testing.assert_array_equal(decoder.picture(), expected[decoder.level - 1])
    if end == len(data):
        assert decoder.complete
        decoder.close()
        assert decoder.metadata == Metadata(exif=b"exif", dpi=(300, 300))


def test_each_symbol_is_decoded_once(either: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    data = either.compress(photo())
    latents = either.decode_latents(unpack(data))
    decode, counts = RangeDecoder.decode, [0]

    def counted(self: RangeDecoder, indices: Any) -> Any:
        counts[-1] += np.size(indices)
        return decode(self, indices)

    monkeypatch.setattr(RangeDecoder, "decode", counted)
    decoder = either.decoder()
    for _ in feed(decoder, data):
        decoder.picture()
        decoder.picture(1)
        counts.append(0)
    y, channels = latents.y_s, either.bundle.cfg.levels.channels
    levels = [y.shape[0] * y.shape[1] * count for count in channels]
    assert counts == [levels[0] + latents.z_hat.size, *levels[1:], 0]
    # Levels that nobody looks at are not decoded, nor are they asked for one by one.
    counts[:] = [0]
    assert either.decompress(data, level=1).shape == (48, 70, 3)
    assert counts == [levels[0] + latents.z_hat.size]


def test_every_cut_is_a_lower_level_or_an_error(codec: Codec) -> None:
    """That of `decompress`, and what a decoder says that was fed the same."""
    data = codec.compress(photo(20, 33), metadata=Metadata(xmp=b"<x/>"))
    ends = level_sizes(codec.compress(photo(20, 33)))
    expected = pictures(codec, data)
    for size in range(len(data)):
        level = sum(end <= size for end in ends)
        decoder = codec.decoder()
        list(feed(decoder, data[:size], 16))
        assert decoder.level == level
        if level == 0:
            text = "not a sic file: it " if size < 4 else "the file is truncated: "
            with pytest.raises(BitstreamError, match=text):
                codec.decompress(data[:size])
            with pytest.raises(BitstreamError, match=text):
                decoder.close()
            with pytest.raises(ValueError, match="no level has arrived yet"):
                decoder.picture()
            continue
        text = f"the file is truncated: {level} of 3 levels are whole"
        if level == LEVELS:
            text = "the file's metadata are damaged and were dropped"
        with pytest.warns(UserWarning, match=text) as caught:
            found = codec.decompress(data[:size])
        assert [w.filename for w in caught] == [__file__]
        np.testing.assert_array_equal(found, expected[level - 1])
        with pytest.warns(UserWarning, match=text) as caught:
            decoder.close()
        assert [w.filename for w in caught] == [__file__]
        np.testing.assert_array_equal(decoder.picture(), found)
        with pytest.raises(BitstreamError, match=r"is incomplete|metadata are damaged"):
            codec.decompress(data[:size], strict=True)


def test_damage_is_seen_at_once_and_costs_no_earlier_level(codec: Codec) -> None:
    data = bytearray(codec.compress(photo()))
    expected = pictures(codec, bytes(data))
    ends = level_sizes(bytes(data))
    data[ends[1] - 1] ^= 1  # The last byte of level 2.
    decoder = codec.decoder()
    assert decoder.feed(data[: ends[1] - 1])
    assert not decoder.feed(b"")
    for piece in (data[ends[1] - 1 : ends[1]], b"", data[ends[1] :]):
        with pytest.raises(BitstreamError, match="segment 2 is corrupted"):
            decoder.feed(piece)
    with pytest.raises(BitstreamError, match="segment 2 is corrupted"):
        decoder.close()
    np.testing.assert_array_equal(decoder.picture(), expected[0])
    # All in one piece.
    decoder = codec.decoder()
    with pytest.raises(BitstreamError, match="segment 2 is corrupted"):
        decoder.feed(data)
    assert decoder.level == 1
    np.testing.assert_array_equal(decoder.picture(), expected[0])
    # What only decoding can see.
    file = unpack(bytes(codec.compress(photo())))
    first, second, third, last = file.segments
    forged = pack(file.header, [first, second, Segment(third.payload, 1), last])
    decoder = codec.decoder()
    decoder.feed(forged)
    for level in (None, 2, 3):
        with pytest.raises(BitstreamError, match="symbols of level 2 do not have their checksum"):
            decoder.picture(level)
    np.testing.assert_array_equal(decoder.picture(1), expected[0])


def test_what_is_no_file_of_the_bundle(codec: Codec, raster: Codec) -> None:
    decoder = codec.decoder()
    assert not decoder.feed(b"\x93S")
    with pytest.raises(BitstreamError, match=r"it starts with b'\\x93SAC', not b'\\x93SIC'"):
        decoder.feed(b"AC")
    other = raster.compress(photo())
    decoder = codec.decoder()
    for piece in (other[:-1], other[-1:]):
        with pytest.raises(BitstreamError, match="the file was made with bundle"):
            decoder.feed(piece)
        assert (decoder.header, decoder.level) == (None, 0)
    with pytest.raises(BitstreamError, match="the file was made with bundle"):
        decoder.close()
    data = codec.compress(photo(), level=2)
    decoder = codec.decoder(max_pixels=48 * 70 - 1)
    with pytest.raises(BitstreamError, match="48 x 70 = 3360 pixels, more than max_pixels"):
        list(feed(decoder, data[:29]))
    decoder = codec.decoder()
    decoder.feed(data)
    with pytest.raises(BitstreamError, match="1 bytes follow the last segment"):
        decoder.feed(b"\0")
    with pytest.raises(TypeError, match="data must be bytes-like, got str"):
        decoder.feed("text")  # type: ignore[arg-type]


def test_options(codec: Codec) -> None:
    data = codec.compress(photo(), seed=3)
    decoder = codec.decoder(level=2, seed=5, temperature=1.0, grain=False)
    assert [decoder.level for _ in feed(decoder, data)] == [1, 2]
    assert (decoder.num_levels, decoder.complete) == (2, True)
    expected = codec.decompress(data, level=2, seed=5, temperature=1.0, grain=False)
    assert expected.flags.c_contiguous
    np.testing.assert_array_equal(decoder.picture(), expected)
    decoder.close()
    with pytest.raises(ValueError, match="the decoder is closed: no bytes can follow"):
        decoder.feed(b"")
    with pytest.raises(ValueError, match="level must be 1 to 2, got 3"):
        decoder.picture(3)
    with pytest.raises(ValueError, match="level must be 1 to 3, got 4"):
        codec.decoder(level=4).feed(data[:29])
    with pytest.raises(TypeError, match="DecodeOptions has no field 'lvel'"):
        codec.decoder(lvel=1)
    # A level that was asked for and is cut off.
    for level, strict in ((3, False), (None, True)):
        decoder = codec.decoder(level=level, strict=strict)
        assert decoder.feed(data[:-1])
        error = "segment 3 of 0 to 3 is incomplete" if strict else "level must be 1 to 2, got 3"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with pytest.raises(ValueError, match=error):
                decoder.close()
        assert decoder.picture().shape == (48, 70, 3)


def test_two_files_at_a_time(codec: Codec) -> None:
    files = [codec.compress(photo(48, 70)), codec.compress(photo(33, 40, seed=1), seed=9)]
    expected = [pictures(codec, data) for data in files]
    decoders = [codec.decoder() for _ in files]
    for start in range(0, max(map(len, files)), 40):
        for data, decoder, right in zip(files, decoders, expected, strict=True):
            if decoder.feed(data[start : start + 40]):
                np.testing.assert_array_equal(decoder.picture(), right[decoder.level - 1])
    assert [decoder.complete for decoder in decoders] == [True, True]


def test_a_picture_that_is_stored_exactly_comes_with_its_last_byte(codec: Codec) -> None:
    x = np.zeros((16, 16, 3), np.uint8)
    x[4:9] = 200, 10, 30
    for image in (x, x[..., 0]):
        data = codec.compress(image, level=2)
        assert unpack(data).header.exact
        decoder = codec.decoder()
        assert list(feed(decoder, data)) == [len(data)]
        assert (decoder.level, decoder.complete) == (2, True)
        picture = decoder.picture()
        np.testing.assert_array_equal(picture, image)
        picture[:] = 1  # It belongs to the caller.
        np.testing.assert_array_equal(decoder.picture(), image)
        decoder.close()
    decoder = codec.decoder()
    assert not decoder.feed(data[:-1])
    with pytest.raises(BitstreamError, match="it ends inside its picture"):
        decoder.close()


class Arriving:
    """A stdin whose pieces come one by one; keeps what OUT is before each of them."""

    def __init__(self, pieces: list[bytes], out: Path) -> None:
        self.buffer = self
        self.pieces, self.out = [*pieces, b""], out
        self.seen: list[NDArray[Any] | None] = []

    def read1(self, size: int) -> bytes:
        self.seen.append(np.asarray(Image.open(self.out)) if self.out.exists() else None)
        assert len(self.pieces[0]) <= size
        return self.pieces.pop(0)


def decompress(monkeypatch: pytest.MonkeyPatch, stdin: Arriving, *argv: str) -> int:
    monkeypatch.setattr("sys.stdin", stdin)
    return main(["decompress", "-", *argv, "--bundle", str(SMALL), "--progressive"])


def test_command(
    known: Known,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, ends, expected = known
    out = tmp_path / "out.png"
    pieces = [data[:10], data[10 : ends[0] - 1], data[ends[0] - 1 : ends[1] + 3]]
    pieces += [data[ends[1] + 3 : ends[2]], data[ends[2] :]]
    stdin = Arriving(pieces, out)
    assert decompress(monkeypatch, stdin, str(out)) == 0
    assert capsys.readouterr() == (f"- -> {out}: 70 x 48 pixels\n", "")
    # Both levels of the third piece are one picture, and the metadata are none.
    assert stdin.seen[:3] == [None, None, None]
    for found, level in zip(stdin.seen[3:], (2, 3, 3), strict=True):
        assert found is not None
        np.testing.assert_array_equal(found, expected[level - 1])
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), expected[2])
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    # Cut off: the last whole level, a warning; or an error, and the picture stays.
    for strict in ([], ["--strict"]):
        out.unlink()
        stdin = Arriving([data[: ends[0]], data[ends[0] : ends[1] + 7]], out)
        assert decompress(monkeypatch, stdin, str(out), *strict) == len(strict)
        np.testing.assert_array_equal(np.asarray(Image.open(out)), expected[1])
        told = capsys.readouterr()
        if strict:
            assert (told.out, told.err.count("\n")) == ("", 1)
            assert "sic: error: -: the file is truncated: segment 3 of 0 to 3 is" in told.err
        else:
            assert told.out == f"- -> {out}: 70 x 48 pixels\n"
            assert told.err == "sic: warning: -: the file is truncated: 2 of 3 levels are whole\n"
    stdin = Arriving([data[: ends[0]], data[ends[0] :]], out)
    assert decompress(monkeypatch, stdin, str(out), "--verbose") == 0
    assert capsys.readouterr().out.startswith(
        f"- -> {out}: 70 x 48 pixels; level 3, 2 pictures, bundle {SMALL.name}, "
    )
    # Damaged.
    bad = data[: ends[1] - 1] + bytes([data[ends[1] - 1] ^ 1])
    stdin = Arriving([bad[: ends[0]], bad[ends[0] :]], out)
    assert decompress(monkeypatch, stdin, str(out)) == 1
    np.testing.assert_array_equal(np.asarray(Image.open(out)), expected[0])
    assert "sic: error: -: segment 2 is corrupted" in capsys.readouterr().err
    # Nothing.
    for pieces, text in (([], "not a sic file: it is empty"), ([data[:40]], "is truncated: seg")):
        stdin = Arriving(pieces, tmp_path / "other.png")
        assert decompress(monkeypatch, stdin, str(tmp_path / "other.png")) == 1
        assert text in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert decompress(monkeypatch, stdin, str(out), "--samples", "2") == 2
    assert "--progressive writes one picture" in capsys.readouterr().err


def test_command_on_pipes(known: Known, tmp_path: Path) -> None:
    """The picture of level 1 is there while the other levels are not."""
    data, ends, expected = known
    argv = [sys.executable, "-m", "sic_jax.cli.main", "decompress", "-", "-", "--progressive"]
    # Floats as here: `quickly`.
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        [*argv, "--bundle", str(SMALL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data[: ends[0]])
        process.stdin.flush()
        first = process.stdout.read1(1 << 20)  # type: ignore[attr-defined]
        process.stdin.write(data[ends[0] :])
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0
    written = (first + rest).split(b"\x89PNG")[1:]
    assert len(written) >= 3  # The last one again, with metadata.
    found = [np.asarray(Image.open(io.BytesIO(b"\x89PNG" + png))) for png in written]
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[-1], expected[-1])


def test_the_programs_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "guide" / "progressive.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, "progressive.md", "exec"), names)
    assert names["decoder"].level == 16
    assert Path("preview.png").read_bytes() == Path("decoded.png").read_bytes()
    commands = re.findall(r"\| (sic .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert parse(shlex.split(command)[1:]).progressive
