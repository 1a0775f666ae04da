import ast
import dataclasses
import graphlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_images
from numpy.typing import NDArray
from PIL import Image

from sic_jax.data import memory, pack
from sic_jax.data.batches import batches
from sic_jax.data.crops import Crop, CropSampler, DataConfig, cut
from sic_jax.data.folder import FolderSource, open_folder
from sic_jax.data.memory import MemorySource
from sic_jax.data.open_source import open_source
from sic_jax.data.samples import sample_patches, validation_crops
from sic_jax.data.source import Source, UnreadableImageError
from sic_jax.images.io import read_image

Images = list[NDArray[Any]]
SIZE = 16


def ramps(*sizes: tuple[int, int]) -> Images:
    """Images [H, W] whose pixels tell row, column and image."""
    out = []
    for k, (height, width) in enumerate(sizes):
        i, j = np.mgrid[:height, :width]
        out.append(np.stack([i, j, np.full_like(i, k)], -1).astype(np.uint8))
    return out


IMAGES = ramps((40, 56), (16, 16), (30, 100), (64, 20), (33, 33))


def stream(
    source: Source,
    *,
    size: int = SIZE,
    batch: int = 4,
    seed: int = 7,
    first: int = 0,
    **kwargs: Any,
) -> Iterator[Any]:
    rows = kwargs.pop("rows", slice(0, batch))
    return batches(
        source,
        crop_size=size,
        batch_size=batch,
        seed=seed,
        data=DataConfig(**kwargs),
        first_step=first,
        rows=rows,
    )


def take(source: Source, count: int, **kwargs: Any) -> NDArray[Any]:
    """The first `count` batches: uint8 [count, rows, P, P, 3]."""
    with closing(stream(source, **kwargs)) as it:  # type: ignore[type-var]
        return np.stack([np.asarray(next(it)) for _ in range(count)])


def test_crops_are_pieces_of_the_images() -> None:
    seen = set()
    crops = take(IMAGES, 5, batch=25).reshape(-1, SIZE, SIZE, 3)
    for crop in crops:
        rows, columns, which = (crop[..., c].astype(int) for c in range(3))
        transposed = rows[0, 1] != rows[0, 0]
        if transposed:
            rows, columns = rows.T, columns.T
        flipped = columns[0, 1] < columns[0, 0]
        top, left = rows.min(), columns.min()
        expected = IMAGES[which[0, 0]][top : top + SIZE, left : left + SIZE]
        expected = expected[:, ::-1] if flipped else expected
        expected = expected.transpose(1, 0, 2) if transposed else expected
        np.testing.assert_array_equal(crop, expected)
        seen.add((int(which[0, 0]), transposed, flipped))
    assert len({s[1:] for s in seen}) == 4
    # 25 epochs of 5 images.
    assert np.bincount(crops[:, 0, 0, 2]).tolist() == [25] * 5
    # Neither flipped nor transposed: row and column grow.
    plain = take(IMAGES, 5, flip=False, transpose=0.0).astype(int)
    assert (np.diff(plain[..., 0], axis=2) == 1).all()
    assert (np.diff(plain[..., 1], axis=3) == 1).all()


def test_epochs_are_permutations() -> None:
    sampler = CropSampler(11, SIZE, 3, DataConfig())
    epochs = np.array([sampler.image(i) for i in range(55)]).reshape(5, 11)
    assert (np.sort(epochs, 1) == np.arange(11)).all()
    assert len({tuple(e) for e in epochs}) == 5
    other = dataclasses.replace(sampler, seed=4)
    assert [other.image(i) for i in range(11)] != epochs[0].tolist()


def test_crops_stay_what_they_are() -> None:
    """A resumed run relies on it, maybe with another NumPy."""
    sampler = CropSampler(1000, 64, 5, DataConfig(scale_jitter=0.5))
    drawn = [(sampler.image(p), *sampler.crop(p, 300, 200)) for p in (0, 999, 10**12)]
    assert drawn == [
        (478, 90, 64, 109, False, False),
        (424, 64, 67, 70, True, False),
        (702, 134, 116, 84, True, True),
    ]
    assert [sampler.image(3, attempt) for attempt in (1, 2)] == [844, 407]


