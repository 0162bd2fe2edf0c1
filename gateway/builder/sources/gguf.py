"""A model in a GGUF file. Converts llama.cpp's names, blocks and rotary order to those of `ModelSource`."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from gateway.builder.architectures.family import GGUF_KEYS
from gateway.builder.architectures.find import find_by_gguf_name
from gateway.builder.architectures.fold import Folding
from gateway.builder.architectures.known import require_known
from gateway.builder.graphs import quantise
from gateway.builder.sources import gguf_blocks, gguf_tokenizer
from gateway.builder.sources.gguf_notes import format_notes
from gateway.builder.sources.gguf_parts import GgufParts
from gateway.builder.sources.gguf_settings import check_graph, check_tensors, checked_value, read_settings
from gateway.builder.sources.source import ALL, Blocks, GenerationDefaults, TransformerConfig, digest_of, require_finite
from gateway.errors import BundleError


class GgufSource:
    """Implements ModelSource. The file stays memory-mapped until the object is collected."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.name
        self._parts = GgufParts(path)
        self._tensors = self._parts.tensors
        self._architecture = str(self._metadata("general.architecture", ""))
        self._family = find_by_gguf_name(self._architecture)
        try:
            settings = read_settings(self._file, self._architecture, self._metadata, self._tensors)
            self.config = self._read_config(settings)
            check_graph(self._file, self._architecture, self.config, self._metadata)
            check_tensors(self._file, self.config, self._shape)
            require_known(self._file, self._tensors, self.config, self._family.gguf_file)
            self._folding = Folding(scales=self._family.scales(settings))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise BundleError(f"{self._file} has a value of the wrong kind in its metadata ({error}).") from error
        self.generation = GenerationDefaults()

    def has(self, name: str) -> bool:
        return self._family.gguf_file(name, self.config).name in self._tensors

    def tensor(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        stored, rows = self._stored(name, rows)
        row = tuple(int(size) for size in reversed(stored.shape))[1:]
        try:
            values = np.asarray(dequantize(stored.data[rows], stored.tensor_type), dtype=np.float32).reshape(-1, *row)
        except NotImplementedError as error:
            raise BundleError(f"{self._file}: {name} has an unknown format, {stored.tensor_type.name}.") from error
        require_finite(name, values)
        return self._folding.tensor(name, self._half_split(name, values))

    def blocks(self, name: str) -> Blocks | None:
        stored, rows = self._stored(name)
        if stored.tensor_type.name in gguf_blocks.FLOATS:
            return None
        found = gguf_blocks.unpack(stored.tensor_type.name, np.asarray(stored.data)[rows])
        if found is None:
            return quantise.eight_bit(self.tensor(name))
        require_finite(name, found.scale, found.minimum)
        scale, minimum, quants = (self._half_split(name, part) for part in (found.scale, found.minimum, found.quants))
        return self._folding.blocks(name, Blocks(bits=found.bits, scale=scale, minimum=minimum, quants=quants))

    def notes(self) -> tuple[str, ...]:
        return format_notes(self._tensors)

    def digest(self) -> str:
        parts = self._path.parent.glob(f"{escape(self._file.partition('-00001-of-')[0])}-*-of-*")
        return digest_of({self._path, *parts})

    def tokenizer_json(self) -> str:
        return gguf_tokenizer.tokenizer_json(self._metadata, self._file)

    def tokenizer_config(self) -> dict[str, Any]:
        return gguf_tokenizer.tokenizer_config(self._metadata)

    def _metadata(self, key: str, default: Any = None) -> Any:
        field = self._parts.field(key)
        try:
            value = None if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise BundleError(f"{self._file} is damaged: {key} is not UTF-8.") from error
        if value is not None and key.startswith("tokenizer."):
            words = self._parts.field("tokenizer.ggml.tokens")
            value = checked_value(self._file, key, value, len(words.data) if words else 0)
        return default if value is None else value

    def _stored(self, name: str, rows: slice = ALL) -> tuple[Any, slice]:
        """The stored tensor, and the rows of it that are these rows of this tensor."""
        stored = self._family.gguf_file(name, self.config)
        if stored.name not in self._tensors:
            raise BundleError(f"{self._file} has no tensor {name}.")
        return self._tensors[stored.name], stored.rows(rows)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """(rows, columns) of a tensor, without its values. None: it does not exist."""
        if not self.has(name):
            return None
        stored, rows = self._stored(name)
        sizes = [int(size) for size in reversed(stored.shape)]
        return (len(range(*rows.indices(sizes[0]))), *sizes[1:])

    def _half_split(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Reorder the rows of q and k that llama.cpp stores as interleaved rotary pairs."""
        if self._family.interleaved and ".self_attn.q_proj." in name:
            return _deinterleave(rows, self.config.heads)
        if self._family.interleaved and ".self_attn.k_proj." in name:
            return _deinterleave(rows, self.config.kv_heads)
        return rows

    def _read_config(self, settings: dict[str, Any]) -> TransformerConfig:
        tied = "output.weight" not in self._tensors
        try:
            return self._family.config(settings, tied=tied, eos_ids=gguf_tokenizer.end_ids(self._metadata))
        except KeyError as error:
            names = {theirs: f"{self._architecture}.{key}" for key, theirs in GGUF_KEYS.items()}
            missing = names.get(error.args[0], error.args[0])
            raise BundleError(f"{self._file} lacks {missing} in its metadata.") from error


def _deinterleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows (heads, pair, 2) to (heads, 2, pair). Other axes do not change."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))
