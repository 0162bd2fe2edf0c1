"""OpenAI's wire format of chats, as msgspec structs with OpenAI's field names.

Requests: unknown fields are ignored, null means absent, ranges are part of the type, so the decoder enforces them.
Replies: a field that is sometimes omitted has the type `... | UnsetType`, one that can be null `... | None`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.routes.wire import (
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    Count,
    Json,
    Limit,
    StopString,
    TokenLogprobs,
    ToolName,
    TopLogprobs,
)
from gateway.sampling import with_wire_fields

# ---- requests ------------------------------------------------------------------------------------------------------


class StreamOptions(Struct, kw_only=True):
    unused: ClassVar[frozenset[str]] = frozenset(["include_obfuscation", "continuous_usage_stats"])
    include_usage: bool | None = None


class JsonSchema(Struct, kw_only=True):
    name: str | None = None  # for OpenAI; programs use the names of generic classes: "Page[Item]"
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    type: str
    json_schema: JsonSchema | None = None
    schema: Json | None = None  # llama.cpp: a schema with type "json_object"


class StructuredOutputs(Struct, kw_only=True):
    """vLLM's field for constrained decoding; exactly one member may be set."""

    json: Json | str | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


@with_wire_fields("openai")
class GenerationFields(Struct, kw_only=True):
    """The fields that chat and text completions share, with the extra fields of vLLM and llama.cpp."""

    #: They change no answer: who sends it, what another server would store or cache, how it is sent or counted.
    unused: ClassVar[frozenset[str]] = frozenset(
        (
            "user",
            "store",
            "metadata",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "cache_prompt",
            "return_progress",
            "timings_per_token",
            "id_slot",
            "extra_headers",
            "timeout",
        )
    )
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    service_tier: str | None = None
    response_format: ResponseFormat | None = None
    # vLLM and llama.cpp
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Json | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    guided_grammar: str | None = None
    json_schema: Json | None = None
    grammar: str | None = None


class ContentPart(Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Struct, kw_only=True):
    name: str
    arguments: str | Json | None = None  # an object: as Ollama's clients and some frameworks keep it


class CustomCall(Struct, kw_only=True):
    """A call of a tool whose input is any text."""

    name: str
    input: str | None = None


class CallMade(Struct, kw_only=True):
    """A tool call in an assistant message that the client sends back. Without an id it gets one."""

    id: str | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class ChatMessage(Struct, kw_only=True):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart | str] | None = None  # LangChain writes texts among the parts
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None  # a text is `reasoning_content` under the name that some servers use
    tool_calls: list[CallMade] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None  # the older form of `tool_calls`


class FunctionDefinition(Struct, kw_only=True):
    name: ToolName
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ToolDefinition(Struct, kw_only=True):
    type: str = "function"
    function: FunctionDefinition | None = None
    # the flat form of the Responses API
    name: ToolName | None = None
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class FunctionName(Struct, kw_only=True):
    name: str


class AllowedTool(Struct, kw_only=True):
    type: str = "function"
    function: FunctionName | None = None


class AllowedTools(Struct, kw_only=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1)]


class NamedChoice(Struct, kw_only=True):
    """`{"type": "function", ...}`, `{"type": "allowed_tools", ...}`, or the type of a tool that is left out.

    Other APIs write the name next to the type, and the modes as types: `{"type": "any"}`.
    """

    type: str
    function: FunctionName | None = None
    name: str | None = None
    allowed_tools: AllowedTools | None = None


class PredictedContent(Struct, kw_only=True):
    type: Literal["content"]
    content: str | list[ContentPart | str]


class ChatRequest(GenerationFields, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    prediction: PredictedContent | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: Json | None = None
    modalities: list[str] | None = None
    # the older form of `tools` and `tool_choice`
    functions: Annotated[list[FunctionDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None


# ---- replies -------------------------------------------------------------------------------------------------------


class PromptTokensDetails(Struct, kw_only=True):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    audio_tokens: int = 0


class CompletionUsage(Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChoiceLogprobs(Struct, kw_only=True):
    content: list[TokenLogprobs]
    refusal: None = None


class FunctionPiece(Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str = ""


class CallPiece(Struct, kw_only=True):
    """A tool call in a reply. `index` only in chunks; there, `id` and `type` only with the call's first piece."""

    function: FunctionPiece
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ReplyMessage(Struct, kw_only=True):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET
    function_call: FunctionPiece | UnsetType = UNSET  # of a request with `functions`


class Choice(Struct, kw_only=True):
    index: int
    message: ReplyMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str
    object: Literal["chat.completion"] = "chat.completion"


class Delta(Struct, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET
    function_call: FunctionPiece | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(Struct, kw_only=True):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: CompletionUsage | UnsetType | None = UNSET
