"""How `sic` names outputs, what it tells, and what it would do."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_codec import MODEL_ID, FakeCodec, Pipe, files, get, pixels, put, put_sic, run
from PIL import Image

from sic_jax.codec import container, library
from sic_jax.codec.library import DEFAULT
from sic_jax.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]


def test_output_names_the_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = put("a.png")
    put("b.png")
    put_sic("old.sic")
    assert run("compress", "-o", "x.sic", "a.png") == 0
    assert Path("x.sic").read_bytes() == FakeCodec().compress(original)
    assert run("decompress", "x.sic", "--output", "y.tif") == 0
    np.testing.assert_array_equal(get("y.tif"), original)
    assert run("truncate", "x.sic", "-o", "z.sic", "--level", "2") == 0
    assert Path("z.sic").read_bytes() == container.truncate(Path("x.sic").read_bytes(), 2)
    # Two inputs: as a word of its own, new/ would be OUT, and b.png an IN or OUT.
    assert run("compress", "a.png", "b.png", "-o", "new") == 0
    assert files(folder / "new") == ["a.sic", "b.sic"]
    # A file of a name that says OUT is IN here: it is no picture, and that is told.
    assert run("compress", "a.png", "old.sic", "--output=out/") == 1
    assert "sic: error: old.sic: not a picture" in capsys.readouterr().err
    assert files(folder / "out") == ["a.sic"]
    out = Pipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert run("compress", "a.png", "-o", "-") == 0
    assert out.buffer.getvalue() == Path("x.sic").read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compress", "a.png", "b.sic", "-o", "c.sic"], "OUT is named twice: b.sic and -o c.sic"),
        (["compress", "a.png", "new/", "-o", "c.sic"], "OUT is named twice: new/ and -o c.sic"),
        (["decompress", "a.sic", "b.png", "-o", "c.png"], "OUT is named twice: b.png and -o c.png"),
        (["compress", "a.png", "-o", ""], "the name of OUT is empty"),
        (["compress", "a.png", "-o", "c.jpg"], "OUT is named like an input: c.jpg"),
        (["compress", "a.png", "d.png", "-o", "c.sic"], "OUT must be a folder for several inputs"),
        (["compress", "a.png", "-", "-o", "c.sic"], "needs a single IN and no folder"),
        (["compress", "-o", "c.sic"], "required: IN"),
        (["compress", "a.png", "-o"], "argument -o/--output: expected one argument"),
        (["truncate", "a.sic", "b.sic", "-o", "c.sic", "--level", "1"], "either OUT or -o OUT"),
        (["truncate", "a.sic", "--level", "1"], "truncate takes either OUT or -o OUT"),
        (["truncate", "a.sic", "-o", "", "--level", "1"], "the name of OUT is empty"),
        (["truncate", "a.sic", "-o", "a.sic", "--level", "1"], "is an input and would be"),
        (["compress", "a.png", "-q", "-v"], "not allowed with argument"),
        (["compress", "-", "a.sic", "--preserve"], "--preserve needs files as IN and OUT, not -"),
        (
            ["decompress", "a.sic", "b.png", "--format", "webp"],
            "--format webp contradicts the name",
        ),
        (["decompress", "a.sic", "b.gif", "--format", "webp"], "with the extension '.gif'"),
        (["decompress", "a.sic", "--format", "gif"], "invalid choice: 'gif'"),
        (["decompress", "a.sic", "-o", "-", "--preserve"], "--preserve needs files as IN and OUT"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_usage_errors(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
    dry: tuple[str, ...],
) -> None:
    put("a.png")
    put("d.png")
    before = put_sic("a.sic")
    assert run(*argv, *dry) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("sic: error: ")
    assert message in err
    assert files(folder) == ["a.png", "a.sic", "d.png"]
    assert Path("a.sic").read_bytes() == before


def test_a_missing_folder_of_out_is_told_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], loads: list[object]
) -> None:
    put("a.png")
    assert run("compress", "a.png", "-o", "nowhere/a.sic") == 1
    expected = "sic: error: a.png: nowhere/a.sic: No such file or directory\n"
    assert capsys.readouterr() == ("", expected)
    assert loads == []


def test_a_single_path_beside_o_is_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, path in (("compress", "absent/"), ("compress", "a.sic"), ("decompress", "a.png")):
        assert run(command, path, "-o", "new/") == 1
        assert capsys.readouterr() == ("", f"sic: error: {path}: No such file or directory\n")
    assert files(folder) == []


def test_quiet_tells_errors_only(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    put("in/a.png")
    put("in/b.png")
    put_sic("a.sic", metadata=Metadata(dpi=(300, 300)))
    Path("in/notes.txt").write_text("text")
    clear = "\r\x1b[K"
    assert run("compress", "in", "-o", "out", "-q", "--ignore-unreadable", "--optimise", "1") == 0
    assert run("compress", "in", "-o", "out", "-q", "--skip-existing", "--ignore-unreadable") == 0
    assert run("decompress", "a.sic", "-o", "a.ppm", "--quiet") == 0  # Its resolution is lost.
    assert run("truncate", "a.sic", "b.sic", "--level", "1", "-q") == 0
    argv = ["in", "-o", "out", "--ignore-unreadable", "--skip-existing"]
    assert run("compress", *argv, "--dry-run", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert files(folder / "out") == ["a.sic", "b.sic"]
    # What makes the exit code 1 is told.
    assert run("compress", "in", "missing.png", "-o", "new", "-q") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.replace(clear, "").splitlines() == [
        "sic: error: missing.png: No such file or directory",
        "sic: warning: in/notes.txt: left out: not a picture in a format that Pillow reads",
    ]


def test_verbose_tells_more(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("a.png")
    assert run("compress", "a.png", "-v") == 0
    size, before = Path("a.sic").stat().st_size, Path("a.png").stat().st_size
    rate = f"{8 * size / 20:.4f} bpp"
    line, _, seconds = capsys.readouterr().out.rpartition(", ")
    assert line == (
        f"a.png -> a.sic: {size} bytes, {rate}, level 16; of 4 x 5 pixels, {before} bytes, "
        f"bundle {DEFAULT}"
    )
    assert 0 <= float(seconds.removesuffix(" s\n")) < 60
    assert run("decompress", "a.sic", "b.png", "--verbose") == 0
    after = Path("b.png").stat().st_size
    line = capsys.readouterr().out.rpartition(", ")[0]
    assert line == (
        f"a.sic -> b.png: 4 x 5 pixels; {after} bytes, of {size} bytes, {rate}, level 16, "
        "bundle fake"
    )
    # The level is the one that was decoded.
    assert run("decompress", "a.sic", "c.png", "-v", "--level", "3") == 0
    assert f"of {size} bytes, {rate}, level 3, bundle" in capsys.readouterr().out
    Path("cut.sic").write_bytes(Path("a.sic").read_bytes()[:-5])
    assert run("decompress", "cut.sic", "-v") == 0
    assert f"of {size - 5} bytes, {8 * (size - 5) / 20:.4f} bpp, level 15, bundle" in (
        capsys.readouterr().out
    )
    assert run("truncate", "a.sic", "d.sic", "--level", "1", "-v") == 0
    small = len(FakeCodec().compress(pixels(), level=1))
    line = capsys.readouterr().out.rpartition(", ")[0]
    assert line == (
        f"a.sic -> d.sic: {small} bytes, {8 * small / 20:.4f} bpp, level 1; of {size} bytes, "
        f"{rate}, level 16"
    )
    assert run("compress", "a.png", "-v", "--skip-existing") == 0
    assert capsys.readouterr() == ("a.png: skipped, a.sic is there\n", "sic: 1 skipped\n")


def test_a_dry_run_of_compress(
    folder: Path, capsys: pytest.CaptureFixture[str], loads: list[object]
) -> None:
    put("in/a.png")
    put("in/b.png")
    Path("in/c.png").write_text("text")
    Path("in/notes.txt").write_text("text")
    put_sic("in/a.sic")
    put("d.png")
    before = files(folder)
    argv = ["compress", "in", "missing.png", "d.png", "--dry-run"]
    assert run(*argv) == 1
    assert capsys.readouterr() == (
        "in/b.png -> in/b.sic: would be written\nd.png -> d.sic: would be written\n",
        "sic: error: in/a.png: in/a.sic is already there; --force overwrites it\n"
        "sic: error: in/c.png: not a picture in a format that Pillow reads\n"
        "sic: error: missing.png: No such file or directory\n"
        "sic: warning: in/notes.txt: left out: not a picture in a format that Pillow reads\n"
        "sic: 2 to do, 3 failed, 1 left out\n",
    )
    assert run("compress", "in/a.png", "in/b.png", "--skip-existing", "-n") == 0
    assert capsys.readouterr() == (
        "in/a.png: skipped, in/a.sic is there\nin/b.png -> in/b.sic: would be written\n",
        "sic: 1 to do, 1 skipped\n",
    )
    assert run("compress", "in/a.png", "--force", "-n") == 0
    assert capsys.readouterr() == ("in/a.png -> in/a.sic: would be overwritten\n", "")
    assert run("compress", "in/b.png", "nowhere/b.sic", "-n") == 1
    assert run("compress", "in/b.png", "-n", "--bundle", "absent") == 1
    assert capsys.readouterr().err.splitlines()[1].startswith("sic: error: no bundle 'absent'")
    assert loads == []
    assert files(folder) == before
    # The real run ends in the same way.
    assert run(*argv[:-1]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "sic: 2 done, 3 failed, 1 left out"


def test_a_dry_run_of_decompress_and_truncate(
    folder: Path, capsys: pytest.CaptureFixture[str], loads: list[object]
) -> None:
    data = put_sic("a.sic")
    Path("cut.sic").write_bytes(data[:-5])
    Path("bad.sic").write_bytes(b"text")
    before = files(folder)
    argv = ["decompress", "a.sic", "cut.sic", "bad.sic", "-o", "out/", "--level", "4"]
    assert run(*argv, "-n") == 1
    out, err = capsys.readouterr()
    assert out == "a.sic -> out/a.png: would be written\n"
    assert err.splitlines() == [
        "sic: error: cut.sic: level must be 1 to 3, got 4",
        "sic: error: bad.sic: not a sic file: it starts with b'text', not b'\\x93SIC'",
        "sic: 1 to do, 2 failed",
    ]
    assert run("decompress", "a.sic", "--samples", "2", "-n") == 0
    assert capsys.readouterr().out == "a.sic -> a_0.png ... a_1.png: would be written\n"
    assert run("decompress", "a.sic", "--max-pixels", "19", "-n") == 1
    assert run("decompress", "cut.sic", "--strict", "-n") == 1
    assert run("decompress", "a.sic", "--bundle", "absent", "-n") == 1
    capsys.readouterr()
    assert run("decompress", "a.sic", "--bundle", "default", "-n") == 1
    line = capsys.readouterr().err.splitlines()[0]
    mine = library.model_id_of(library.find("default"))
    assert mine is not None
    ids = f"{MODEL_ID.hex()}; this is bundle {mine.hex()}"
    assert line == f"sic: error: a.sic: the file was made with bundle {ids} (default)"
    assert run("truncate", "a.sic", "b.sic", "--level", "5", "-n") == 1
    capsys.readouterr()
    assert run("truncate", "a.sic", "b.sic", "--level", "2", "-n") == 0
    assert run("truncate", "a.sic", "cut.sic", "--max-bytes", "999", "-n") == 0
    assert capsys.readouterr() == (
        "a.sic -> b.sic: would be written\na.sic -> cut.sic: would be overwritten\n", ""
    )  # fmt: skip
    assert loads == []
    assert files(folder) == before
    assert Path("cut.sic").read_bytes() == data[:-5]


def test_formats_of_decoded_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    put_sic("in/a.sic")
    put_sic("in/b.sic")
    for name, image_format in (("webp", "WEBP"), ("jpg", "JPEG"), ("tiff", "TIFF")):
        assert run("decompress", "in", "-o", name, "--format", name) == 0
        assert files(folder / name) == [f"a.{name}", f"b.{name}"]
        with Image.open(f"{name}/a.{name}") as image:
            assert image.format == image_format
    np.testing.assert_array_equal(get("webp/a.webp"), pixels())
    assert run("decompress", "in/a.sic", "--format", "ppm", "--samples", "2") == 0
    assert Path("in/a_1.ppm").read_bytes().startswith(b"P6")
    # A file that is there is not replaced, and one that is named decides by its name.
    assert run("decompress", "in/a.sic", "-o", "webp", "--format", "webp") == 1
    assert "webp/a.webp is already there" in capsys.readouterr().err
    assert run("decompress", "in/a.sic", "c.avif") == 0
    assert Path("c.avif").read_bytes()[4:12] == b"ftypavif"
    assert run("decompress", "in/a.sic", "c.avif", "--format", "avif") == 0
    assert run("decompress", "in/a.sic", "plain", "--format", "bmp") == 0
    assert Path("plain").read_bytes().startswith(b"BM")
    out = Pipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert run("decompress", "in/a.sic", "-", "--format", "jpeg") == 0
    assert out.buffer.getvalue().startswith(b"\xff\xd8")


@pytest.mark.skipif(os.name != "posix", reason="permissions of others")
def test_preserve(folder: Path) -> None:
    put("in/a.png")
    os.chmod("in/a.png", 0o640)
    os.utime("in/a.png", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))

    def about(name: str) -> tuple[int, int, int]:
        found = os.stat(name)
        return stat.S_IMODE(found.st_mode), found.st_atime_ns, found.st_mtime_ns

    before = about("in/a.png")
    assert before == (0o640, 1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
    assert run("compress", "in", "-o", "out", "--preserve") == 0
    assert about("out/a.sic")[::2] == before[::2]
    assert run("truncate", "out/a.sic", "b.sic", "--level", "1", "--preserve") == 0
    assert about("b.sic")[::2] == before[::2]
    assert run("decompress", "b.sic", "c.png", "--samples", "2", "--preserve") == 0
    assert [about(f"c_{i}.png")[::2] for i in range(2)] == [before[::2]] * 2
    # Without the flag an output is as new files are.
    old = os.umask(0o022)
    try:
        assert run("decompress", "b.sic", "d.png") == 0
    finally:
        os.umask(old)
    assert about("d.png")[0] == 0o644
    assert about("d.png")[2] > before[2]
    # A source without write permission is no obstacle, and a link's target is what counts.
    os.chmod("in/a.png", 0o400)
    Path("link.png").symlink_to("in/a.png")
    assert run("compress", "link.png", "--preserve") == 0
    assert about("link.sic")[::2] == (0o400, before[2])


def test_preserve_that_fails_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.png")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert run("compress", "a.png", "--preserve") == 1
    assert capsys.readouterr().err == "sic: error: a.png: a.sic: Operation not permitted\n"
    assert files(folder) == ["a.png"]


@pytest.mark.skipif(os.name != "posix", reason="needs a shell like bash")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sic trun", {"truncate "}),
        ("sic compress --min", {"--min-psnr "}),
        ("sic decompress a.sic --format we", {"webp "}),
        ("sic bundle ", {"list", "add", "remove", "-h", "--help"}),
    ],
)
def test_shells_complete_words(tmp_path: Path, line: str, words: set[str]) -> None:
    pytest.importorskip("argcomplete")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "sic_jax.cli.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set((tmp_path / "answer").read_text().split("\n")) == words
