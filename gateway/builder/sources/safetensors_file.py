"""Reads the weights of a Hugging Face folder: one *.safetensors file or several shards of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # registers bfloat16 with numpy, which safetensors needs to return it
import numpy as np
import safetensors
from msgspec import Struct
from numpy.typing import NDArray

from gateway.builder.sources.source import ALL, require_finite
from gateway.bundles.json_file import LONGEST, read_json
from gateway.errors import BundleError

_FLOATS = ("F32", "F16", "BF16", "F64")
#: how the names of the text part of a multimodal model begin -> without that part
_TEXT_PARTS = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}


class _Index(Struct):
    """model.safetensors.index.json: tensor name -> shard."""

    weight_map: dict[str, str]


class Weights:
    """The tensors of all *.safetensors files in a folder. Raises BundleError if a file is missing or damaged.

    The tensors of a multimodal model's text part have the names that they have in a text model. A file is mapped only
    while one of its tensors is read, so a model that is larger than memory can be read.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with _open(path) as file:
                self._files |= dict.fromkeys(file.keys(), path)
        missing = [name for name in _indexed_names(folder) if name not in self._files]
        if missing:
            raise BundleError(
                f"{folder.name} lacks {len(missing)} tensors that its index names, such as {missing[0]}. "
                "Download the missing *.safetensors files."
            )
        if not self._files:
            raise BundleError(f"{folder.name} has no .safetensors weights.")
        self._stored = {_text_name(name): name for name in self._files}

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    @property
    def names(self) -> Iterable[str]:
        return self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        name = self._stored[name]
        with _open(self._files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def stored(self, name: str) -> NDArray[Any]:
        """A copy in the stored type."""
        name = self._stored[name]
        with _open(self._files[name]) as file:
            return np.asarray(file.get_tensor(name))

    def tensor(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """A copy of some rows as float32. Raises BundleError if the type is not a float, or a value not finite."""
        name = self._stored[name]
        path = self._files[name]
        with _open(path) as file:
            stored = file.get_slice(name)
            kind, shape = stored.get_dtype(), stored.get_shape()
            if kind not in _FLOATS:
                raise BundleError(f"{path.name}: {name} has type {kind}; {', '.join(_FLOATS)} can be read.")
            start, stop, _ = rows.indices(shape[0])
            values = np.asarray(stored[start:stop], dtype=np.float32)
        require_finite(name, values)
        return values


def _text_name(name: str) -> str:
    begin = next((begin for begin in _TEXT_PARTS if name.startswith(begin)), "")
    return _TEXT_PARTS[begin] + name.removeprefix(begin) if begin else name


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path.name} is truncated or not a safetensors file: {error}.") from error


def _indexed_names(folder: Path) -> list[str]:
    path = folder / "model.safetensors.index.json"
    return list(read_json(path, _Index, longest=LONGEST).weight_map) if path.is_file() else []
