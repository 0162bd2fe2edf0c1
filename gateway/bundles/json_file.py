"""Reads the small files of a model folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.errors import BundleError, quote

_T = TypeVar("_T")
_LONGEST = 64 * 1024 * 1024  # bytes; thousands of times what the files have
_LFS = b"version https://git-lfs"
_BOM = b"\xef\xbb\xbf"  # a byte order mark, which some editors write


def is_lfs_pointer(start: bytes) -> bool:
    """True if a file that begins so is what Git keeps in place of a large file."""
    return start.startswith(_LFS)


def lfs_error(name: str) -> BundleError:
    return BundleError(f"{name} is a Git LFS pointer, not the file. Run `git lfs pull` in its folder, or download it.")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise BundleError for an OSError: a bundle can name a file that the system refuses to look for."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{quote(path.name)} cannot be read: {error.strerror or error}.") from error


def read_small_file(path: Path) -> bytes:
    """The content of `path`. Raises OSError, also for a pipe or a device, which may have no end, and above 64 MiB."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")
    with path.open("rb") as file:
        content = file.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise OSError(errno.EFBIG, "it has more than 64 MiB")
    return content


def read_json(path: Path, kind: type[_T], *, missing: str = "") -> _T:
    """The content of `path` as `kind`. Raises BundleError if the file is missing, is not JSON or does not fit `kind`.

    Args:
        missing: ends the message about a missing file: "so it is not a model bundle".
    """
    folder, name = path.parent.name, path.name
    try:
        content = read_small_file(path)
        if is_lfs_pointer(content):
            raise lfs_error(f"{folder}: {name}")
        return msgspec.json.decode(content.removeprefix(_BOM), type=kind)
    except FileNotFoundError:
        raise BundleError(f"{folder} has no {name}{missing and f', {missing}'}.") from None
    except OSError as error:
        raise BundleError(f"{folder}: {name} cannot be read: {error.strerror}.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{folder}: {name} cannot be read: {error}.") from error


def read_optional_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} if there is no file. Raises BundleError if it is not a JSON object."""
    return read_json(path, dict[str, Any]) if path.is_file() else {}
