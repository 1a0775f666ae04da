import dataclasses
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_codec import MODEL_ID, FakeCodec, Pipe, files, get, pixels, put, put_sic, run
from PIL import Image, PngImagePlugin

import sic_jax
from sic_jax.cli.stderr import lines_of_libraries
from sic_jax.codec import container
from sic_jax.images import io as image_io
from sic_jax.metadata import Metadata

ROOT = Path(__file__).resolve().parents[1]


def test_there_and_back_with_default_names(
    folder: Path, capsys: pytest.CaptureFixture[str], loads: list[object], place: Path
) -> None:
    original = put("photo.png")
    assert run("compress", "photo.png") == 0
    size = Path("photo.sic").stat().st_size
    expected = f"photo.png -> photo.sic: {size} bytes, {8 * size / 20:.4f} bpp, level 16\n"
    assert capsys.readouterr() == (expected, "")
    Path("photo.png").rename("original.png")
    assert run("decompress", "photo.sic") == 0
    assert capsys.readouterr() == ("photo.sic -> photo.png: 4 x 5 pixels\n", "")
    np.testing.assert_array_equal(get("photo.png"), original)
    assert loads == [("default", None), (str(place / "fake"), None)]
    assert files(folder) == ["original.png", "photo.png", "photo.sic"]


def test_options_reach_the_codec(folder: Path, loads: list[object], place: Path) -> None:
    original = put("a.png")
    argv = ["a.png", "--level", "3", "b.sic", "--seed", "7", "--optimise", "2", "--bundle", "B"]
    assert run("compress", *argv, "--coder", "native", "--grain", "2.5") == 0
    header = container.read_header(Path("b.sic").read_bytes())
    assert (header.num_levels, header.seed, header.mode) == (3, 2007, "rgb")
    assert header.grain == 40
    argv = ["b.sic", "--level", "2", "--seed", "1", "--temperature", "0.5", "c.png"]
    assert run("decompress", *argv, "--coder", "tfc") == 0
    np.testing.assert_array_equal(get("c.png"), original + np.uint8(2 + 16 + 32 + 40))
    assert run("decompress", "b.sic", "d.png", "--no-grain") == 0
    np.testing.assert_array_equal(get("d.png"), original)
    fake = str(place / "fake")
    assert loads == [("B", "native"), (fake, "tfc"), (fake, None)]


def test_bundles_of_files_are_each_loaded_once(
    folder: Path, capsys: pytest.CaptureFixture[str], loads: list[object], place: Path
) -> None:
    other = place / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "id").write_text((b"second" + bytes(26)).hex())
    for name, model_id in (("a", b"fake42"), ("b", b"second"), ("c", b"absent"), ("d", b"fake42")):
        data = put_sic(f"{name}.sic")
        file = container.unpack(data)
        header = dataclasses.replace(file.header, model_id=model_id)
        Path(f"{name}.sic").write_bytes(container.pack(header, file.segments))
    assert run("decompress", "a.sic", "b.sic", "c.sic", "d.sic", "out/") == 1
    out, err = capsys.readouterr()
    assert [line.split(" -> ")[0] for line in out.splitlines()] == ["a.sic", "b.sic", "d.sic"]
    home, package = place / "data" / "sic_jax" / "bundles", ROOT / "sic_jax" / "bundles"
    assert err == (
        f"sic: error: c.sic: no bundle has the id 616273656e74 in {place}, {home}, {package}\n"
        "sic: 3 done, 1 failed\n"
    )
    assert loads == [(str(place / "fake"), None), (str(other), None)]
    assert files(folder / "out") == ["a.png", "b.png", "d.png"]
    # With a bundle given, it is the one for all, and without it no file can succeed.
    assert run("decompress", "a.sic", "b.sic", "given/", "--bundle", "B") == 0
    assert loads[2:] == [("B", None)]
    capsys.readouterr()
    assert run("decompress", "a.sic", "b.sic", "none/", "--bundle", "missing") == 1
    assert capsys.readouterr().err == "sic: error: no bundle 'missing'\n"


def test_samples(folder: Path) -> None:
    put_sic("a.sic")
    assert run("decompress", "a.sic", "--samples", "3") == 0
    assert run("decompress", "a.sic", "out.ppm", "--samples", "1", "--seed", "2") == 0
    assert files(folder) == ["a.sic", "a_0.png", "a_1.png", "a_2.png", "out_0.ppm"]
    for i in range(3):
        np.testing.assert_array_equal(get(f"a_{i}.png"), pixels() + np.uint8(100 + i))
    np.testing.assert_array_equal(get("out_0.ppm"), pixels() + np.uint8(132))
    assert run("decompress", "a.sic", "--samples", "0") == 2
    assert run("decompress", "a.sic", "-", "--samples", "2") == 2


def test_samples_have_one_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_sic("a.sic", metadata=Metadata(dpi=(300, 300)))
    put_sic("b.sic", metadata=Metadata(dpi=(300, 300)))
    Path("out").mkdir()
    assert run("decompress", "a.sic", "a.ppm", "--samples", "3") == 0
    assert run("decompress", "b.sic", "b.ppm", "--samples", "3") == 0
    assert capsys.readouterr().err.splitlines() == [
        f"sic: warning: {name}.sic: PPM has no place for: resolution" for name in "ab"
    ]


