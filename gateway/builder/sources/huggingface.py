"""A model in a Hugging Face folder: config.json, *.safetensors, tokenizer.json and the optional small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.builder.architectures.find import find_by_model_type
from gateway.builder.architectures.fold import Folding
from gateway.builder.architectures.known import require_known
from gateway.builder.sources.end_tokens import end_ids
from gateway.builder.sources.gguf_settings import check_tensors
from gateway.builder.sources.gptq import PackedMatrices, read_quantisation
from gateway.builder.sources.safetensors_file import Weights
from gateway.builder.sources.source import (
    ALL,
    HEAD,
    Blocks,
    GenerationDefaults,
    TransformerConfig,
    digest_of,
    require_finite,
)
from gateway.bundles.bundle import find_chat_templates
from gateway.bundles.json_file import read_json, read_optional_object
from gateway.errors import BundleError

_READ = (".json", ".jinja", ".safetensors")


class HuggingFaceSource:
    """Implements ModelSource. Reads weights in floating point (bf16, f16, f32, f64), and those of GPTQ and AWQ."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = read_json(folder / "config.json", dict[str, Any], missing="so it is not a Hugging Face model")
        if isinstance(text := content.get("text_config"), dict):  # of a multimodal model
            content |= text
        self._family = find_by_model_type(str(content.get("model_type")))
        quantisation = read_quantisation(content)
        self._weights = Weights(folder)
        self._packed = PackedMatrices(self._weights, quantisation) if quantisation else None
        self._generation = read_optional_object(folder / "generation_config.json")
        self.config, self._folding = self._read(content)
        require_known(folder.name, self._weights.names, self.config, self._family.hugging_face)
        check_tensors(folder.name, self.config, self._shape)
        try:
            self.generation = msgspec.convert(self._generation, GenerationDefaults, strict=False)
        except msgspec.ValidationError as error:
            raise BundleError(
                f"{folder.name}: generation_config.json has a wrong value: {error}. Correct it."
            ) from error

    def has(self, name: str) -> bool:
        stored = self._family.hugging_face(name, self.config)
        is_stored = stored.name in self._weights or (self._packed is not None and stored.name in self._packed)
        return is_stored and not (name == HEAD and self.config.tied_embeddings)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """(rows, columns) of a tensor. None: there is none."""
        if not self.has(name):
            return None
        stored = self._family.hugging_face(name, self.config)
        is_packed = self._packed is not None and stored.name in self._packed
        reader = self._packed if self._packed and is_packed else self._weights
        rows, *columns = reader.shape(stored.name) or (0,)
        return (len(range(*stored.rows(ALL).indices(rows))), *columns)

    def tensor(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        if not self.has(name):
            raise BundleError(f"{self._folder.name} has no tensor {name}.")
        if (blocks := self.blocks(name)) is not None:
            return blocks.values()[rows]
        stored = self._family.hugging_face(name, self.config)
        return self._folding.tensor(name, self._weights.tensor(stored.name, stored.rows(rows)))

    def blocks(self, name: str) -> Blocks | None:
        stored = self._family.hugging_face(name, self.config)
        if self._packed is None or stored.name not in self._packed:
            return None
        blocks = self._packed.blocks(stored.name, stored.rows(ALL))
        require_finite(name, blocks.scale)
        return self._folding.blocks(name, blocks)

    def tokenizer_json(self) -> str:
        if not self._tokenizer_path.is_file():
            raise BundleError(
                f"{self._folder.name} has no tokenizer.json. Convert its tokenizer to a fast tokenizer first."
            )
        try:
            return self._tokenizer_path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self._folder.name}: tokenizer.json cannot be read: {error}.") from error

    def tokenizer_config(self) -> dict[str, Any]:
        content = read_optional_object(self._folder / "tokenizer_config.json")
        found = find_chat_templates(self._folder, content)
        if found.tool_use is not None:
            named = {"default": found.default, "tool_use": found.tool_use}
            content["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        elif found.default is not None:
            content["chat_template"] = found.default
        return content

    @property
    def _tokenizer_path(self) -> Path:
        return self._folder / "tokenizer.json"

    def _end_ids(self, content: dict[str, Any]) -> tuple[int, ...]:
        return end_ids(
            self._generation.get("eos_token_id"),
            content.get("eos_token_id"),
            eos_token=read_optional_object(self._folder / "tokenizer_config.json").get("eos_token"),
            tokenizer_json=self.tokenizer_json() if self._tokenizer_path.is_file() else "",
        )

    def notes(self) -> tuple[str, ...]:
        return ()

    def digest(self) -> str:
        return digest_of(path for path in self._folder.iterdir() if path.suffix in _READ and path.is_file())

    def _read(self, content: dict[str, Any]) -> tuple[TransformerConfig, Folding]:
        has_head = HEAD in self._weights or (self._packed is not None and HEAD in self._packed)
        tied = bool(content.get("tie_word_embeddings")) or not has_head
        try:
            config = self._family.config(content, tied=tied, eos_ids=self._end_ids(content))
            return config, Folding(scales=self._family.scales(content), norm_offset=self._family.norm_offset)
        except KeyError as error:
            raise BundleError(f"{self._folder.name}: config.json lacks {error}.") from error
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise BundleError(f"{self._folder.name}: config.json has a value of the wrong kind ({error}).") from error
