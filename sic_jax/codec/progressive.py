"""Decoding of files that are still arriving: level by level, each level's symbols once."""

import warnings

import numpy as np

from sic_jax.codec import library
from sic_jax.codec.bundle import Bundle
from sic_jax.codec.container import MAX_SEED, Container, Header, Unpacker
from sic_jax.codec.grain import add_grain
from sic_jax.codec.networks import Networks
from sic_jax.codec.options import DecodeOptions, check_level
from sic_jax.codec.pixels import Pixels, alpha_plane, exact_pixels, join_alpha, to_gray
from sic_jax.codec.symbols import SymbolCoder
from sic_jax.codec.wire import BytesLike
from sic_jax.devices import check_process
from sic_jax.errors import BitstreamError
from sic_jax.metadata import Metadata
from sic_jax.model.entropy_models.coding_pass import (
    CodingPass,
    Floats,
    Ints,
    temperature_units,
)
from sic_jax.model.levels import channel_levels


class ProgressiveDecoder:
    """Decodes a file that is still arriving; `Codec.decoder` makes it.

        decoder = codec.decoder()
        for piece in pieces:
            if decoder.feed(piece):
                show(decoder.picture())
        decoder.close()

    `feed` only reads; `picture` decodes what it needs and was not decoded before. A picture of
    level k is, bit for bit, that of `Codec.decompress` with `level=k`.
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Networks,
        coding_pass: CodingPass,
        symbols: SymbolCoder,
        options: DecodeOptions,
    ) -> None:
        """Start before the first byte, with the parts of a codec."""
        self.header: Header | None = None
        """The file's; None until it has arrived and was found to be of this bundle."""
        self.metadata = Metadata()
        """The file's; empty before `close`, for a file ends with them."""
        self._bundle = bundle
        self._networks = networks
        self._pass = coding_pass
        self._symbols = symbols
        self._options = options
        temperature = options.temperature
        self._temperature = temperature_units(
            bundle.cfg.temperature if temperature is None else temperature
        )
        self._unpacker = Unpacker(max_pixels=options.max_pixels)
        self._closed = False
        self._alpha: Pixels | None = None
        self._hyper: Floats | None = None
        self._y_s: Ints | None = None
        self._known = 0

    @property
    def level(self) -> int:
        """The highest level that can be decoded: 0, ..., the last one of the options or the file.

        A file that holds its picture exactly goes from 0 to its last level.
        """
        header, count = self.header, len(self._unpacker.segments)
        if header is None:
            return 0
        whole = header.num_levels * count if header.exact else max(count - 1, 0)
        return min(whole, self._options.level or header.num_levels)

    @property
    def num_levels(self) -> int | None:
        """The last value of `level`, when nothing is missing; None until the header has arrived."""
        return None if self.header is None else self._options.level or self.header.num_levels

    @property
    def complete(self) -> bool:
        """Whether `level` is `num_levels`; only metadata may still come."""
        return self.level == self.num_levels

    def feed(self, data: BytesLike) -> bool:
        """Take the next bytes, any number of them.

        Returns:
            Whether `level` is higher than before.

        Raises:
            BitstreamError: If the data are damaged, or not of this bundle. Pictures of the levels
                before the damage can still be had.
            TypeError: If the data are not bytes-like.
            ValueError: If the file will not have the level of the options, or was closed.
        """
        if self._closed:
            raise ValueError("the decoder is closed: no bytes can follow")
        before = self.level
        try:
            self._unpacker.feed(data)
        finally:
            self._accept(self._unpacker.header)
        return self.level > before

    def picture(self, level: int | None = None, *, member: int = 0) -> Pixels:
        """The picture of a level.

        Args:
            level: 1 to `self.level` (default: the highest).
            member: Of the synset: what is added to the seed of the options or the file.

        Returns:
            uint8 [H, W, 3], or [H, W] for a gray file; with alpha [H, W, 4] or [H, W, 2].

        Raises:
            BitstreamError: If a level's symbols, or alpha, do not have their checksum.
            ValueError: If the level has not arrived.
        """
        check_process()
        header = self.header
        if header is None or not self.level:
            raise ValueError("no level has arrived yet")
        level = self.level if level is None else check_level(level, self.level)
        seed = header.seed if self._options.seed is None else self._options.seed
        seed = (seed + member) % (MAX_SEED + 1)
        if header.exact:
            x_hat = exact_pixels(self._container(header))
        else:
            y_s, hyper = self._decode(header, level)
            noise = self._pass.noise(seed, y_s.shape)
            y_hat = self._pass.complete(y_s, hyper, level, noise, self._temperature)
            x_hat = self._networks.synthesise(np.asarray(y_hat)[0], level)
            x_hat = np.ascontiguousarray(x_hat[: header.height, : header.width])
        if self._options.grain:
            x_hat = add_grain(x_hat, header.grain, seed)
        if self._alpha is None:
            self._alpha = alpha_plane(self._container(header))
        return join_alpha(x_hat if header.mode == "rgb" else to_gray(x_hat), self._alpha)

    def close(self, *, stacklevel: int = 2) -> None:
        """End the file: warn of what is missing, or refuse it, and read its metadata.

        Args:
            stacklevel: Of the warning, as that of `warnings.warn` would be here: 2 is the caller.

        Raises:
            BitstreamError: As `feed`, and if not even level 1 has arrived; with the option
                `strict`, if anything is missing or the metadata are damaged.
            ValueError: If the level of the options has not arrived.
        """
        self._closed = True
        self._accept(self._unpacker.header)  # Raises again what was wrong.
        container = self._unpacker.close(strict=self._options.strict)
        warn_of_missing(container, stacklevel=stacklevel + 1)
        self.metadata = container.metadata
        if self._options.level is not None:
            check_level(self._options.level, container.level)

    def _accept(self, header: Header | None) -> None:
        if self.header is None and header is not None:
            check_bundle(header, self._bundle)
            if self._options.level is not None:
                check_level(self._options.level, header.num_levels)
            self.header = header

    def _container(self, header: Header) -> Container:
        return Container(header, tuple(self._unpacker.segments), alpha=self._unpacker.alpha)

    def _decode(self, header: Header, level: int) -> tuple[Ints, Floats]:
        """y_s of a level, and the h_s features."""
        segments = self._unpacker.segments
        if self._hyper is None:
            _, self._hyper = self._symbols.decode_z(segments[0], header)
        if self._y_s is None or level > self._known:
            self._y_s = self._symbols.decode(segments, self._hyper, level, self._known, self._y_s)
            self._known = level
        if level < self._known:
            levels = channel_levels(self._bundle.cfg.levels)
            return np.where(levels <= level, self._y_s, 0), self._hyper
        return self._y_s, self._hyper


def check_bundle(header: Header, bundle: Bundle) -> None:
    """Refuses files of another bundle.

    Raises:
        BitstreamError: If the file has another bundle's id, or does not fit this one.
    """
    library.check_made_by(bundle.model_id, header.model_id, bundle.name)
    if header.float_entropy == bundle.cfg.entropy.exact:
        kinds = ("integers", "floats") if header.float_entropy else ("floats", "integers")
        raise BitstreamError(
            f"the file's entropy path is in {kinds[1]}, this bundle's in {kinds[0]}"
        )
    if header.num_levels > bundle.cfg.num_levels:
        raise BitstreamError(
            f"the file has {header.num_levels} levels; its bundle has {bundle.cfg.num_levels}"
        )


def warn_of_missing(container: Container, *, stacklevel: int = 3) -> None:
    """Warns of what a file lacks, by default in the name of who called the caller."""
    if container.truncated:
        warnings.warn(
            f"the file is truncated: {container.level} of {container.header.num_levels} levels "
            "are whole",
            stacklevel=stacklevel,
        )
    elif container.metadata_damaged:
        warnings.warn("the file's metadata are damaged and were dropped", stacklevel=stacklevel)