def test_a_file_whose_name_begins_the_error_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("n").write_bytes(b"")
    assert run("info", "n") == 1
    assert capsys.readouterr().err == "sic: error: n: not a sic file: it is empty\n"


def test_metadata_travels(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = 6
    profile = bytes(16) + b"RGB " + bytes(108) + b"profile"
    Image.fromarray(pixels(5, 4)).save("a.png", exif=exif, icc_profile=profile)
    assert run("compress", "a.png") == 0
    assert run("decompress", "a.sic", "b.png") == 0
    with Image.open("b.png") as image:
        assert image.size == (5, 4)
        assert image.info["icc_profile"] == profile
        assert dict(image.getexif()) == {0x010F: "maker"}
    np.testing.assert_array_equal(get("b.png"), np.rot90(pixels(5, 4), -1))


def test_dropped_metadata_are_named_and_strip_keeps_none(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    info.add_text("Author", "me")
    profile = bytes(16) + b"RGB " + bytes(108) + b"profile"
    picture = Image.fromarray(pixels())
    picture.save("a.png", pnginfo=info, icc_profile=profile, dpi=(300, 300))
    picture.save("b.mpo", save_all=True, append_images=[picture], comment=b"by hand")
    assert run("compress", "a.png", "b.mpo", "out/") == 0
    assert capsys.readouterr().err == (
        "sic: warning: a.png: not kept: PNG text (Author)\n"
        "sic: warning: b.mpo: not kept: comment, 1 further picture\n"
        "sic: 2 done\n"
    )
    kept = Metadata(icc_profile=profile, xmp=b"<x:xmpmeta/>", dpi=(300, 300))
    assert sic_jax.read_metadata(Path("out/a.sic").read_bytes()) == kept
    assert run("decompress", "out/a.sic", "a.ppm") == 0
    assert capsys.readouterr().err == (
        "sic: warning: out/a.sic: PPM has no place for: ICC profile, XMP, resolution\n"
    )
    assert run("compress", "a.png", "b.mpo", "out/", "--strip", "--force") == 0
    assert capsys.readouterr().err == "sic: 2 done\n"
    assert Path("out/a.sic").read_bytes() == FakeCodec().compress(pixels())
    assert run("info", "out/a.sic") == 0
    assert "metadata  none\n" in capsys.readouterr().out


def test_background(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("a.png", np.zeros((2, 2, 4), np.uint8))
    assert run("compress", "a.png", "--background", "#010203") == 0
    assert run("decompress", "a.sic", "b.png") == 0
    assert (get("b.png") == (1, 2, 3)).all()
    # Also where no picture is transparent, and before any is looked at.
    put("opaque.png")
    for colour in ("nonsense", "#01020380"):
        argv = ["compress", "a.png", "opaque.png", "missing.png", "-o", "new/"]
        for more in ([], ["-n"]):
            assert run(*argv, "--background", colour, *more) == 2
            assert capsys.readouterr().err == (
                "sic: error: background must be a colour name or #rrggbb, without transparency, "
                f"got {colour!r}\n"
            )


def test_alpha_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = put("a.png", np.dstack([pixels(), np.full((5, 4), 9, np.uint8)]))
    assert run("compress", "a.png", "--level", "4") == 0
    assert run("decompress", "a.sic", "b.png") == 0
    np.testing.assert_array_equal(get("b.png"), original)
    assert capsys.readouterr().err == ""
    # A format without alpha has white under it, and one warning for all samples.
    assert run("decompress", "a.sic", "b.ppm", "--samples", "2") == 0
    warning = "sic: warning: a.sic: PPM has no alpha: the picture lies over white\n"
    assert capsys.readouterr().err == warning
    assert get("b_0.ppm").shape == (5, 4, 3)
    assert run("truncate", "a.sic", "c.sic", "--level", "1") == 0
    assert run("decompress", "c.sic", "c.png") == 0
    np.testing.assert_array_equal(get("c.png"), original)
    capsys.readouterr()
    assert run("info", "a.sic", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["alpha"], facts["alpha_bytes"], facts["metadata_bytes"]) == (True, 5, 0)
    assert run("info", "c.sic") == 0
    assert "alpha     5 bytes\n" in capsys.readouterr().out


def test_frame(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.fromarray(pixels(seed=i)) for i in range(3)]
    frames[0].save("a.png", save_all=True, append_images=frames[1:])
    for argv in (["a.png"], ["a.png", "--dry-run"]):
        assert run("compress", *argv) == 1
        assert capsys.readouterr().err == (
            "sic: error: a.png: holds 3 frames, of which a sic file holds one; choose it with "
            "--frame N, 0 to 2 (frame= in Python)\n"
        )
    assert run("compress", "a.png", "--frame", "1") == 0
    assert capsys.readouterr().err == "sic: warning: a.png: not kept: 2 further pictures\n"
    assert Path("a.sic").read_bytes() == FakeCodec().compress(pixels(seed=1))
    for dry in ([], ["--dry-run"]):
        assert run("compress", "a.png", "b.sic", "--frame", "3", *dry) == 1
        assert capsys.readouterr().err == "sic: error: a.png: frame must be 0 to 2, got 3\n"
    assert run("compress", "a.png", "b.sic", "--frame", "2", "--dry-run") == 0
    assert run("compress", "a.png", "b.sic", "--frame", "-1") == 2
    assert files(folder) == ["a.png", "a.sic"]


def test_folders_keep_their_structure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals = [put(f"in/{name}", pixels(seed=i)) for i, name in enumerate(["a.png", "x/y/b.bmp"])]
    Path("in/readme.txt").write_text("no picture")
    put("in/.hidden.png")
    put("c.png")
    assert run("compress", "in", "c.png", "out") == 1
    assert capsys.readouterr().err.splitlines() == [
        "sic: warning: in/readme.txt: left out: not a picture in a format that Pillow reads",
        "sic: 3 done, 1 left out",
    ]
    assert files(folder / "out") == ["a.sic", "c.sic", "x/y/b.sic"]
    assert run("decompress", "out", "back/") == 0
    assert files(folder / "back") == ["a.png", "c.png", "x/y/b.png"]
    for name, original in zip(("a.png", "x/y/b.png"), originals, strict=True):
        np.testing.assert_array_equal(get(f"back/{name}"), original)


def test_folder_without_out_writes_beside(folder: Path) -> None:
    put("in/x/a.png")
    assert run("compress", "in") == 0
    assert files(folder) == ["in/x/a.png", "in/x/a.sic"]


def test_a_shell_pattern_has_no_out(folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        put(name)
    before = Path("c.png").read_bytes()
    assert run("compress", "a.png", "b.png", "c.png") == 0
    assert Path("c.png").read_bytes() == before
    for name in ("a.png", "b.png", "c.png"):
        Path(name).unlink()
    assert run("decompress", "a.sic", "b.sic", "c.sic") == 0
    assert len(files(folder)) == 6


def test_one_file_goes_on_when_another_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("in/a.png")
    Path("in/b.png").write_text("text")
    put("in/c.png", pixels(13))
    put("in/d.png")
    assert run("compress", "in", "missing.png", "out") == 1
    out, err = capsys.readouterr()
    assert [line.split(" -> ")[0] for line in out.splitlines()] == ["in/a.png", "in/d.png"]
    assert err.splitlines() == [
        "sic: error: in/b.png: not a picture in a format that Pillow reads",
        "sic: error: in/c.png: RuntimeError: thirteen rows",
        "sic: error: missing.png: No such file or directory",
        "sic: 2 done, 3 failed",
    ]
    assert files(folder / "out") == ["a.sic", "d.sic"]


def test_inputs_that_differ_in_their_suffix_keep_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "in/a.bmp", "in/b.png", "in/x/a.png", "in/x/b.png"):
        put(name)
    assert run("compress", "in", "out") == 0
    assert files(folder / "out") == ["a.bmp.sic", "a.png.sic", "b.sic", "x/a.sic", "x/b.sic"]
    assert run("compress", "in/a.png", "in/a.bmp", "in/b.png") == 0
    assert files(folder / "in") == [
        "a.bmp", "a.bmp.sic", "a.png", "a.png.sic", "b.png", "b.sic", "x/a.png", "x/b.png"
    ]  # fmt: skip
    # Back again, they do not meet either.
    assert run("decompress", "out", "back") == 0
    assert files(folder / "back") == ["a.bmp.png", "a.png.png", "b.png", "x/a.png", "x/b.png"]


def test_a_collision_costs_a_file_and_not_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("one/a.png")
    put("one/b.png")
    put("two/a.png", pixels() + np.uint8(16))
    put("two/c.png")
    assert run("compress", "one", "two", "out") == 1
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "sic: error: two/a.png: out/a.sic is made of one/a.png already",
        "sic: 3 done, 1 failed",
    ]
    assert [line.split(" -> ")[0] for line in out.splitlines()] == [
        "one/a.png", "one/b.png", "two/c.png"
    ]  # fmt: skip
    assert files(folder / "out") == ["a.sic", "b.sic", "c.sic"]
    assert run("compress", "one/b.png", "one/b.png") == 1
    assert "one/b.sic is made of one/b.png already" in capsys.readouterr().err
    assert files(folder / "one") == ["a.png", "b.png", "b.sic"]


def test_files_of_a_folder_that_are_no_pictures_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"pillow_heif": None, "pillow_jxl": object()}
    monkeypatch.setattr(importlib.util, "find_spec", there.get)
    put("in/a.png")
    Path("in/b.jfif").write_bytes(Path("in/a.png").read_bytes())  # Its contents decide.
    Path("in/notes.txt").write_text("text")
    Path("in/c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    Path("in/d").write_bytes(b"\xff\x0a" + bytes(100))
    Path("in/.hidden").write_text("text")
    put_sic("in/old.sic")
    assert run("compress", "in", "out") == 1
    out, err = capsys.readouterr()
    assert [line.split(" -> ")[0] for line in out.splitlines()] == ["in/a.png", "in/b.jfif"]
    assert err.splitlines() == [
        "sic: warning: in/c.heic: left out: a HEIC picture needs the package pillow-heif (pip "
        "install pillow-heif)",
        "sic: warning: in/d: left out: a JPEG XL picture that is damaged",
        "sic: warning: in/notes.txt: left out: not a picture in a format that Pillow reads",
        "sic: 2 done, 3 left out",
    ]
    assert files(folder / "out") == ["a.sic", "b.sic"]
    assert run("compress", "in", "again", "--ignore-unreadable") == 0
    assert capsys.readouterr().err.splitlines()[-1] == "sic: 2 done, 3 left out"
    # A folder without any: nothing is done, and that is told.
    Path("only").mkdir()
    put_sic("only/x.sic")
    assert run("compress", "only") == 2
    Path("only/notes.txt").write_text("text")
    assert run("compress", "only") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "sic: 1 left out"


def test_skip_existing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("in/a.png")
    put("in/b.png")
    assert run("compress", "in/a.png") == 0
    before = Path("in/a.sic").stat().st_mtime_ns
    capsys.readouterr()
    assert run("compress", "in", "--skip-existing") == 0
    out, err = capsys.readouterr()
    assert [line.split(" -> ")[0] for line in out.splitlines()] == ["in/b.png"]
    assert err == "sic: 1 done, 1 skipped\n"
    assert Path("in/a.sic").stat().st_mtime_ns == before
    assert run("compress", "in", "--skip-existing") == 0
    assert capsys.readouterr() == ("", "sic: 2 skipped\n")
    # Also where OUT has a name.
    for name in (["in/a.sic"], ["-o", "in/a.sic"]):
        assert run("compress", "in/b.png", *name, "--skip-existing", "-v") == 0
        assert capsys.readouterr() == (
            "in/b.png: skipped, in/a.sic is there\n", "sic: 1 skipped\n"
        )  # fmt: skip
    assert Path("in/a.sic").stat().st_mtime_ns == before
    assert run("compress", "in/b.png", "c.sic", "--skip-existing") == 0
    assert Path("c.sic").read_bytes() == FakeCodec().compress(pixels())
    capsys.readouterr()
    # With samples, all of them must be there.
    assert run("decompress", "in/a.sic", "--samples", "2") == 0
    Path("in/a_1.png").unlink()
    assert run("decompress", "in/a.sic", "--samples", "2", "--skip-existing") == 1
    assert "in/a_0.png is already there" in capsys.readouterr().err
    assert run("compress", "in", "--skip-existing", "--force") == 2


def test_derived_names_do_not_overwrite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("photo.png")
    put_sic("photo.sic")
    before = Path("photo.png").read_bytes()
    assert run("decompress", "photo.sic", "--seed", "1") == 1
    message = "sic: error: photo.sic: photo.png is already there; --force overwrites it\n"
    assert capsys.readouterr().err == message
    assert Path("photo.png").read_bytes() == before
    assert run("decompress", "photo.sic", "--seed", "1", "--force") == 0
    np.testing.assert_array_equal(get("photo.png"), pixels() + np.uint8(16))
    assert run("decompress", "photo.sic", "photo.png") == 0
    np.testing.assert_array_equal(get("photo.png"), pixels())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compress", "in/a.png", "new.png"], "OUT is named like an input: new.png"),
        (["decompress", "a.sic", "new.sic"], "OUT is named like an input: new.sic"),
        (["compress", "in/a.png", "in/a.jpg", "b.sic"], "OUT must be a folder for several"),
        (["compress", "in", "a.sic"], "OUT must be a folder for several inputs, got a.sic"),
        (["compress", "empty"], "empty: the folder holds no"),
        (["compress", "-", "in/a.png", "out"], "needs a single IN and no folder"),
        (["compress", "in", "-"], "needs a single IN and no folder"),
        (["decompress", "a.sic", "b.heic"], "b.heic: cannot write a picture with the extension"),
        (["truncate", "a.sic", "./a.sic", "--level", "1"], "a.sic is an input and would be"),
        (["truncate", "a.sic", "b.sic"], "one of the arguments --level --max-bytes is required"),
        (["compress"], "required: IN"),
        (["compress", "in/a.png", "--level", "high"], "invalid int value: 'high'"),
        (["compress", "in/a.png", "--seed", "-1"], "seed must be 0 to 4294967295, got -1"),
        (["compress", "in/a.png", "--grain", "nan"], "grain must be 0 to 15.9375, got nan"),
        (["compress", "in/a.png", "--min-psnr", "0"], "min_psnr must be more than 0, got 0"),
        (["compress", "in/a.png", "--optimise", "-2"], "optimise_steps must be at least 0, got -2"),
        (["decompress", "a.sic", "--temperature", "17"], "temperature must be 0 to 16, got 17.0"),
        (["decompress", "a.sic", "--seed", "4294967296"], "to 4294967295, got 4294967296"),
        (["decompress", "a.sic", "--grain"], "unrecognized arguments: --grain"),
        (["compress", "in/a.png", "--coder", "zip"], "invalid choice: 'zip'"),
        (["info"], "info takes either FILE or --bundle B"),
        (["info", ""], "the name of a file is empty"),
        (["truncate", "", "b.sic", "--level", "1"], "the name of a file is empty"),
        (["compress", ""], "the name of a file is empty"),
        (["compress", "in/a.png", ""], "the name of a file is empty"),
        (["decompress", "", "-o", "b.png"], "the name of a file is empty"),
        (["info", "a.sic", "--bundle", "default"], "info takes either FILE or --bundle B"),
        (["bundle"], "required: COMMAND"),
        (["bundle", "explode"], "invalid choice: 'explode'"),
        (["bundle", "add"], "required: PATH (see sic bundle add --help)"),
        (["bundle", "remove"], "required: NAME"),
        (["explode"], "invalid choice: 'explode'"),
        ([], "required: COMMAND"),
    ],
)
def test_usage_errors_write_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    put("in/a.png")
    put("in/a.jpg")
    Path("empty").mkdir()
    put_sic("a.sic")
    before = files(folder)
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sic: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert files(folder) == before


