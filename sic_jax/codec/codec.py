"""The codec: pictures to files and back."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from sic_jax.codec import library
from sic_jax.codec.bundle import Bundle, load_bundle
from sic_jax.codec.container import (
    Container,
    Header,
    pack,
    read_header,
    truncate_to,
)
from sic_jax.codec.grain import grain_units, measure_grain
from sic_jax.codec.networks import EstimatedBits, Networks
from sic_jax.codec.options import DecodeOptions, EncodeOptions, check_level, with_changes
from sic_jax.codec.pixels import (
    PictureLike,
    Pixels,
    alpha_segment,
    as_array,
    check_image,
    exact_segment,
    pad,
    split_alpha,
)
from sic_jax.codec.progressive import (
    ProgressiveDecoder,
    check_bundle,
    warn_of_missing,
)
from sic_jax.codec.psnr_target import cut_at_psnr
from sic_jax.codec.symbols import Latents, SymbolCoder
from sic_jax.devices import check_devices, check_process, is_forked
from sic_jax.entropy.range_coder import VALUE_LIMIT, available_backends, default_backend
from sic_jax.fields import Family, Kinds, kinds_of
from sic_jax.metadata import Metadata
from sic_jax.model.families import FAMILIES

if TYPE_CHECKING:
    from sic_jax.codec.latent_optimisation import LatentOptimiser


class Codec:
    """A bundle ready to compress and decompress.

    Compiles on first use of each bucket of image sizes; keep the object to work on many images.
    Transforms and entropy models that are not `sized` compile for each size. The programs of the
    last few are kept. Threads may share a codec.

    A codec of `load` or `for_file` can be pickled, for worker processes: a pickle names the
    bundle's folder, and all pickles of one codec become the same object of a process. A copy is
    the codec itself. Workers must be spawned: in a process that is forked after JAX had started,
    methods raise RuntimeError (`sic_jax.devices`).
    """

    _source: tuple[Path, tuple[type[Family], ...]] | None = None
    """Of `load`: the folder, and the families that its config may name."""

    def __init__(self, bundle: Bundle, *, coder: str | None = None, window: int = 2048) -> None:
        """Prepare a bundle.

        Args:
            bundle: The model.
            coder: Range-coder backend, `native` or `tfc`; both write the same bytes. Default: the
                one that starts faster.
            window: Pixels of a side that the transforms see at once; larger pictures are processed
                in overlapping windows, which bounds the memory and changes nothing but float
                rounding. Arrays have the next side of `sizes.bucket`: 1280 for 1040, 2048 for 2048.
                The transforms `swin` see pictures whole, whatever the window: their memory grows
                with the picture.

        Raises:
            ValueError: If the backend is not known or not installed, or the window too small, or
                JAX has no device of the platform that it was told to use.
        """
        if coder is not None and coder not in available_backends():
            raise ValueError(f"coder must be one of {available_backends()} here, got {coder!r}")
        check_devices()
        self.bundle = bundle
        self.coder = coder or default_backend()
        self._networks = Networks(bundle.cfg, bundle.params, window=window)
        self._pass = bundle.coding_pass()
        self._symbols = SymbolCoder(bundle, self._pass, backend=self.coder)

    @classmethod
    def load(
        cls, bundle: str | Path = "default", *, coder: str | None = None, kinds: Kinds = FAMILIES
    ) -> "Codec":
        """A codec for a bundle.

        Args:
            bundle: Its name (`sic bundle list` shows those of this machine) or its folder.
            coder: As in `Codec`.
            kinds: As in `load_bundle`.

        Raises:
            ValueError: If there is no such bundle, or it is damaged.
        """
        check_devices()
        codec = cls(load_bundle(bundle, kinds=kinds), coder=coder)
        codec._source = library.find(bundle).resolve(), tuple(kinds.values())
        return codec

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle holds.

        Raises:
            RuntimeError: As `check_process`.
            TypeError: If the codec was made of a bundle in memory, which no other process has.
        """
        check_process()
        if self._source is None:
            raise TypeError(
                "a codec that was made of a bundle in memory cannot be pickled; write the bundle "
                "to a folder (export_bundle) and make the codec with Codec.load"
            )
        return _reopened, (type(self), *self._source, self.bundle.digest, self.coder)

    def __copy__(self) -> "Codec":
        """The codec itself: nothing that a caller sees of it changes."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Codec":
        """The codec itself."""
        return self

    if not TYPE_CHECKING:  # Type checkers would believe that a codec has every attribute.

        def __getattr__(self, name: str) -> NoReturn:
            """Says why the codec of a pickle has no attributes in a forked process."""
            if not name.startswith("__"):
                check_process()
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def for_file(cls, data: bytes, *, coder: str | None = None, kinds: Kinds = FAMILIES) -> "Codec":
        """The codec that decodes a file: that of the bundle whose id the file's header has.

        Args:
            data: A file or its first bytes.
            coder: As in `Codec`.
            kinds: As in `load_bundle`.

        Raises:
            BitstreamError: If the data have no sound header.
            ValueError: If no bundle of this machine has the id, or it is damaged.
        """
        folder = library.find_id(read_header(data).model_id).folder
        return cls.load(folder, coder=coder, kinds=kinds)

    def compress(
        self,
        image: PictureLike,
        options: EncodeOptions = EncodeOptions(),
        *,
        metadata: Metadata | None = None,
        on_step: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> bytes:
        """Compress a picture into the bytes of a file.

        Simple graphics are stored exactly, whatever the level (`sic_jax.codec.pixels`). Alpha is
        stored without loss, unless it is 255 everywhere; colours under an alpha of 0 are not kept.

        Args:
            image: uint8 [H, W, 3] (sRGB) or [H, W] (gray), with alpha [H, W, 4] or [H, W, 2], not
                premultiplied, any size from 1x1: an array of NumPy or JAX, or a Pillow image of
                mode RGB, L, RGBA or LA. Of a Pillow image only the pixels count, as they are:
                `sic_jax.read_image` turns upright, converts and finds metadata.
            options: How; its fields say their ranges and defaults.
            metadata: To keep beside the picture; `read_metadata` gives it back.
            on_step: Called after each step of latent optimisation, in every window of a large
                picture, with the number of those that are done and of all.
            **changes: Fields of the options by name, as in `compress(image, level=8)`.

        Raises:
            TypeError: If the image is not a uint8 array, or the options have no such field.
            ValueError: If its shape or a field is out of range, the bundle has no such level, or
                level 1 is larger than the options allow.
        """
        check_process()
        options = with_changes(options, changes)
        level = self._level_to_encode(options)
        image = as_array(image)
        colours, plane = split_alpha(image)
        alpha = None if plane is None else alpha_segment(plane)
        height, width = colours.shape[:2]
        header = Header(
            model_id=self.bundle.model_id,
            height=height,
            width=width,
            mode="gray" if colours.ndim == 2 else "rgb",
            num_levels=level,
            seed=options.seed,
            grain=0 if options.grain is None else grain_units(options.grain),
            float_entropy=not self.bundle.cfg.entropy.exact,
            alpha=alpha is not None,
        )
        limit = _limit(options, height * width)
        exact = exact_segment(colours, plane)
        if exact is not None:  # The picture's own grain is there already.
            header_of_exact = dataclasses.replace(header, exact=True)
            data = pack(header_of_exact, [exact], metadata, alpha=alpha)
            if len(data) <= limit:
                return data
        pixels = check_image(image)
        if options.grain is None:
            header = dataclasses.replace(header, grain=measure_grain(pixels, plane))
        y, z, _ = self.encode_latents(pixels, options, on_step=on_step)
        segments = self._symbols.encode(y, z, level)
        data = pack(header, segments, metadata, alpha=alpha)
        if len(data) > limit:
            data = truncate_to(data, int(limit))
        if options.min_psnr is None:
            return data
        decoder = self.decoder(grain=False, max_pixels=height * width)
        decoder.feed(data)
        return cut_at_psnr(data, image, options.min_psnr, decoder.picture, level=decoder.level)

    def encode_latents(
        self,
        image: PictureLike,
        options: EncodeOptions = EncodeOptions(),
        *,
        on_step: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> Latents:
        """The integers that files of an image hold, all levels, in the shapes that `Latents` says.

        Files of simple graphics (`compress`) hold the picture instead; it has latents still.
        Those of pictures with alpha are of their colours.

        Arguments and errors are those of `compress`; `seed` and `grain` change nothing.
        """
        check_process()
        options = with_changes(options, changes)
        cfg, level = self.bundle.cfg, self._level_to_encode(options)
        padded = pad(check_image(image), cfg.stride)
        y = self._networks.analyse(padded)
        limit = VALUE_LIMIT // 2
        y_hat, z_hat = self._networks.quantise(y)
        z_hat = np.clip(z_hat, -limit, limit)
        if options.optimise_steps:
            hyper = self._pass.hyper(z_hat, (y.shape[0], y.shape[1]))
            y_hat = self._optimiser(
                padded, y, hyper, level=level, steps=options.optimise_steps, on_step=on_step
            )
        return Latents(np.clip(y_hat, -limit, limit), z_hat, cfg.num_levels)

    @cached_property
    def _optimiser(self) -> "LatentOptimiser":
        """Imported and made when it is first needed: a decoder has no use for LPIPS and DISTS."""
        from sic_jax.codec.latent_optimisation import LatentOptimiser

        return LatentOptimiser(self.bundle.cfg, self.bundle.latent_loss, self._networks.params)

    def decompress(
        self, data: bytes, options: DecodeOptions = DecodeOptions(), **changes: Any
    ) -> Pixels:
        """Decode a file into a picture.

        Args:
            data: Bytes of a file, or of any prefix that holds at least level 1.
            options: How; its fields say their ranges and defaults.
            **changes: Fields of the options by name, as in `decompress(data, level=2)`.

        Returns:
            uint8 [H, W, 3], or [H, W] for a gray file; with alpha [H, W, 4] or [H, W, 2].

        Raises:
            BitstreamError: If the data are damaged, or not of this bundle.
            TypeError: If the options have no such field.
            ValueError: If a field is out of range, or the file does not hold the level.
        """
        return self._decoder_of(data, options, changes).picture()

    def decompress_samples(
        self,
        data: bytes,
        options: DecodeOptions = DecodeOptions(),
        *,
        num_samples: int = 4,
        **changes: Any,
    ) -> Pixels:
        """Members of the synset of a file: decodings with seeds seed, seed + 1, ...

        Arguments are those of `decompress`, and `num_samples` is M, at least 1.

        Returns:
            uint8 [M, H, W, 3], or [M, H, W] for a gray file; with alpha [M, H, W, 4] or
            [M, H, W, 2].

        Raises:
            BitstreamError, TypeError: As `decompress`.
            ValueError: As `decompress`, or if `num_samples` is less than 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        decoder = self._decoder_of(data, options, changes)
        return np.stack([decoder.picture(member=member) for member in range(num_samples)])

    def decoder(
        self, options: DecodeOptions = DecodeOptions(), **changes: Any
    ) -> ProgressiveDecoder:
        """A decoder of one file that is still arriving: it is fed bytes and has pictures.

        Args:
            options: As in `decompress`.
            **changes: As in `decompress`.

        Raises:
            TypeError: If the options have no such field.
            ValueError: If a field is out of range.
        """
        check_process()
        return ProgressiveDecoder(
            self.bundle, self._networks, self._pass, self._symbols, with_changes(options, changes)
        )

    def _decoder_of(
        self, data: bytes, options: DecodeOptions, changes: dict[str, Any]
    ) -> ProgressiveDecoder:
        """A decoder that was fed a whole file; warnings are in the name of the caller's caller."""
        decoder = self.decoder(options, **changes)
        decoder.feed(data)
        decoder.close(stacklevel=4)
        return decoder

    def decode_latents(self, container: Container, *, level: int | None = None) -> Latents:
        """The integers of an unpacked file, each level checked against its checksum.

        Raises:
            BitstreamError: If the file is not of this bundle, or its symbols do not check.
            ValueError: If `level` is not in the file, or the file holds the picture exactly.
        """
        check_process()
        if container.header.exact:
            raise ValueError("the file holds the picture exactly, and no latents")
        header, segments = container.header, container.segments
        check_bundle(header, self.bundle)
        warn_of_missing(container)
        level = check_level(container.level if level is None else level, container.level)
        z, hyper = self._symbols.decode_z(segments[0], header)
        return Latents(self._symbols.decode(segments, hyper, level), z, level)

    def estimate_bits(self, image: PictureLike) -> EstimatedBits:
        """Bits of an image by the model's probabilities: what a perfect coder would need.

        Of its latents, also where `compress` stores the picture exactly. Alpha is not counted.

        Args:
            image: uint8 of a shape that `compress` takes.

        Raises:
            TypeError, ValueError: As `compress`.
        """
        check_process()
        padded = pad(check_image(image), self.bundle.cfg.stride)
        y, z = self._networks.quantise(self._networks.analyse(padded))
        hyper = self._pass.hyper(z, (y.shape[0], y.shape[1]))
        return self._networks.estimate_bits(y, z, hyper)

    def _level_to_encode(self, options: EncodeOptions) -> int:
        highest = self.bundle.cfg.num_levels
        level = highest if options.level is None else options.level
        return check_level(level, highest)


def _limit(options: EncodeOptions, pixels: int) -> float:
    """Bytes that the options allow for a picture."""
    by_rate = math.inf if options.max_bpp is None else options.max_bpp * pixels // 8
    return min(math.inf if options.max_bytes is None else options.max_bytes, by_rate)


@cache
def _reopened(
    cls: type[Codec],
    folder: Path,
    classes: tuple[type[Family], ...],
    digest: bytes,
    coder: str,
) -> Codec:
    """The codec of a pickle: one a process, so that what it has compiled serves every task."""
    if is_forked():
        # Its methods and attributes raise. An exception here would end the worker of a pool, and
        # the pool would then wait for ever.
        return cls.__new__(cls)
    codec = cls.load(folder, coder=coder, kinds=kinds_of(*classes))
    if codec.bundle.digest != digest:
        raise ValueError(f"the bundle in {folder} is not the one that the codec was pickled with")
    return codec
