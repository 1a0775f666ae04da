"""The programs of docs/guide/python.md run, one after the other."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sic_jax.codec.library import DEFAULT

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "guide" / "python.md"


@pytest.fixture
def pillow_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guide registers in Pillow is for its test alone."""
    Image.init()  # Else the first picture would fill the copies, and no registry after them.
    for name in ("ID", "OPEN", "SAVE", "EXTENSION", "MIME"):
        monkeypatch.setattr(Image, name, type(getattr(Image, name))(getattr(Image, name)))
    monkeypatch.delitem(sys.modules, "sic_jax.pillow", raising=False)


@pytest.mark.usefixtures("pillow_as_it_is", "quick")
def test_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in place of the default bundle."""
    shutil.copytree(ROOT / "tests" / "golden" / "v2" / "bundle", tmp_path / "bundles" / DEFAULT)
    monkeypatch.setenv("SIC_BUNDLES", str(tmp_path / "bundles"))
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    programs = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(programs) >= 4
    names: dict[str, Any] = {}
    for program in programs:
        assert "\nassert " in program or "    assert " in program
        exec(compile(program, GUIDE.name, "exec"), names)
    assert names["codec"].bundle.cfg.num_levels == 3
    assert (tmp_path / "decoded.png").is_file()
