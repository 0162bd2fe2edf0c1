"""Unpacks a zip whose content is not trusted, into a folder that is empty.

Refused: a path that leaves the folder, an absolute path, a drive, a link, a device, a name that Windows cannot have,
two entries that are one file where case is ignored, an encrypted entry, too many entries, more bytes than the disk has
or than a compressed model can have. The CRC of each entry is compared.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import IO

from msgspec import Struct

from gateway.bundles.disk import require_space, write_error
from gateway.errors import quote
from gateway.pull.install import RefusedError
from gateway.pull.names import fault_of, key_of
from gateway.pull.report import Report

_MAX_ENTRIES = 5000
_MAX_DIRECTORY = 16 << 20  # bytes of the list of entries, which is read into memory
_MAX_DEPTH = 16
_MAX_RATIO, _FREE_BYTES = 20, 64 << 20  # unpacked bytes for each byte of the zip, beyond the first 64 MiB
_CHUNK = 1 << 20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1
_END = struct.Struct(
    "<4s4H2LH"
)  # the end record: ..., entries, bytes of the directory, its offset, length of a comment
_END_64 = struct.Struct("<4sQ2H2L4Q")  # of a large zip, and before the end record a locator of 20 bytes
_LOCATOR = struct.Struct("<4sLQL")


class _Entry(Struct, frozen=True):
    info: zipfile.ZipInfo
    path: PurePosixPath


def unpack(archive: Path, folder: Path, report: Report) -> None:
    """Unpack the zip into `folder`. Raises BundleError; the caller removes the folder then."""
    try:
        with archive.open("rb") as file:
            check_directory(file, archive.name)
        with zipfile.ZipFile(archive) as opened:
            entries = _entries(opened, archive)
            total = sum(entry.info.file_size for entry in entries)
            require_space({folder: total}, f"Unpacking {archive.name}")
            _unpack(opened, entries, folder, total, lambda done: report(f"unpacking {archive.name}", done, total))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, UnicodeError) as error:
        raise _refusal(archive, f"it is damaged ({error})") from error
    except OSError as error:
        raise write_error(folder, error) from error


def is_zip(path: Path) -> bool:
    """True if the file begins as a zip does."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _unpack(
    opened: zipfile.ZipFile, entries: list[_Entry], folder: Path, total: int, report: Callable[[int], None]
) -> None:
    done = 0
    for entry in entries:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        before = done
        with opened.open(entry.info) as packed, target.open("xb") as file:
            while chunk := packed.read(_CHUNK):
                done += len(chunk)
                if done > total:
                    raise zipfile.BadZipFile("an entry is longer than the list of entries states")
                file.write(chunk)
                report(done)
        if done - before != entry.info.file_size:
            raise zipfile.BadZipFile(f"{entry.path.name} is shorter than the list of entries states")


def check_directory(file: IO[bytes] | RawIOBase, name: str) -> None:
    """Compare the size of the list of entries before it is read.

    Args:
        file: at any position, which changes.
        name: of the zip, for messages.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read() or b""
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise zipfile.BadZipFile("its end is missing")
    *_, count, length, _, _ = _END.unpack_from(tail, at)
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size :][:4] == b"PK\x06\x07":
        *_, offset, _ = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        before = size - len(tail) + at - _LOCATOR.size - _END_64.size  # which `zipfile` reads, whatever `offset` is
        found = [_end_64(file, start) for start in {min(offset, size), max(before, 0)}]
        count, length = max(each[0] for each in found), max(each[1] for each in found)
    if count > _MAX_ENTRIES or length > _MAX_DIRECTORY:
        raise _refusal(Path(name), f"it has {count} entries, and a model has fewer than {_MAX_ENTRIES}")


def _end_64(file: IO[bytes] | RawIOBase, start: int) -> tuple[int, int]:
    """Entries, and bytes of their list. Raises struct.error at the end of the file."""
    file.seek(start)
    *_, count, length, _ = _END_64.unpack(file.read(_END_64.size) or b"")
    return count, length


def _entries(opened: zipfile.ZipFile, archive: Path) -> list[_Entry]:
    """The files to unpack. Raises BundleError if one of them is not harmless."""
    entries = list(_checked(opened, archive))
    if not entries:
        raise _refusal(archive, "it is empty")
    total, packed = sum(entry.info.file_size for entry in entries), archive.stat().st_size
    if total > max(_MAX_RATIO * packed, _FREE_BYTES):
        raise _refusal(archive, f"its {packed} bytes would become {total}, which no model does")
    _check_collisions(entries, archive)
    return entries


def _checked(opened: zipfile.ZipFile, archive: Path) -> Iterator[_Entry]:
    for index, info in enumerate(opened.infolist()):
        if index >= _MAX_ENTRIES:
            raise _refusal(archive, f"it has more than {_MAX_ENTRIES} entries")
        path, fault = _path(info)
        if fault := fault or _kind_fault(info):
            raise _refusal(archive, f"its entry {quote(info.orig_filename)} {fault}")
        is_mac_only = path.parts[0] == "__MACOSX" or path.name == ".DS_Store"
        if not is_mac_only and not info.orig_filename.endswith(("/", "\\")):
            yield _Entry(info, path)


def _path(info: zipfile.ZipInfo) -> tuple[PurePosixPath, str]:
    """The path of an entry, and what is wrong with it."""
    name = info.orig_filename.replace("\\", "/")  # which some Windows programs write
    if "\0" in name:
        return PurePosixPath(), "has a character that Windows does not allow"
    if name.startswith("/") or ".." in name.split("/"):
        return PurePosixPath(), "leads out of the folder"
    parts = name.removesuffix("/").split("/")
    if len(parts) > _MAX_DEPTH:
        return PurePosixPath(), f"is deeper than {_MAX_DEPTH} folders"
    return PurePosixPath(*parts), next(filter(None, map(fault_of, parts)), "")


def _kind_fault(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return f"is compressed with method {info.compress_type}, which is not supported; pack it with deflate"
    return ""


def _check_collisions(entries: list[_Entry], archive: Path) -> None:
    """No two entries are one file, and no file is the folder of another, where case is ignored."""
    files: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        key = key_of(entry.path.as_posix())
        parents = {key_of(parent.as_posix()) for parent in entry.path.parents} - {"."}
        if key in files or key in folders or parents & files:
            raise _refusal(archive, f"its entry {quote(entry.path.as_posix())} comes twice where case is ignored")
        files.add(key)
        folders |= parents


def _refusal(archive: Path, reason: str) -> RefusedError:
    return RefusedError(
        f"{archive.name} is not unpacked: {reason}. Nothing was installed. Get it again, from its publisher."
    )
