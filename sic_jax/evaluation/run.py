"""The measurements of a run, image by image, kept as they are made."""

import functools
import importlib.metadata
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sic_jax import metrics
from sic_jax.compilation_cache import KEPT
from sic_jax.evaluation.codecs import ImageCodec, Pixels, setting_text
from sic_jax.evaluation.measurer import Measurer
from sic_jax.evaluation.records import Key, Record, append_records, digest, key_of, load_records
from sic_jax.images.io import PICTURES, read_image
from sic_jax.progress import Progress

RECORDS_FILE = "records.jsonl"
"""Every measurement that was ever made into the output folder."""


class Found(NamedTuple):
    """What paths on the command line lead to."""

    images: list[Path]
    skipped: list[Path]
    """Files in a folder that are not named like pictures."""


class Failure(NamedTuple):
    """An image that could not be measured."""

    image: str
    error: str


class Measured(NamedTuple):
    """The measurements of all images, codecs and settings."""

    records: list[Record]
    """Only of images for which nothing failed, so that all means are over the same images."""
    failures: list[Failure]
    num_reused: int
    """Records that an earlier run had made."""


def setup() -> dict[str, Any]:
    """The device and the versions, as in results.json."""
    return {
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "pillow")},
    }


def timed_with(codec: ImageCodec) -> str:
    """What times of a codec are measured with in this process."""
    here = setup()
    versions = [f"{name} {version}" for name, version in here["versions"].items()]
    coder = [] if codec.coder is None else [f"coder {codec.coder}"]
    return ", ".join([*coder, here["device"], *versions])


def find_images(paths: Sequence[str]) -> Found:
    """The files, and the pictures that lie directly in the folders; each once.

    Raises:
        ValueError: If a folder holds no picture.
    """
    images: dict[Path, Path] = {}
    skipped = []
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
            inside = [p for p in files if p.suffix.lower() in PICTURES]
            skipped += [p for p in files if p not in inside]
            if not inside:
                raise ValueError(f"{path}: the folder holds no picture")
        for file in inside:
            images.setdefault(file.resolve(), file)
    return Found(list(images.values()), skipped)


