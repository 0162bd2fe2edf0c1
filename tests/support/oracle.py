"""An independent forward pass in numpy, float32: the reference for a bundle's answers.

Shares no code with the gateway. It reads a GGUF file with the gguf package's own dequantiser and applies rotary
embedding to interleaved pairs, as that file stores them, or takes a dictionary of Hugging Face tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass
class Weights:
    """Matrices have outputs as rows. Layer weights have GGUF's short names ("attn_q", "ffn_down")."""

    embedding: Array
    head: Array
    norm: Array
    layers: list[dict[str, Array]]
    heads: int
    kv_heads: int
    theta: float
    epsilon: float
    interleaved: bool  # rotary pairs are (2i, 2i + 1), else (i, i + head_dim / 2)
    frequency_divisors: Array | None = None


@dataclass
class Oracle:
    """Token ids in, logits out; `forward` appends to the cache."""

    weights: Weights
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0

    def reset(self) -> None:
        self.keys, self.values = [], []

    def forward(self, ids: list[int]) -> Array:
        """Append `ids`; the logits after each of them, (len(ids), vocab)."""
        weights, positions = self.weights, np.arange(self.length, self.length + len(ids))
        x = weights.embedding[ids]
        for index, layer in enumerate(weights.layers):
            x = x + self._attend(index, layer, _norm(x, layer["attn_norm"], weights.epsilon), positions)
            hidden = _norm(x, layer["ffn_norm"], weights.epsilon)
            gate = hidden @ layer["ffn_gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (hidden @ layer["ffn_up"].T)) @ layer["ffn_down"].T
        return _norm(x, weights.norm, weights.epsilon) @ weights.head.T

    def greedy(self, ids: list[int], count: int, stop: tuple[int, ...] = ()) -> tuple[list[int], Array]:
        """The greedy continuation of `ids`, and the logits of each of its tokens, (tokens, vocab)."""
        self.reset()
        logits = self.forward(ids)[-1]
        chosen, seen = [int(logits.argmax())], [logits]
        while len(chosen) < count and chosen[-1] not in stop:
            seen.append(self.forward(chosen[-1:])[-1])
            chosen.append(int(seen[-1].argmax()))
        return chosen, np.stack(seen)

    def _attend(self, index: int, layer: dict[str, Array], x: Array, positions: NDArray[Any]) -> Array:
        weights, size = self.weights, len(layer["attn_q"]) // self.weights.heads
        q, k, v = (x @ layer[name].T + layer.get(f"{name}.bias", 0) for name in ("attn_q", "attn_k", "attn_v"))
        q, k = self._rotate(_heads(q, size), positions), self._rotate(_heads(k, size), positions)
        v = _heads(v, size)
        if index == len(self.keys):
            self.keys.append(k)
            self.values.append(v)
        else:
            self.keys[index] = np.concatenate([self.keys[index], k], axis=1)
            self.values[index] = np.concatenate([self.values[index], v], axis=1)
        repeats = weights.heads // weights.kv_heads
        keys, values = np.repeat(self.keys[index], repeats, axis=0), np.repeat(self.values[index], repeats, axis=0)
        scores = q @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(size))
        scores = np.where(np.arange(keys.shape[1]) <= positions[:, None], scores, np.float32(-1e30))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ values
        return mixed.transpose(1, 0, 2).reshape(len(positions), -1) @ layer["attn_output"].T

    def _rotate(self, x: Array, positions: NDArray[Any]) -> Array:
        """x: (heads, positions, head_dim)."""
        size = x.shape[-1]
        speeds = self.weights.theta ** (-np.arange(0, size, 2) / size)
        if self.weights.frequency_divisors is not None:
            speeds = speeds / self.weights.frequency_divisors
        angles = positions[:, None] * speeds
        turned = np.exp(1j * angles)
        if self.weights.interleaved:
            pairs = x.reshape(*x.shape[:-1], size // 2, 2)
            result = (pairs[..., 0] + 1j * pairs[..., 1]) * turned
            return np.stack([result.real, result.imag], axis=-1).reshape(x.shape).astype(np.float32)
        result = (x[..., : size // 2] + 1j * x[..., size // 2 :]) * turned
        return np.concatenate([result.real, result.imag], axis=-1).astype(np.float32)


def _heads(x: Array, size: int) -> Array:
    return x.reshape(len(x), -1, size).transpose(1, 0, 2)


def _norm(x: Array, gain: Array, epsilon: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(epsilon)) * gain


def read_gguf(path: Path) -> Weights:
    """A llama GGUF file, dequantised. The order of q and k stays as stored."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.asarray(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}

    def constant(key: str) -> Any:
        found = reader.get_field(f"llama.{key}")
        assert found is not None
        return found.contents()

    layers: list[dict[str, Array]] = []
    for index in range(constant("block_count")):
        prefix = f"blk.{index}."
        names = [name for name in tensors if name.startswith(prefix)]
        layers.append({name.removeprefix(prefix).removesuffix(".weight"): tensors[name] for name in names})
    return Weights(
        embedding=tensors["token_embd.weight"],
        head=tensors.get("output.weight", tensors["token_embd.weight"]),
        norm=tensors["output_norm.weight"],
        layers=layers,
        heads=constant("attention.head_count"),
        kv_heads=constant("attention.head_count_kv"),
        theta=constant("rope.freq_base"),
        epsilon=constant("attention.layer_norm_rms_epsilon"),
        interleaved=True,
    )
