"""Bundles of this machine: where they are looked for, how they are added and removed."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sic_jax import BitstreamError
from sic_jax.cli import main as cli
from sic_jax.codec import library
from sic_jax.codec.codec import Codec
from sic_jax.codec.container import read_header

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sic_jax" / "bundles"
GOLDEN = ROOT / "tests" / "golden"
SMALL = GOLDEN / "v2" / "bundle"
SMALL_ID = read_header((GOLDEN / "v2" / "gray.sic").read_bytes()).model_id.hex()
DEFAULT_ID = "46db83724fe0"
FIRST_ID = "1a89518dc20f"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's place, empty, and no other but the package's."""
    monkeypatch.delenv("SIC_BUNDLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "sic_jax" / "bundles"


def put(folder: Path, byte: int) -> Path:
    """A folder that is taken for a bundle, with the id byte byte byte ..."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "id").write_text(bytes([byte] * 32).hex() + "\n")
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    return code, *capsys.readouterr()


def test_places_of_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    assert library.places() == [home, PACKAGE]
    monkeypatch.setenv("SIC_BUNDLES", os.pathsep.join(["/a", "", "b", "/a", str(home)]))
    assert library.places() == [Path("/a"), Path("b"), home, PACKAGE]
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert library.user_place() == Path("/home/me/.local/share/sic_jax/bundles")
    monkeypatch.setattr(sys, "platform", "darwin")
    expected = Path("/home/me/Library/Application Support/sic_jax/bundles")
    assert library.user_place() == expected
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert library.user_place() == Path("/local/sic_jax/bundles")


def test_order_of_places(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("SIC_BUNDLES", os.pathsep.join([str(one), str(tmp_path / "no"), str(two)]))
    put(two / "x", 1)
    put(home / "x", 2)
    put(home / "y", 1)
    assert library.find("x") == two / "x"
    assert library.find("y") == home / "y"
    assert library.find("default") == library.find("pyramid-2") == PACKAGE / "pyramid-2"
    assert library.find_id(bytes([1] * 6)) == library.Installed("x", two, bytes([1] * 6))
    assert library.find_id(bytes([2] * 6)).folder == home / "x"
    assert [(b.name, b.place) for b in library.installed()] == [
        ("x", two),
        ("x", home),
        ("y", home),
        ("pyramid-1", PACKAGE),
        ("pyramid-2", PACKAGE),
    ]
    put(one / "x", 3)
    assert library.find("x") == one / "x"
    put(tmp_path / "x", 4)  # In the working folder: a path goes first.
    assert library.find("x") == Path("x")
    assert library.find(home / "y") == home / "y"


def test_what_is_no_bundle_is_not_listed(home: Path) -> None:
    put(home / "good", 1)
    put(home / ".hidden", 2)
    put(home / "bad name", 3)
    (put(home / "short", 4) / "id").write_text("0404")
    (put(home / "upper", 5) / "id").write_text("AB" * 32)
    (put(home / "text", 6) / "id").write_bytes(b"\xff" * 64)
    (put(home / "long", 7) / "id").write_text("07" * 33)
    (put(home / "without", 8) / "config.json").unlink()
    (put(home / "nothing", 9) / "id").unlink()
    (home / "file").write_text("")
    assert [b.name for b in library.installed()] == ["good", "pyramid-1", "pyramid-2"]
    with pytest.raises(ValueError, match="bundle 'short' is damaged"):  # By its name it is found.
        Codec.load("short")


@pytest.mark.parametrize("name", ["nothing", "../bundles/pyramid-1", ".", "", "a/b", "x" * 101])
def test_missing_names(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIC_BUNDLES", "/a")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        library.find(name)
    assert str(caught.value) == (
        f"no bundle {name!r}: not a bundle's folder, nor one of this name in /a, {home}, {PACKAGE}"
    )


def test_missing_ids(home: Path) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        library.find_id(b"\0\1\2\3\4\5")
    assert str(caught.value) == f"no bundle has the id 000102030405 in {home}, {PACKAGE}"


def test_default_by_any_name() -> None:
    bundle = library.default_bundle()
    assert bundle == library.Installed("pyramid-2", PACKAGE, bytes.fromhex(DEFAULT_ID))
    assert library.DEFAULT == "pyramid-2"


def test_codec_for_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    data = (GOLDEN / "v2" / "gray.sic").read_bytes()
    with pytest.raises(ValueError, match=f"no bundle has the id {SMALL_ID} in "):
        Codec.for_file(data)
    with pytest.raises(BitstreamError, match="not a sic file"):
        Codec.for_file(b"text")
    shutil.copytree(SMALL, tmp_path / "place" / "small")
    monkeypatch.setenv("SIC_BUNDLES", str(tmp_path / "place"))
    codec = Codec.for_file(data[:29], coder="native")
    assert (codec.bundle.model_id.hex(), codec.coder) == (SMALL_ID, "native")
    (tmp_path / "place" / "small" / "tables.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is damaged: .*tables\.safetensors"):
        Codec.for_file(data)


@pytest.mark.thorough
def test_two_bundles_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Golden files of two bundles: pictures as each of them decodes."""
    shutil.copytree(SMALL, tmp_path / "place" / "small")
    monkeypatch.setenv("SIC_BUNDLES", str(tmp_path / "place"))
    names = {"v2/gray": "one", "pyramid-1/gray": "two", "v2/edges": "three"}
    (tmp_path / "in").mkdir()
    for source, name in names.items():
        shutil.copyfile(GOLDEN / f"{source}.sic", tmp_path / "in" / f"{name}.sic")
    load, loaded = Codec.load, []

    def counted(bundle: str, **options: Any) -> Codec:
        loaded.append(Path(bundle).name)
        return load(bundle, **options)

    monkeypatch.setattr(Codec, "load", counted)
    options = ["--temperature", "0.75", "--level", "2", "--no-grain"]
    code, _, err = run(capsys, "decompress", "in", "out/", *options)
    assert (code, err) == (0, "sic: 3 done\n")
    assert loaded == ["small", "pyramid-1"]
    for source, name in names.items():
        got = np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).astype(int)
        assert np.abs(got - np.asarray(Image.open(GOLDEN / f"{source}.png"))).max() <= 1


