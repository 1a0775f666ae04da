"""Alpha: its plane without loss, what is hidden costs little, and pictures there and back."""

import os
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import quick_compilation
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_codec import graphic, picture

from sic_jax.codec.codec import Codec
from sic_jax.codec.container import (
    Container,
    Header,
    Segment,
    level_sizes,
    pack,
    read_header,
    symbols_checksum,
    truncate,
    unpack,
)
from sic_jax.codec.grain import measure_grain
from sic_jax.codec.hidden import fill_hidden
from sic_jax.codec.pixels import alpha_plane, alpha_segment, join_alpha, split_alpha
from sic_jax.codec.psnr_target import cut_at_psnr
from sic_jax.errors import BitstreamError
from sic_jax.images.io import read_image
from sic_jax.metadata import Metadata

FAST = settings(max_examples=80, deadline=None, derandomize=True)


BUNDLE = Path(__file__).parent / "golden" / "v2" / "bundle"


@pytest.fixture(scope="module")
def codec() -> Iterator[Codec]:
    with quick_compilation():
        yield Codec.load(BUNDLE)


def disc(height: int, width: int) -> NDArray[Any]:
    """A plane that is 255 in a disc, 0 outside, and in between at its edge."""
    i, j = np.mgrid[:height, :width]
    radius = np.hypot(i - (height - 1) / 2, j - (width - 1) / 2)
    out: NDArray[Any] = np.clip(128 + 90 * (0.45 * min(height, width) - radius), 0, 255).astype(
        np.uint8
    )
    return out


def file_of(alpha: Segment, height: int, width: int) -> Container:
    header = Header(model_id=bytes(6), height=height, width=width, num_levels=1, alpha=True)
    return Container(header, (Segment(b"", 0),) * 2, alpha=alpha)


def planes() -> st.SearchStrategy[NDArray[Any]]:
    """Noise, ramps, masks and planes of one value, from 1 x 1 on."""

    def make(kind: int, height: int, width: int, seed: int) -> NDArray[Any]:
        i, j = np.mgrid[:height, :width]
        noise = np.random.default_rng(seed).integers(0, 256, (height, width))
        plane = (noise, seed * i + 3 * j, 255 * (i + j > seed % 40), 0 * i + seed, noise * (i > j))
        return plane[kind].astype(np.uint8)

    sides = st.integers(1, 40)
    return st.builds(make, st.integers(0, 4), sides, sides, st.integers(0, 255))


@FAST
@given(planes())
def test_planes_come_back(plane: NDArray[Any]) -> None:
    segment = alpha_segment(plane)
    again = alpha_plane(file_of(segment, *plane.shape))
    assert again is not None
    np.testing.assert_array_equal(again, plane)


def deflated(content: bytes) -> bytes:
    return zlib.compress(zlib.compress(content))


def test_predictors_are_those_of_the_specification() -> None:
    r = np.random.default_rng(0).integers(0, 256, (4, 5))
    for predictor in range(4):
        a = np.zeros((5, 6), int)
        for i, j in np.ndindex(4, 5):
            left, above, corner = a[i + 1, j], a[i, j + 1], a[i, j]
            prediction = (0, left, above, left + above - corner)[predictor]
            a[i + 1, j + 1] = (r[i, j] + prediction) % 256
        content = bytes([predictor]) + r.astype(np.uint8).tobytes()
        segment = Segment(deflated(content), symbols_checksum(content))
        plane = alpha_plane(file_of(segment, 4, 5))
        assert plane is not None
        np.testing.assert_array_equal(plane, a[1:, 1:])


def test_a_writer_takes_the_best_predictor() -> None:
    """Of small steps: to the right, downwards and both ways."""
    steps = np.random.default_rng(1).integers(0, 4, (64, 64), np.uint8)
    right, down = (np.cumsum(steps, axis, np.uint8) for axis in (1, 0))
    for k, plane in enumerate((steps, right, down, np.cumsum(right, 0, np.uint8))):
        content = zlib.decompress(zlib.decompress(alpha_segment(plane).payload))
        assert content == bytes([k]) + steps.tobytes()
    # A mask costs what its edge does, and nothing where there is none.
    assert len(alpha_segment(disc(64, 64)).payload) < 480
    assert len(alpha_segment(np.zeros((1000, 1000), np.uint8)).payload) < 60