def test_places_are_uniform() -> None:
    sampler = CropSampler(1, SIZE, 0, DataConfig())
    crops = np.array([sampler.crop(p, 18, 20) for p in range(4000)])
    for column, count in ((0, 3), (1, 5)):
        found = np.bincount(crops[:, column], minlength=count) / len(crops)
        np.testing.assert_allclose(found, 1 / count, atol=4 * 0.5 / len(crops) ** 0.5)
    assert crops[:, 3].mean() == pytest.approx(0.5, abs=0.035)
    assert crops[:, 4].mean() == pytest.approx(0.25, abs=0.03)


def test_rows_do_not_depend_on_who_makes_them() -> None:
    whole = take(IMAGES, 6)
    assert whole.shape == (6, 4, SIZE, SIZE, 3)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, take(IMAGES, 6, prefetch=1))
    # Resumed at step 3.
    np.testing.assert_array_equal(whole[3:], take(IMAGES, 3, first=3))
    # Three processes, also of uneven shares.
    parts = [take(IMAGES, 6, rows=r) for r in (slice(0, 1), slice(1, 2), slice(2, 4))]
    np.testing.assert_array_equal(whole, np.concatenate(parts, 1))
    # Another batch size cuts the same row of crops elsewhere.
    np.testing.assert_array_equal(whole.reshape(3, 8, SIZE, SIZE, 3), take(IMAGES, 3, batch=8))
    assert not np.array_equal(whole, take(IMAGES, 6, seed=8))
    assert len(np.unique(whole.reshape(24, -1), axis=0)) > 20


def test_worker_processes_make_the_same_batches() -> None:
    whole = take(IMAGES, 7, first=2)
    np.testing.assert_array_equal(whole, take(IMAGES, 7, first=2, workers=2, prefetch=2))


@pytest.mark.parametrize("rows", [slice(0, 5), slice(2, 2), slice(0, 4, 2), slice(3, 0, -1)])
def test_rows_outside_the_batch(rows: slice) -> None:
    with pytest.raises(ValueError, match="rows must be some of the batch's 4, got slice"):
        stream(IMAGES, rows=rows)


def test_scales() -> None:
    sampler = CropSampler(1, 64, 0, DataConfig(scale_jitter=0.5))
    crops = [sampler.crop(p, 200, 300) for p in range(2000)]
    scales = np.log2([c.side / 64 for c in crops])
    assert 0 <= scales.min() < 0.02
    assert 0.98 < scales.max() <= 1
    assert scales.mean() == pytest.approx(0.5, abs=4 * 0.29 / 2000**0.5)
    assert max(c.top + c.side for c in crops) == 200
    # Never beyond the image, so never below the crop's size.
    assert max(sampler.crop(p, 70, 300).side for p in range(100)) == 70
    assert {sampler.crop(p, 64, 64)[:3] for p in range(100)} == {(0, 0, 64)}
    # The other draws stay what they are.
    plain = dataclasses.replace(sampler, data=DataConfig())
    assert [plain.crop(p, 200, 300)[3:] for p in range(50)] == [c[3:] for c in crops[:50]]


