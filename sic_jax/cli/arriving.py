"""`sic decompress --progressive`: a picture at every level of a file that is still arriving."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from sic_jax.cli.jobs import Done, bundle_name
from sic_jax.cli.paths import STD
from sic_jax.codec.container import MAX_HEADER_BYTES
from sic_jax.codec.options import DecodeOptions
from sic_jax.metadata import Metadata

if TYPE_CHECKING:
    from sic_jax.codec.codec import Codec
    from sic_jax.codec.pixels import Pixels

_PIECE = 65536
"""Bytes to read at a time, if so many are there: what a pipe of Linux holds."""


def decompress_arriving(
    source: str,
    options: DecodeOptions,
    *,
    codec_of: Callable[[bytes], Codec],
    put: Callable[[Pixels, Metadata], object],
    show: Callable[[str], None],
) -> Done:
    """Decodes a file level by level, to its end.

    What arrives while a picture is made is waited for by the next one: of several new levels only
    the highest becomes a picture.

    Args:
        source: A file, which may be a pipe, or "-".
        options: Of the decoder.
        codec_of: Finds the codec, from a file's first bytes.
        put: Writes a picture of a shape that `Codec.decompress` gives. Metadata come last: if
            there are any, the last picture is written once more.
        show: Is told which level was written.

    Raises:
        BitstreamError: As `ProgressiveDecoder`; what was written stays.
        OSError: If the file cannot be read.
    """
    with contextlib.ExitStack() as stack:
        stdin = cast(io.BufferedReader, sys.stdin.buffer)
        stream = stdin if source == STD else stack.enter_context(open(source, "rb"))
        picture, size, count, piece = None, "", 0, b""
        while len(piece) < MAX_HEADER_BYTES and (more := stream.read1(_PIECE)):
            piece += more
        codec = codec_of(piece)
        decoder = codec.decoder(options)
        while piece:
            if decoder.feed(piece):
                picture = decoder.picture()
                size = f"{picture.shape[1]} x {picture.shape[0]} pixels"
                put(picture, Metadata())
                count += 1
                show(f"level {decoder.level} of {decoder.num_levels}")
            piece = stream.read1(_PIECE)
    decoder.close()
    if picture is not None and decoder.metadata != Metadata():
        put(picture, decoder.metadata)
    pictures = f"{count} picture{'' if count == 1 else 's'}"
    return Done(size, f"level {decoder.level}, {pictures}, bundle {bundle_name(codec)}")