def test_damaged_planes() -> None:
    content = b"\0" + bytes(range(12))
    crc = symbols_checksum(content)
    plane = alpha_plane(file_of(Segment(deflated(content), crc), 3, 4))
    assert plane is not None
    assert plane.tolist() == np.arange(12).reshape(3, 4).tolist()
    for wrong, message in (
        (content[:-1], "the alpha plane has 12 samples where 13 are needed"),
        (content + b"x", "the alpha plane decompresses to more than 13 bytes"),
        (content[::-1], "the alpha plane does not have its checksum"),
    ):
        with pytest.raises(BitstreamError, match=message):
            alpha_plane(file_of(Segment(deflated(wrong), crc), 3, 4))
    for payload in (b"", deflated(content)[:-1], deflated(content) + b"x", zlib.compress(b"")):
        with pytest.raises(BitstreamError, match="the alpha plane is not exactly one non-empty"):
            alpha_plane(file_of(Segment(payload, crc), 3, 4))
    with pytest.raises(BitstreamError, match="the alpha plane does not decompress"):
        alpha_plane(file_of(Segment(zlib.compress(b"no zlib stream"), crc), 3, 4))
    content = b"\4" + content[1:]
    with pytest.raises(BitstreamError, match="has the predictor 4; 0 to 3 are known"):
        alpha_plane(file_of(Segment(deflated(content), symbols_checksum(content)), 3, 4))


@pytest.mark.parametrize("outer", [True, False])
def test_bombs_do_not_expand(outer: bool) -> None:
    bomb = zlib.compress(bytes(2**26))
    payload = bomb if outer else zlib.compress(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(
            BitstreamError, match=r"decompresses to more than (202066|101001) bytes"
        ):
            alpha_plane(file_of(Segment(payload, 0), 1000, 101))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@FAST
@given(planes(), st.booleans(), st.integers(0, 255))
def test_hidden_colours_are_between_the_visible_ones(
    alpha: NDArray[Any], gray: bool, seed: int
) -> None:
    shape = alpha.shape if gray else (*alpha.shape, 3)
    colours = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    before = colours.copy()
    filled = fill_hidden(colours, alpha)
    np.testing.assert_array_equal(colours, before)
    assert filled.shape == shape
    assert filled.dtype == np.uint8
    seen = alpha > 0
    np.testing.assert_array_equal(filled[seen], colours[seen])
    if seen.any():
        low, high = colours[seen].min(0), colours[seen].max(0)
        assert ((filled >= low) & (filled <= high)).all()
    else:
        assert (filled == 128).all()


def test_hidden_colours_by_hand() -> None:
    colours = np.zeros((1, 8), np.uint8)
    colours[0, [0, 7]] = 40, 80
    alpha = np.where(colours > 0, 255, 0).astype(np.uint8)
    # Halves: 40 ? ? 80, quarters: 40 80, which the halves interpolate as 40 50 70 80.
    assert fill_hidden(colours, alpha).tolist() == [[40, 42, 48, 55, 65, 72, 78, 80]]
    # What they were does not matter.
    colours[alpha == 0] = 201
    assert fill_hidden(colours, alpha).tolist() == [[40, 42, 48, 55, 65, 72, 78, 80]]
    assert fill_hidden(colours, np.full_like(alpha, 1)).tolist() == colours.tolist()


def test_a_ramp_goes_on_without_a_step() -> None:
    """Neighbours differ little across the whole picture, the edge of what is visible too."""
    i, j = np.mgrid[:96, :128]
    ramp = np.stack([i * 2, j * 2, 255 - i - j], -1).astype(np.uint8)
    filled = fill_hidden(ramp, disc(96, 128)).astype(int)
    assert max(np.abs(np.diff(filled, axis=axis)).max() for axis in (0, 1)) <= 8


def test_parts() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 4), np.uint8)
    for pixels in (x, x[..., :2]):
        colours, alpha = split_alpha(pixels)
        assert alpha is not None
        np.testing.assert_array_equal(join_alpha(colours, alpha), pixels)
        opaque = pixels.copy()
        opaque[..., -1] = 255
        assert split_alpha(opaque).alpha is None
    colours = x[..., :3]
    assert join_alpha(colours, None) is colours


def test_grain_is_that_of_what_is_visible() -> None:
    rng = np.random.default_rng(0)
    noise = 128 + rng.normal(0, 2, (128, 128, 1))
    x = np.repeat(np.clip(np.round(noise), 0, 255).astype(np.uint8), 3, 2)
    alpha = np.zeros((128, 128), np.uint8)
    alpha[32:, :90] = 255
    filled = fill_hidden(x, alpha)
    assert measure_grain(filled) < 8
    assert abs(measure_grain(filled, alpha) - measure_grain(x)) <= 2
    assert 28 <= measure_grain(filled, alpha) <= 36
    assert measure_grain(filled, np.zeros_like(alpha)) == 0