def test_scaled_crop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    scaled = cut(image, Crop(3, 5, 40, flip=True, transpose=True), 16)
    box = Image.fromarray(image[3:43, 5:45]).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(scaled, np.asarray(box)[:, ::-1].transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("transpose", 1.5, "in [0, 1]"),
        ("scale_jitter", 1.0, "in [0, 1)"),
        ("workers", -1, "at least 0"),
        ("prefetch", 0, "positive"),
    ],
)
def test_wrong_config(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as info:  # noqa: PT011
        DataConfig(**{field: value})
    assert str(info.value) == f"DataConfig.{field} is {value!r}; it must be {allowed}"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five good images, one that breaks off after its header, others that are none."""
    folder = tmp_path / "photos"
    noise = np.random.default_rng(0)
    write_images(
        folder / "a" / "b", [noise.integers(0, 256, (40, 60 + k, 3), np.uint8) for k in range(5)]
    )
    good = (folder / "a" / "b" / "0.png").read_bytes()
    (folder / "a" / "cut.png").write_bytes(good[:300])
    (folder / "text.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not an image file")
    Image.fromarray(IMAGES[3]).save(folder / "narrow.png")
    return folder


def test_folder(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(str(photos), crop_size=32)
    assert [r.getMessage() for r in caplog.records] == [
        "skipped 1 images (cannot be read): text.jpg",
        "skipped 1 images (smaller than 32 px): narrow.png",
    ]
    assert isinstance(source, FolderSource)
    names = [p.relative_to(photos).as_posix() for p in source.paths]
    assert names == [*(f"a/b/{k}.png" for k in range(5)), "a/cut.png"]
    assert source[2].shape == (40, 62, 3)
    with pytest.raises(UnreadableImageError, match=r"^.*cut\.png: .*truncated"):
        source[5]
    # Two damaged chunk names: Pillow raises SyntaxError here.
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    Image.fromarray(noise).save(photos / "a" / "b" / "0.png")
    data = (photos / "a" / "b" / "0.png").read_bytes()
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    damaged = data[:second] + b"\x01\x02\x03\x04" + data[second + 4 :]
    (photos / "a" / "b" / "0.png").write_bytes(damaged)
    with pytest.raises(UnreadableImageError, match=r"0\.png: broken PNG file"):
        source[0]
    (photos / "a" / "b" / "1.png").unlink()
    with pytest.raises(UnreadableImageError, match=r"1\.png: No such file or directory"):
        source[1]


def test_unreadable_images_are_replaced(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_folder(photos, crop_size=32)
    caplog.clear()
    whole = take(source, 6, size=32)
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("replaced an image that cannot be used: ")
    assert "cut.png: " in messages[0]
    assert messages[1] == "1 images could not be used and were replaced"
    # Every position of the 4 epochs has a crop of a good image; the resumed run has the same.
    assert (whole.reshape(24, -1).std(1) > 60).all()
    np.testing.assert_array_equal(whole[2:], take(source, 4, size=32, first=2))
    sampler = CropSampler(6, 32, 7, DataConfig())
    position = [sampler.image(p) for p in range(6)].index(5)
    index, _, missed = sampler.first_usable(position, source.__getitem__)
    assert index != 5
    assert {i for i, _ in missed} == {5}
    np.testing.assert_array_equal(
        whole[position // 4, position % 4],
        cut(source[index], sampler.crop(position, *source[index].shape[:2]), 32),
    )


def test_no_readable_image(photos: Path) -> None:
    for path in (photos / "a" / "b").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    source = open_folder(photos, crop_size=32)
    with pytest.raises(ValueError, match=r"100 images in a row cannot be used; the last one is .*"):
        take(source, 1, size=32)
    with pytest.raises(ValueError, match="none of 6 images can be used"):
        sample_patches(source, 16, 2, seed=0)
    with pytest.raises(ValueError, match="none of 6 images can be decoded"):
        open_source(f"memory:{photos}", crop_size=32)
    with pytest.raises(ValueError, match=r"image [01]: 8x4 pixels, smaller than 16 px"):
        take(ramps((4, 8), (4, 8)), 1)
    with pytest.raises(ValueError, match="the data source holds no image"):
        stream([])


def test_colours_are_read_as_the_codec_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    colour = Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8))
    colour.convert("L").save(tmp_path / "gray.png")
    colour.convert("P").save(tmp_path / "palette.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65536, (32, 40), np.uint16)).save(tmp_path / "deep.png")
    colour.putalpha(Image.fromarray(rng.integers(0, 256, (32, 40), np.uint8)))
    colour.save(tmp_path / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    source = open_folder(tmp_path, crop_size=32)
    assert len(source) == 6
    for k, path in enumerate(source.paths):
        pixels = read_image(path, background="white").pixels
        expected = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)
        np.testing.assert_array_equal(source[k], expected, err_msg=path.name)
        assert source[k].shape == ((40, 32, 3) if path.name == "turned.jpg" else (32, 40, 3))


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "a", IMAGES[:2])
    write_images(tmp_path / "elsewhere", IMAGES[:1])
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "outside").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data" / "self")
    paths = open_folder(tmp_path / "data", crop_size=SIZE).paths
    found = [p.relative_to(tmp_path / "data").as_posix() for p in paths]
    assert found == ["a/0.png", "a/1.png", "outside/0.png"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}/missing", "data folder '{}/missing' does not exist"),
        ("memory:{}/missing", "data folder '{}/missing' does not exist"),
        ("{}", "no usable image in '{}': 0 files found, 0 broken, 0 smaller than 64 px"),
        (
            "s3:{}",
            "unknown data source 's3:{}'; it must be FOLDER, memory:FOLDER or "
            "tfds:NAME/SPLIT[@DATA_DIR]",
        ),
        ("tfds:name@{}", "data source 'tfds:name@{}' must be tfds:NAME/SPLIT[@DATA_DIR]"),
    ],
)
def test_wrong_sources(spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as info:  # noqa: PT011
        open_source(spec.format(tmp_path), crop_size=64)
    assert str(info.value) == message.format(tmp_path)


def test_memory_gives_the_crops_of_the_folder(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = open_folder(photos, crop_size=32)
    # Many blocks, which rows of crops straddle.
    monkeypatch.setattr(memory, "_BLOCK", 1000)
    caplog.clear()
    source = open_source(f"memory:{photos}", crop_size=32)
    assert "an image cannot be used: " in caplog.text
    assert "cut.png" in caplog.text
    assert isinstance(source, MemorySource)
    assert source.blocks.shape == (45, 1000 + 3 * 64)
    np.testing.assert_array_equal(source[4], folder[4])
    with pytest.raises(UnreadableImageError, match="image 5: could not be decoded"):
        source[5]
    for kwargs in ({}, {"rows": slice(1, 3), "first": 4}):
        on_device = take(source, 4, size=32, **kwargs)
        np.testing.assert_array_equal(on_device, take(folder, 4, size=32, **kwargs))
    assert isinstance(next(stream(source, size=32)), jax.Array)


def test_memory_scales_nearly_as_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, s, np.uint8) for s in ((40, 56, 3), (16, 16, 3), (64, 20, 3))]
    sizes = np.array([im.shape[:2] for im in images], np.int32)
    lengths = 3 * sizes.astype(np.int64).prod(1)
    flat = np.concatenate([im.ravel() for im in images])
    pixels = np.zeros(memory._BLOCK + 3 * 64, np.uint8)
    pixels[: len(flat)] = flat
    source = MemorySource(pixels, np.cumsum(lengths) - lengths, sizes)
    on_device = take(source, 10, scale_jitter=0.6).astype(int)
    error = np.abs(on_device - take(images, 10, scale_jitter=0.6))
    assert error.max() <= 1
    assert (error > 0).mean() < 0.01
    weights = np.asarray(memory._bicubic(jnp.int32(16), 16, 40))
    np.testing.assert_array_equal(weights, np.eye(16, 40))


def test_without_grain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_images(tmp_path / "data", IMAGES)
    expected = take(open_folder(tmp_path / "data", crop_size=SIZE), 2)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match=r"needs Grain .*install sic_jax\[train\].*memory:FOLDER"):
        stream(IMAGES)
    source = open_source(f"memory:{tmp_path / 'data'}", crop_size=SIZE)
    np.testing.assert_array_equal(take(source, 2), expected)


def test_patches_lie_as_the_transform_reads_them(caplog: pytest.LogCaptureFixture) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    patches = sample_patches([image, image[:8]], 16, 2, seed=0)
    assert (patches.shape, patches.dtype) == ((2, 768), np.dtype(np.float32))
    np.testing.assert_allclose(patches[1], image.ravel() / 255 - 0.5, atol=1e-6)
    assert caplog.messages == ["skipped an image: image 1: 16x8 pixels, smaller than 16 px"]


def test_patches_of_a_large_source() -> None:
    read: list[int] = []

    class Counting(Sequence[Any]):
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return IMAGES[1]

    # Not by way of a permutation of all of them.
    assert sample_patches(Counting(), 16, 3, seed=0, max_images=10).shape == (30, 768)
    assert len(set(read)) == 10


def test_validation_crops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "a", ramps((40, 56), (33, 32), (32, 40), (34, 60)))
    crops = validation_crops(str(tmp_path), 32, 2)
    assert (crops.shape, crops.dtype) == ((2, 32, 32, 3), np.dtype(np.uint8))
    assert crops[:, 0, 0].tolist() == [[4, 12, 0], [0, 4, 2]]
    np.testing.assert_array_equal(validation_crops(f"memory:{tmp_path}", 32, 9)[::2], crops)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "0.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:5000])
    assert validation_crops(str(tmp_path), 32, 9)[:, 0, 0, 2].tolist() == [1, 2, 3]
    assert "skipped an image: " in caplog.text
    with pytest.raises(ValueError, match="count is 0; it must be positive"):
        validation_crops(str(tmp_path), 32, 0)


TFDS = """
import json, sys
from pathlib import Path
import numpy as np
from sic_jax.data.folder import open_folder
from sic_jax.data.open_source import open_source
from sic_jax.data.pack import pack
from sic_jax.data.samples import validation_crops
from test_training_data import take

if __name__ == "__main__":
    root, photos = sys.argv[1:]
    # An interrupted attempt is no obstacle.
    unfinished = Path(root) / "tiny" / "1.0.0.incomplete"
    unfinished.mkdir(parents=True)
    (unfinished / "rest").write_text("")
    path = pack(root, "tiny", {"train": photos, "other": photos})
    assert [p.name for p in path.parent.iterdir()] == ["1.0.0"]
    spec = f"tfds:tiny/train@{root}"
    source, folder = open_source(spec, crop_size=32), open_folder(photos, crop_size=1)
    half = open_source(f"tfds:tiny/train[:50%]@{root}", crop_size=32)
    out = {"length": len(source), "half": len(half)}
    out["equal"] = np.array_equal(take(source, 5, size=32), take(folder, 5, size=32))
    out["workers"] = np.array_equal(
        take(source, 5, size=32), take(source, 5, size=32, workers=1)
    )
    out["validation_crops"] = validation_crops(spec, 32, 3).shape
    out["errors"] = []
    for wrong in ("tiny/test", "none/train", "tiny/train", "mnist/train"):
        try:
            folder = f"{root}/none" if wrong == "tiny/train" else root
            open_source(f"tfds:{wrong}@{folder}", crop_size=32)
        except ValueError as e:
            out["errors"].append(str(e).replace(root, ""))
    try:
        pack(root, "tiny", {"train": photos})
    except ValueError as e:
        out["errors"].append(str(e).replace(root, ""))
    out["tensorflow"] = "tensorflow" in sys.modules
    print(json.dumps(out))
"""


@pytest.mark.thorough
@pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow_datasets"), reason="needs tensorflow-datasets"
)
def test_tensorflow_datasets_without_tensorflow(photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TFDS)
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    (tmp_path / "root").mkdir()
    done = subprocess.run(
        [sys.executable, script, tmp_path / "root", photos],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "record 5: " in done.stderr
    out = json.loads(done.stdout.splitlines()[-1])
    assert out == {
        "length": 7,
        "half": 4,
        "equal": True,
        "workers": True,
        "validation_crops": [3, 32, 32, 3],
        "errors": [
            "data source 'tfds:tiny/test@': Unknown split 'test'. Should be one of "
            "['train', 'other'].",
            "data source 'tfds:none/train@': Dataset none not found.",
            "data source 'tfds:tiny/train@/none': Dataset tiny not found.",
            "data source 'tfds:mnist/train@': Trying to access `splits['train']` but `splits` is "
            "empty. This likely indicates the dataset has not been generated yet.",
            "'/tiny/1.0.0' exists already",
        ],
        "tensorflow": False,
    }


@pytest.mark.parametrize("splits", [["train=a", "train=b"], ["train="], ["photos"]])
def test_splits_to_pack(splits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pack.parse(["root", "name", *splits])
    assert f"SPLIT=FOLDER, each once, got {' '.join(splits)}" in capsys.readouterr().err


def test_the_room_depends_on_images_and_fields_alone_and_on_itself_in_one_direction() -> None:
    imports: dict[str, set[str]] = {}
    for path in Path(memory.__file__).parent.glob("*.py"):
        found = ast.walk(ast.parse(path.read_text()))
        names = {n.module or "" for n in found if isinstance(n, ast.ImportFrom)}
        imports[f"sic_jax.data.{path.stem}"] = {n for n in names if n.startswith("sic_jax.")}
    assert len(imports) > 8
    others = set().union(*imports.values()) - set(imports)
    assert {n for n in others if not n.startswith("sic_jax.images.")} == {"sic_jax.fields"}
    # Raises CycleError where modules import each other, lazily or not.
    order = tuple(graphlib.TopologicalSorter(imports).static_order())
    assert set(order) == imports.keys() | others
