"""README.md is short, its programs run, its paths exist.

tests/test_docs.py parses its command lines.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from sic_jax.cli import demo, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


def test_is_short() -> None:
    assert README.count("\n") <= 150


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    with Image.open(demo.SAMPLE) as sample:
        image = sample.crop((320, 160, 368, 200))
    image.putalpha(255)
    image.save(tmp_path / "photo.png", exif=exif, pnginfo=xmp, dpi=(300, 150))
    monkeypatch.chdir(tmp_path)
    programs = blocks("python")
    assert programs
    for program in programs:
        lines = program.splitlines()
        assert len(lines) <= 25
        assert lines[-1].startswith("assert ")
        names: dict[str, Any] = {}
        exec(compile(program, "README.md", "exec"), names)
        if "data" in names:
            Path("python.sic").write_bytes(names["data"])
    by_python = [Path(name).read_bytes() for name in ("python.sic", "decoded.png")]
    assert main.main(["compress", "photo.png", "--level", "8"]) == 0
    assert main.main(["decompress", "photo.sic", "decoded.png"]) == 0
    assert [Path(name).read_bytes() for name in ("photo.sic", "decoded.png")] == by_python
    with Image.open("decoded.png") as image:
        assert image.size == (40, 48)
        assert dict(image.getexif()) == {0x010F: "maker"}
        assert image.info["xmp"] == b"<x:xmpmeta />"
        assert image.info["dpi"] == pytest.approx((150, 300), abs=0.013)


def test_has_a_line_of_every_command() -> None:
    starts = {" ".join(line.split()[:2]) for line in COMMANDS}
    sic = {f"sic {name}" for name in ("compress", "decompress", "truncate", "info", "bundle")}
    assert starts >= sic | {"make demo", "make test", "python train.py", "python eval.py"}


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    files = [target for target in targets if not target.startswith(("https://", "#"))]
    assert len(files) >= 4
    assert [target for target in files if not (ROOT / target).is_file()] == []