def see_through(height: int, width: int, *, channels: int = 4) -> NDArray[Any]:
    """A picture in a disc, with other colours where it is hidden."""
    colours = picture(height, width)
    alpha = disc(height, width)
    colours[alpha == 0] = np.random.default_rng(5).integers(0, 256, 3)
    return join_alpha(colours if channels == 4 else colours[..., 0], alpha)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("size", [(65, 70), (96, 80)])
def test_pictures_there_and_back(codec: Codec, size: tuple[int, int], channels: int) -> None:
    x = see_through(*size, channels=channels)
    data = codec.compress(x, seed=3)
    header = read_header(data)
    assert (header.alpha, header.exact) == (True, False)
    assert header.mode == ("rgb" if channels == 4 else "gray")
    decoded = codec.decompress(data)
    assert decoded.shape == x.shape
    np.testing.assert_array_equal(decoded[..., -1], x[..., -1])
    samples = codec.decompress_samples(data, num_samples=2, temperature=1.0, level=1)
    assert samples.shape == (2, *x.shape)
    assert (samples[..., -1] == x[..., -1]).all()
    assert (samples[0] != samples[1]).any()
    # The colours are those of the picture without alpha whose hidden colours are filled.
    colours, alpha = split_alpha(x)
    assert alpha is not None
    filled = codec.compress(fill_hidden(colours, alpha), seed=3, grain=header.grain / 16)
    shown = decoded[..., :-1] if channels == 4 else decoded[..., 0]
    np.testing.assert_array_equal(shown, codec.decompress(filled))
    assert unpack(filled).segments == unpack(data).segments
    # A container of Pillow, and what is hidden, change nothing.
    assert codec.compress(Image.fromarray(x), seed=3) == data
    other = x.copy()
    other[alpha == 0, :-1] = 77
    assert codec.compress(other, seed=3) == data
    np.testing.assert_array_equal(codec.encode_latents(x).y_s, codec.encode_latents(other).y_s)
    assert codec.estimate_bits(x).z == codec.estimate_bits(other).z


def test_opaque_pictures_are_stored_as_without_alpha(codec: Codec) -> None:
    for colours in (picture(40, 24), picture(40, 24)[..., 0]):
        opaque = join_alpha(colours, np.full((40, 24), 255, np.uint8))
        data = codec.compress(opaque, level=2)
        assert data == codec.compress(colours, level=2)
        assert not read_header(data).alpha
        assert codec.decompress(data).shape == colours.shape


@pytest.mark.parametrize("value", [0, 1, 254])
def test_planes_of_one_value(codec: Codec, value: int) -> None:
    for size in ((1, 1), (3, 3), (80, 72)):
        x = join_alpha(picture(*size), np.full(size, value, np.uint8))
        data = codec.compress(x, level=1)
        decoded = codec.decompress(data)
        assert decoded.shape == x.shape
        assert (decoded[..., 3] == value).all()
        if size == (1, 1):
            assert decoded.tolist() == (x.tolist() if value else [[[0, 0, 0, 0]]])


@pytest.mark.parametrize("channels", [2, 4])
def test_small_graphics_are_exact_with_alpha_too(codec: Codec, channels: int) -> None:
    alpha = disc(32, 32)
    x = join_alpha(graphic(32) if channels == 4 else graphic(32)[..., 0], alpha)
    data = codec.compress(x, level=2, metadata=Metadata(exif=b"exif"))
    header = read_header(data)
    assert (header.exact, header.alpha, header.grain) == (True, True, 0)
    shown = np.where(alpha[..., None] > 0, x, 0)
    np.testing.assert_array_equal(codec.decompress(data), shown)
    np.testing.assert_array_equal(codec.decompress_samples(data, num_samples=2), [shown] * 2)
    assert truncate(codec.compress(x, metadata=Metadata(exif=b"exif")), 2) == data
    # Without the room for it, the picture is coded; without room for that, there is no file.
    coded = codec.compress(x, level=2, max_bytes=len(codec.compress(x, level=2)) - 1)
    assert (read_header(coded).exact, read_header(coded).alpha) == (False, True)
    np.testing.assert_array_equal(codec.decompress(coded)[..., -1], alpha)


