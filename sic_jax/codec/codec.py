"""The codec: pictures to files and back."""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sic_jax.codec.bundle import Bundle, load_bundle
from sic_jax.codec.coding import CodingPass, Ints
from sic_jax.codec.container import (
    DEFAULT_MAX_PIXELS,
    MAX_SEED,
    Container,
    Header,
    Metadata,
    Segment,
    pack,
    symbols_checksum,
    unpack,
)
from sic_jax.entropy.range_coder import (
    VALUE_LIMIT,
    RangeDecoder,
    RangeEncoder,
    available_backends,
    default_backend,
)
from sic_jax.errors import BitstreamError
from sic_jax.model.detail import normal_noise, uniform_noise
from sic_jax.model.hyper import HYPER_PATCH
from sic_jax.model.sic import SicModel
from sic_jax.model.transforms import PATCH

Pixels = NDArray[np.uint8]


class DecodedLatents(NamedTuple):
    """Integers of a file."""

    y_s: Ints
    """[h, w, C], zeros above `level`."""
    z_hat: Ints
    """[ceil(h/4), ceil(w/4), C_z]."""
    level: int


class EstimatedBits(NamedTuple):
    """Bits of an image by the model's probabilities, without coding."""

    z: float
    y: NDArray[np.float64]
    """Of each level, [L]."""

    def bpp_est(self, level: int, height: int, width: int) -> float:
        """Estimated bits per pixel of a file of `level`."""
        return (self.z + float(self.y[:level].sum())) / (height * width)


