"""What a bundle is built from: weights, tokenizer and constants of one Llama-shaped model, whatever its file format.

Llama, Mistral and Qwen2 share the shape: pre-norm RMS, rotary grouped-query attention, SwiGLU, optional q/k/v biases.
Weights go by their Hugging Face names ("model.layers.0.self_attn.q_proj.weight"), rows are outputs, and the rows of
q and k are in half-split rotary order (dimension i turns with i + head_dim/2) even where the file interleaves them.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.errors import BundleError

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"  # absent when the embedding is tied to it
ARCHITECTURES = ("llama", "mistral", "qwen2")


class TransformerConfig(Struct, frozen=True, kw_only=True):
    """The constants of a model's graph. `rope_factors`, when there are any, divide the rotary frequencies."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rms_eps: float
    rope_theta: float
    context_length: int
    tied_embeddings: bool
    eos_ids: tuple[int, ...]
    bos_id: int | None = None
    pad_id: int | None = None
    rope_factors: tuple[float, ...] = ()  # head_dim / 2 of them, or none

    def inverse_frequencies(self) -> NDArray[np.float64]:
        """Radians per position of each rotary pair, shape (head_dim / 2,)."""
        frequencies = self.rope_theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        return frequencies / np.asarray(self.rope_factors) if self.rope_factors else frequencies


class Blocks(Struct, frozen=True, kw_only=True):
    """A quantised matrix as the file holds it: weight = scale * quants + minimum, block by block along the inputs.

    scale, minimum: float32 (rows, blocks). quants: (rows, blocks, block_size), uint8 in 0..15 when `bits` is 4, int8
    when it is 8.
    """

    bits: int
    scale: NDArray[np.float32]
    minimum: NDArray[np.float32]
    quants: NDArray[np.uint8] | NDArray[np.int8]

    @property
    def block_size(self) -> int:
        return int(self.quants.shape[2])


class GenerationDefaults(Struct, frozen=True, kw_only=True):
    """How the model's makers sample from it; None where they do not say."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


class ModelSource(Protocol):
    """A model to build from. Reads lazily: no call holds more than the tensor it returns."""

    @property
    def config(self) -> TransformerConfig: ...

    @property
    def generation(self) -> GenerationDefaults: ...

    def has(self, name: str) -> bool:
        """Whether there is such a tensor (biases and an untied head are optional)."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor, dequantised; not to be written to. Raises BundleError when the source lacks it."""

    def blocks(self, name: str) -> Blocks | None:
        """The tensor's own quantised blocks, rows in the order of `tensor`; None when it is stored in floating point.

        Formats that do not fit into `Blocks` come as 8-bit blocks of what they stand for.
        """

    def tokenizer_json(self) -> str:
        """The text of a Hugging Face tokenizer.json."""

    def tokenizer_config(self) -> dict[str, Any]:
        """The content of a tokenizer_config.json: special tokens and, where there is one, `chat_template`."""


def layer(index: int, part: str) -> str:
    """The full name of a layer's tensor: layer(3, "mlp.up_proj.weight")."""
    return f"model.layers.{index}.{part}"


def unsupported_architecture(name: str) -> BundleError:
    return BundleError(f"Models of architecture {name!r} are not supported; {', '.join(ARCHITECTURES)} are.")
