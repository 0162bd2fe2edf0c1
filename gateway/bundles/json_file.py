"""Reads the small files of a model folder or an opened zip, and keeps records of our own as JSON files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources.abc import Traversable
from pathlib import Path, PurePath
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from gateway.errors import BundleError, quote

_T = TypeVar("_T")
#: Bytes of one file. JSON takes up to 40 times its size in memory, so only files that are searched, or whose reader
#: keeps a small part, can be that long.
LONGEST = 64 * 1024 * 1024
_LONGEST_CONFIG = 1024 * 1024  # most configurations have less than 10 KB
_LONGEST_TOKENIZER_CONFIG = 4 * _LONGEST_CONFIG  # it lists every added token: 1.2 MB for Gemma 3
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


def read_small_file(path: Traversable, longest: int = LONGEST) -> bytes:
    """The content of `path`. Raises OSError, also for a pipe or a device, which may have no end, and above `longest`.

    Args:
        longest: bytes.
    """
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")
    with path.open("rb") as file:
        content: bytes = file.read(longest + 1)
    if len(content) > longest:
        raise OSError(errno.EFBIG, f"it has more than {longest >> 20} MiB")
    return content


def read_json(path: Traversable, kind: type[_T], *, missing: str = "", longest: int = _LONGEST_CONFIG) -> _T:
    """The content of `path` as `kind`. Raises BundleError if the file is missing, is not JSON or does not fit `kind`.

    Args:
        missing: ends the message about a missing file: "so it is not a model bundle".
        longest: bytes. More than the default only for a `kind` that keeps a small part.
    """
    folder, name = PurePath(str(path)).parent.name, path.name
    try:
        content = read_small_file(path, longest)
        if is_lfs_pointer(content):
            raise lfs_error(f"{folder}: {name}")
        return msgspec.json.decode(content.removeprefix(_BOM), type=kind)
    except FileNotFoundError:
        raise BundleError(f"{folder} has no {name}{missing and f', {missing}'}.") from None
    except OSError as error:
        raise BundleError(f"{folder}: {name} cannot be read: {error.strerror or error}.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{folder}: {name} cannot be read: {error}.") from error


def read_optional_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} if there is no file. Raises BundleError if it is not a JSON object."""
    return read_json(path, dict[str, Any], longest=_LONGEST_TOKENIZER_CONFIG) if path.is_file() else {}


def read_record(path: Path, kind: type[_T]) -> _T | None:
    """A file that this gateway has written. None: it is missing or damaged."""
    try:
        return msgspec.json.decode(read_small_file(path), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write_record(path: Path, record: Struct) -> None:
    """Write a file that can be missing: best effort. A reader sees the old content or the new one."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.encode(record))
        new.replace(path)
    with suppress(OSError):
        new.unlink(missing_ok=True)
