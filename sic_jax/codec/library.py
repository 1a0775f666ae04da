"""The bundles of this machine: found by folder, by name, or by the id in a file's header.

A place is a folder that holds bundles as folders NAME/ with the files `config.json` and `id`. The
places, in the order in which they are looked in:

    the folders of the environment variable SIC_BUNDLES, separated as those of PATH
    the user's own: sic_jax/bundles in the folder where the system keeps programs' data
    the package

A name means the same model for ever; `default` means `DEFAULT`. Of a bundle only the small file
`id` is read here, and nothing beyond the standard library is imported.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sic_jax.codec.container import MODEL_ID_BYTES
from sic_jax.errors import BitstreamError

DEFAULT = "pyramid-2"
"""The bundle that the name `default` means."""

_ALIAS = "default"
_PACKAGE = Path(__file__).resolve().parents[1] / "bundles"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(rb"[0-9a-f]{64}")


class Installed(NamedTuple):
    """A bundle in one of the places."""

    name: str
    place: Path
    model_id: bytes
    """What the headers of its files say, 6 bytes."""

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.place / self.name


def user_place() -> Path:
    """The user's own place, which need not be there yet."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "sic_jax" / "bundles"


def places() -> list[Path]:
    """All places, the first to look in first; some may not be there."""
    named = os.environ.get("SIC_BUNDLES", "").split(os.pathsep)
    return list(dict.fromkeys([*map(Path, filter(None, named)), user_place(), _PACKAGE]))


def installed() -> list[Installed]:
    """The bundles of all places, in the order of places; by name within one."""
    found = []
    for place in places():
        try:
            names = sorted(os.listdir(place))
        except OSError:  # Not there, or not ours to read.
            continue
        for name in filter(_NAME.fullmatch, names):
            model_id = model_id_of(place / name)
            if model_id is not None:
                found.append(Installed(name, place, model_id))
    return found


def find(name: str | Path) -> Path:
    """The folder of a bundle.

    Args:
        name: Its folder, or its name; a folder goes first.

    Raises:
        ValueError: If there is none, with the places that were looked in.
    """
    if _is_bundle(Path(name)):
        return Path(name)
    wanted = DEFAULT if str(name) == _ALIAS else str(name)
    if _NAME.fullmatch(wanted):
        for place in places():
            if _is_bundle(place / wanted):
                return place / wanted
    raise ValueError(
        f"no bundle {str(name)!r}: not a bundle's folder, nor one of this name in {_listed()}"
    )


def find_id(model_id: bytes) -> Installed:
    """The first bundle with an id.

    Args:
        model_id: 6 bytes, as in the header of a file.

    Raises:
        ValueError: If there is none, with the places that were looked in.
    """
    for bundle in installed():
        if bundle.model_id == model_id:
            return bundle
    raise ValueError(f"no bundle has the id {model_id.hex()} in {_listed()}")


def model_id_of(folder: Path) -> bytes | None:
    """What the headers of a bundle's files say, 6 bytes; None for a folder that is no bundle."""
    try:
        with open(folder / "id", "rb") as file:
            digest = file.read(80).strip()
    except OSError:
        return None
    if not _is_bundle(folder) or not _ID.fullmatch(digest):
        return None
    return bytes.fromhex(digest.decode())[:MODEL_ID_BYTES]


def check_made_by(model_id: bytes, file_id: bytes, name: str) -> None:
    """Check that a file is a bundle's.

    Args:
        model_id: Of the bundle.
        file_id: What the file's header says.
        name: Of the bundle, for the message.

    Raises:
        BitstreamError: If not.
    """
    if file_id != model_id:
        raise BitstreamError(
            f"the file was made with bundle {file_id.hex()}; "
            f"this is bundle {model_id.hex()} ({name})"
        )


def num_levels(name: str | Path) -> int | None:
    """Levels of a bundle, by its config alone; None where that does not tell, or there is none."""
    import json

    try:
        config = json.loads((find(name) / "config.json").read_text())
        count: int = len(config["model"]["levels"]["channels"])
        return count
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # Who loads the bundle says what is wrong.


def default_bundle() -> Installed | None:
    """What the name `default` means here; None where its folder is missing."""
    return next((bundle for bundle in installed() if bundle.name == DEFAULT), None)


def add(source: str | Path, name: str | None, check: Callable[[Path], object]) -> Installed:
    """Copies a bundle into the user's place; an interruption leaves no bundle there.

    Args:
        source: The bundle's folder.
        name: Default: that of the folder.
        check: Raises if the folder's content is not a sound bundle.

    Raises:
        ValueError: If it is no bundle, or its name or id is there already, or the name is bad.
        OSError: If it cannot be copied.
    """
    import shutil

    source = Path(source)
    if not _is_bundle(source):
        raise ValueError(f"{source}: not a bundle's folder: it has no config.json")
    name = source.resolve().name if name is None else name
    if name == _ALIAS or not _NAME.fullmatch(name):
        raise ValueError(
            "the name of a bundle must be letters, digits, '.', '_' and '-', at most 100, the "
            f"first a letter or digit, and not 'default', got {name!r}"
        )
    model_id = model_id_of(source)
    if model_id is None:
        raise ValueError(f"{source}: its file id does not hold a SHA-256 in hex")
    for other in installed():
        if other.name.casefold() == name.casefold():  # One folder on some systems.
            raise ValueError(f"there is a bundle {other.name!r} already, in {other.place}")
        if other.model_id == model_id:
            raise ValueError(
                f"{source}: the bundle is there already, as {other.name!r} in {other.place}"
            )
    check(source)
    bundle = Installed(name, user_place(), model_id)
    temporary = _temporary(bundle.folder)
    temporary.mkdir(parents=True)
    try:
        for file in sorted(source.iterdir()):
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)
        os.rename(temporary, bundle.folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return bundle


def remove(name: str) -> Path:
    """Deletes a bundle of the user's place.

    Returns:
        The folder where it was.

    Raises:
        ValueError: If there is none of this name, or it lies in another place.
        OSError: If it cannot be deleted.
    """
    import shutil

    wanted = DEFAULT if name == _ALIAS else name
    folder = user_place() / wanted
    if _NAME.fullmatch(wanted) and _is_bundle(folder):
        if folder.is_symlink():
            folder.unlink()
            return folder
        temporary = _temporary(folder)
        os.rename(folder, temporary)  # Half deleted it must not be found.
        shutil.rmtree(temporary)
        return folder
    for other in installed():
        if other.name == wanted and other.place == _PACKAGE:
            raise ValueError(f"bundle {name!r} is part of the package and cannot be removed")
        if other.name == wanted:
            raise ValueError(
                f"bundle {name!r} is in {other.place}, a folder of SIC_BUNDLES; remove it there"
            )
    raise ValueError(f"no bundle {name!r} in {user_place()}")


def _is_bundle(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _temporary(folder: Path) -> Path:
    """A folder beside it that nobody takes for a bundle: names of bundles do not begin so."""
    return folder.with_name(f".{folder.name}.{os.getpid()}")


def _listed() -> str:
    return ", ".join(map(str, places()))
