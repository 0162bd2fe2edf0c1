"""Reads genai_config.json, onnxruntime-genai's description of a model folder.

Unknown keys are ignored, because other exporters and newer versions write more keys.
"""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from gateway.bundles.json_file import read_json
from gateway.errors import BundleError
from gateway.sampling import valid

PIPELINE = "decoder-pipeline"  # the model type of a pipeline: several sessions for each step


class SessionOptions(Struct, frozen=True, kw_only=True):
    """The options of a session. `entries`: session configuration entries, for example "ep.context_enable": "1"."""

    intra_op_num_threads: int | None = None
    inter_op_num_threads: int | None = None
    graph_optimization_level: str | None = None
    #: provider in lower case ("qnn") -> its options; the preferred provider is first; empty: the CPU
    providers: dict[str, dict[str, str]] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)


class Inputs(Struct, frozen=True, kw_only=True):
    """The names of the graph's inputs. `%d` is replaced by the number of the layer."""

    input_ids: str = "input_ids"
    inputs_embeds: str = "inputs_embeds"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key_names: str = "past_key_values.%d.key"
    past_value_names: str = "past_key_values.%d.value"
    past_sequence_length: str = "past_sequence_length"
    current_sequence_length: str = "current_sequence_length"
    total_sequence_length: str = "total_sequence_length"


class Outputs(Struct, frozen=True, kw_only=True):
    """The names of the graph's outputs. `%d` is replaced by the number of the layer."""

    logits: str = "logits"
    present_key_names: str = "present.%d.key"
    present_value_names: str = "present.%d.value"


class SlidingWindow(Struct, frozen=True, kw_only=True):
    """A prompt runs in windows of `window_size` tokens. `alignment`: "left" pads at the end, "right" at the start."""

    window_size: int
    pad_value: int = 0  # the content of an empty cache
    alignment: Literal["left", "right"] = "right"
    slide_inputs: bool = True
    slide_key_value_cache: bool = True  # False: the graph writes new rows into the cache in place


class Stage(Struct, frozen=True, kw_only=True):
    """One graph of a pipeline. Stages run in order. An output is passed to later stages by its name."""

    filename: str
    name: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    output_names_forwarder: dict[str, str] = field(default_factory=dict)  # output -> its name in later stages
    run_on_prompt: bool = True
    run_on_token_gen: bool = True
    is_lm_head: bool = False  # runs only after the last window of a prompt
    reset_session_idx: int = -1  # the stage whose session closes before this one runs; -1: none
    session_options: SessionOptions = SessionOptions()


class DecoderConfig(Struct, frozen=True, kw_only=True):
    """A decoder: `filename` names its single graph, or `stages` are its pipeline."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_size: int
    hidden_size: int = 0
    num_attention_heads: int = 0
    filename: str = ""
    session_options: SessionOptions = SessionOptions()
    inputs: Inputs = Inputs()
    outputs: Outputs = Outputs()
    sliding_window: SlidingWindow | None = None
    stages: tuple[Stage, ...] = ()


#: For a model whose files recommend nothing. docs/models.md has the measurement.
UNKNOWN_SAMPLING: dict[str, float] = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05}


class Search(Struct, frozen=True, kw_only=True):
    """The sampling defaults of the model. None: the file does not set the value."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_length: int | None = None
    past_present_share_buffer: bool = False

    @property
    def recommended(self) -> dict[str, float]:
        """The sampling parameters for a request that does not choose, by the name of the key in config.toml."""
        if self.do_sample is False:
            return {"temperature": 0.0}
        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        return valid({name: value for name in names if (value := getattr(self, name)) is not None}) or UNKNOWN_SAMPLING


class GenaiConfig(Struct, frozen=True, kw_only=True):
    """The whole file. `model_type` is the name of an architecture, or "decoder-pipeline"."""

    model_type: str
    vocab_size: int
    context_length: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    tokenizer_dir: str
    decoder: DecoderConfig
    search: Search


def read_genai_config(folder: Path) -> GenaiConfig:
    """Read the file in `folder`. Raises BundleError if it is missing, is not JSON, or has a missing or wrong value."""
    content = read_json(folder / "genai_config.json", _File, missing="so it is not a model bundle")
    try:
        config = _config(content)
    except msgspec.ValidationError as error:
        raise BundleError(f"{folder.name}: genai_config.json cannot be read: {error}.") from error
    for name in (config.tokenizer_dir, config.decoder.filename, *(stage.filename for stage in config.decoder.stages)):
        check_inside(folder, name)
    return config