class Codec:
    """A bundle ready to compress and decompress.

    Compiles on first use of each image size; keep the object to work on many images.
    """

    def __init__(self, bundle: Bundle, *, coder: str | None = None) -> None:
        """Prepare a bundle.

        Args:
          bundle: The model.
          coder: Range-coder backend, `native` or `tfc`; both write the same bytes. Default: the
            one that starts faster.

        Raises:
          ValueError: If the backend is not known or not installed.
        """
        if coder is not None and coder not in available_backends():
            raise ValueError(f"coder must be one of {available_backends()} here, got {coder!r}")
        self.bundle = bundle
        self.coder = coder or default_backend()
        self._pass = CodingPass(bundle.cfg, bundle.params)
        model = SicModel(bundle.cfg)
        self._variables = jax.device_put({"params": bundle.params})

        def analyse(variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = x[None].astype(jnp.float32) / 255
            latents: Any = model.apply(variables, x, method="analyse")
            y, z = (jnp.round(a[0]).astype(jnp.int32) for a in latents)
            return y, z

        def synthesise(variables: Any, y_hat: jax.Array, level: jax.Array) -> jax.Array:
            x_hat: Any = model.apply(variables, y_hat, level, method="synthesise")
            return jnp.round(jnp.clip(x_hat[0], 0, 1) * 255).astype(jnp.uint8)

        def estimate(variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            full = jnp.full((1,), bundle.cfg.num_levels)
            x = x[None].astype(jnp.float32) / 255
            out: Any = model.apply(variables, x, full, temperature=jnp.zeros((1,)))
            return out.bits_z[0], out.bits_y[0]

        self._analyse = jax.jit(analyse)
        self._synthesise = jax.jit(synthesise)
        self._estimate = jax.jit(estimate)

    @classmethod
    def load(cls, bundle: str | Path = "default", *, coder: str | None = None) -> "Codec":
        """A codec for a bundle that ships with the package (by name) or lies in a folder.

        Raises:
          ValueError: If there is no such bundle, or it is damaged.
        """
        return cls(load_bundle(bundle), coder=coder)

    def compress(
        self,
        image: NDArray[np.uint8],
        *,
        level: int | None = None,
        seed: int = 0,
        icc_profile: bytes | None = None,
        exif: bytes | None = None,
    ) -> bytes:
        """Compress a picture into the bytes of a file.

        Args:
          image: uint8 [H, W, 3] (sRGB) or [H, W] (gray), any size from 1x1.
          level: 1 (smallest file) to L (default); lower levels are prefixes of higher ones.
          seed: Default seed of the details that a decoder draws.
          icc_profile: Colour profile to keep.
          exif: EXIF block to keep.

        Raises:
          TypeError: If the image is not a uint8 array.
          ValueError: If its shape, the level or the seed is not valid.
        """
        cfg = self.bundle.cfg
        level = cfg.num_levels if level is None else level
        self._check_level(level, cfg.num_levels)
        pixels = _check_image(image)
        height, width = pixels.shape[:2]
        header = Header(
            model_id=self.bundle.model_id,
            height=height,
            width=width,
            mode="gray" if image.ndim == 2 else "rgb",
            num_levels=level,
            seed=seed,
            float_entropy=True,
        )
        y_device, z_device = self._analyse(self._variables, _pad(pixels))
        y, z = np.asarray(y_device), np.asarray(z_device)
        limit = VALUE_LIMIT // 2
        y, z = np.clip(y, -limit, limit), np.clip(z, -limit, limit)
        segments = [self._encode_z(z)]
        hyper = self._pass.hyper(self._pass.variables, z, y.shape[:2])
        coding = self._pass.run(hyper, level)
        encoder, symbols, current = self._new_encoder(), b"", 1
        request = next(coding)
        while True:
            if request.level != current:
                segments.append(Segment(encoder.finish(), symbols_checksum(symbols)))
                encoder, symbols, current = self._new_encoder(), b"", request.level
            half, channels = request.where
            values = y[half, channels].ravel()
            encoder.encode(values - request.means, request.indices)
            symbols += values.astype("<i4").tobytes()
            try:
                request = coding.send(values)
            except StopIteration:
                segments.append(Segment(encoder.finish(), symbols_checksum(symbols)))
                break
        return pack(header, segments, Metadata(icc_profile=icc_profile, exif=exif))

    def decompress(
        self,
        data: bytes,
        *,
        level: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        strict: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Pixels:
        """Decode a file into a picture.

        Args:
          data: Bytes of a file, or of any prefix that holds at least level 1.
          level: Decode only up to this level; default: all that the data hold.
          seed: Seed of the drawn details; default: the file's.
          temperature: Spread of the drawn details, 0 for their mean; default: the bundle's.
          strict: Refuse truncated data instead of warning and decoding the levels that are whole.
          max_pixels: Refuse larger pictures before anything is allocated.

        Returns:
          uint8 [H, W, 3], or [H, W] for a gray file.

        Raises:
          BitstreamError: If the data are damaged, or not of this bundle.
          ValueError: If an argument is out of its range.
        """
        samples = self.decompress_samples(
            data,
            num_samples=1,
            level=level,
            seed=seed,
            temperature=temperature,
            strict=strict,
            max_pixels=max_pixels,
        )
        picture: Pixels = samples[0]
        return picture

    def decompress_samples(
        self,
        data: bytes,
        *,
        num_samples: int = 4,
        level: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        strict: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Pixels:
        """Members of the synset of a file: decodings with seeds seed, seed + 1, ...

        Arguments and errors are those of `decompress`.

        Returns:
          uint8 [M, H, W, 3], or [M, H, W] for a gray file.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        cfg = self.bundle.cfg
        temperature = cfg.temperature if temperature is None else temperature
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
        container = unpack(data, strict=strict, max_pixels=max_pixels)
        header = container.header
        seed = header.seed if seed is None else seed
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be 0 to {MAX_SEED}, got {seed}")
        latents = self.decode_latents(container, level=level)
        shape = latents.y_s.shape
        y_s = latents.y_s.astype(np.float32)[None]
        hyper = self._pass.hyper(self._pass.variables, latents.z_hat, shape[:2])
        levels = np.array([latents.level], np.int32)
        draw = uniform_noise if cfg.detail == "uniform" else normal_noise
        out = []
        for member in range(num_samples):
            noise = draw((seed + member) % (MAX_SEED + 1), shape)[None]
            spread = np.array([temperature], np.float32)
            y_hat = self._pass.complete(self._pass.variables, y_s, hyper, levels, noise, spread)
            y_device = jax.device_put(y_hat, jax.devices()[0])
            x_hat = np.asarray(self._synthesise(self._variables, y_device, levels))
            out.append(x_hat[: header.height, : header.width])
        pictures = np.stack(out)
        return pictures if header.mode == "rgb" else _to_gray(pictures)

    def decode_latents(self, container: Container, *, level: int | None = None) -> DecodedLatents:
        """The integers of an unpacked file, each level checked against its checksum.

        Raises:
          BitstreamError: If the file is not of this bundle, or its symbols do not check.
          ValueError: If `level` is not in the file.
        """
        cfg, header = self.bundle.cfg, container.header
        if header.model_id != self.bundle.model_id:
            raise BitstreamError(
                f"the file was made with bundle {header.model_id.hex()}; "
                f"this is bundle {self.bundle.model_id.hex()} ({self.bundle.name})"
            )
        if header.num_levels > cfg.num_levels:
            raise BitstreamError(
                f"the file has {header.num_levels} levels; its bundle has {cfg.num_levels}"
            )
        if container.truncated:
            warnings.warn(
                f"the file is truncated: {container.level} of {header.num_levels} levels are whole",
                stacklevel=3,
            )
        if container.metadata_damaged and not container.truncated:
            warnings.warn("the file's metadata are damaged and were dropped", stacklevel=3)
        level = container.level if level is None else level
        self._check_level(level, container.level)
        h, w = -(-header.height // PATCH), -(-header.width // PATCH)
        z = self._decode_z(container.segments[0], (-(-h // HYPER_PATCH), -(-w // HYPER_PATCH)))
        coding = self._pass.run(self._pass.hyper(self._pass.variables, z, (h, w)), level)
        current, symbols = 1, b""
        decoder = self._new_decoder(container.segments[1])
        request = next(coding)
        while True:
            if request.level != current:
                _finish(decoder, symbols, container.segments[current], f"level {current}")
                current, symbols = request.level, b""
                decoder = self._new_decoder(container.segments[current])
            values = decoder.decode(request.indices) + request.means
            symbols += values.astype("<i4").tobytes()
            try:
                request = coding.send(values)
            except StopIteration as end:
                _finish(decoder, symbols, container.segments[current], f"level {current}")
                return DecodedLatents(end.value, z, level)

    def estimate_bits(self, image: NDArray[np.uint8]) -> EstimatedBits:
        """Bits of an image by the model's probabilities: what a perfect coder would need.

        Raises:
          TypeError, ValueError: As `compress`.
        """
        z, y = self._estimate(self._variables, _pad(_check_image(image)))
        return EstimatedBits(float(z), np.asarray(y, np.float64))

    def _check_level(self, level: int, highest: int) -> None:
        if not 1 <= level <= highest:
            raise ValueError(f"level must be 1 to {highest}, got {level}")

    def _new_encoder(self) -> RangeEncoder:
        return RangeEncoder(self.bundle.tables_y, backend=self.coder)

    def _new_decoder(self, segment: Segment) -> RangeDecoder:
        return RangeDecoder(self.bundle.tables_y, segment.payload, backend=self.coder)

    def _encode_z(self, z: Ints) -> Segment:
        encoder = RangeEncoder(self.bundle.tables_z, backend=self.coder)
        encoder.encode(z.ravel(), _channel_indices(z.shape))
        return Segment(encoder.finish(), symbols_checksum(z.astype("<i4").tobytes()))

    def _decode_z(self, segment: Segment, shape: tuple[int, int]) -> Ints:
        full = (*shape, self.bundle.cfg.hyper_channels)
        decoder = RangeDecoder(self.bundle.tables_z, segment.payload, backend=self.coder)
        z = decoder.decode(_channel_indices(full))
        _finish(decoder, z.astype("<i4").tobytes(), segment, "z")
        return z.reshape(full)


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, for the next process.

    Programs call this once at their start; a folder set by the user (JAX_COMPILATION_CACHE_DIR)
    is left as it is. With JAX before 0.12 nothing is kept, nor read: with 0.5.3, programs loaded
    on the CPU drew the same details for all seeds, and crashed where they reuse an argument.
    """
    config: Any = jax.config
    if jax.__version_info__ < (0, 12):
        config.update("jax_enable_compilation_cache", False)
        return
    if config.jax_compilation_cache_dir:
        return
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    config.update("jax_compilation_cache_dir", str(Path(base) / "sic_jax" / "jax"))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _channel_indices(shape: tuple[int, ...]) -> Ints:
    """Table of each symbol of z [h, w, C]: its channel."""
    return np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape).ravel()


def _finish(decoder: RangeDecoder, symbols: bytes, segment: Segment, what: str) -> None:
    """End a segment: the stream must be used up and the symbols must have their checksum."""
    if symbols_checksum(symbols) != segment.symbols_crc:
        raise BitstreamError(
            f"the symbols of {what} do not have their checksum: the data are damaged, or this "
            "machine's floating-point arithmetic differs from the encoder's"
        )
    decoder.finish()


def _check_image(image: NDArray[np.uint8]) -> Pixels:
    """The image as uint8 [H, W, 3], or an error that says what is wrong with it."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"image must be a uint8 array, got {kind}")
    if image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(
            "image has an alpha channel, which a file cannot hold: blend it onto a background and "
            "pass image[..., :3]"
        )
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"image must be [H, W, 3] or [H, W], not empty; got shape {image.shape}")
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _pad(pixels: Pixels) -> Pixels:
    """Repeat the last row and column up to multiples of 16."""
    pad = ((0, -pixels.shape[0] % PATCH), (0, -pixels.shape[1] % PATCH), (0, 0))
    return np.pad(pixels, pad, mode="edge")


def _to_gray(pixels: Pixels) -> Pixels:
    """Luma of RGB pictures [..., 3] by ITU-R BT.601."""
    luma = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(np.clip(luma, 0, 255)).astype(np.uint8)
