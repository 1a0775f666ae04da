"""What PNG files say of colours and transparency and Pillow does not apply.

Colours of `gAMA`, `cHRM` and `cICP` are brought to sRGB, as browsers do. A transparent colour
(`tRNS`) is compared with samples of the file's own depth. An ICC profile goes before `gAMA` and
`cHRM`, and `cICP` before all.

Reference: PNG specification, third edition, 4.3, 11.3.1 and 11.3.2; ITU-T H.273 for the codes of
`cICP`.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY_STEPS = {"L;2": 85, "L;4": 17}
"""8-bit steps between two samples of 2 and of 4 bits, by Pillow's name of the sample format."""
_SAME_GAMMA = 0.05
"""A display exponent this near to 1 changes nothing: libpng's threshold."""
# White, red, green, blue: x and y of each.
_SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES = {
    1: _SRGB,
    2: _SRGB,  # Unspecified.
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_HDR = {16: "PQ", 18: "HLG"}
_BT709 = (1, 6, 14, 15)
"""Codes of one curve under the names of several standards."""
_MAX_CHECKED = 1000
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


class Colours(NamedTuple):
    """How samples become light."""

    primaries: tuple[float, ...]
    """x and y of white, red, green and blue."""
    to_linear: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """From samples to light, both in [0, 1] and of any shape."""


def with_exact_transparency(image: Image.Image, data: bytes) -> Image.Image:
    """A picture, not loaded yet, whose transparent colour Pillow will find where it is.

    Of other formats than PNG, the picture as it is.

    Args:
        image: Of `PIL.Image.open`.
        data: Bytes of the file.

    Returns:
        The picture, with an alpha channel where its samples have 16 bits and three colours.
    """
    if image.format != "PNG":
        return image
    key, samples = image.info.get("transparency"), _sample_format(image)
    if isinstance(key, int) and samples == "1":
        # Pillow takes any number but 0 for white.
        image.info["transparency"] = 255 * (_chunks_before_picture(data)[b"tRNS"][1] & 1)
    elif isinstance(key, int) and samples in _GRAY_STEPS:
        step = _GRAY_STEPS[samples]
        image.info["transparency"] = key % (255 // step + 1) * step
    elif isinstance(key, int) and samples == "L":
        image.info["transparency"] = key % 256
    elif isinstance(key, tuple) and samples == "RGB":
        image.info["transparency"] = tuple(k % 256 for k in key)
    elif isinstance(key, tuple) and samples == "RGB;16B":
        return _with_alpha_of_16_bits(image, data, key)
    return image


def _sample_format(image: Image.Image) -> str:
    tiles: Any = getattr(image, "tile", [])
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _with_alpha_of_16_bits(image: Image.Image, data: bytes, key: tuple[int, ...]) -> Image.Image:
    import numpy as np
    from PIL import Image

    # Pillow keeps the upper bytes of samples. Told that the lower ones come first, it keeps those.
    lower: Any = Image.open(io.BytesIO(data))
    lower.tile = [(*tile[:3], "RGB;16L") for tile in lower.tile]
    samples = np.asarray(image).astype(np.int32) * 256 + np.asarray(lower)
    alpha = np.where((samples == np.array(key)).all(-1), 0, 255).astype(np.uint8)
    del image.info["transparency"]
    image.putalpha(Image.fromarray(alpha))
    return image


def colours_of(name: str, data: bytes) -> Colours | None:
    """How the samples of a PNG file become light; None where that is sRGB or an ICC profile tells.

    Args:
        name: Of the file, for messages.
        data: Its bytes.

    Raises:
        ValueError: If it is an HDR picture (PQ or HLG), or has a `cICP` that is not known.
    """
    chunks = _chunks_before_picture(data)
    if b"cICP" in chunks:
        chunk = chunks[b"cICP"]
        if len(chunk) != 4:
            return None
        if chunk[2:] != b"\0\1":  # Of RGB and of its full range.
            raise ValueError(
                f"{name}: the colours of its chunk cICP are not known: {', '.join(map(str, chunk))}"
            )
        # Displays show BT.709 by the curve of BT.1886, not by the inverse of the camera's.
        return of_code_points(name, chunk[0], chunk[1], bt709=_power(2.4))
    if chunks.keys() & {b"iCCP", b"sRGB"} or len(chunks.get(b"gAMA", b"")) != 4:
        return None  # Without gAMA there is no telling what cHRM is about.
    gamma = struct.unpack(">I", chunks[b"gAMA"])[0] / 100_000
    if gamma == 0:
        return None
    primaries = _SRGB
    if len(chunks.get(b"cHRM", b"")) == 32:
        primaries = tuple(v / 100_000 for v in struct.unpack(">8I", chunks[b"cHRM"]))
        if not _are_primaries(primaries):
            warnings.warn(f"{name}: the chunk cHRM makes no sense and was left out", stacklevel=4)
            primaries = _SRGB
    same_gamma = abs(gamma * 2.2 - 1) < _SAME_GAMMA
    near = all(abs(a - b) < 0.002 for a, b in zip(primaries, _SRGB, strict=True))
    if same_gamma and near:
        return None
    return Colours(primaries, srgb_to_linear if same_gamma else _power(1 / gamma))


def to_srgb(image: Image.Image, colours: Colours) -> Image.Image:
    """A picture of mode L or RGB with its colours as sRGB has them."""
    import numpy as np
    from PIL import Image

    table = colours.to_linear(np.arange(256) / 255)
    pixels = np.asarray(image)
    if image.mode == "L":
        return Image.fromarray(_in_8_bits(table)[pixels])
    matrix = (_from_xyz() @ _to_xyz(colours.primaries)).astype(np.float32)
    out = np.empty_like(pixels)
    for row, line in enumerate(table.astype(np.float32)[pixels]):  # Row by row: floats are large.
        out[row] = _in_8_bits(line @ matrix.T)
    return Image.fromarray(out)


def without_damaged_chunks(data: bytes) -> tuple[bytes, list[str]]:
    """A PNG file without the chunks beside the picture that Pillow cannot read, and their types.

    Decoders are to pass over errors in such chunks (PNG specification, third edition, 13.2);
    Pillow refuses the file.

    Args:
        data: Bytes of a file in any format.
    """
    kept, damaged, checked = [data[: len(_SIGNATURE)]], [], 0
    header = b""
    for kind, chunk in _chunks(data):
        header = header or chunk
        if kind[0] & 0x20 and kind not in _ANIMATION and checked < _MAX_CHECKED:
            checked += 1
            if not _is_readable(header, chunk):
                damaged.append(kind.decode("latin-1"))
                continue
        kept.append(chunk)
    return b"".join(kept), damaged


def _is_readable(header: bytes, chunk: bytes) -> bool:
    """Whether Pillow opens a PNG file that has this chunk beside IHDR and an empty picture."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(io.BytesIO(_SIGNATURE + header + chunk + struct.pack(">I4s", 0, b"IDAT")))
        except Exception:  # Of many kinds.
            return False
    return True


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and bytes, with length and checksum, of each chunk of a PNG file."""
    at = len(_SIGNATURE)
    while data.startswith(_SIGNATURE) and at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at : at + 12 + length]
        at += 12 + length


def _chunks_before_picture(data: bytes) -> dict[bytes, bytes]:
    """What the whole chunks about colour and transparency hold, by type: the first of each."""
    found: dict[bytes, bytes] = {}
    for kind, chunk in _chunks(data):
        if kind == b"IDAT":
            break
        is_whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if is_whole and kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"tRNS"):
            found.setdefault(kind, chunk[8:-4])
    return found


