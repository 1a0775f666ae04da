"""Files that are written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from sic_jax.files import write_atomic


def test_atomic_write_replaces_only_when_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    plain.unlink()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"):
            write_atomic(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.bin"):
        write_atomic(tmp_path / "nowhere" / "a.bin", b"new")
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path, b"new")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    private, model = tmp_path / "private", tmp_path / "model"
    private.write_bytes(b"old")
    model.write_bytes(b"")
    model.chmod(0o640)
    for mode in (0o600, 0o664):
        private.chmod(mode)
        write_atomic(private, b"new")
        assert stat.S_IMODE(private.stat().st_mode) == mode
    write_atomic(private, b"new", like=model.stat())
    assert stat.S_IMODE(private.stat().st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_atomic_write_follows_links_and_leaves_devices(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
