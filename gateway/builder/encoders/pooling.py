"""How a vector is made of the hidden states: modules.json, 1_Pooling and the other files of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.builder.encoders.config import Activation, activation_of
from gateway.builder.sources.safetensors_file import Weights
from gateway.bundles.encoder.bundle import Pooling
from gateway.bundles.json_file import read_json, read_optional_object
from gateway.errors import BundleError

_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_NAMES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_T = TypeVar("_T", bound=Struct)
_DOCUMENT = ("document", "passage", "corpus")


class Dense(Struct, frozen=True, kw_only=True):
    """A linear layer after the pooling. `weight`: (out, in)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: Activation | None


class _Module(Struct):
    """One of modules.json. `path`: of its folder."""

    type: str
    path: str


class _Lengths(Struct):
    """sentence_bert_config.json."""

    max_seq_length: float | None = None
    do_lower_case: bool | None = None


class _Prompts(Struct):
    """config_sentence_transformers.json."""

    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None


class SentenceSettings(Struct, frozen=True, kw_only=True):
    """The files of sentence-transformers in one folder."""

    pooling: Pooling = "mean"
    normalised: bool = False
    dense: tuple[Dense, ...] = ()
    longest: int | None = None
    lower_case: bool = False
    prefixes: dict[str, str] = {}


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Without the files, the mean of the hidden states, as sentence-transformers does. Raises BundleError."""
    own = _read_optional(folder / "sentence_bert_config.json", _Lengths)
    settings: dict[str, Any] = {}
    if (folder / "modules.json").is_file():
        modules = read_json(folder / "modules.json", list[_Module])
        settings = _modules(folder, [(each.type.rpartition(".")[2], each.path) for each in modules])
    longest = own.max_seq_length or read_optional_object(folder / "tokenizer_config.json").get("model_max_length")
    return SentenceSettings(
        **settings,
        longest=int(longest) if isinstance(longest, int | float) and 1 <= longest < 1 << 20 else None,
        lower_case=bool(own.do_lower_case),
        prefixes=_prefixes(_read_optional(folder / "config_sentence_transformers.json", _Prompts)),
    )


def _read_optional(path: Path, kind: type[_T]) -> _T:
    return read_json(path, kind) if path.is_file() else kind()


def _modules(folder: Path, modules: list[tuple[str, str]]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for kind, path in modules:
        match kind:
            case "Transformer":
                pass
            case "Pooling":
                settings["pooling"] = _pooling(read_optional_object(folder / path / "config.json"))
            case "Dense":
                settings["dense"] = (*settings.get("dense", ()), _dense(folder / path))
            case "Normalize":
                settings["normalised"] = True
            case _:
                raise BundleError(f"{folder.name}: modules.json has a {kind} layer, which is not supported.")
    return settings


def _pooling(content: dict[str, Any]) -> Pooling:
    if content.get("include_prompt") is False:
        raise BundleError("A pooling that leaves out the tokens of the prompt is not supported.")
    named = content.get("pooling_mode")
    if isinstance(named, str):
        modes = [_NAMES.get(named)]
    else:
        on = [name for name, value in content.items() if name.startswith("pooling_mode_") and value]
        modes = [_MODES.get(name) for name in on]
    if len(modes) != 1 or modes[0] is None:
        raise BundleError(f"Only one pooling of {', '.join(_NAMES)} is supported, not {named or content}.")
    return modes[0]


def _dense(folder: Path) -> Dense:
    content, weights = read_optional_object(folder / "config.json"), Weights(folder)
    if "linear.weight" not in weights or len(weights.shape("linear.weight")) != 2:
        raise BundleError(f"{folder.name} has no matrix linear.weight; its files are not complete.")
    activation = str(content.get("activation_function", "torch.nn.modules.linear.Identity")).rpartition(".")[2].lower()
    return Dense(
        weight=weights.tensor("linear.weight"),
        bias=weights.tensor("linear.bias") if "linear.bias" in weights else None,
        activation=None if activation == "identity" else activation_of(activation),
    )


def _prefixes(content: _Prompts) -> dict[str, str]:
    prompts = {name: prompt or "" for name, prompt in (content.prompts or {}).items()}
    document = next((prompts[name] for name in _DOCUMENT if name in prompts), "")
    default = prompts.get(content.default_prompt_name or "", "")
    found = {"": default, "query": prompts.get("query", ""), "document": document}
    return {purpose: prefix for purpose, prefix in found.items() if prefix}
