"""Ollama's wire format as msgspec structs. Requests: unknown fields are ignored, null means absent."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from gateway.routes.openai_api.wire import ToolDefinition
from gateway.routes.wire import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    Count,
    Json,
    StopString,
    TokenLogprobs,
    TopLogprobs,
)
from gateway.sampling import MAX_INT, with_wire_fields

Effort = Literal["low", "medium", "high"]


# ---- requests ------------------------------------------------------------------------------------------------------


@with_wire_fields("ollama")
class Options(Struct, kw_only=True):
    """The options that change the answer. Options about memory and threads are ignored: the config has them."""

    unused: ClassVar[frozenset[str]] = frozenset(
        (
            "num_ctx",
            "num_keep",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "num_thread",
            "numa",
            "low_vram",
            "f16_kv",
            "use_mmap",
            "use_mlock",
            "vocab_only",
            "logits_all",
        )
    )
    num_predict: Annotated[int, Meta(ge=-2, le=MAX_INT)] | None = None  # negative: up to the context length
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None


class OllamaRequest(Struct, kw_only=True):
    """The fields that /api/chat and /api/generate share."""

    model: Annotated[str, Meta(min_length=1)]
    keep_alive: float | str | None = None  # seconds or a duration: "5m"; the model is unloaded after it
    stream: bool | None = None  # absent means true
    format: Literal["", "json"] | Json | None = None
    options: Options | None = None
    think: bool | Effort | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    truncate: bool | None = None  # False: refuse a conversation that is too long; else leave out its oldest turns


class CalledFunction(Struct, kw_only=True):
    name: str
    arguments: Json = field(default_factory=dict)


class OllamaCall(Struct, kw_only=True):
    """A tool call in a request or a reply. Without an id, `id` is omitted."""

    function: CalledFunction
    id: str | UnsetType = UNSET


class OllamaMessage(Struct, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatRequest(OllamaRequest, kw_only=True):
    messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None


class OllamaGenerateRequest(OllamaRequest, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    # not supported: an error that names the field if it is set
    images: list[Any] | None = None
    template: str | None = None
    context: list[int] | None = None


class EmbeddingFields(Struct, kw_only=True):
    """The fields that /api/embed and /api/embeddings share."""

    unused: ClassVar[frozenset[str]] = frozenset(["options"])  # no option changes a vector
    model: str | None = None
    keep_alive: float | str | None = None  # as in OllamaRequest


class EmbedRequest(EmbeddingFields, kw_only=True):
    input: str | list[str] | None = None
    truncate: bool | None = None  # False: refuse a text that is too long; else cut it
    dimensions: Count | None = None  # 0: all


class PromptRequest(EmbeddingFields, kw_only=True):
    """The older form, for one text."""

    prompt: str | None = None


class ShowRequest(Struct, kw_only=True):
    """Older clients send `name`."""

    unused: ClassVar[frozenset[str]] = frozenset(["verbose"])
    model: str | None = None
    name: str | None = None


# ---- replies -------------------------------------------------------------------------------------------------------


class OllamaReplyMessage(Struct, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCall] | UnsetType = UNSET


class OllamaReply(Struct, kw_only=True):
    """One line of a stream, or the whole reply. /api/chat sets `message`, /api/generate sets `response`.

    Only the last line has the fields after `done`. Durations are in nanoseconds.
    """

    model: str
    created_at: str
    message: OllamaReplyMessage | UnsetType = UNSET
    response: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    logprobs: list[TokenLogprobs] | UnsetType = UNSET
    done: bool = False
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class EmbedReply(Struct, kw_only=True):
    """One vector for each text. Durations are in nanoseconds."""

    embeddings: list[list[float]]
    model: str
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class PromptReply(Struct, kw_only=True):
    embedding: list[float]


class ModelDetails(Struct, kw_only=True):
    parent_model: str = ""
    format: str = "onnx"
    family: str = "onnx"
    families: list[str] = field(default_factory=lambda: ["onnx"])
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(Struct, kw_only=True):
    """An entry of /api/tags. `size`: bytes of memory in use, 0 before the model is loaded."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class RunningModel(Struct, kw_only=True):
    """An entry of /api/ps."""

    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaModels(Struct, kw_only=True):
    models: list[OllamaModel]


class RunningModels(Struct, kw_only=True):
    models: list[RunningModel]


class ShownModel(Struct, kw_only=True):
    modelfile: str
    parameters: str
    template: str
    details: ModelDetails
    model_info: dict[str, str | int]
    capabilities: list[str]
    modified_at: str


class ApiVersion(Struct, kw_only=True):
    version: str


class OllamaError(Struct, kw_only=True):
    error: str