def measure_images(
    paths: Sequence[Path],
    codecs: Sequence[ImageCodec],
    measurer: Measurer,
    out: Path,
    progress: Progress,
) -> Measured:
    """Measure every codec at every setting on every image.

    Whatever is wrong with one image, the others are measured. Records go to `RECORDS_FILE` in `out`
    as they are made; those that are there already, with their files, are not made again, and where
    they lack metrics of this run, only those are computed, from the files. Their times are left out
    of what is returned if they were measured with another coder, device or version.

    Args:
        paths: Images.
        codecs: Codecs, with their settings.
        measurer: Metrics.
        out: Folder for records and compressed files; made if it is not there.
        progress: Told of every image and error.

    Raises:
        OSError: If `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    work = _Work(codecs, measurer, out, load_records(out / RECORDS_FILE), progress, len(paths))
    records: list[Record] = []
    failures: list[Failure] = []
    num_reused = 0
    for number, path in enumerate(paths, 1):
        start, before = time.perf_counter(), work.num_made
        try:
            found = work.measure(path, number)
        except Exception as error:
            failures.append(Failure(str(path), one_line(error, path)))
            progress.say(f"eval.py: error: {failures[-1].error}")
            continue
        records += found
        made = work.num_made - before
        num_reused += len(found) - made
        seconds = time.perf_counter() - start
        kept = f", {len(found) - made} from before" if made < len(found) else ""
        progress.say(f"[{number}/{len(paths)}] {path}: {made} measured{kept}, {seconds:.1f} s")
    return Measured(records, failures, num_reused)


_Encode = Callable[[float], tuple[bytes, float]]
"""Of a setting, the file and the seconds of the encoding that it is from."""


class _Step(NamedTuple):
    """A measurement to make, or to complete."""

    key: Key
    codec: ImageCodec
    known: Record | None
    """What an earlier run found, with its file; None where the image has to be coded."""


class _Work:
    """What stays the same from image to image, and which image sizes are surely compiled."""

    def __init__(
        self,
        codecs: Sequence[ImageCodec],
        measurer: Measurer,
        out: Path,
        known: Mapping[Key, Record],
        progress: Progress,
        num_images: int,
    ) -> None:
        self._codecs = codecs
        self._measurer = measurer
        self._out = out
        self._known = known
        self._progress = progress
        self._num_images = num_images
        self._timed_with = {codec.name: timed_with(codec) for codec in codecs}
        # A codec may keep the programs of no more sizes than that.
        self._warm: deque[tuple[str, tuple[int, ...]]] = deque(maxlen=KEPT // 2)
        self._started = time.perf_counter()
        self.num_made = 0

    def measure(self, path: Path, number: int) -> list[Record]:
        """All records of one image, in the order of codecs and settings.

        A transparent image is a ValueError: metrics are of colours.
        """
        image = read_image(path, alpha=False).pixels
        image_id = digest(repr(image.shape).encode() + image.tobytes())
        names = [metric.name for metric in self._measurer.metrics]
        wanted: list[tuple[Key, str]] = []
        done: dict[Key, Record] = {}
        missing: dict[tuple[str, ...], list[_Step]] = {}
        for codec in self._codecs:
            for setting in codec.settings:
                key = Key(image_id, codec.kind or codec.name, codec.options, setting)
                wanted.append((key, codec.name))
                record = self._intact(key)
                known = {} if record is None else record.metrics
                if record is not None and all(name in known for name in names):
                    done[key] = record
                else:
                    lacking = tuple(name for name in names if name not in known)
                    missing.setdefault(lacking, []).append(_Step(key, codec, record))
        for lacking, steps in missing.items():
            self._make(path, number, image, lacking, steps, done)
        records = [
            _only(done[key]._replace(image=str(path), codec=name), names) for key, name in wanted
        ]
        return [self._without_foreign_times(record) for record in records]

    def _intact(self, key: Key) -> Record | None:
        """What an earlier run found, if its file is still there."""
        record = self._known.get(key)
        if record is None:
            return None
        file = self._out / record.file
        there = file.is_file() and digest(file.read_bytes()) == record.file_id
        return record if there else None

    def _without_foreign_times(self, record: Record) -> Record:
        """The record; without times if they are those of another setup than the report states."""
        if record.timed_with == self._timed_with[record.codec]:
            return record
        return record._replace(encode_s=None, decode_s=None)

    def _make(
        self,
        path: Path,
        number: int,
        image: Pixels,
        names: Sequence[str],
        steps: Sequence[_Step],
        done: dict[Key, Record],
    ) -> None:
        """Code where there is no file, decode, and compute the metrics of these names."""
        features = self._measurer.features(image, names)
        folder = f"files/{path.stem}-{steps[0].key.image_id[:8]}"
        (self._out / folder).mkdir(parents=True, exist_ok=True)
        coding = {s.codec.name: s.codec for s in steps if s.known is None}
        encoders = {name: _encoder(codec, image) for name, codec in coding.items()}
        estimates = {
            name: estimate
            for name, codec in coding.items()
            if codec.estimate and (estimate := codec.estimate(image))
        }
        for name, codec in coding.items():
            self._warm_up(codec, image, encoders[name])
        # Programs run while others compile; nothing may run beside what is timed.
        jax.block_until_ready(features)
        pending: list[tuple[Key, Record]] = []
        pictures: list[Pixels] = []
        for step, (key, codec, known) in enumerate(steps):
            setting = setting_text(key.setting)
            self._progress.show(
                f"[{number}/{self._num_images}] {path.name}  {codec.name} {setting}"
                f"  {self._remaining(number, step, len(steps))}"
            )
            file = f"{folder}/{codec.file_name(key.setting)}"
            try:
                if known is None:
                    record, found = self._code(path, image, key, codec, encoders[codec.name], file)
                else:
                    data = (self._out / known.file).read_bytes()
                    record, found = known, _decoded(image, codec, data)
            except Exception as error:
                raise ValueError(f"{codec.name} at {setting}: {one_line(error)}") from error
            if known is None and codec.name in estimates:
                record = record._replace(bpp_est=estimates[codec.name](key.setting))
            pending.append((key, record))
            pictures += found
            if len(pictures) >= self._measurer.batch_size or step == len(steps) - 1:
                values = self._measurer.distances(features, pictures)
                records = _with_metrics([record for _, record in pending], values)
                records = [self._with_known(record) for record in records]
                append_records(self._out / RECORDS_FILE, records)
                done.update(zip((key for key, _ in pending), records, strict=True))
                self.num_made += len(records)
                pending, pictures = [], []

    def _warm_up(self, codec: ImageCodec, image: Pixels, encode: _Encode) -> None:
        """Compiles what coding an image of this size needs."""
        if codec.compiles and (codec.name, image.shape) not in self._warm:
            if codec.times_encoding:
                encode = _encoder(codec, image)  # It keeps nothing that is to be timed.
            # At the highest setting nothing may be left to draw, and no program of it be compiled.
            codec.decode(encode(codec.settings[0])[0], 0)
            self._warm.append((codec.name, image.shape))

    def _code(
        self,
        path: Path,
        image: Pixels,
        key: Key,
        codec: ImageCodec,
        encode: _Encode,
        file: str,
    ) -> tuple[Record, list[Pixels]]:
        """One file, written, read back and decoded; metrics and estimates are not there yet."""
        height, width = image.shape[:2]
        data, encode_s = encode(key.setting)
        (self._out / file).write_bytes(data)
        data = (self._out / file).read_bytes()
        start = time.perf_counter()
        pictures = _decoded(image, codec, data)
        decode_s = (time.perf_counter() - start) / codec.samples
        record = Record(
            image=str(path),
            image_id=key.image_id,
            codec=key.codec,
            options=codec.options,
            setting=key.setting,
            file=file,
            file_id=digest(data),
            height=height,
            width=width,
            num_bytes=len(data),
            bpp=metrics.bpp(len(data), height, width),
            bpp_est=None,
            samples=codec.samples,
            encode_s=encode_s if codec.times_encoding else None,
            decode_s=decode_s,
            timed_with=self._timed_with[codec.name],
            metrics={},
            spread={},
        )
        return record, pictures

    def _with_known(self, record: Record) -> Record:
        """The record, with metrics that an earlier run computed of the same file."""
        known = self._known.get(key_of(record))
        if known is None or known.file_id != record.file_id:
            return record
        return record._replace(
            metrics={**known.metrics, **record.metrics}, spread={**known.spread, **record.spread}
        )

    def _remaining(self, number: int, step: int, steps: int) -> str:
        if not self.num_made:
            return ""
        seconds = (time.perf_counter() - self._started) / self.num_made
        minutes = seconds * (steps - step + (self._num_images - number) * steps) / 60
        return f"about {minutes:.0f} min left"


def _encoder(codec: ImageCodec, image: Pixels) -> _Encode:
    """The encoder of one image; whatever it has encoded, it keeps."""

    @functools.cache
    def encode(setting: float) -> tuple[bytes, float]:
        start = time.perf_counter()
        return codec.encode(image, setting), time.perf_counter() - start

    def encode_or_cut(setting: float) -> tuple[bytes, float]:
        if codec.cut is None:
            return encode(setting)
        data, seconds = encode(codec.settings[-1])
        return codec.cut(data, setting), seconds

    return encode_or_cut


def _decoded(image: Pixels, codec: ImageCodec, data: bytes) -> list[Pixels]:
    """All samples of a file, checked to be of the image's size."""
    pictures = [codec.decode(data, sample) for sample in range(codec.samples)]
    for picture in pictures:
        if picture.shape[:2] != image.shape[:2]:
            raise ValueError(f"decoded to {picture.shape}, the image is {image.shape}")
    return pictures


