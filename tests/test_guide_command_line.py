"""What docs/guide/command_line.md says is true: its command lines parse, its table holds."""

import io
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sic_jax.cli import main
from sic_jax.codec.options import EncodeOptions
from sic_jax.images.io import WRITTEN, encode_image, output_format
from sic_jax.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "guide" / "command_line.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


def test_is_short() -> None:
    assert GUIDE.count("\n") < 120
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("line", COMMANDS)
def test_command_line_parses(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "sic"
    args = main.parse(arguments)
    assert callable(args.run)
    for name in ("min_psnr", "max_bytes"):
        flag = f"--{name.replace('_', '-')}"
        if arguments[0] == "compress" and flag in arguments:
            value = getattr(args, f"{EncodeOptions.__name__}.{name}")
            assert value == float(arguments[arguments.index(flag) + 1])


def test_the_table_of_formats(tmp_path: Path) -> None:
    rows = re.findall(r"^\| ([a-z, ]+)(?: \(with.*?\))? \| (.*?) \| (.*?) \|$", GUIDE, re.MULTILINE)
    told = {name: row for names, *row in rows[1:] for name in names.split(", ")}
    aliases = {"jpeg", "tif"}
    assert {*told, *aliases} == {suffix[1:] for suffix in WRITTEN}
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "maker"
    blocks = {
        "ICC profile": Metadata(icc_profile=(bytes(16) + b"RGB ").ljust(200, b"\0")),
        "EXIF": Metadata(exif=exif.tobytes()[6:]),
        "XMP": Metadata(xmp=b"<x:xmpmeta/>"),
        "resolution": Metadata(dpi=(300, 300)),
    }
    for name, (loss, held) in told.items():
        if name == "jxl":
            pytest.importorskip("pillow_jxl")
        image_format = output_format(f"a.{name}")
        with Image.open(io.BytesIO(encode_image(pixels, image_format=image_format))) as image:
            same = np.array_equal(np.asarray(image.convert("RGB")), pixels)
        assert same == (loss == "lossless"), name
        kept = set()
        for block, metadata in blocks.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                encode_image(pixels, metadata, image_format=image_format)
            kept |= set() if caught else {block}
        if "all" in held:
            named = (
                set(blocks) - {"resolution"} if "all but the resolution" in held else set(blocks)
            )
        else:
            named = {block for block in blocks if block in held}
        assert kept == named, name
