"""The interface to a model that a bundle is built from: weights, tokenizer and constants, for every file format.

Llama, Mistral and Qwen2 have one shape: pre-norm RMS, rotary grouped-query attention, SwiGLU, optional q/k/v biases.
Weights have their Hugging Face names ("model.layers.0.self_attn.q_proj.weight"). Rows are outputs. The rows of q and k
are in half-split rotary order: dimension i pairs with i + head_dim/2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.errors import BundleError

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"  # absent if the head is tied to the embedding
ARCHITECTURES = ("llama", "mistral", "qwen2")


class TransformerConfig(Struct, frozen=True, kw_only=True):
    """The constants of a model's graph. `rope_factors` divide the rotary frequencies."""

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
    rope_factors: tuple[float, ...] = ()  # head_dim / 2 factors; empty: no scaling

    def inverse_frequencies(self) -> NDArray[np.float64]:
        """Radians per position of each rotary pair, shape (head_dim / 2,)."""
        frequencies = self.rope_theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        return frequencies / np.asarray(self.rope_factors) if self.rope_factors else frequencies


class Blocks(Struct, frozen=True, kw_only=True):
    """A quantised matrix, in blocks along the inputs: weight = scale * quants + minimum.

    Args:
        scale, minimum: float32 (rows, blocks).
        quants: (rows, blocks, block_size); uint8 0..15 if `bits` is 4, int8 if it is 8.
    """

    bits: int
    scale: NDArray[np.float32]
    minimum: NDArray[np.float32]
    quants: NDArray[np.uint8] | NDArray[np.int8]

    @property
    def block_size(self) -> int:
        return int(self.quants.shape[2])


class GenerationDefaults(Struct, frozen=True, kw_only=True):
    """The sampling defaults of the model. None: the source does not set the value."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


class ModelSource(Protocol):
    """A model to build from. Reads lazily: a call keeps no tensor but the one that it returns."""

    @property
    def config(self) -> TransformerConfig: ...

    @property
    def generation(self) -> GenerationDefaults: ...

    def has(self, name: str) -> bool:
        """True if the tensor exists. Biases and an untied head are optional."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The dequantised tensor, read-only. Raises BundleError if the source does not have it."""

    def blocks(self, name: str) -> Blocks | None:
        """The tensor's quantised blocks, with rows in the order of `tensor`. None if it is stored in floating point.

        A format that does not fit into `Blocks` is converted to 8-bit blocks.
        """

    def tokenizer_json(self) -> str:
        """The text of a Hugging Face tokenizer.json."""

    def tokenizer_config(self) -> dict[str, Any]:
        """The content of a tokenizer_config.json: special tokens and, if the model has one, `chat_template`."""

    def notes(self) -> tuple[str, ...]:
        """For each number format of the source that the bundle stores in another one: what it becomes. Reads a bit."""

    def digest(self) -> str:
        """A hash of everything that a bundle is made from. Reads all files."""


def layer(index: int, part: str) -> str:
    """The full name of a layer's tensor: layer(3, "mlp.up_proj.weight")."""
    return f"model.layers.{index}.{part}"


def digest_of(files: Iterable[Path]) -> str:
    """A hash of the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def unsupported_architecture(name: str) -> BundleError:
    return BundleError(f"Models of architecture {name!r} are not supported. Only {', '.join(ARCHITECTURES)} are.")