def check_inside(folder: Path, name: str) -> None:
    """Raises BundleError if `name` is a path outside the bundle in `folder`, because a bundle can be hostile.

    The folders `context-*`, `batch-*` and `verify-*` of a bundle may use files of the bundle that contains them.
    """
    is_inner = (
        folder.name.startswith(("context-", "batch-", "verify-")) and (folder.parent / "genai_config.json").is_file()
    )
    bundle = folder.parent if is_inner else folder
    if not Path(os.path.normpath(folder / name)).is_relative_to(os.path.normpath(bundle)):
        raise BundleError(f"{folder.name}: {PureWindowsPath(name).name!r} lies outside the bundle's folder.")


class _Model(Struct, kw_only=True):
    """The table `model` of the file."""

    type: str
    vocab_size: int
    context_length: int
    decoder: dict[str, Any]
    eos_token_id: int | list[int] = []
    bos_token_id: int | None = None
    pad_token_id: int | list[int] | None = None  # AI Hub writes the list of end tokens
    tokenizer_dir: str = ""


class _File(Struct, kw_only=True):
    model: _Model
    search: Search = Search()


def _config(content: _File) -> GenaiConfig:
    model = content.model
    if min(model.vocab_size, model.context_length) < 1:
        raise msgspec.ValidationError("vocab_size and context_length must be at least 1")
    return GenaiConfig(
        model_type=model.type,
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        eos_ids=_ids(model.eos_token_id),
        bos_id=model.bos_token_id,
        pad_id=next(iter(_ids(model.pad_token_id)), None),
        tokenizer_dir=_posix(model.tokenizer_dir),
        decoder=_decoder(model.decoder),
        search=content.search,
    )


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value or ())


def _decoder(raw: dict[str, Any]) -> DecoderConfig:
    options = msgspec.convert(raw.get("session_options") or {}, dict[str, Any])
    stages = [
        _stage(name, stage, options)
        for part in _as_list(raw.get("pipeline"))
        for name, stage in msgspec.convert(part, dict[str, dict[str, Any]]).items()
    ]
    own = {"session_options": _session_options(options), "stages": stages}
    decoder = msgspec.convert(_with_posix_name(raw) | own, DecoderConfig, from_attributes=True)
    if not decoder.filename and not stages:
        raise msgspec.ValidationError("decoder has neither a `filename` nor a `pipeline`")
    return decoder


def _as_list(pipeline: Any) -> list[Any]:
    if pipeline is None:
        return []
    return pipeline if isinstance(pipeline, list) else [pipeline]


def _stage(name: str, raw: dict[str, Any], inherited: dict[str, Any]) -> Stage:
    own = msgspec.convert(raw.get("session_options"), dict[str, Any] | None)
    options = inherited | (own or {}) if own is None or raw.get("inherit_session_options") else own
    return msgspec.convert(
        _with_posix_name(raw) | {"name": name, "session_options": _session_options(options)},
        Stage,
        from_attributes=True,
    )


def _with_posix_name(raw: dict[str, Any]) -> dict[str, Any]:
    name = raw.get("filename")
    return raw | {"filename": _posix(name)} if isinstance(name, str) else raw


def _posix(path: str) -> str:
    """Exporters on Windows write backslashes."""
    return path.replace("\\", "/")


def _session_options(raw: dict[str, Any]) -> SessionOptions:
    """Split the table into the fields that genai knows, the providers' options, and all other entries."""
    providers = {
        name.lower(): {key: str(value) for key, value in options.items() if not isinstance(value, dict)}
        for provider in msgspec.convert(raw.get("provider_options") or [], list[dict[str, dict[str, Any]]])
        for name, options in provider.items()
    }
    entries = {key: value for key, value in raw.items() if isinstance(value, str) and key not in _NAMED_OPTIONS}
    return msgspec.convert(raw | {"providers": providers, "entries": entries}, SessionOptions)


_NAMED_OPTIONS = {"log_id", "enable_profiling", "graph_optimization_level", "custom_ops_library"}