def of_code_points(
    name: str,
    primaries: int,
    transfer: int,
    bt709: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Colours | None:
    """How samples become light by the codes of ITU-T H.273; None where that is sRGB.

    Args:
        name: Of the file, for messages.
        primaries: Code of the primaries.
        transfer: Code of the transfer characteristics.
        bt709: What stands for the curve of BT.709: samples to light, both in [0, 1], of any shape.

    Raises:
        ValueError: If it is an HDR picture (PQ or HLG), or a code is not known.
    """
    if transfer in _HDR:
        raise ValueError(
            f"{name}: an HDR picture ({_HDR[transfer]}), whose brightness 8-bit sRGB does not "
            "hold; convert it to SDR first"
        )
    functions = {2: srgb_to_linear, 4: _power(2.2), 5: _power(2.8), 8: _power(1.0)}
    functions |= {13: srgb_to_linear} | dict.fromkeys(_BT709, bt709)
    if primaries not in _PRIMARIES or transfer not in functions:
        raise ValueError(
            f"{name}: the colours are not known: primaries {primaries}, transfer {transfer}"
        )
    if _PRIMARIES[primaries] == _SRGB and functions[transfer] is srgb_to_linear:
        return None
    return Colours(_PRIMARIES[primaries], functions[transfer])


def _power(exponent: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    def to_linear(v: NDArray[np.float64]) -> NDArray[np.float64]:
        linear: NDArray[np.float64] = v**exponent
        return linear

    return to_linear


def srgb_to_linear(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """The light of sRGB samples of any shape, both in [0, 1]."""
    import numpy as np

    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _in_8_bits(linear: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    import numpy as np

    v = np.clip(linear, 0, 1)
    encoded = np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)
    samples: NDArray[np.uint8] = np.round(255 * encoded).astype(np.uint8)
    return samples


def _are_primaries(primaries: tuple[float, ...]) -> bool:
    import numpy as np

    if min(primaries[1::2]) <= 0:
        return False
    return bool(abs(np.linalg.det(_columns(primaries[2:]))) > 1e-3)


def _columns(xy: tuple[float, ...]) -> NDArray[np.float64]:
    """XYZ of chromaticities for Y = 1, a column each."""
    import numpy as np

    x, y = np.array(xy[::2]), np.array(xy[1::2])
    return np.stack([x / y, np.ones_like(x), (1 - x - y) / y])


def _to_xyz(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    """Matrix from linear RGB to XYZ for the white of sRGB, adapted by Bradford's method."""
    import numpy as np

    columns = _columns(primaries[2:])
    white = _columns(primaries[:2])[:, 0]
    matrix = columns * np.linalg.solve(columns, white)
    cone = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    ratio = (cone @ _columns(_SRGB[:2])[:, 0]) / (cone @ white)
    adapted: NDArray[np.float64] = np.linalg.solve(cone, ratio[:, None] * (cone @ matrix))
    return adapted


def _from_xyz() -> NDArray[np.float64]:
    import numpy as np

    inverse: NDArray[np.float64] = np.linalg.inv(_to_xyz(_SRGB))
    return inverse