def test_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(home / "a-long-name", 171)
    assert run(capsys, "bundle", "list") == (
        0,
        f"a-long-name  abababababab           {home}\n"
        f"pyramid-1    {FIRST_ID}           {PACKAGE}\n"
        f"pyramid-2    {DEFAULT_ID}  default  {PACKAGE}\n",
        "",
    )
    code, out, _ = run(capsys, "bundle", "list", "--json")
    assert code == 0
    assert json.loads(out) == [
        {"name": "a-long-name", "id": "ab" * 6, "place": str(home), "default": False},
        {"name": "pyramid-1", "id": FIRST_ID, "place": str(PACKAGE), "default": False},
        {"name": "pyramid-2", "id": DEFAULT_ID, "place": str(PACKAGE), "default": True},
    ]


def test_add_and_remove(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mine"
    shutil.copytree(SMALL, source)
    (source / "more").mkdir()
    assert run(capsys, "bundle", "add", "mine") == (
        0,
        f"mine -> {home / 'mine'}: bundle {SMALL_ID}\n",
        "",
    )
    assert [p.name for p in home.iterdir()] == ["mine"]
    files = sorted(p.name for p in SMALL.iterdir())
    assert sorted(p.name for p in (home / "mine").iterdir()) == files
    for name in files:
        assert (home / "mine" / name).read_bytes() == (SMALL / name).read_bytes()
    shutil.rmtree(source)
    assert library.find("mine") == home / "mine"
    assert run(capsys, "bundle", "remove", "mine") == (0, f"{home / 'mine'}: removed\n", "")
    assert list(home.iterdir()) == []
    code, out, err = run(capsys, "bundle", "remove", "mine")
    assert (code, out, err) == (1, "", f"sic: error: no bundle 'mine' in {home}\n")


def test_refused_bundles(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*argv: str) -> str:
        before = sorted(home.rglob("*"))
        code, out, err = run(capsys, "bundle", "add", *argv)
        assert (code, out) == (1, "")
        assert sorted(home.rglob("*")) == before
        assert err.startswith("sic: error: ")
        assert err.count("\n") == 1
        return err.removeprefix("sic: error: ").rstrip()

    put(home / "Taken", 1)
    small = str(SMALL)
    assert error("no/where") == "no/where: not a bundle's folder: it has no config.json"
    assert error("default") == "default: not a bundle's folder: it has no config.json"
    assert error(small, "--name", "taken") == f"there is a bundle 'Taken' already, in {home}"
    same = f"there is a bundle 'pyramid-1' already, in {PACKAGE}"
    assert error(small, "--name", "pyramid-1") == same
    for name in ("default", "a/b", "..", ".a", "", "a b", "x" * 101):
        assert error(small, "--name", name) == (
            "the name of a bundle must be letters, digits, '.', '_' and '-', at most 100, the "
            f"first a letter or digit, and not 'default', got {name!r}"
        )
    again = str(PACKAGE / "pyramid-1")
    expected = f"{again}: the bundle is there already, as 'pyramid-1' in {PACKAGE}"
    assert error(again, "--name", "mine") == expected
    (put(tmp_path / "no-id", 2) / "id").write_text("02")
    assert error("no-id") == "no-id: its file id does not hold a SHA-256 in hex"
    shutil.copytree(SMALL, tmp_path / "damaged")
    (tmp_path / "damaged" / "id").write_text("03" * 32)
    expected = "bundle 'damaged' is damaged: its content does not match its id"
    assert error("damaged") == expected


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing(
    kind: type[BaseException], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def copyfile(source: Path, target: Path) -> None:
        assert target.parent.parent == home
        assert [b.name for b in library.installed()] == ["pyramid-1", "pyramid-2"]
        target.write_text("half")
        copied.append(source.name)
        if len(copied) == 3:
            raise kind

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(kind):
        library.add(SMALL, "mine", lambda folder: None)
    assert len(copied) == 3
    assert list(home.iterdir()) == []


def test_only_the_users_own_are_removed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIC_BUNDLES", str(tmp_path / "place"))
    put(tmp_path / "place" / "shared", 1)
    for name in ("default", "pyramid-1", "pyramid-2"):
        code, _, err = run(capsys, "bundle", "remove", name)
        assert code == 1
        assert err == f"sic: error: bundle {name!r} is part of the package and cannot be removed\n"
    code, _, err = run(capsys, "bundle", "remove", "shared")
    assert code == 1
    assert err == (
        f"sic: error: bundle 'shared' is in {tmp_path / 'place'}, a folder of SIC_BUNDLES; "
        "remove it there\n"
    )
    code, _, err = run(capsys, "bundle", "remove", "../bundles")
    assert (code, err) == (1, f"sic: error: no bundle '../bundles' in {home}\n")
    assert (tmp_path / "place" / "shared" / "id").is_file()
    # The user's own bundle of the same name goes, the shared one stays.
    put(home / "shared", 2)
    assert run(capsys, "bundle", "remove", "shared")[0] == 0
    assert library.find("shared") == tmp_path / "place" / "shared"
    # A link is removed, not what it leads to.
    real = put(tmp_path / "real", 3)
    (home / "linked").symlink_to(real)
    assert run(capsys, "bundle", "remove", "linked")[0] == 0
    assert list(home.iterdir()) == []
    assert (real / "id").is_file()
