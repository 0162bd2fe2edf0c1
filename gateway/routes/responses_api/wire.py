"""Requests of OpenAI's Responses API as msgspec structs: unknown fields are ignored, null means absent."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.routes.wire import MAX_MESSAGES, MAX_TOOLS, Json, Limit, ToolName, TopLogprobs
from gateway.sampling import with_wire_fields

MAX_METADATA = 16  # OpenAI's limit

Mode = Literal["none", "auto", "required"]
InputRole = Literal["user", "assistant", "system", "developer"]


# ---- requests ------------------------------------------------------------------------------------------------------


class InputPart(Struct, kw_only=True):
    type: str = ""
    text: str | None = None
    refusal: str | None = None


class InputItem(Struct, kw_only=True):
    """An item of any type, including those of an earlier response. Without a type it is a message.

    `parse_items.py` checks which fields the type requires.
    """

    type: str | None = None
    id: str | None = None
    # message, reasoning
    role: str | None = None
    content: str | list[InputPart] | Json | None = None
    summary: list[InputPart] | None = None
    # calls and their outputs
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | Json | None = None
    output: Any = None
    input: str | None = None  # custom_tool_call
    action: Any = None  # local_shell_call, shell_call, computer_call
    operation: Any = None  # apply_patch_call


class ResponseTool(Struct, kw_only=True):
    """A function, or a namespace of functions."""

    type: str = "function"
    name: ToolName | None = None
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None
    tools: list[ResponseTool] | UnsetType | None = UNSET


class AllowedTool(Struct, kw_only=True):
    type: str
    name: str | None = None


class ResponseToolChoice(Struct, kw_only=True, omit_defaults=True):
    """`{"type": "function", ...}` or `{"type": "allowed_tools", ...}`."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[AllowedTool], Meta(min_length=1)] | None = None


class TextFormat(Struct, kw_only=True, omit_defaults=True):
    type: str
    name: str | None = None
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseText(Struct, kw_only=True, omit_defaults=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(Struct, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None


@with_wire_fields("responses")
class ResponsesRequest(Struct, kw_only=True):
    #: They change no answer of this gateway.
    unused: ClassVar[frozenset[str]] = frozenset(
        ["user", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "stream_options", "client_metadata"]
    )
    input: str | Annotated[list[InputItem], Meta(max_length=MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Limit | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Mode | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: Reasoning | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=MAX_METADATA)] | None = None
    service_tier: str | None = None
    # not supported: an error that names the field if it is set
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
