"""A codec that takes no time, and what tests of the command `sic` do with files."""

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sic_jax.cli import main as cli
from sic_jax.codec import container
from sic_jax.codec.options import DecodeOptions, EncodeOptions, with_changes
from sic_jax.images import io as image_io
from sic_jax.metadata import Metadata

MODEL_ID = b"fake42"


class FakeCodec:
    """Keeps the pixels in z; the other levels are ballast of 10, 20, ... bytes."""

    def __init__(self, bundle: str = "") -> None:
        self.bundle = SimpleNamespace(name=bundle)

    def compress(
        self,
        image: NDArray[Any],
        options: EncodeOptions = EncodeOptions(),
        *,
        metadata: Metadata | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> bytes:
        options = with_changes(options, changes)
        level = 16 if options.level is None else options.level
        for step in range(options.optimise_steps):
            if on_step is not None:
                on_step(step + 1, options.optimise_steps)
        if not 1 <= level <= 16:
            raise ValueError(f"level must be 1 to 16, got {level}")
        if image.shape[0] == 13:
            raise RuntimeError("thirteen\nrows")
        has_alpha = image.shape[2:] == (4,)
        header = container.Header(
            model_id=MODEL_ID,
            height=image.shape[0],
            width=image.shape[1],
            mode="gray" if image.ndim == 2 else "rgb",
            num_levels=level,
            seed=options.seed + 1000 * options.optimise_steps,
            grain=int((options.grain or 0) * 16),
            alpha=has_alpha,
        )
        payloads = [zlib.compress(image.tobytes()), *(bytes(10 * i) for i in range(1, level + 1))]
        segments = [container.Segment(payload, 0) for payload in payloads]
        alpha = container.Segment(b"alpha", 0) if has_alpha else None
        return container.pack(header, segments, metadata, alpha=alpha)

    def decompress(self, data: bytes, options: DecodeOptions = DecodeOptions()) -> NDArray[Any]:
        file = container.unpack(data, strict=options.strict, max_pixels=options.max_pixels)
        if file.truncated:
            warnings.warn(f"only {file.level} levels are there", stacklevel=2)
        if file.metadata_damaged:
            warnings.warn("the metadata are damaged", stacklevel=2)
        header = file.header
        raw = np.frombuffer(zlib.decompress(file.segments[0].payload), np.uint8)
        shape: tuple[int, ...] = (header.height, header.width)
        shape += () if header.mode == "gray" else (3 + header.alpha,)
        shift = (options.level or 0) + 16 * (options.seed or 0)
        shift += int(64 * (options.temperature or 0)) + (header.grain if options.grain else 0)
        return raw.reshape(shape) + np.uint8(shift)

    def decompress_samples(
        self, data: bytes, options: DecodeOptions, *, num_samples: int
    ) -> NDArray[Any]:
        first = self.decompress(data, options)
        return np.stack([first + np.uint8(100 + i) for i in range(num_samples)])


def pixels(height: int = 5, width: int = 4, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(name: str, array: NDArray[Any] | None = None) -> NDArray[Any]:
    array = pixels() if array is None else array
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(name)
    return array


def get(name: str) -> NDArray[Any]:
    return image_io.read_image(name).pixels


def put_sic(name: str, *, level: int = 4, **options: Any) -> bytes:
    data = FakeCodec().compress(pixels(), level=level, **options)
    Path(name).write_bytes(data)
    return data


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def run(*argv: str) -> int:
    return cli.main(argv)


class Pipe:
    """A binary standard stream."""

    def __init__(self, data: bytes = b"", *, terminal: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.buffer.write(text.encode())

    def flush(self) -> None: ...