def test_a_link_to_the_input_is_not_overwritten(folder: Path) -> None:
    data = put_sic("a.sic")
    Path("b.sic").symlink_to("a.sic")
    assert run("truncate", "a.sic", "b.sic", "--level", "1") == 2
    assert Path("a.sic").read_bytes() == data


def test_failures_leave_nothing_behind(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.png")
    assert run("compress", "a.png", "--level", "17") == 2
    assert run("compress", "a.png", "nowhere/a.sic") == 1
    assert run("compress", "a.png", "--bundle", "missing") == 1

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        assert run("compress", "a.png") == 1
    with monkeypatch.context() as patch:
        patch.setattr(FakeCodec, "compress", interrupt)
        assert run("compress", "a.png") == 130
    assert capsys.readouterr().err.splitlines() == [
        "sic: error: level must be 1 to 16, got 17",
        "sic: error: a.png: nowhere/a.sic: No such file or directory",
        "sic: error: no bundle 'missing'",
        "sic: error: a.png: a.sic: No space left on device",
        "sic: error: interrupted",
    ]
    assert files(folder) == ["a.png"]


def test_bad_files_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("a.png")
    Path("empty.sic").write_bytes(b"")
    for command in (["decompress"], ["info"], ["truncate", "--level", "1"]):
        for name in ("a.png", "empty.sic", "missing.sic"):
            target = [] if command == ["info"] else [f"out{name}.png"]
            if command[0] == "truncate":
                target = ["out.sic"]
            assert run(command[0], name, *target, *command[1:]) == 1
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith(f"sic: error: {name}: ")
            assert err.count("\n") == 1
    assert files(folder) == ["a.png", "empty.sic"]


def test_a_cut_file_warns_or_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = put_sic("a.sic")
    Path("cut.sic").write_bytes(data[:-5])
    assert run("decompress", "cut.sic", "--strict") == 1
    assert capsys.readouterr().err.startswith("sic: error: cut.sic: ")
    assert files(folder) == ["a.sic", "cut.sic"]
    assert run("decompress", "cut.sic") == 0
    assert capsys.readouterr().err == "sic: warning: cut.sic: only 3 levels are there\n"
    np.testing.assert_array_equal(get("cut.png"), pixels())
    assert run("info", "cut.sic") == 0
    assert "levels    3, cut off of 4\n" in capsys.readouterr().out


def test_damaged_metadata_warns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = put_sic("a.sic", metadata=Metadata(exif=b"II*\0" + bytes(range(100))))
    Path("a.sic").write_bytes(data[:-1])
    assert run("decompress", "a.sic") == 0
    assert capsys.readouterr().err == "sic: warning: a.sic: the metadata are damaged\n"
    assert image_io.read_image("a.png").metadata.exif is None


def test_pixel_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_sic("a.sic")
    assert run("decompress", "a.sic", "--max-pixels", "19") == 1
    expected = "sic: error: a.sic: the image has 5 x 4 = 20 pixels, more than max_pixels = 19\n"
    assert capsys.readouterr().err == expected
    assert files(folder) == ["a.sic"]
    assert run("decompress", "a.sic", "--max-pixels", "20") == 0


def test_truncate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = put_sic("a.sic", level=4)
    assert run("truncate", "a.sic", "b.sic", "--level", "2") == 0
    small = FakeCodec().compress(pixels(), level=2)
    assert Path("b.sic").read_bytes() == small
    bpp = 8 * len(small) / 20
    expected = f"a.sic -> b.sic: {len(small)} bytes, {bpp:.4f} bpp, level 2\n"
    assert capsys.readouterr().out == expected
    assert run("truncate", "a.sic", "d.sic", "--max-bytes", str(len(small))) == 0
    assert Path("d.sic").read_bytes() == small
    assert capsys.readouterr().out == expected.replace("b.sic", "d.sic")
    assert run("truncate", "a.sic", "c.sic", "--max-bytes", "9") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"sic: error: a\.sic: the smallest file has \d+ bytes; 9 are allowed\n", err
    )
    assert run("truncate", "a.sic", "c.sic", "--level", "5") == 1
    assert capsys.readouterr().err.startswith("sic: error: a.sic: level must be")
    assert Path("a.sic").read_bytes() == data
    assert files(folder) == ["a.sic", "b.sic", "d.sic"]


