"""Anthropic's wire format as msgspec structs. Requests: unknown fields are ignored, null means absent."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from gateway.routes.wire import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    Json,
    Limit,
    StopString,
    ToolName,
)
from gateway.sampling import with_wire_fields

# ---- requests ------------------------------------------------------------------------------------------------------


class ContentBlock(Struct, kw_only=True):
    """A block of any type. `parse.py` checks which fields the type requires."""

    type: str
    text: str | None = None
    thinking: str | None = None
    # tool_use
    id: str | None = None
    name: str | None = None
    input: Json | None = None
    # tool_result
    tool_use_id: str | None = None
    content: str | list[ContentBlock] | Json | None = None
    # document, search_result, tool_reference
    source: str | Json | None = None
    title: str | None = None
    tool_name: str | None = None


class InputMessage(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class AnthropicTool(Struct, kw_only=True):
    """A tool of the client, or one that Anthropic defines: its `type` has a date, and it is left out."""

    name: ToolName | None = None
    type: str | None = None
    description: str | None = None
    input_schema: Json | None = None
    strict: bool | None = None


class AnthropicToolChoice(Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, kw_only=True):
    type: str


class OutputFormat(Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: Json


class OutputConfig(Struct, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Struct, kw_only=True):
    """The fields that make the prompt."""

    #: They change no answer: who sends it, and what is cached.
    unused: ClassVar[frozenset[str]] = frozenset(["metadata", "service_tier", "cache_control", "inference_geo"])
    model: str
    messages: Annotated[list[InputMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[ContentBlock] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


@with_wire_fields("anthropic")
class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: Limit
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None


# ---- replies -------------------------------------------------------------------------------------------------------


class TextBlock(Struct, tag="text", kw_only=True):
    text: str = ""


class ThinkingBlock(Struct, tag="thinking", kw_only=True):
    thinking: str = ""
    signature: str = ""  # the gateway does not sign


class ToolUseBlock(Struct, tag="tool_use", kw_only=True):
    id: str
    name: str
    input: Json


ReplyBlock = TextBlock | ThinkingBlock | ToolUseBlock


class AnthropicUsage(Struct, kw_only=True):
    """The prompt has `input_tokens` + `cache_read_input_tokens` tokens. Cache writes are not counted."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class AnthropicMessage(Struct, tag="message", kw_only=True):
    id: str
    model: str
    content: list[ReplyBlock]
    usage: AnthropicUsage
    role: Literal["assistant"] = "assistant"
    stop_reason: str | None = None
    stop_sequence: str | None = None


class TextPiece(Struct, tag="text_delta"):
    text: str


class ThinkingPiece(Struct, tag="thinking_delta"):
    thinking: str


class InputPiece(Struct, tag="input_json_delta"):
    partial_json: str


class MessageStart(Struct, tag="message_start"):
    message: AnthropicMessage


class Ping(Struct, tag="ping"):
    pass


class BlockStart(Struct, tag="content_block_start"):
    index: int
    content_block: ReplyBlock


class BlockDelta(Struct, tag="content_block_delta"):
    index: int
    delta: TextPiece | ThinkingPiece | InputPiece


class BlockStop(Struct, tag="content_block_stop"):
    index: int


class StopDelta(Struct, kw_only=True):
    stop_reason: str
    stop_sequence: str | None = None


class MessageDelta(Struct, tag="message_delta"):
    delta: StopDelta
    usage: AnthropicUsage


class MessageStop(Struct, tag="message_stop"):
    pass


StreamEvent = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class TokenCount(Struct, kw_only=True):
    input_tokens: int


class AnthropicErrorDetail(Struct, kw_only=True):
    type: str
    message: str


class AnthropicError(Struct, tag="error", kw_only=True):
    error: AnthropicErrorDetail
