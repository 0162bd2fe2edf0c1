"""Finds the files that a Genie configuration names, and detects incomplete ones.

Genie resolves relative paths against the working directory of the process. Published configurations name their files
relative to an unknown folder (`genie\\python\\models\\...`). So a path is searched from the configuration's folder
upwards, then the file name in the configuration's folder.

A binary does not contain its length, and the library does not always detect a truncated file. So this module detects
what is visible from outside: an empty file, a Git LFS pointer, only zeros at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath

from gateway.bundles.json_file import is_lfs_pointer, lfs_error
from gateway.errors import BundleError


def located(folder: Path, name: str, what: str, fits: Callable[[Path], bool] = Path.is_file) -> Path:
    """The file that the configuration in `folder` calls `name`. Raises BundleError, which calls it `what`."""
    found = find(folder, name, fits)
    if found is None:
        raise BundleError(
            f"The {what} '{PureWindowsPath(name).name or name}' of {folder.name} is missing. Download the bundle "
            "again, or put the file into its folder."
        )
    return found


def find(folder: Path, name: str, fits: Callable[[Path], bool] = Path.is_file) -> Path | None:
    """As `located`, but None if there is no file."""
    return next((path for path in _candidates(folder, name) if fits(path)), None)


def is_remote(name: str) -> bool:
    """True for a file of another machine: to open it, Windows logs in there with the user's password hash."""
    return PureWindowsPath(name).drive.startswith("\\\\")


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    """Yield the possible paths of the file that the configuration calls `name`, the most probable first."""
    if not is_remote(name):
        yield folder / name
        relative = Path(*PureWindowsPath(name).parts)  # authors write both kinds of slashes
        for base in (folder, *folder.parents):
            yield base / relative
    yield folder / PureWindowsPath(name).name
    yield folder  # a forecast prefix is usually in the configuration's folder


def check_binary(path: Path) -> None:
    """Raise BundleError if the file is visibly incomplete."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            file.seek(-min(size, max(8192, min(size // 64, 1 << 20))), 2)
            end = file.read()
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror}.") from error
    if size == 0:
        raise BundleError(f"{path.name} is empty. Download it again.")
    if is_lfs_pointer(start):
        raise lfs_error(path.name)
    if not end.strip(b"\0"):
        raise BundleError(f"{path.name} ends with zeros only: its download was not finished. Download it again.")