def test_every_level_and_prefix_has_alpha(codec: Codec) -> None:
    x = see_through(80, 64)
    levels = range(1, codec.bundle.cfg.num_levels + 1)
    files = [codec.compress(x, level=level) for level in levels]
    assert [len(data) for data in files] == level_sizes(files[-1])
    for level, data in zip(levels, files, strict=True):
        assert truncate(files[-1], level) == data
        assert codec.compress(x, max_bytes=len(data)) == data
        np.testing.assert_array_equal(codec.decompress(data)[..., 3], x[..., 3])
        part = files[-1][: len(data)]
        if level < levels[-1]:
            with pytest.warns(UserWarning, match="the file is truncated"):
                np.testing.assert_array_equal(codec.decompress(part), codec.decompress(data))
            with pytest.raises(BitstreamError, match="truncated: segment"):
                codec.decompress(part, strict=True)
    container = unpack(files[0])
    assert container.alpha is not None
    with pytest.raises(BitstreamError, match="ends inside its alpha segment"):
        codec.decompress(files[0][:40])
    # Its bytes count: without the segment as many levels would fit.
    smallest = len(files[0])
    with pytest.raises(ValueError, match=f"the smallest file has {smallest} bytes"):
        codec.compress(x, max_bytes=smallest - 1)
    assert len(codec.compress(x[..., :3], max_bytes=smallest - 1)) < smallest


def test_psnr_is_that_of_what_is_visible(codec: Codec) -> None:
    """Levels that are 4, 2 and 1 steps off where the picture is seen, and all off elsewhere."""
    x = see_through(80, 64)
    data = codec.compress(x)

    def decode(level: int) -> NDArray[Any]:
        off = np.where(x[..., 3:] > 0, x[..., :3] ^ 2 ** (3 - level), 255 - x[..., :3])
        return join_alpha(off.astype(np.uint8), x[..., 3])

    for steps, level in ((4, 1), (2, 2), (1, 3)):
        limit = 20 * np.log10(255 / steps)
        assert cut_at_psnr(data, x, limit - 0.01, decode, level=3) == truncate(data, level)
        if level < 3:
            cut = cut_at_psnr(data, x, limit + 0.01, decode, level=3)
            assert cut == truncate(data, level + 1)
    # Where nothing is seen, any level will do.
    hidden = join_alpha(x[..., :3], np.zeros((80, 64), np.uint8))
    assert cut_at_psnr(data, hidden, 90.0, decode, level=3) == truncate(data, 1)


def test_a_forged_plane_is_one_error(codec: Codec) -> None:
    container = unpack(codec.compress(see_through(80, 64)))
    assert container.alpha is not None
    for payload in (zlib.compress(bytes(2**24)), zlib.compress(zlib.compress(bytes(2**24))), b"?"):
        forged = pack(container.header, container.segments, alpha=Segment(payload, 0))
        with pytest.raises(BitstreamError, match="the alpha plane"):
            codec.decompress(forged)


def sic(folder: Path, *arguments: str) -> str:
    """What a process of the command writes to stderr; it succeeds."""
    command = [sys.executable, "-m", "sic_jax.cli.main", *arguments]
    env = {**os.environ, "SIC_BUNDLES": str(BUNDLE.parent)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.thorough
def test_the_command_in_processes(tmp_path: Path) -> None:
    """PNG and WebP to .sic to PNG: colours, gray and a palette."""
    x = see_through(80, 72)
    Image.fromarray(x).save(tmp_path / "colour.png", dpi=(300, 300))
    Image.fromarray(see_through(80, 72, channels=2)).save(tmp_path / "gray.png")
    Image.fromarray(x).save(tmp_path / "web.webp", lossless=True)
    palette = Image.fromarray(np.tile(np.arange(80, dtype=np.uint8)[:, None], (1, 72)))
    palette.putpalette([v for k in range(256) for v in (k, 255 - k, 90)])
    palette.save(tmp_path / "palette.png", transparency=bytes(range(0, 160, 2)))
    names = ("colour.png", "gray.png", "web.webp", "palette.png")
    sic(tmp_path, "compress", *names, "sic/", "--bundle", str(BUNDLE), "--strip")
    sic(tmp_path, "truncate", "sic/colour.sic", "sic/small.sic", "--level", "1")
    assert sic(tmp_path, "decompress", "sic/", "out/") == "sic: 5 done\n"
    for name in (*names, "small.png"):
        original = read_image(tmp_path / ("colour.png" if name == "small.png" else name)).pixels
        decoded = read_image(tmp_path / "out" / f"{Path(name).stem}.png").pixels
        assert decoded.shape == original.shape
        np.testing.assert_array_equal(decoded[..., -1], original[..., -1], err_msg=name)
