"""Reads *.safetensors files: a JSON header of names, types and offsets, then the raw tensors, mapped and not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import DTypeLike, NDArray

from gateway.errors import BundleError

_FLOATS: dict[str, DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


class _Entry(Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class SafetensorsFile:
    """One file. `tensor` maps just the bytes it needs, so a model larger than memory can be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data_start, self._entries = _read_header(path)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A copy as float32; BundleError for a type that is not a float."""
        entry = self._entries[name]
        if entry.dtype not in _FLOATS:
            raise BundleError(f"{self._path.name}: {name} has type {entry.dtype}; {', '.join(_FLOATS)} can be read.")
        start, end = entry.data_offsets
        raw = np.memmap(self._path, np.uint8, "r", offset=self._data_start + start, shape=(end - start,))
        return np.array(raw.view(_FLOATS[entry.dtype]).reshape(entry.shape), dtype=np.float32)


def open_folder(folder: Path) -> dict[str, SafetensorsFile]:
    """Tensor name -> the file that holds it, over all *.safetensors of a model folder, sharded or not."""
    files = [SafetensorsFile(path) for path in sorted(folder.glob("*.safetensors"))]
    holders = {name: file for file in files for name in file.names}
    missing = [name for name in _indexed_names(folder) if name not in holders]
    if missing:
        raise BundleError(
            f"{folder.name}: {len(missing)} tensors of its index are in no file here, {missing[0]} first."
        )
    if not holders:
        raise BundleError(f"{folder.name} has no .safetensors weights.")
    return holders


def _indexed_names(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        return list(msgspec.json.decode(index.read_bytes())["weight_map"])
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise BundleError(f"{folder.name}: model.safetensors.index.json is not a weight index.") from error


def _read_header(path: Path) -> tuple[int, dict[str, _Entry]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            raise BundleError(f"{path.name} is truncated or not a safetensors file.")
        header = file.read(header_size)
    try:
        fields: dict[str, Any] = msgspec.json.decode(header)
        fields.pop("__metadata__", None)
        entries = msgspec.convert(fields, dict[str, _Entry])
    except (msgspec.DecodeError, msgspec.ValidationError, AttributeError) as error:
        raise BundleError(f"{path.name} does not have a safetensors header: {error}") from error
    expected = 8 + header_size + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if size < expected:
        raise BundleError(f"{path.name} is truncated: {size} bytes instead of {expected}.")
    return 8 + header_size, entries
