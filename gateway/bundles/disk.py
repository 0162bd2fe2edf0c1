"""Folders of this user; whether a folder can be written and has enough free space; files made durable."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from gateway.errors import BundleError

_MARGIN = 64 * 1024 * 1024  # bytes that must stay free for the rest of the system


def data_folder(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The folder of this user's models if there is no config file. `environ`: None: the environment of the process."""
    environ = os.environ if environ is None else environ
    home = Path.home()
    if platform == "win32":
        root = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        root = home / "Library" / "Application Support"
    else:
        root = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return root / "npu-gateway"


def cache_folder(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The folder of this user's files that can be made again: lists of the model servers, compiled graphs."""
    environ = os.environ if environ is None else environ
    if platform == "win32":
        return data_folder(environ, platform) / "cache"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "npu-gateway"
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npu-gateway"


def require_space(needs: Mapping[Path, int], what: str) -> None:
    """Check the folders that a task will write. Makes them.

    Args:
        needs: folder -> bytes that will be written. Folders on one volume share its free space.
        what: names the work in the message.
    Raises BundleError that names the folder, the needed and the free bytes.
    """
    volumes: dict[int, tuple[Path, int]] = {}
    for folder, size in needs.items():
        require_writable(folder)
        volume = folder.stat().st_dev
        volumes[volume] = (folder, size + volumes.get(volume, (folder, 0))[1])
    for folder, size in volumes.values():
        free = shutil.disk_usage(folder).free
        if free < size + _MARGIN:
            raise BundleError(
                f"{what} needs about {megabytes(size + _MARGIN)} in {folder}, and {megabytes(free)} are free. "
                "Free some space, or use a folder on another volume."
            )


def require_writable(folder: Path) -> None:
    """Make the folder, and a file in it. Raises BundleError that names the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise write_error(folder, error) from error


def write_error(folder: Path, error: OSError) -> BundleError:
    """The message about a folder that could not be written, with the next step."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or getattr(error, "winerror", None) == 112:
        return BundleError(
            f"{folder} cannot be written: {reason}. Free some space there and start again. Nothing was changed."
        )
    return BundleError(f"{folder} cannot be written: {reason}. Make it writable, or use another folder.")


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def folder_bytes(folder: Path, is_left_out: Callable[[str], bool] = lambda name: False) -> int:
    """The size of all files in a folder. Another program may remove some meanwhile.

    Args:
        is_left_out: by the name of a file, or of a folder with all that is in it.
    """
    total = 0
    for path, folders, names in os.walk(folder):
        folders[:] = itertools.filterfalse(is_left_out, folders)
        for name in itertools.filterfalse(is_left_out, names):
            with suppress(OSError):
                total += Path(path, name).stat().st_size
    return total


def megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def sync_tree(folder: Path) -> None:
    """Wait until every file in the folder is on the disk, so that it survives a power loss. Raises OSError."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            if Path(path, name).is_file():
                _sync(Path(path, name), os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        sync_folder(Path(path))


def sync_folder(folder: Path) -> None:
    """Wait until the names in the folder are on the disk. Windows does that itself and has no call for it."""
    if sys.platform != "win32":
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
