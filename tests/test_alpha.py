"""Alpha: its plane without loss, what is hidden costs little, and pictures there and back."""

import io
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_codec import graphic, picture, tiny_bundle

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
from sic_jax.errors import BitstreamError
from sic_jax.images.io import read_image
from sic_jax.metadata import Metadata

FAST = settings(max_examples=80, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", 0)


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return Codec.load(folder)


def disc(height: int, width: int) -> np.ndarray:
    """A plane that is 255 in a disc, 0 outside, and in between at its edge."""
    i, j = np.mgrid[:height, :width]
    radius = np.hypot(i - (height - 1) / 2, j - (width - 1) / 2)
    return np.clip(128 + 90 * (0.45 * min(height, width) - radius), 0, 255).astype(np.uint8)


def file_of(alpha: Segment, height: int, width: int) -> Container:
    header = Header(model_id=bytes(6), height=height, width=width, num_levels=1, alpha=True)
    return Container(header, (Segment(b"", 0),) * 2, alpha=alpha)


def planes() -> st.SearchStrategy[np.ndarray]:
    """Noise, ramps, masks and planes of one value, from 1 x 1 on."""

    def make(kind: int, height: int, width: int, seed: int) -> np.ndarray:
        i, j = np.mgrid[:height, :width]
        noise = np.random.default_rng(seed).integers(0, 256, (height, width))
        plane = (noise, seed * i + 3 * j, 255 * (i + j > seed % 40), 0 * i + seed, noise * (i > j))
        return plane[kind].astype(np.uint8)

    sides = st.integers(1, 40)
    return st.builds(make, st.integers(0, 4), sides, sides, st.integers(0, 255))


@FAST
@given(planes())
def test_planes_come_back(plane: np.ndarray) -> None:
    segment = alpha_segment(plane)
    np.testing.assert_array_equal(alpha_plane(file_of(segment, *plane.shape)), plane)


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
        np.testing.assert_array_equal(alpha_plane(file_of(segment, 4, 5)), a[1:, 1:])


def test_a_writer_takes_the_best_predictor() -> None:
    """Of small steps: to the right, downwards and both ways."""
    steps = np.random.default_rng(1).integers(0, 4, (64, 64), np.uint8)
    right, down = (np.cumsum(steps, axis, np.uint8) for axis in (1, 0))
    for k, plane in enumerate((steps, right, down, np.cumsum(right, 0, np.uint8))):
        content = zlib.decompress(zlib.decompress(alpha_segment(plane).payload))
        assert content == bytes([k]) + steps.tobytes()
    # A mask costs what its edge does: 4096 pixels, and 24 times as many.
    assert len(alpha_segment(disc(64, 64)).payload) < 350
    assert len(alpha_segment(np.zeros((1000, 1000), np.uint8)).payload) < 60


def test_damaged_planes() -> None:
    content = b"\0" + bytes(range(12))
    crc = symbols_checksum(content)
    assert alpha_plane(file_of(Segment(deflated(content), crc), 3, 4)).tolist() == (
        np.arange(12).reshape(3, 4).tolist()
    )
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
        with pytest.raises(BitstreamError, match=r"decompresses to more than (202066|101001) bytes"):
            alpha_plane(file_of(Segment(payload, 0), 1000, 101))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@FAST
@given(planes(), st.booleans(), st.integers(0, 255))
def test_hidden_colours_are_between_the_visible_ones(
    alpha: np.ndarray, gray: bool, seed: int
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
        np.testing.assert_array_equal(join_alpha(colours[None], alpha), pixels[None])
        opaque = pixels.copy()
        opaque[..., -1] = 255
        assert split_alpha(opaque).alpha is None
    assert join_alpha(x[..., :3], None) is not x
    np.testing.assert_array_equal(join_alpha(x[..., :3], None), x[..., :3])
    # Gray of three columns is not taken for colours.
    gray = x[0, :3, :3]
    np.testing.assert_array_equal(join_alpha(gray, gray), np.dstack([gray, gray]))


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
