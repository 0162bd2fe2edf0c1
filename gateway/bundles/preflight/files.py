"""The files of a bundle in a folder or in an opened zip: their sizes, and what is visibly wrong with them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.bundles.genie.files import check_binary
from gateway.bundles.hashes import COMPILED_FOLDER, HASHES_FILE
from gateway.bundles.identify import Layout
from gateway.bundles.json_file import is_lfs_pointer, lfs_error
from gateway.errors import BundleError

_DEEPEST = 3  # folders
_MOST_FILES = 4096
_LONGEST_HASHES = 64 * 1024 * 1024  # bytes
#: Endings of the files with weights, which are in memory while a model is loaded.
_LARGE = (".bin", ".onnx", ".data", ".onnx_data")


class File(Struct, frozen=True):
    """`name`: its path in the bundle, with slashes."""

    name: str
    size: int
    entry: Any  # a Traversable, which msgspec has no type for


def files_of(root: Traversable) -> list[File]:
    """All files of a bundle, without hidden ones and graphs that were compiled on this machine."""
    found: list[File] = []
    for file in _walk(root, "", _DEEPEST):
        found.append(file)
        if len(found) == _MOST_FILES:
            break
    return found


def weight_bytes(files: list[File]) -> int:
    """Bytes that the model has in memory at least. A file with two names (a hard link) counts once."""
    sizes = {_identity(file): file.size for file in files if file.name.endswith(_LARGE)}
    return sum(sizes.values())


def faults(files: list[File], layout: Layout) -> Iterator[str]:
    """One sentence for each file that is visibly incomplete.

    Args:
        layout: in Genie's, each .bin is a context binary; in others it can have weights, which can end with zeros.
    """
    for file in files:
        try:
            _check(file, is_compiled=layout == "genie" and file.name.endswith(".bin"))
        except BundleError as error:
            yield error.message
    yield from _wrong_sizes(files)


def _walk(folder: Traversable, prefix: str, depth: int) -> Iterator[File]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise BundleError(f"{folder.name} cannot be read: {error.strerror or error}.") from error
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")) or entry.name == COMPILED_FOLDER:
            continue
        if entry.is_dir() and depth > 1:
            yield from _walk(entry, f"{prefix}{entry.name}/", depth - 1)
        elif entry.is_file():
            yield File(f"{prefix}{entry.name}", _size(entry), entry)


def _size(entry: Traversable) -> int:
    match entry:
        case Path():
            return entry.stat().st_size
        case zipfile.Path():
            archive: Any = entry
            return int(archive.root.getinfo(archive.at).file_size)
    remote: Any = entry  # it states its size itself
    return int(remote.size)


def _identity(file: File) -> object:
    if isinstance(file.entry, Path):
        state = file.entry.stat()
        return (state.st_dev, state.st_ino) if state.st_ino else file.name
    return file.name


def _check(file: File, *, is_compiled: bool) -> None:
    if is_compiled and isinstance(file.entry, Path):
        check_binary(file.entry)
    if file.size == 0 and file.name.endswith((".bin", ".onnx")):
        raise BundleError(f"{file.name} is empty. Download it again.")
    if file.size < 1024:  # a pointer is shorter
        with file.entry.open("rb") as opened:
            if is_lfs_pointer(opened.read(64)):
                raise lfs_error(file.name)


class _Recorded(Struct):
    size: int


class _Hashes(Struct):
    files: dict[str, _Recorded]


def _wrong_sizes(files: list[File]) -> Iterator[str]:
    """Compare with hashes.json. The hashes themselves are compared by `npu-gateway check`."""
    by_name = {file.name: file for file in files}
    if HASHES_FILE not in by_name:
        return
    try:
        with by_name[HASHES_FILE].entry.open("rb") as opened:
            recorded = msgspec.json.decode(opened.read(_LONGEST_HASHES), type=_Hashes).files
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return  # the check of the hashes names it
    for name, expected in recorded.items():
        file = by_name.get(name)
        if file is None and not any(part.startswith(".") for part in name.split("/")) and name.count("/") < _DEEPEST:
            yield f"{name} is missing. Download the model again."
        elif file is not None and file.size < expected.size:
            sizes = f"{file.size} bytes instead of {expected.size}"
            yield f"{name} has {sizes}, so it is truncated. Download the model again."
