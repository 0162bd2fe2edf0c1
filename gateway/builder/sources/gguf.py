"""A model in a GGUF file. Converts llama.cpp's names, blocks and rotary order to those of `ModelSource`."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from gateway.builder.graphs import quantise
from gateway.builder.sources import gguf_blocks, gguf_tokenizer
from gateway.builder.sources.gguf_notes import format_notes
from gateway.builder.sources.gguf_parts import GgufParts
from gateway.builder.sources.source import (
    ARCHITECTURES,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    Blocks,
    GenerationDefaults,
    TransformerConfig,
    digest_of,
    unsupported_architecture,
)
from gateway.errors import BundleError

_NAMES = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class GgufSource:
    """Implements ModelSource. The file stays memory-mapped until the object is collected."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.name
        self._parts = GgufParts(path)
        self._tensors = self._parts.tensors
        try:
            self.config = self._read_config()
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise BundleError(f"{self._file} has a value of the wrong kind in its metadata ({error}).") from error
        self.generation = GenerationDefaults()

    def has(self, name: str) -> bool:
        return _gguf_name(name) in self._tensors

    def tensor(self, name: str) -> NDArray[np.float32]:
        stored = self._stored(name)
        shape = tuple(int(size) for size in reversed(stored.shape))
        try:
            values = np.asarray(dequantize(stored.data, stored.tensor_type), dtype=np.float32).reshape(shape)
        except NotImplementedError as error:
            raise BundleError(f"{self._file}: {name} has an unknown format, {stored.tensor_type.name}.") from error
        return self._half_split(name, values)

    def blocks(self, name: str) -> Blocks | None:
        stored = self._stored(name)
        if stored.tensor_type.name in gguf_blocks.FLOATS:
            return None
        found = gguf_blocks.unpack(stored.tensor_type.name, np.asarray(stored.data))
        if found is None:
            return quantise.eight_bit(self.tensor(name))
        scale, minimum, quants = (self._half_split(name, part) for part in (found.scale, found.minimum, found.quants))
        return Blocks(bits=found.bits, scale=scale, minimum=minimum, quants=quants)

    def notes(self) -> tuple[str, ...]:
        return format_notes(self._tensors, _NAMES[EMBEDDING])

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
            return default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise BundleError(f"{self._file} is damaged: {key} is not UTF-8.") from error

    def _stored(self, name: str) -> Any:
        try:
            return self._tensors[_gguf_name(name)]
        except KeyError:
            raise BundleError(f"{self._file} has no tensor {name}.") from None

    def _half_split(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Reorder the q and k rows of Llama and Mistral, which llama.cpp stores as interleaved rotary pairs."""
        if self.config.architecture == "llama" and ".self_attn.q_proj." in name:
            return _deinterleave(rows, self.config.heads)
        if self.config.architecture == "llama" and ".self_attn.k_proj." in name:
            return _deinterleave(rows, self.config.kv_heads)
        return rows

    def _read_config(self) -> TransformerConfig:
        architecture = self._metadata("general.architecture", "")
        if architecture not in ARCHITECTURES:
            raise unsupported_architecture(architecture)
        if self._metadata(f"{architecture}.expert_count", 0):
            raise unsupported_architecture(f"{architecture} with experts")

        def constant(key: str, default: Any = None) -> Any:
            value = self._metadata(f"{architecture}.{key}", default)
            if value is None:
                raise BundleError(f"{self._file} lacks {architecture}.{key} in its metadata.")
            return value

        def size(key: str, default: Any = None) -> int:
            """A size that some converters write once for each layer. This graph has layers of one size."""
            sizes = constant(key, default)
            if not isinstance(sizes, list):
                return int(sizes)
            if len(set(sizes)) != 1:
                raise BundleError(
                    f"{self._file} has layers of different sizes ({architecture}.{key}), which are not supported. "
                    "Use a model whose layers are equal."
                )
            return int(sizes[0])

        heads, hidden = size("attention.head_count"), size("embedding_length")
        context = int(constant("context_length"))
        return TransformerConfig(
            architecture=architecture,
            layers=int(constant("block_count")),
            hidden=hidden,
            heads=heads,
            kv_heads=size("attention.head_count_kv", heads),
            head_dim=size("attention.key_length", hidden // heads),
            ffn=size("feed_forward_length"),
            vocab=int(self._stored(EMBEDDING).shape[1]),
            rms_eps=float(constant("attention.layer_norm_rms_epsilon")),
            rope_theta=float(constant("rope.freq_base", 10000.0)),
            rope_factors=self._rope_factors(architecture),
            context_length=min(context, int(constant("attention.sliding_window", context))),
            tied_embeddings="output.weight" not in self._tensors,
            eos_ids=gguf_tokenizer.end_ids(self._metadata),
            bos_id=self._metadata("tokenizer.ggml.bos_token_id"),
            pad_id=self._metadata("tokenizer.ggml.padding_token_id"),
        )

    def _rope_factors(self, architecture: str) -> tuple[float, ...]:
        kind = self._metadata(f"{architecture}.rope.scaling.type", "none")
        if "rope_freqs.weight" in self._tensors:  # llama3 scaling, one factor for each frequency
            return tuple(float(factor) for factor in self._tensors["rope_freqs.weight"].data)
        if kind == "none":
            return ()
        if kind != "linear":
            raise BundleError(
                f"{self._file} uses rotary scaling of type {kind!r}. Only llama3 and linear are supported."
            )
        pairs = int(self._metadata(f"{architecture}.rope.dimension_count")) // 2
        return (float(self._metadata(f"{architecture}.rope.scaling.factor", 1.0)),) * pairs


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, index, part = name.split(".", 3)
    stem, kind = part.rsplit(".", 1)
    return f"blk.{index}.{_LAYER_NAMES[stem]}.{kind}"


def _deinterleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows (heads, pair, 2) to (heads, 2, pair). Other axes do not change."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))
