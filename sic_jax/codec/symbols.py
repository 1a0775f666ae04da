"""Latents to segments of a file and back."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sic_jax.codec.bundle import Bundle
from sic_jax.codec.container import Header, Segment, symbols_checksum
from sic_jax.entropy.range_coder import PreparedTables, RangeDecoder, RangeEncoder
from sic_jax.errors import BitstreamError
from sic_jax.model.entropy_models.coding_pass import (
    CodingPass,
    Floats,
    Ints,
    Request,
    code_levels,
)


class Latents(NamedTuple):
    """Integers of a picture or a file."""

    y_s: Ints
    """[h, w, C], zeros above `level`."""
    z_hat: Ints
    """[ceil(h/s), ceil(w/s), C_z], s the entropy model's hyper stride."""
    level: int


class SymbolCoder:
    """Codes the latents of a bundle's model with its tables: a segment for z and one a level."""

    def __init__(self, bundle: Bundle, coding_pass: CodingPass, *, backend: str) -> None:
        """Prepare the bundle's tables.

        Args:
            bundle: The model.
            coding_pass: Of the bundle.
            backend: Range-coder backend, `native` or `tfc`.

        Raises:
            ValueError: If the tables are invalid.
        """
        self._stride = bundle.cfg.stride
        self._entropy = bundle.cfg.entropy
        self._pass = coding_pass
        self._backend = backend
        self._tables_y = PreparedTables(bundle.tables_y)
        self._tables_z = PreparedTables(bundle.tables_z)

    def encode(self, y: Ints, z: Ints, level: int) -> list[Segment]:
        """The segments of z and the levels 1 to `level`, of y [h, w, C] and z less its medians."""
        segments = [self._encode_z(z)]
        hyper = self._pass.hyper(z, (y.shape[0], y.shape[1]))
        encoders = {
            k: RangeEncoder(self._tables_y, backend=self._backend) for k in range(1, level + 1)
        }

        def encode(request: Request) -> Ints:
            values = y[request.where].ravel()
            encoders[request.level].encode(values - request.means, request.indices)
            return values

        _, symbols = code_levels(self._pass.run(hyper, level), encode)
        for k, encoder in encoders.items():
            segments.append(Segment(encoder.finish(), symbols_checksum(symbols[k])))
        return segments

    def decode_z(self, segment: Segment, header: Header) -> tuple[Ints, Floats]:
        """The integers of z, and the coding pass's h_s features that they give.

        Args:
            segment: The first of a file.
            header: Of the file.

        Returns:
            int32 [ceil(h/s), ceil(w/s), C_z], s the entropy model's hyper stride, and [1, h, w, F].

        Raises:
            BitstreamError: If they do not have their checksum.
        """
        stride, below = self._stride, self._entropy.hyper_stride
        shape = -(-header.height // stride), -(-header.width // stride)
        full = -(-shape[0] // below), -(-shape[1] // below), self._entropy.hyper_channels
        decoder = RangeDecoder(self._tables_z, segment.payload, backend=self._backend)
        z = decoder.decode(_channel_indices(full))
        self._finish(decoder, z.astype("<i4").tobytes(), segment, "z")
        z = z.reshape(full)
        return z, self._pass.hyper(z, shape)

    def decode(
        self,
        segments: Sequence[Segment],
        hyper: Floats,
        level: int,
        known: int = 0,
        y_s: Ints | None = None,
    ) -> Ints:
        """The integers of the levels 1 to `level`: y_s, int32 [h, w, C].

        Args:
            segments: Of a file: z and the levels 1 to `level`, or more.
            hyper: Of `decode_z`.
            level: The last one to decode.
            known: Levels that were decoded already; they are not decoded again.
            y_s: What that gave; None where `known` is 0.

        Raises:
            BitstreamError: If a level's symbols do not have their checksum.
        """
        decoders = {
            k: RangeDecoder(self._tables_y, segments[k].payload, backend=self._backend)
            for k in range(known + 1, level + 1)
        }

        def decode(request: Request) -> Ints:
            return decoders[request.level].decode(request.indices) + request.means

        def finish(k: int, symbols: bytes) -> None:
            self._finish(decoders[k], symbols, segments[k], f"level {k}")

        return code_levels(self._pass.run(hyper, level, known, y_s), decode, finish)[0]

    def _encode_z(self, z: Ints) -> Segment:
        encoder = RangeEncoder(self._tables_z, backend=self._backend)
        encoder.encode(z.ravel(), _channel_indices(z.shape))
        return Segment(encoder.finish(), symbols_checksum(z.astype("<i4").tobytes()))

    def _finish(self, decoder: RangeDecoder, symbols: bytes, segment: Segment, what: str) -> None:
        """End a segment: the stream must be used up and the symbols must have their checksum."""
        if symbols_checksum(symbols) != segment.symbols_crc:
            floats = ", or the float arithmetic here is not the encoder's"
            raise BitstreamError(
                f"the symbols of {what} do not have their checksum: the data are damaged"
                + ("" if self._entropy.exact else floats)
            )
        decoder.finish()


def _channel_indices(shape: tuple[int, ...]) -> Ints:
    """Table of each symbol of z [h, w, C]: its channel."""
    return np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape).ravel()
