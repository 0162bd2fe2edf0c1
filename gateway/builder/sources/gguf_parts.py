"""Opens a GGUF file, or all parts of a model that is split into several (NAME-00001-of-00003.gguf)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf

from gateway.bundles.json_file import is_lfs_pointer, lfs_error
from gateway.errors import BundleError

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


class GgufParts:
    """The metadata of the first part and the tensors of all. The files stay memory-mapped.

    Args:
        path: a file, or any part of a model.

    Raises:
        BundleError: a file is damaged, a part is missing, or the parts do not belong together.
    """

    def __init__(self, path: Path) -> None:
        reader = _open(path)
        count = _number(reader, "split.count", 1)
        self._readers = [reader] if count <= 1 else _open_all(path, count)
        self.tensors: dict[str, Any] = {}
        for part in self._readers:
            self.tensors |= {tensor.name: tensor for tensor in part.tensors}
        found = len(self.tensors)
        if count > 1 and any(_number(part, "split.tensors.count", found) != found for part in self._readers):
            raise BundleError(
                f"The {count} parts of {path.name} do not belong together: they have {found} tensors, and their "
                "metadata names another number. Download all parts again."
            )

    def field(self, key: str) -> Any:
        """A field of the metadata, or None."""
        return self._readers[0].get_field(key)


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> BundleError:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return BundleError(f"{path.name} cannot be read: {error.strerror or error}.")
    if is_lfs_pointer(start):
        return lfs_error(path.name)
    if start and not start.startswith(b"GGUF"):
        return BundleError(f"{path.name} is not a GGUF file. Download it again, or give another file.")
    size = path.stat().st_size
    has = f"{size / 1e6:.1f} MB" if size > 50_000 else f"{size} bytes"
    return BundleError(
        f"{path.name} is incomplete or damaged: its {has} are less than its header names. Download it again."
    )


def _number(reader: gguf.GGUFReader, key: str, default: int) -> int:
    field = reader.get_field(key)
    value = None if field is None else field.contents()
    return value if isinstance(value, int) else default


def _open_all(path: Path, count: int) -> list[gguf.GGUFReader]:
    paths = _paths(path, count)
    for number, part in enumerate(paths, 1):
        if not part.is_file():
            raise BundleError(
                f"Part {number} of {count} is missing: download {part.name} into the folder of {path.name}."
            )
    readers = [_open(part) for part in paths]
    for number, (part, reader) in enumerate(zip(paths, readers, strict=True), 1):
        found = _number(reader, "split.no", -1) + 1
        if found != number or _number(reader, "split.count", 1) != count:
            raise BundleError(
                f"{part.name} is not part {number} of {count} (its metadata says part {found} of "
                f"{_number(reader, 'split.count', 1)}). Download it again under its own name."
            )
    return readers


def _paths(path: Path, count: int) -> list[Path]:
    name = _PART_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise BundleError(
            f"{path.name} is a part of a model in {count} files, and its name does not say which. Name the files "
            f"MODEL-00001-of-{count:05}.gguf and so on, in one folder."
        )
    return [path.with_name(f"{name['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
