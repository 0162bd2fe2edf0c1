"""What the graph of an encoder needs to know. No graph writer reads the name of an architecture.

Canonical names of tensors: `words`, `positions`, `types`, `norm`, `final_norm`; for layer i `i.q`, `i.k`, `i.v`,
`i.q_norm`, `i.k_norm`, `i.out`, `i.attention_norm`, `i.gate`, `i.up`, `i.down`, `i.mlp_norm`; for a cross-encoder
`head.dense`, `head.norm`, `head.out`. Each has `.weight`, and `.bias` if the model has one. Matrices are (out, in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.builder.architectures.rope import require_positions
from gateway.builder.sources.safetensors_file import Weights
from gateway.builder.sources.source import Rope
from gateway.errors import BundleError

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh"]
Array = NDArray[np.float32]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "relu": "relu",
    "tanh": "tanh",
}


class EncoderConfig(Struct, frozen=True, kw_only=True):
    """The shape of one encoder."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: hidden / heads
    ffn: int
    vocab: int
    longest: int  # tokens of a text
    first_position: int = 0  # row of the position table for the first token
    norm_kind: Literal["layer", "rms"] = "layer"
    norm_order: Literal["post", "pre"] = "post"
    eps: float
    activation: Activation = "gelu"
    gated: bool = False
    causal: bool = False
    #: For each layer; empty: the model has learned positions.
    ropes: tuple[Rope, ...] = ()
    #: For each layer the largest distance of two tokens that see each other; 0: no limit.
    windows: tuple[int, ...] = ()
    head_activation: Activation = "tanh"
    head_pooling: Literal["cls", "mean"] = "cls"
    is_cross_encoder: bool = False

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads


class Part(Struct, frozen=True):
    """Rows `start` to `stop`, in units of 1 / `of` of all rows, of tensor `name`."""

    name: str
    start: int = 0
    stop: int = 1
    of: int = 1


class Family(Struct, frozen=True, kw_only=True):
    """One family: its config.json, and where each canonical tensor is, without `.weight` and `.bias`.

    Args:
        model_types: of config.json.
        prefixes: that a task's checkpoint puts before the names of the base model.
        names: canonical name, with `{i}` for the layer -> the tensor.
    """

    model_types: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)
    read: Callable[[dict[str, Any]], EncoderConfig]
    names: Mapping[str, Part]


class EncoderSource:
    """The weights of an encoder under canonical names."""

    def __init__(self, family: Family, content: dict[str, Any], weights: Weights) -> None:
        self._family, self._weights = family, weights
        self.config = family.read(content)
        self._require_sizes()

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def tensor(self, name: str) -> Array:
        """As float32. Raises BundleError if the model lacks it."""
        found = self._find(name)
        if found is None:
            raise BundleError(f"The model has no tensor for {name}; its files are not complete.")
        stored, part = found
        values = self._weights.tensor(stored)
        rows = len(values)
        return values[rows * part.start // part.of : rows * part.stop // part.of]

    def _require_sizes(self) -> None:
        """Raises ValueError for a size that is not positive, BundleError for a matrix that has not the stated sizes."""
        config = self.config
        if min(config.layers, config.hidden, config.heads, config.ffn, config.vocab, config.longest) < 1:
            raise ValueError("a size is not positive")
        require_positions(config.ropes, config.head_size)
        queries, keys = config.heads * config.head_size, config.key_heads * config.head_size
        positions = config.first_position + config.longest
        sizes = {"words.weight": (config.vocab, config.hidden), "positions.weight": (positions, config.hidden)}
        for index in range(config.layers):
            sizes |= {
                f"{index}.q.weight": (queries, config.hidden),
                f"{index}.k.weight": (keys, config.hidden),
                f"{index}.v.weight": (keys, config.hidden),
                f"{index}.out.weight": (config.hidden, queries),
                f"{index}.up.weight": (config.ffn, config.hidden),
                f"{index}.down.weight": (config.hidden, config.ffn),
            }
        if self.has(f"{config.layers}.up.weight"):
            raise ValueError(f"the weights have more than {config.layers} layers")
        for name, size in sizes.items():
            if (found := self._find(name)) is not None and self._size(*found) != size:
                raise BundleError(
                    f"{found[0]} has other sizes than config.json states for it, {size[0]} x {size[1]}. Download the "
                    "model again."
                )

    def _size(self, stored: str, part: Part) -> tuple[int, ...]:
        rows, *columns = self._weights.shape(stored) or (0,)
        return (rows * part.stop // part.of - rows * part.start // part.of, *columns)

    def _find(self, name: str) -> tuple[str, Part] | None:
        base, _, kind = name.rpartition(".")
        layer, _, rest = base.partition(".")
        key = f"{{i}}.{rest}" if layer.isdigit() else base
        part = self._family.names.get(key)
        if part is None:
            return None
        stored = part.name.replace("{i}", layer)
        candidates = (f"{prefix}{stored}.{kind}" for prefix in self._family.prefixes)
        return next(((each, part) for each in candidates if each in self._weights), None)


def activation_of(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise BundleError(f"The activation {name!r} is not supported.")
    return _ACTIVATIONS[name]


def is_classifier(content: dict[str, Any]) -> bool:
    """True for a cross-encoder. Raises BundleError for a classifier of several classes."""
    names = [name for name in content.get("architectures") or [] if name.endswith("ForSequenceClassification")]
    if not names:
        return False
    labels = int(content.get("num_labels") or len(content.get("id2label") or {}) or 2)
    if labels != 1:
        raise BundleError(f"{names[0]} has {labels} classes; only cross-encoders with one score are supported.")
    return True
