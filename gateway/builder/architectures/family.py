"""What a family of models is: how its configuration is read, and where its tensors are in each file format.

`Settings` are the content of a Hugging Face config.json. A GGUF file's metadata comes in the same terms (`GGUF_KEYS`),
so that a family reads both in one function. Names of tensors: see `sources/source.py` for the canonical ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from gateway.builder.architectures.rope import read_rope, require_positions, rotated_part
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, HEAD, TransformerConfig
from gateway.errors import BundleError

Settings = Mapping[str, Any]

#: key in a GGUF file, after the architecture's name -> key in config.json
GGUF_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
#: part of a layer -> its name in a GGUF file, for every family
_GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "attention_output_norm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp_output_norm": "post_ffw_norm",
}
_GGUF_NAMES = {EMBEDDING: "token_embd.weight", FINAL_NORM: "output_norm.weight", HEAD: "output.weight"}
_MAX_LAYERS = 1024
_LARGEST = 1 << 24
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class Stored(Struct, frozen=True, kw_only=True):
    """Where a tensor is: the name of the stored one, and its rows `start` to `stop`. `stop` None: all rows."""

    name: str
    start: int = 0
    stop: int | None = None

    def rows(self, part: slice) -> slice:
        """The stored rows of some rows of the tensor."""
        stop = self.start + part.stop if part.stop is not None else None
        ends = [end for end in (stop, self.stop) if end is not None]
        return slice(self.start + part.start, min(ends, default=None))


class Family(Struct, frozen=True, kw_only=True):
    """One family of models.

    Args:
        name: `model_type` in config.json.
        gguf: `general.architecture` in a GGUF file. "": there is none, or another family reads it.
        read: the fields of TransformerConfig that differ from Llama's.
        defaults: settings that config.json may omit.
        names: canonical part of a layer -> part in a Hugging Face folder, if they differ.
        fused: stored part -> the canonical parts whose rows it contains, in order. In both formats.
        scales: canonical name or part -> a factor of the tensor, its bias included.
        norm_offset: is added to each norm weight of a Hugging Face folder.
        partly_rotated: `partial_rotary_factor` counts. Other families ignore it, as transformers does.
        interleaved: in a GGUF file, the rows of q and k are in the order of interleaved rotary pairs.
    """

    name: str
    gguf: str = ""
    read: Callable[[Settings], Mapping[str, Any]] = lambda settings: {}
    defaults: Mapping[str, Any] = {}
    names: Mapping[str, str] = {}
    fused: Mapping[str, tuple[str, ...]] = {}
    scales: Callable[[Settings], Mapping[str, float]] = lambda settings: {}
    norm_offset: float = 0.0
    partly_rotated: bool = False
    interleaved: bool = False

    def config(self, settings: Settings, *, tied: bool, eos_ids: tuple[int, ...]) -> TransformerConfig:
        """Raises KeyError with the key in config.json that is missing, TypeError, ValueError or BundleError."""
        settings = {**self.defaults, **settings}
        heads, hidden = int(settings["num_attention_heads"]), int(settings["hidden_size"])
        layers = int(settings["num_hidden_layers"])
        if not 0 < layers <= _MAX_LAYERS:
            raise ValueError(f"num_hidden_layers is {layers}")
        fields: dict[str, Any] = {
            "architecture": self.name,
            "layers": layers,
            "hidden": hidden,
            "heads": heads,
            "kv_heads": int(settings.get("num_key_value_heads") or heads),
            "head_dim": (head_dim := int(settings.get("head_dim") or hidden // heads)),
            "ffn": int(settings["intermediate_size"]),
            "vocab": (vocab := int(settings["vocab_size"])),
            "rms_eps": float(settings["rms_norm_eps"]),
            "context_length": int(settings["max_position_embeddings"]),
            "tied_embeddings": tied,
            "eos_ids": tuple(index for index in eos_ids if 0 <= index < vocab),
            "bos_id": _token(settings.get("bos_token_id"), vocab),
            "pad_id": _token(settings.get("pad_token_id"), vocab),
            "activation": self._activation(settings.get("hidden_act", "silu")),
        }
        _require_bounds(fields)
        fields |= self.read(settings)
        if "ropes" not in fields:
            dim = rotated_part(settings, head_dim) if self.partly_rotated else head_dim
            fields["ropes"] = (read_rope(settings, dim),)
        config = TransformerConfig(**fields)
        _require_sizes(config)
        require_positions(config.ropes, config.head_dim)
        return config

    def _activation(self, name: str) -> str:
        if name not in _ACTIVATIONS:
            raise BundleError(
                f"Models of architecture '{self.name} with {str(name)[:100]}' are not supported. Only those with "
                f"{', '.join(_ACTIVATIONS)} are. Use one of them, or serve the model with its own program as a model "
                "with engine = 'upstream'."
            )
        return _ACTIVATIONS[name]

    def hugging_face(self, name: str, config: TransformerConfig) -> Stored:
        """Where a tensor is in a Hugging Face folder."""
        if not name.startswith("model.layers."):
            return Stored(name=name)
        _, _, index, rest = name.split(".", 3)
        stored = self._part(rest, config)
        part, kind = stored.name.rsplit(".", 1)
        name = f"model.layers.{index}.{self.names.get(part, part)}.{kind}"
        return Stored(name=name, start=stored.start, stop=stored.stop)

    def gguf_file(self, name: str, config: TransformerConfig) -> Stored:
        """Where a tensor is in a GGUF file."""
        if name in _GGUF_NAMES:
            return Stored(name=_GGUF_NAMES[name])
        _, _, index, rest = name.split(".", 3)
        stored = self._part(rest, config)
        part, kind = stored.name.rsplit(".", 1)
        return Stored(name=f"blk.{index}.{_GGUF_PARTS[part]}.{kind}", start=stored.start, stop=stored.stop)

    def _part(self, rest: str, config: TransformerConfig) -> Stored:
        """The stored part and its rows: "self_attn.k_proj.weight" -> "self_attn.qkv_proj.weight", its rows of k."""
        part, kind = rest.rsplit(".", 1)
        for stored, parts in self.fused.items():
            if part in parts:
                start = sum(_rows(before, config) for before in parts[: parts.index(part)])
                return Stored(name=f"{stored}.{kind}", start=start, stop=start + _rows(part, config))
        return Stored(name=rest)


def _token(index: Any, vocab: int) -> int | None:
    """None for the id of a token that does not exist, as -1."""
    return index if isinstance(index, int) and 0 <= index < vocab else None


def _require_bounds(fields: Mapping[str, Any]) -> None:
    """Raises ValueError for a number that no model has. Families make lists of some sizes."""
    for field in ("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context_length"):
        if not 0 < fields[field] < _LARGEST:
            raise ValueError(f"the size `{field}` is {str(fields[field])[:100]}")
    if not 0 <= fields["rms_eps"] < 1:
        raise ValueError(f"rms_norm_eps is {fields['rms_eps']}")


def _require_sizes(config: TransformerConfig) -> None:
    """Raises ValueError if a list does not have one entry for each layer, or a multiplier is no number."""
    if not all(map(math.isfinite, (config.embedding_scale, config.attention_scale))):
        raise ValueError("a multiplier is not finite")
    for values in (config.windows, config.rope_kinds):
        if len(values) not in (0, config.layers):
            raise ValueError(f"a list of layers has {len(values)} entries instead of {config.layers}")
    if min(config.windows, default=0) < 0:
        raise ValueError("a window is negative")


def _rows(part: str, config: TransformerConfig) -> int:
    match part:
        case "self_attn.q_proj":
            return config.heads * config.head_dim
        case "self_attn.k_proj" | "self_attn.v_proj":
            return config.kv_heads * config.head_dim
        case _:
            return config.ffn