def test_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = Metadata(exif=b"II*\0data", xmp=b"<x:xmpmeta/>", dpi=(300, 72.01))
    data = put_sic("a.sic", level=2, seed=9, grain=1.5, metadata=metadata)
    assert run("info", "a.sic", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    levels = facts.pop("levels")
    assert facts == {
        "file": "a.sic",
        "bytes": len(data),
        "bpp": 8 * len(data) / 20,
        "version": 2,
        "model_id": MODEL_ID.hex(),
        "width": 4,
        "height": 5,
        "mode": "rgb",
        "seed": 9,
        "grain": 1.5,
        "float_entropy": False,
        "exact": False,
        "num_levels": 2,
        "level": 2,
        "icc_profile_bytes": 0,
        "exif_bytes": 8,
        "xmp_bytes": 12,
        "dpi": [300, 72.01],
        "metadata_bytes": (4 + 16) + (4 + 20) + (4 + 5),
        "metadata_damaged": False,
        "alpha": False,
        "alpha_bytes": 0,
        "exact_bytes": 0,
        "z_bytes": len(zlib.compress(pixels().tobytes())),
    }
    sizes = [len(container.truncate(data, level)) for level in (1, 2)]
    assert levels == [
        {"level": i, "bytes": 10 * i, "file_bytes": size, "bpp": 8 * size / 20}
        for i, size in enumerate(sizes, 1)
    ]
    assert sizes[1] == len(data)
    assert run("info", "a.sic") == 0
    out = capsys.readouterr().out
    assert f"a.sic: {len(data)} bytes, {8 * len(data) / 20:.4f} bpp\n" in out
    assert "picture   4 x 5 rgb\n" in out
    assert "alpha     none\n" in out
    assert "grain     1.5 of 255\n" in out
    told = "EXIF 8 bytes, XMP 12 bytes, resolution 300 x 72.01 dpi; 53 bytes of the file"
    assert f"metadata  {told}\n" in out
    assert [line.split() for line in out.splitlines()[-2:]] == [
        ["level", str(i), str(10 * i), str(size), f"{8 * size / 20:.4f}"]
        for i, size in enumerate(sizes, 1)
    ]


def test_info_on_an_exact_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = container.Header(model_id=MODEL_ID, height=1, width=2, num_levels=5, exact=True)
    data = container.pack(header, [container.Segment(b"payload", 0)])
    Path("a.sic").write_bytes(data)
    assert run("info", "a.sic", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["exact"], facts["level"], facts["levels"], facts["z_bytes"]) == (True, 5, [], 0)
    assert facts["exact_bytes"] == 7
    assert run("info", "a.sic") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "pixels    exact, 7 bytes" in lines
    assert not any("level" in line for line in lines)


def test_info_on_a_bundle(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = type(sys)("sic_jax.codec.bundle")
    bundle.describe = lambda name: {"name": name, "parameters": 7}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sic_jax.codec.bundle", bundle)
    monkeypatch.setattr("sic_jax.codec.bundle", bundle, raising=False)
    assert run("info", "--bundle", "mine", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "mine", "parameters": 7}
    assert run("info", "--bundle", "mine") == 0
    assert capsys.readouterr().out.split() == ["name", "mine", "parameters", "7"]


def test_standard_streams(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = put("a.png")

    def through(data: bytes, *argv: str) -> bytes:
        out = Pipe()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Pipe(data))
            patch.setattr(sys, "stdout", out)
            assert run(*argv) == 0
        return out.buffer.getvalue()

    data = through(Path("a.png").read_bytes(), "compress", "-", "--level", "4")
    assert data == FakeCodec().compress(original, level=4)
    assert "- -> -: " in capsys.readouterr().err
    assert through(b"", "compress", "a.png", "-", "--level", "4") == data
    small = through(data, "truncate", "-", "-", "--level", "1")
    assert small == container.truncate(data, 1)
    np.testing.assert_array_equal(
        image_io.read_image(through(small, "decompress", "-")).pixels, original
    )
    assert through(data, "decompress", "-", "b.png") == b"- -> b.png: 4 x 5 pixels\n"
    np.testing.assert_array_equal(get("b.png"), original)
    through(data, "decompress", "-", "c.tif", "--samples", "2")
    assert files(folder) == ["a.png", "b.png", "c_0.tif", "c_1.tif"]
    monkeypatch.setattr(sys, "stdout", Pipe(terminal=True))
    assert run("compress", "a.png", "-") == 2
    assert "the output is binary" in capsys.readouterr().err


def test_after_two_dashes_all_are_files(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = put("-x.png")
    assert run("compress", "--level", "3", "--", "-x.png") == 0
    assert capsys.readouterr().out.startswith("./-x.png -> -x.sic: ")
    assert container.read_header(Path("-x.sic").read_bytes()).num_levels == 3
    assert run("decompress", "--", "-x.sic", "--y.png") == 0
    np.testing.assert_array_equal(get("--y.png"), original)
    assert run("info", "--", "-x.sic") == 0
    assert run("truncate", "--level", "1", "--", "-x.sic", "-z.sic") == 0
    # A single dash stays what it is, and options after the two are files.
    out = Pipe()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert run("compress", "--", "-x.png", "-") == 0
    assert out.buffer.getvalue() == FakeCodec().compress(original)
    capsys.readouterr()
    assert run("compress", "--", "-x.png", "--level", "out/") == 1
    assert "sic: error: ./--level: No such file" in capsys.readouterr().err
    assert files(folder) == ["--y.png", "-x.png", "-x.sic", "-z.sic", "out/-x.sic"]


def test_a_level_that_the_bundle_lacks_is_one_error(
    folder: Path, capsys: pytest.CaptureFixture[str], loads: list[object], place: Path
) -> None:
    config = {"model": {"levels": {"channels": [4, 4, 4]}}}
    (place / "fake" / "config.json").write_text(json.dumps(config))
    put("a.png")
    put("b.png")
    for bundle, level, highest in (
        ("fake", 4, 3),
        (str(place / "fake"), 0, 3),
        ("default", 17, 16),
    ):
        argv = ["a.png", "b.png", "missing.png", "--bundle", bundle, "--level", str(level)]
        assert run("compress", *argv) == 2
        expected = f"sic: error: level must be 1 to {highest}, got {level}\n"
        assert capsys.readouterr() == ("", expected)
    for word in ("0", "65"):
        assert run("decompress", "a.sic", "b.sic", "--level", word) == 2
        expected = f"sic: error: level must be 1 to 64, got {word}\n"
        assert capsys.readouterr() == ("", expected)
    assert loads == []
    # What the config does not tell, the loader does.
    (place / "fake" / "config.json").write_text("[")
    assert run("compress", "a.png", "--bundle", "fake", "--level", "17") == 1
    assert "level must be 1 to 16, got 17" in capsys.readouterr().err
    assert loads == [("fake", None)]
    assert files(folder) == ["a.png", "b.png"]


def test_inputs_that_are_named_like_outputs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("a.png")
    put_sic("b.sic")
    before = Path("a.png").read_bytes()
    for argv, message in (
        (["decompress", "a.png"], "a.png is no .sic file, by its name"),
        (["decompress", "a.png", "--force"], "a.png is no .sic file, by its name"),
        (["compress", "b.sic"], "b.sic is no picture, by its name"),
    ):
        assert run(*argv) == 1
        assert capsys.readouterr() == ("", f"sic: error: {message}\n")
    assert run("decompress", "a.png", "c.png") == 1
    assert "a.png: not a sic file: it starts with b'\\x89PNG'" in capsys.readouterr().err
    assert Path("a.png").read_bytes() == before
    assert files(folder) == ["a.png", "b.sic"]


@pytest.mark.skipif(os.name != "posix", reason="names may hold such characters")
def test_control_characters_in_names_are_escaped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    names = ["a\nb.png", "c\x1b[31m.png", os.fsdecode(b"d\xff.png"), "é ü.png"]
    for name in names:
        put("in/" + name)
    Path("in/e\n.txt").write_text("text")
    Path("in/f\n.png").write_text("text")
    put_sic("x\ny.sic")
    assert run("compress", "in", "out") == 1
    out, err = capsys.readouterr()
    shown = [line.split(": ")[0] for line in out.splitlines()]
    assert sorted(shown) == sorted([
        r"in/a\nb.png -> out/a\nb.sic",
        r"in/c\x1b[31m.png -> out/c\x1b[31m.sic",
        r"in/d\udcff.png -> out/d\udcff.sic",
        "in/é ü.png -> out/é ü.sic",
    ])  # fmt: skip
    assert err.splitlines() == [
        r"sic: error: in/f\n.png: not a picture in a format that Pillow reads",
        r"sic: warning: in/e\n.txt: left out: not a picture in a format that Pillow reads",
        "sic: 4 done, 1 failed, 1 left out",
    ]
    assert run("info", "x\ny.sic") == 0
    assert capsys.readouterr().out.startswith(r"x\ny.sic: ")


def test_lines_of_libraries_are_warnings_with_the_file(folder: Path) -> None:
    """libtiff writes to the process's stderr, without a file's name."""
    Image.fromarray(pixels(64, 64)).save("a.tif", compression="tiff_lzw")
    data = bytearray(Path("a.tif").read_bytes())
    data[3000:3100] = bytes(b ^ 0x5A for b in data[3000:3100])
    Path("a.tif").write_bytes(data)
    Image.fromarray(pixels()).save("b.tif")
    code = (
        "import sys; from sic_jax.cli import jobs, main as cli\n"
        "class Codec:\n"
        "    def compress(self, *args, **kwargs):\n"
        "        sys.stderr.write('as ever\\n')\n"
        "        raise ValueError('no codec')\n"
        "jobs.load_codec = lambda *_: Codec()\n"
        "sys.exit(cli.main(['compress', 'a.tif', 'b.tif']))"
    )
    argv = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    library, *rest = done.stderr.splitlines()
    assert library.startswith("sic: warning: a.tif: ")
    assert "not yet in table" in library
    assert rest == [
        "sic: error: a.tif: the picture is damaged (decoder error -2)",
        "as ever",
        "sic: error: b.tif: no codec",
        "sic: 2 failed",
    ]


@pytest.mark.parametrize("missing", ["folder", "stderr", "open stderr"])
def test_without_a_place_for_lines_of_libraries_pictures_are_compressed(
    loads: None, folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    put("a.png")
    if missing == "folder":
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "absent"))
    elif missing == "stderr":
        monkeypatch.setattr(sys, "stderr", None)
    else:
        closed = io.StringIO()
        closed.close()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", closed)
            with lines_of_libraries(pytest.fail):
                pass
    assert run("compress", "a.png") == 0
    assert files(folder) == ["a.png", "a.sic"]


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes stderr")
def test_a_process_without_stderr(tmp_path: Path) -> None:
    """Its first open file has the number of stderr, and must not get what libraries write."""
    code = (
        "import sys\n"
        "assert sys.stderr is None\n"
        "from sic_jax.cli.stderr import lines_of_libraries\n"
        "import os\n"
        "with open(sys.argv[1], 'wb') as file:\n"
        "    assert file.fileno() == 2\n"
        "    with lines_of_libraries(print):\n"
        "        file.write(b'kept')\n"
        "        file.flush()\n"
        "from sic_jax.cli import main as cli\n"
        "assert cli.main(['info', 'absent.sic']) == 1\n"
        "print('done')"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *argv], stdout=-1, text=True, env=environment
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert (tmp_path / "a").read_bytes() == b"kept"


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes stdout")
def test_a_process_without_stdout(folder: Path) -> None:
    whole = put_sic("a.sic")
    argv = [sys.executable, "-m", "sic_jax.cli.main", "truncate", "a.sic", "--level", "1", "-o"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *argv]
    done = subprocess.run([*shell, "b.sic"], stderr=-1, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("b.sic").read_bytes() == container.truncate(whole, 1)
    done = subprocess.run([*shell, "-"], stderr=-1, text=True, env=environment)
    expected = (2, "sic: error: stdout is closed, so OUT cannot be -\n")
    assert (done.returncode, done.stderr) == expected


def test_progress_only_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("a.png")
    put("b.png")
    assert run("compress", "a.png", "b.png") == 0
    assert capsys.readouterr().err == "sic: 2 done\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("compress", "a.png", "b.png", "--force") == 0
    clear = "\r\x1b[K"
    shown = f"{clear}[1/2] a.png{clear}{clear}[2/2] b.png{clear}"
    assert capsys.readouterr().err == shown + "sic: 2 done\n"
    assert run("compress", "a.png", "c.sic", "--optimise", "2") == 0
    shown = "".join(f"{clear}a.png: optimising, {share} %" for share in (50, 100))
    assert capsys.readouterr().err == shown + clear
    assert run("compress", "a.png", "b.png", "--force", "--optimise", "1") == 0
    lines = [f"[1/2] a.png{clear}[1/2] a.png: optimising, 100 %", "[2/2] b.png"]
    assert capsys.readouterr().err.startswith(clear + f"{clear}{clear}".join(lines) + clear)


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["compress", "--help"]])
def test_help(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(
        "sic 0.2.0" if argv[0] == "--version" else "usage: sic"
    )


def test_light_commands_import_nothing_heavy(tmp_path: Path) -> None:
    data = FakeCodec().compress(pixels())
    (tmp_path / "a.sic").write_bytes(data)
    code = (
        "import sys\n"
        "from sic_jax.cli import main as cli\n"
        "assert cli.main(['info', sys.argv[1]]) == 0\n"
        "assert cli.main(['bundle', 'list']) == 0\n"
        "assert cli.main(['truncate', sys.argv[1], sys.argv[2], '--level', '3']) == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'PIL', 'tensorflow', 'tensorflow_compression'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "a.sic"), str(tmp_path / "b.sic")]
    result = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "b.sic").read_bytes() == container.truncate(data, 3)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell with pipes")
def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "a.sic").write_bytes(FakeCodec().compress(pixels()))
    read_end, write_end = os.pipe()
    os.close(read_end)
    argv = [sys.executable, "-m", "sic_jax.cli.main", "info", str(tmp_path / "a.sic")]
    result = subprocess.run(argv, stdout=write_end, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write_end)
    assert (result.returncode, result.stderr) == (1, "")
