"""Pillow reads and writes sic files once this module is imported.

    import sic_jax.pillow

    image.save("photo.sic", level=8)
    image = Image.open("photo.sic")

Nothing else of the package imports it. JAX is imported, and a bundle loaded, when the first picture
is decoded or encoded; both stay. The files are those of `sic_jax.Codec`, byte for byte.

**Reading.** `Image.open` reads the file and checks it, and decodes nothing. `info` then has
`icc_profile`, `exif`, `xmp` and `dpi` as far as the file has them, and of its header `model_id`
(hex), `level` (the highest that is there), `num_levels`, `seed`, `grain` and `exact`. A picture is
decoded when its pixels are first needed, by the bundle whose id the file has. To decode it
otherwise, call `image.load(level=2)` before: it takes the fields of
`sic_jax.codec.options.DecodeOptions` by name. The limit on pixels is Pillow's. The beginning of a
file is a picture with fewer levels, and a warning, whatever `ImageFile.LOAD_TRUNCATED_IMAGES` says.
What is wrong with a file is a `sic_jax.BitstreamError`.

**Writing.** Images have mode L, LA, RGB or RGBA. `save` takes the fields of
`sic_jax.codec.options.EncodeOptions` by name, `bundle` (a name or a folder, default "default"), and
`icc_profile` (default: that of `info`), `exif`, `xmp` and `dpi` as Pillow's own formats do.
"""

import dataclasses
import functools
import io
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from sic_jax.codec import library
from sic_jax.codec.container import GRAIN_UNITS, MAGIC, unpack
from sic_jax.codec.options import DecodeOptions, EncodeOptions
from sic_jax.images.embedded import EXIF_PREFIX
from sic_jax.metadata import Metadata

if TYPE_CHECKING:
    from sic_jax.codec.codec import Codec

_MODES = {"gray": "L", "rgb": "RGB"}
"""Those of pictures without alpha; an A follows where there is alpha."""


class SicImageFile(ImageFile.ImageFile):
    """A sic file as Pillow opens it."""

    format = "SIC"
    format_description = "Learned perceptual image compression (sic_jax)"

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read()
        container = unpack(self._data, max_pixels=None)  # `Image.open` has the limit.
        header, metadata = container.header, container.metadata
        self._size = header.width, header.height
        self._mode = _MODES[header.mode] + ("A" if header.alpha else "")
        self._model_id = header.model_id
        self.info = {
            "model_id": header.model_id.hex(),
            "level": container.level,
            "num_levels": header.num_levels,
            "seed": header.seed,
            "grain": header.grain / GRAIN_UNITS,
            "exact": header.exact,
            "icc_profile": metadata.icc_profile,
            "exif": metadata.exif and EXIF_PREFIX + metadata.exif.removeprefix(EXIF_PREFIX),
            "xmp": metadata.xmp,
            "dpi": metadata.dpi,
        }
        self.info = {name: value for name, value in self.info.items() if value is not None}
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]

    def load(self, **changes: Any) -> Any:
        """Decodes the picture, if it is not decoded yet.

        Args:
            **changes: Fields of `DecodeOptions` by name.

        Returns:
            What `PIL.Image.Image.load` returns.

        Raises:
            BitstreamError: If the data are damaged.
            TypeError: If the options have no such field.
            ValueError: If a field is out of range, the file does not hold the level, no bundle of
                this machine has the file's id, or the picture is decoded already.
        """
        if self.tile:
            options = DecodeOptions(max_pixels=self.width * self.height)
            codec = _codec(str(library.find_id(self._model_id).folder))
            pixels = codec.decompress(self._data, options, **changes)
            if self.fp is not None and self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(pixels.tobytes())
            self._data = b""
        elif changes:
            raise ValueError("the picture is decoded already; open its file again for another one")
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Nothing: the decoded samples are at their start.

        Where this is defined, Pillow does not map the file, which holds no samples.
        """


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(image: Image.Image, file: IO[bytes], _filename: str | bytes) -> None:
    if image.mode.removesuffix("A") not in _MODES.values():
        raise OSError(f"cannot write mode {image.mode} as SIC; convert the image to RGB or RGBA")
    given = image.encoderinfo
    names = {field.name for field in dataclasses.fields(EncodeOptions)}
    options = EncodeOptions(**{name: given[name] for name in names & given.keys()})
    codec = _codec(str(library.find(given.get("bundle", "default"))))
    file.write(codec.compress(image, options, metadata=_metadata(image, given)))


def _metadata(image: Image.Image, given: dict[str, Any]) -> Metadata:
    """What the arguments of `save` name; empty values are none."""
    exif, xmp, dpi = (given.get(name) or None for name in ("exif", "xmp", "dpi"))
    if isinstance(exif, Image.Exif):
        exif = exif.tobytes()
    return Metadata(
        icc_profile=given.get("icc_profile", image.info.get("icc_profile")) or None,
        exif=exif.removeprefix(EXIF_PREFIX) if isinstance(exif, bytes) else exif,
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=dpi and tuple(map(float, dpi)),
    )


@functools.cache
def _codec(folder: str) -> "Codec":
    """The codec of a bundle, loaded when it is first asked for."""
    from sic_jax.codec.codec import Codec

    return Codec.load(folder)


Image.register_open(SicImageFile.format, SicImageFile, _accept)
Image.register_save(SicImageFile.format, _save)
Image.register_extension(SicImageFile.format, ".sic")
Image.register_mime(SicImageFile.format, "image/x-sic")
