"""The interface to a model that a bundle is built from: weights, tokenizer and constants, for every file format.

Tensors have canonical names, those of Llama in a Hugging Face folder ("model.layers.0.self_attn.q_proj.weight"). Rows
are outputs. The rows of q and k are in half-split rotary order: of the rotated dimensions, i pairs with i + half.
Parts of a layer, in order; those in parentheses exist only if the configuration says so, biases if `has` says so:

    input_layernorm                    before attention, unless norms are "post"
    self_attn.q_proj, k_proj, v_proj
    (self_attn.q_norm, k_norm)         `qk_norm`
    self_attn.o_proj
    (attention_output_norm)            after attention, if norms are "post" or "both"
    post_attention_layernorm           before the MLP, unless norms are "post"
    mlp.gate_proj, up_proj, down_proj
    (mlp_output_norm)                  after the MLP, if norms are "post" or "both"

A constant of the model that is exact in its weights is already in the tensors: the multipliers of residuals and logits,
and the offset of norm weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.errors import BundleError

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
ALL = slice(0, None)  # rows
HEAD = "lm_head.weight"  # absent if the head is tied to the embedding


class Rope(Struct, frozen=True, kw_only=True):
    """Rotary positions of some layers.

    Args:
        dim: the first dimensions of a head, which are rotated.
        factors: dim / 2 divisors of the frequencies; empty: no scaling.
        long_factors: the same for a context above `original_context`; empty: `factors` are for every context.
        amplitude: multiplies cosine and sine.
    """

    dim: int
    theta: float = 10000.0
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    original_context: int = 0
    amplitude: float = 1.0

    def inverse_frequencies(self, context: int) -> NDArray[np.float64]:
        """Radians per position of each rotary pair, shape (dim / 2,), in a bundle for `context` tokens."""
        frequencies = self.theta ** (-np.arange(0, self.dim, 2) / self.dim)
        is_long = self.long_factors and context > self.original_context
        factors = self.long_factors if is_long else self.factors
        return frequencies / np.asarray(factors) if factors else frequencies

    def tables(self, positions: int, context: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cosine and sine, (positions, dim / 2), in a bundle for `context` tokens."""
        angles = np.arange(positions)[:, None] * self.inverse_frequencies(context)
        return np.cos(angles) * self.amplitude, np.sin(angles) * self.amplitude


class TransformerConfig(Struct, frozen=True, kw_only=True):
    """Everything about a model's graph. The graph writers read only this, and no name of an architecture.

    Args:
        qk_norm: RMS norm of queries and keys before rotation: none, of each head, or of all heads together.
        norms: RMS norms before attention and MLP, after them (before their output is added), or both.
        activation: of the MLP's gate.
        ropes: the kinds of rotary positions.
        rope_kinds: index into `ropes` of each layer, None: no rotation. Empty: the first kind everywhere.
        windows: of each layer, how many positions attention sees, its own included; 0: all. Empty: all everywhere.
        embedding_scale: multiplies the embedding.
        attention_scale: of queries times keys. 0: 1 / sqrt(head_dim).
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rms_eps: float
    context_length: int
    tied_embeddings: bool
    eos_ids: tuple[int, ...]
    bos_id: int | None = None
    pad_id: int | None = None
    qk_norm: Literal["", "head", "all"] = ""
    norms: Literal["pre", "post", "both"] = "pre"
    activation: Literal["silu", "gelu_tanh"] = "silu"
    ropes: tuple[Rope, ...]
    rope_kinds: tuple[int | None, ...] = ()
    windows: tuple[int, ...] = ()
    embedding_scale: float = 1.0
    attention_scale: float = 0.0

    def rope_kind(self, layer: int) -> int | None:
        return self.rope_kinds[layer] if self.rope_kinds else 0

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0


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

    def values(self) -> NDArray[np.float32]:
        """The weights, (rows, columns)."""
        weights = self.scale[..., None] * self.quants + self.minimum[..., None]
        return weights.reshape(len(weights), -1)


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

    def tensor(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """The dequantised tensor, or some rows of it (not of q and k), read-only.

        Raises BundleError if the source does not have it, or if a value is not finite: rounded, it would be wrong.
        """

    def blocks(self, name: str) -> Blocks | None:
        """The tensor's quantised blocks, with rows in the order of `tensor`. None if it is stored in floating point.

        A format that does not fit into `Blocks` is converted to 8-bit blocks. Raises BundleError as `tensor`.
        """

    def tokenizer_json(self) -> str:
        """The text of a Hugging Face tokenizer.json."""

    def tokenizer_config(self) -> dict[str, Any]:
        """The content of a tokenizer_config.json: special tokens and, if the model has one, `chat_template`."""

    def notes(self) -> tuple[str, ...]:
        """For each number format of the source that the bundle stores in another one: what it becomes. Reads a bit."""

    def digest(self) -> str:
        """A hash of everything that a bundle is made from. Reads all files."""


def require_finite(name: str, *values: NDArray[np.float32]) -> None:
    """Raise BundleError if one of the values of tensor `name` is not finite."""
    if not all(np.isfinite(each).all() for each in values):
        raise BundleError(f"{name} has values that are no finite numbers. Download the model again.")


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
