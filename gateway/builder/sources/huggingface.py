"""A model in a Hugging Face folder: config.json, *.safetensors, tokenizer.json and the optional small files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.builder.sources.end_tokens import end_ids
from gateway.builder.sources.safetensors_file import Weights
from gateway.builder.sources.source import (
    ARCHITECTURES,
    HEAD,
    Blocks,
    GenerationDefaults,
    TransformerConfig,
    digest_of,
    unsupported_architecture,
)
from gateway.bundles.bundle import find_chat_templates
from gateway.bundles.json_file import read_json, read_optional_object
from gateway.errors import BundleError

_READ = (".json", ".jinja", ".safetensors")


class HuggingFaceSource:
    """Implements ModelSource. Reads only floating-point weights: bf16, f16, f32 or f64."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = read_json(folder / "config.json", dict[str, Any], missing="so it is not a Hugging Face model")
        _check_supported(content)
        self._weights = Weights(folder)
        self._generation = read_optional_object(folder / "generation_config.json")
        self.config = self._read_config(content)
        self.generation = msgspec.convert(self._generation, GenerationDefaults, strict=False)

    def has(self, name: str) -> bool:
        return name in self._weights and not (name == HEAD and self.config.tied_embeddings)

    def tensor(self, name: str) -> NDArray[np.float32]:
        if not self.has(name):
            raise BundleError(f"{self._folder.name} has no tensor {name}.")
        return self._weights.tensor(name)

    def blocks(self, name: str) -> Blocks | None:
        return None

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

    def _read_config(self, content: dict[str, Any]) -> TransformerConfig:
        try:
            heads, hidden = int(content["num_attention_heads"]), int(content["hidden_size"])
            head_dim = int(content.get("head_dim") or hidden // heads)
            rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
            return TransformerConfig(
                architecture=content["model_type"],
                layers=int(content["num_hidden_layers"]),
                hidden=hidden,
                heads=heads,
                kv_heads=int(content.get("num_key_value_heads") or heads),
                head_dim=head_dim,
                ffn=int(content["intermediate_size"]),
                vocab=int(content["vocab_size"]),
                rms_eps=float(content["rms_norm_eps"]),
                rope_theta=(theta := float(rope.get("rope_theta") or content.get("rope_theta", 10000.0))),
                rope_factors=_rope_factors(rope, theta, head_dim),
                context_length=_context_length(content),
                tied_embeddings=bool(content.get("tie_word_embeddings")) or HEAD not in self._weights,
                eos_ids=self._end_ids(content),
                bos_id=content.get("bos_token_id"),
                pad_id=content.get("pad_token_id"),
            )
        except KeyError as error:
            raise BundleError(f"{self._folder.name}: config.json lacks {error}.") from error
        except (TypeError, ValueError) as error:
            raise BundleError(f"{self._folder.name}: config.json has a value of the wrong kind ({error}).") from error


def _check_supported(content: dict[str, Any]) -> None:
    if content.get("model_type") not in ARCHITECTURES:
        raise unsupported_architecture(str(content.get("model_type")))
    if "quantization_config" in content:
        raise BundleError("Quantised Hugging Face folders cannot be read. Use the bf16 or f16 weights, or a GGUF file.")
    if content.get("hidden_act", "silu") != "silu":
        raise unsupported_architecture(f"{content['model_type']} with {content['hidden_act']}")


def _context_length(content: dict[str, Any]) -> int:
    """The context without a sliding window. We do not implement one, so its size limits the context."""
    length = int(content["max_position_embeddings"])
    windowed = content.get("sliding_window") and content.get("use_sliding_window", True)
    return min(length, int(content["sliding_window"])) if windowed else length


def _rope_factors(rope: dict[str, Any], theta: float, head_dim: int) -> tuple[float, ...]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    pairs = head_dim // 2
    if kind == "default":
        return ()
    if kind == "linear":
        return (float(rope["factor"]),) * pairs
    if kind == "llama3":
        wavelengths = [2 * math.pi * theta ** (2 * pair / head_dim) for pair in range(pairs)]
        return tuple(_llama3_factor(rope, wavelength) for wavelength in wavelengths)
    raise BundleError(f"Rotary scaling of type {kind!r} is not supported. Only llama3 and linear are.")


def _llama3_factor(rope: dict[str, Any], wavelength: float) -> float:
    """The published rule: `factor` for long waves, 1 for short waves, a value between them for the others."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) / wavelength
    blend = min(max((turns - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - blend) / factor + blend)