def _with_metrics(
    records: Sequence[Record], values: Mapping[str, Sequence[float | None]]
) -> list[Record]:
    """The records with mean and spread of their samples, which follow each other in `values`.

    What they held before is kept.
    """
    out, start = [], 0
    for record in records:
        end = start + record.samples
        own = {name: known[start:end] for name, known in values.items()}
        start = end
        out.append(
            record._replace(
                metrics={**record.metrics, **{name: _mean(own[name]) for name in own}},
                spread={**record.spread, **{name: _deviation(own[name]) for name in own}}
                if record.samples > 1
                else {},
            )
        )
    return out


def _only(record: Record, names: Sequence[str]) -> Record:
    """The record with the metrics of this run."""
    return record._replace(
        metrics={name: record.metrics[name] for name in names},
        spread={name: record.spread[name] for name in names if name in record.spread},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _deviation(values: Sequence[float | None]) -> float | None:
    mean = _mean(values)
    if mean is None:
        return None
    squares = [(value - mean) ** 2 for value in values if value is not None]
    return float((sum(squares) / (len(values) - 1)) ** 0.5)


def one_line(error: Exception, path: Path | str = "") -> str:
    """What went wrong, beginning with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        text, path = error.strerror, error.filename or path
    elif isinstance(error, (ValueError, TypeError, OSError)):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    prefix = f"{path}: " if path and not text.startswith(str(path)) else ""
    return prefix + " ".join(text.split())
